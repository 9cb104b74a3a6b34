"""What `reconcile` found to differ, named so that a person can look it up."""

import hashlib
from typing import Any, NamedTuple

from google.protobuf.message import Message

_SHOWN = 80


class Difference(NamedTuple):
    """One record that is not what the logs and the settings yield."""

    topic: str
    partition: int
    offset: int | None
    """Offset in the topic; None where a record is missing."""
    field: str
    expected: str
    seen: str

    def __str__(self) -> str:
        place = "" if self.offset is None else f" offset {self.offset}"
        return (
            f"{self.topic} partition {self.partition}{place}: {self.field}: "
            f"expected {self.expected}, seen {self.seen}"
        )


def first_difference(expected: Message, seen: Message, path: str = "") -> tuple[str, str, str]:
    """The first field, in the order of field numbers, in which two messages of a type differ.

    Returns:
        Its path, and its value in both, shortened. The path is `encoding` if every field is equal.

    >>> from grade.v1.reward_group_pb2 import Cursor, Standing
    >>> first_difference(
    ...     Standing(prev=3, done=Cursor(impression_offset=4)),
    ...     Standing(prev=3, done=Cursor(impression_offset=5)),
    ... )
    ('done.impression_offset', '4', '5')
    """
    for field in expected.DESCRIPTOR.fields:
        here = f"{path}{field.name}"
        left, right = getattr(expected, field.name), getattr(seen, field.name)
        if field.has_presence and expected.HasField(field.name) != seen.HasField(field.name):
            was = "set" if expected.HasField(field.name) else "unset"
            return here, was, "unset" if was == "set" else "set"
        if field.is_repeated:
            if len(left) != len(right):
                return here, f"{len(left)} entries", f"{len(right)} entries"
            pairs = [
                (f"{here}[{at}]", *pair) for at, pair in enumerate(zip(left, right, strict=True))
            ]
        else:
            pairs = [(here, left, right)]
        for name, one, other in pairs:
            if field.message_type is not None:
                if _bytes(one) != _bytes(other):
                    return first_difference(one, other, f"{name}.")
            elif one != other and not (one != one and other != other):  # NaN equals itself here
                return name, shown(one), shown(other)
    return f"{path}encoding", "one", "another of the same fields"


def shown(value: Any) -> str:
    """A value, fit for a sentence."""
    if isinstance(value, bytes) and len(value) > _SHOWN // 2:
        return f"{len(value)} bytes of sha256 {hashlib.sha256(value).hexdigest()}"
    text = value.hex() if isinstance(value, bytes) else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"


def _bytes(message: Message) -> bytes:
    return message.SerializeToString(deterministic=True)
