"""From errors to gRPC statuses: one table, one interceptor.

What a caller did wrong is said in full. What went wrong inside is logged, not sent.
"""

import time
from collections.abc import Callable
from typing import Any, Final

import grpc
import structlog
from google.protobuf.message import DecodeError
from grade.v1.refused_pb2 import Reason

from policy.errors import (
    BadInput,
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
    reason_name,
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
        # gRPC answers INTERNAL to bytes that do not decode, so they are decoded in here.
        decode = handler.request_deserializer or bytes
        return grpc.unary_unary_rpc_method_handler(
            _guarded(handler.unary_unary, decode, method.removeprefix(self._prefix)),
            response_serializer=handler.response_serializer,
        )


def _guarded(
    answer: Callable[[Any, grpc.ServicerContext], Any], decode: Callable[[bytes], Any], method: str
) -> Callable[[bytes, grpc.ServicerContext], Any]:
    def guarded(sent: bytes, context: grpc.ServicerContext) -> Any:
        began = time.perf_counter()
        try:
            response = answer(_decoded(sent, decode), context)
        except Exception as error:
            code, message = status_of(error)
            metrics.observe_rpc(method, code, time.perf_counter() - began)
            if code is grpc.StatusCode.INTERNAL:
                log.exception("rpc_failed", method=method)
            elif isinstance(error, BadInput):
                metrics.CALLS_REFUSED.labels(reason=reason_name(error.reason)).inc()
                context.set_trailing_metadata(((REASON_KEY, Reason.Name(error.reason)),))
            context.abort(code, message)
        metrics.observe_rpc(method, grpc.StatusCode.OK, time.perf_counter() - began)
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
