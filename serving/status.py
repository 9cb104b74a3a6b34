"""From errors to gRPC statuses: one table, one interceptor.

What a caller did wrong is said in full. What went wrong inside is logged, not sent.
"""

import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Final, TypeAlias

import grpc
import structlog
from google.protobuf.message import DecodeError
from grade.v1.refused_pb2 import Reason

from policy.errors import (
    BadInput,
    BrokerError,
    CheckpointRefused,
    DataError,
    FileNotWritten,
    GradeError,
    InvalidContext,
    LedgerGap,
    PolicyFileRefused,
    SchemaError,
    SettingsError,
    SnapshotRefused,
    StreamError,
    TooLittleData,
    TopicError,
    reason_name,
)
from serving import metrics
from stream.connection import KafkaUnreachable

log = structlog.get_logger(__name__)


Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class NotServing(GradeError):  # noqa: N818 - named for what it is, as its neighbours are
    """The server has not yet looked for the newest parameters, or it is stopping."""


STATUS: Final[dict[type[GradeError], grpc.StatusCode]] = {
    InvalidContext: grpc.StatusCode.INVALID_ARGUMENT,
    NotServing: grpc.StatusCode.UNAVAILABLE,
    # The rest no request can cause; should one surface all the same, the server is at fault.
    BadInput: grpc.StatusCode.INTERNAL,
    SettingsError: grpc.StatusCode.INTERNAL,
    SchemaError: grpc.StatusCode.INTERNAL,
    SnapshotRefused: grpc.StatusCode.INTERNAL,
    CheckpointRefused: grpc.StatusCode.INTERNAL,
    LedgerGap: grpc.StatusCode.INTERNAL,
    StreamError: grpc.StatusCode.INTERNAL,
    TopicError: grpc.StatusCode.INTERNAL,
    BrokerError: grpc.StatusCode.INTERNAL,
    DataError: grpc.StatusCode.INTERNAL,
    TooLittleData: grpc.StatusCode.INTERNAL,
    FileNotWritten: grpc.StatusCode.INTERNAL,
    PolicyFileRefused: grpc.StatusCode.INTERNAL,
    KafkaUnreachable: grpc.StatusCode.INTERNAL,
}

REASON_KEY: Final = "grade-reason"
"""Of the trailing metadata: the name of a `Reason` in the contract, such as REASON_NOT_FINITE."""

INTERNAL_MESSAGE: Final = "internal error; the server's log has it"


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """Status and message for a caller.

    >>> status_of(InvalidContext("context.policy", "'a'", "''", Reason.REASON_UNKNOWN_POLICY))
    (<StatusCode.INVALID_ARGUMENT: (3, 'invalid argument')>,
     "context.policy: expected 'a', seen ''")
    """
    code = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), None)
    if code is None or code is grpc.StatusCode.INTERNAL:
        return grpc.StatusCode.INTERNAL, INTERNAL_MESSAGE
    return code, str(error)


class StatusInterceptor(grpc.aio.ServerInterceptor):
    """Applies the table to a service's unary calls and measures them.

    A call whose deadline passes in the queue is skipped by gRPC itself.

    Args:
        service: full name of the service; others, such as health, pass as they are.
        policies: names of the policies that are served; the metrics know no others.
    """

    def __init__(self, service: str, policies: Collection[str]) -> None:
        self._prefix = f"/{service}/"
        self._policies = frozenset(policies)
        self._wrapped: dict[str, tuple[Any, Handler]] = {}

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Wrap the handler of a call, once for each method."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        known = self._wrapped.get(method)
        if known is not None and known[0] is handler:
            return known[1]
        if handler is None or handler.unary_unary is None or not method.startswith(self._prefix):
            return handler
        # gRPC answers INTERNAL to bytes that do not decode, so they are decoded in here.
        decode = handler.request_deserializer or bytes
        wrapped: Handler = grpc.unary_unary_rpc_method_handler(
            self._guarded(handler.unary_unary, decode, method.removeprefix(self._prefix)),
            response_serializer=handler.response_serializer,
        )
        self._wrapped[method] = handler, wrapped
        return wrapped

    def _guarded(
        self,
        answer: Callable[[Any, Any], Awaitable[Any]],
        decode: Callable[[bytes], Any],
        method: str,
    ) -> Callable[[bytes, Any], Awaitable[Any]]:
        policies, called = self._policies, metrics.CALLS.called

        async def guarded(sent: bytes, context: Any) -> Any:
            began, policy = time.perf_counter(), ""
            try:
                request = _decoded(sent, decode)
                named = request.context if method == "Sample" else request
                policy = named.policy if named.policy in policies else ""
                response = await answer(request, context)
            except Exception as error:
                code, message = status_of(error)
                called(policy, method, code, time.perf_counter() - began)
                if code is grpc.StatusCode.INTERNAL:
                    log.exception("rpc_failed", method=method, policy=policy)
                elif isinstance(error, BadInput):
                    reason = reason_name(error.reason)
                    metrics.CALLS_REFUSED.labels(policy=policy, reason=reason).inc()
                    context.set_trailing_metadata(((REASON_KEY, Reason.Name(error.reason)),))
                await context.abort(code, message)
            called(policy, method, grpc.StatusCode.OK, time.perf_counter() - began)
            return response

        return guarded


def _decoded(sent: bytes, decode: Callable[[bytes], Any]) -> Any:
    try:
        return decode(sent)
    except DecodeError as error:
        raise InvalidContext(
            "request",
            "a serialized message of the call, its texts in UTF-8",
            f"{len(sent)} bytes that are none ({error})",
            Reason.REASON_UNDECODABLE,
        ) from None
