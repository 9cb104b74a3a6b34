"""What can go wrong for a caller. All are `policy.errors.GradeError`."""

import grpc

from policy.errors import GradeError


class PolicyCallFailed(GradeError):  # noqa: N818 - named for what happened, as its neighbours are
    """The policy server did not answer a call, or refused it.

    Args:
        call: name of the call.
        code: gRPC status; UNAVAILABLE and DEADLINE_EXCEEDED may pass, INVALID_ARGUMENT will not.
        details: what the server said.
    """

    def __init__(self, call: str, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{call}: {code.name}: {details}")
        self.code = code
        self.details = details


class EventRefused(GradeError):  # noqa: N818 - as above
    """An event was not sent, because the join could not use it or too many are on their way."""


class DeliveryFailed(GradeError):  # noqa: N818 - as above
    """Kafka did not confirm events that were sent."""
