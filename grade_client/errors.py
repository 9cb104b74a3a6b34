"""What can go wrong for a caller. All are `policy.errors.GradeError`."""

from typing import Any, Self

import grpc
from grade.v1.refused_pb2 import Reason

from policy.errors import BadInput, GradeError

REASON_KEY = "grade-reason"
"""Of a call's trailing metadata: under it the server says why it refused the call."""


class PolicyCallFailed(GradeError):  # noqa: N818 - named for what happened, as its neighbours are
    """The policy server did not answer a call, or refused it.

    Args:
        call: name of the call.
        code: gRPC status; UNAVAILABLE and DEADLINE_EXCEEDED may pass, INVALID_ARGUMENT will not.
        details: what the server said.
        reason: why the server refused what was asked; unspecified if something else went wrong.
    """

    def __init__(
        self,
        call: str,
        code: grpc.StatusCode,
        details: str,
        reason: "Reason.ValueType" = Reason.REASON_UNSPECIFIED,
    ) -> None:
        super().__init__(f"{call}: {code.name}: {details}")
        self.code = code
        self.details = details
        self.reason = reason

    @classmethod
    def of(cls, call: str, error: Any) -> Self:
        """The failure that gRPC has raised, of a synchronous or an asynchronous call.

        Args:
            call: name of the call.
            error: what was raised: a `grpc.RpcError` that is a `grpc.Call` too, or a
                `grpc.aio.AioRpcError`.
        """
        reason = Reason.REASON_UNSPECIFIED
        for key, value in error.trailing_metadata() or ():
            # A newer server may know reasons that this client does not.
            if key == REASON_KEY and value in Reason.DESCRIPTOR.values_by_name:
                reason = Reason.Value(value)
        return cls(call, error.code(), error.details() or "", reason)


class EventRefused(BadInput):
    """An event was not sent, because the join could not use it or too many are on their way.

    Args:
        message: what was expected and what was seen.
        reason: why the join could not use it; unspecified if it could.
    """

    def __init__(
        self, message: str, reason: "Reason.ValueType" = Reason.REASON_UNSPECIFIED
    ) -> None:
        super().__init__(message, reason)


class DeliveryFailed(GradeError):  # noqa: N818 - as above
    """Kafka did not confirm events that were sent."""
