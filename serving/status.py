"""From errors to gRPC statuses: one table, one interceptor.

What a caller did wrong is said in full. What went wrong inside is logged, not sent.
"""

import time
from collections.abc import Callable, Collection
from typing import Any, Final

import grpc
import structlog
from grade.v1.policy_service_pb2 import SampleRequest

from policy.errors import (
    AnotherSchema,
    BrokerError,
    CheckpointRefused,
    DataError,
    GradeError,
    InvalidContext,
    LedgerGap,
    SchemaError,
    SettingsError,
    SnapshotRefused,
    StreamError,
    TopicError,
)
from serving import metrics
from stream.connection import KafkaUnreachable

log = structlog.get_logger(__name__)


class NotServing(GradeError):  # noqa: N818 - named for what it is, as its neighbours are
    """The server has not yet looked for the newest parameters, or it is stopping."""


STATUS: Final[dict[type[GradeError], grpc.StatusCode]] = {
    InvalidContext: grpc.StatusCode.INVALID_ARGUMENT,
    # Not the request is at fault but what its caller knows of the policy; a new description helps.
    AnotherSchema: grpc.StatusCode.FAILED_PRECONDITION,
    NotServing: grpc.StatusCode.UNAVAILABLE,
    # The rest no request can cause; should one surface all the same, the server is at fault.
    SettingsError: grpc.StatusCode.INTERNAL,
    SchemaError: grpc.StatusCode.INTERNAL,
    SnapshotRefused: grpc.StatusCode.INTERNAL,
    CheckpointRefused: grpc.StatusCode.INTERNAL,
    LedgerGap: grpc.StatusCode.INTERNAL,
    StreamError: grpc.StatusCode.INTERNAL,
    TopicError: grpc.StatusCode.INTERNAL,
    BrokerError: grpc.StatusCode.INTERNAL,
    DataError: grpc.StatusCode.INTERNAL,
    KafkaUnreachable: grpc.StatusCode.INTERNAL,
}

INTERNAL_MESSAGE: Final = "internal error; the server's log has it"


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """Status and message for a caller.

    >>> status_of(InvalidContext("context.policy", "'feed'", "''"))
    (<StatusCode.INVALID_ARGUMENT: (3, 'invalid argument')>,
     "context.policy: expected 'feed', seen ''")
    """
    code = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), None)
    if code is None or code is grpc.StatusCode.INTERNAL:
        return grpc.StatusCode.INTERNAL, INTERNAL_MESSAGE
    return code, str(error)


class StatusInterceptor(grpc.ServerInterceptor):
    """Applies the table to a service's unary calls and measures them.

    A call whose deadline passes in the queue is skipped by gRPC itself.

    Args:
        service: full name of the service; others, such as health, pass as they are.
        policies: names of the policies that are served; the metrics know no others.
    """

    def __init__(self, service: str, policies: Collection[str]) -> None:
        self._prefix = f"/{service}/"
        self._policies = frozenset(policies)
        self._wrapped: dict[str, tuple[Any, grpc.RpcMethodHandler[Any, Any]]] = {}

    def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Wrap the handler of a call, once for each method."""
        handler = continuation(handler_call_details)
        method = handler_call_details.method
        known = self._wrapped.get(method)
        if known is not None and known[0] is handler:
            return known[1]
        if handler is None or handler.unary_unary is None or not method.startswith(self._prefix):
            return handler
        wrapped = grpc.unary_unary_rpc_method_handler(
            _guarded(handler.unary_unary, method.removeprefix(self._prefix), self._policies),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
        self._wrapped[method] = handler, wrapped
        return wrapped


def _guarded(
    answer: Callable[[Any, grpc.ServicerContext], Any], method: str, policies: Collection[str]
) -> Callable[[Any, grpc.ServicerContext], Any]:
    def guarded(request: Any, context: grpc.ServicerContext) -> Any:
        began = time.perf_counter()
        policy = _policy_of(request)
        if policy not in policies:
            policy = ""
        try:
            response = answer(request, context)
        except Exception as error:
            code, message = status_of(error)
            metrics.CALLS.called(policy, method, code, time.perf_counter() - began)
            if code is grpc.StatusCode.INTERNAL:
                log.exception("rpc_failed", method=method, policy=policy)
            context.abort(code, message)
        metrics.CALLS.called(policy, method, grpc.StatusCode.OK, time.perf_counter() - began)
        return response

    return guarded


def _policy_of(request: Any) -> str:
    named = request.context if isinstance(request, SampleRequest) else request
    return str(named.policy)
