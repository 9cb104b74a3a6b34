"""From errors to gRPC statuses: one table, one interceptor.

What a caller did wrong is said in full. What went wrong inside is logged, not sent.
"""

import time
from collections.abc import Callable
from typing import Any, Final

import grpc
import structlog

from policy.errors import (
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
    """

    def __init__(self, service: str) -> None:
        self._prefix = f"/{service}/"

    def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Wrap the handler of a call."""
        handler = continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or handler.unary_unary is None or not method.startswith(self._prefix):
            return handler
        return grpc.unary_unary_rpc_method_handler(
            _guarded(handler.unary_unary, method.removeprefix(self._prefix)),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


def _guarded(
    answer: Callable[[Any, grpc.ServicerContext], Any], method: str
) -> Callable[[Any, grpc.ServicerContext], Any]:
    def guarded(request: Any, context: grpc.ServicerContext) -> Any:
        began = time.perf_counter()
        try:
            response = answer(request, context)
        except Exception as error:
            code, message = status_of(error)
            metrics.observe_rpc(method, code, time.perf_counter() - began)
            if code is grpc.StatusCode.INTERNAL:
                log.exception("rpc_failed", method=method)
            context.abort(code, message)
        metrics.observe_rpc(method, grpc.StatusCode.OK, time.perf_counter() - began)
        return response

    return guarded
