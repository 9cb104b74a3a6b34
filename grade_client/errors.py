"""What can go wrong for a caller. All are `policy.errors.GradeError`."""

from typing import Self

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
    def of(cls, call: str, error: "grpc.Call | grpc.aio.AioRpcError") -> Self:
        """The failure that gRPC has raised, of a synchronous or an asynchronous call.

        Args:
            call: name of the call.
            error: what was raised.
        """
        metadata = {str(key): value for key, value in error.trailing_metadata() or ()}
        reason = metadata.get(REASON_KEY)
        # A newer server may know reasons that this client does not.
        known = isinstance(reason, str) and reason in Reason.keys()  # noqa: SIM118 - no mapping
        return cls(
            call,
            error.code(),
            error.details() or "",
            Reason.Value(reason) if known else Reason.REASON_UNSPECIFIED,
        )


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
