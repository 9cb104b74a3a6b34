"""One way in which something that comes in can be broken."""

from typing import Generic, NamedTuple, TypeVar

from grade.v1.refused_pb2 import Reason

Broken = TypeVar("Broken")


class Case(NamedTuple, Generic[Broken]):
    """A named way of being broken, and what must be said about it."""

    name: str
    broken: Broken
    """The broken thing, or what makes it."""
    reason: "Reason.ValueType"
    said: tuple[str, ...]
    """Fragments of the message: the place, what was expected, what was seen."""

    def __repr__(self) -> str:
        return self.name

    def check(self, reason: int, message: str) -> None:
        """Compare with how it was refused."""
        assert Reason.Name(reason) == Reason.Name(self.reason), message  # type: ignore[arg-type]  # any number
        for fragment in self.said:
            assert fragment in message, (fragment, message)
        assert "expected" in message
        assert "seen" in message
        assert len(message) < 2_000, len(message)


def named(case: "Case[Broken]") -> str:
    """For pytest's ids."""
    return case.name
