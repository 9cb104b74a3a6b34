"""Checks of one value of an input record; what fails becomes a refusal with its reason."""

from collections.abc import Collection
from math import isfinite
from typing import NamedTuple

from grade.v1.refused_pb2 import Reason

from policy.names import has_control_character

LATEST_MS = 4_102_444_800_000
"""Midnight of 1 January 2100 UTC. What is later was written in another unit."""

MOST_MEMBERS = 1_024
"""Of a decision's group."""

_LONGEST_SHOWN = 60


class Refusal(NamedTuple):
    """Why a record is not valid."""

    reason: "Reason.ValueType"
    message: str


class Invalid(Exception):  # noqa: N818 - a verdict, not an error
    """Carries a refusal out of the checks.

    Args:
        reason: why.
        what: the field.
        expected: what would have been right.
        seen: what was there.
    """

    def __init__(self, reason: "Reason.ValueType", what: str, expected: str, seen: object) -> None:
        super().__init__()
        self.refusal = Refusal(reason, f"{what}: expected {expected}, seen {seen}")


def shown(value: str | bytes | None) -> str:
    """A value as it is shown in a message: quoted, and cut if it is long.

    >>> shown("a" * 100)
    "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa... (100 long)"
    """
    if value is None:
        return "none"
    quoted = ascii(value[:_LONGEST_SHOWN])
    if len(quoted) <= _LONGEST_SHOWN:
        return quoted
    return f"{quoted[:_LONGEST_SHOWN]}... ({len(value)} long)"


def check_name(field: str, name: str, what: str, longest: int) -> None:
    """Refuse a name that is empty, too long, or has a control character in it.

    Args:
        field: the field.
        name: its value.
        what: what it names, such as `a request's name`.
        longest: in bytes.
    """
    if not name:
        raise Invalid(Reason.REASON_MISSING_FIELD, field, what, "none")
    # No character has more than 4 bytes.
    if len(name) > longest // 4 and (size := len(name.encode())) > longest:
        raise Invalid(
            Reason.REASON_OUT_OF_RANGE, field, f"at most {longest} bytes", f"{size} bytes"
        )
    if has_control_character(name):
        raise Invalid(Reason.REASON_BAD_NAME, field, "no control characters", shown(name))


def check_time(field: str, time_ms: int) -> None:
    """Refuse a time that cannot be milliseconds since 1970; 0 is one that was not given."""
    if not 0 <= time_ms <= LATEST_MS:
        raise Invalid(
            Reason.REASON_OUT_OF_RANGE,
            field,
            f"milliseconds since 1970, at most {LATEST_MS}",
            time_ms,
        )


def check_finite(name: str, numbers: Collection[float]) -> None:
    """Refuse a NaN or an infinity."""
    # An infinite or undefined term makes the sum so; only sums of huge doubles do without one.
    if not isfinite(sum(numbers)):
        for index, number in enumerate(numbers):
            if not isfinite(number):
                raise Invalid(
                    Reason.REASON_NOT_FINITE, f"{name}[{index}]", "a finite number", number
                )


def check_length(name: str, seen: int, expected: int) -> None:
    """Refuse a list of another length."""
    if seen != expected:
        raise Invalid(Reason.REASON_WRONG_DIMENSION, name, f"{expected} numbers", seen)


def rows_of(name: str, length: int, columns: int) -> int:
    """How many rows a list is that holds a table row by row; refuses half a row."""
    rows, rest = divmod(length, columns)
    if rest:
        raise Invalid(Reason.REASON_WRONG_DIMENSION, name, f"a multiple of {columns}", length)
    return rows


def check_unique(name: str, what: str, values: list[str] | list[int]) -> None:
    """Refuse a list in which something stands twice."""
    if len(set(values)) == len(values):
        return
    seen: set[str | int] = set()
    for value in values:
        if value in seen:
            twice = shown(value) if isinstance(value, str) else value
            raise Invalid(Reason.REASON_REPEATED_ITEM, name, f"every {what} once", f"{twice} twice")
        seen.add(value)
