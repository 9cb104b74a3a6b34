"""Every error that this project raises on purpose.

GradeError
├── BadInput             something that came in cannot be used; `reason` says why
│   ├── SettingsError        a setting is missing, malformed or out of range
│   ├── SchemaError          a policy's schema file is wrong
│   ├── InvalidContext       a request's context is not what the schema asks for
│   ├── SnapshotRefused      published parameters may not be served
│   ├── CheckpointRefused    a checkpoint file may not be loaded
│   ├── PolicyFileRefused    a policy file may not be imported
│   ├── DataError            a data folder is not in the documented format
│   └── EventRefused         an event cannot be sent (grade_client/errors.py)
├── LedgerGap            reward groups are missing between two records
├── StreamError          what was found in a topic contradicts the design
│   ├── OffsetGap        a log's offsets are not contiguous
│   ├── RetentionLost    records that are needed have been deleted
│   └── BoundaryError    a record was written under other settings
├── TopicError           a topic is missing or has a wrong setting
├── BrokerError          the local Kafka broker cannot be run
├── FileNotWritten       a disk does not take a file
├── TooLittleData        what was logged does not tell what was asked
├── KafkaUnreachable     no broker answers (stream/connection.py)
├── PolicyCallFailed     the policy server refused or did not answer (grade_client/errors.py)
└── DeliveryFailed       events were given up (grade_client/errors.py)

Messages say what was expected and what was seen.
"""

from pathlib import Path
from typing import Final

from grade.v1.refused_pb2 import Reason

LONGEST_SEEN: Final = 200
"""Characters of something that came in that are quoted in a message."""


class GradeError(Exception):
    """Base of all errors raised on purpose; its text is fit to be shown to a person."""


class BadInput(GradeError):  # noqa: N818 - named for what it is, as its neighbours are
    """Something that came in cannot be used.

    Args:
        message: what was expected and what was seen, for people.
        reason: why, for programs.
    """

    def __init__(self, message: str, reason: "Reason.ValueType") -> None:
        super().__init__(message)
        self.reason = reason


class SettingsError(BadInput):
    """A setting is missing, malformed or out of range.

    Args:
        message: the setting, what was expected and what was seen.
        reason: why; most often a value or choice that is not allowed.
    """

    def __init__(
        self, message: str, reason: "Reason.ValueType" = Reason.REASON_OUT_OF_RANGE
    ) -> None:
        super().__init__(message, reason)


class SchemaError(BadInput):
    """A policy's schema file is wrong."""


class InvalidContext(BadInput):
    """A request's context is not what the schema asks for.

    Args:
        field: path of the field in the request, such as ``context.features``.
        expected: what would have been right.
        seen: what was there.
        reason: why.
    """

    def __init__(self, field: str, expected: str, seen: str, reason: "Reason.ValueType") -> None:
        super().__init__(f"{field}: expected {expected}, seen {seen}", reason)
        self.field = field
        self.expected = expected
        self.seen = seen


class SnapshotRefused(BadInput):
    """Published parameters may not be served.

    Args:
        check: name of the check that failed, such as ``checksum``.
        expected: what would have been right.
        seen: what was there.
        reason: why.
    """

    def __init__(self, check: str, expected: str, seen: str, reason: "Reason.ValueType") -> None:
        super().__init__(f"snapshot refused by {check}: expected {expected}, seen {seen}", reason)
        self.check = check
        self.expected = expected
        self.seen = seen


class CheckpointRefused(BadInput):
    """A checkpoint file may not be loaded."""


class PolicyFileRefused(BadInput):
    """A policy file may not be imported."""


class LedgerGap(GradeError):  # noqa: N818 - as above
    """Reward groups are missing between two records of one partition."""


class StreamError(GradeError):
    """What was found in a topic contradicts the design."""


class OffsetGap(StreamError):  # noqa: N818 - as above
    """A log's offsets are not contiguous.

    Args:
        log: name of the log.
        expected: the offset that should have come next.
        seen: the offset that came.
    """

    def __init__(self, log: str, expected: int, seen: int) -> None:
        super().__init__(f"{log}: expected offset {expected} next, seen {seen}")
        self.log = log
        self.expected = expected
        self.seen = seen


class RetentionLost(StreamError):  # noqa: N818 - as above
    """Records that are needed have been deleted by retention."""


class BoundaryError(StreamError):
    """A record was written under other settings, another schema or another computation."""

    reason: "Reason.ValueType" = Reason.REASON_OTHER_SETTINGS


class TopicError(GradeError):
    """A topic is missing or has a wrong setting."""


class BrokerError(GradeError):
    """The local Kafka broker cannot be run."""


class FileNotWritten(GradeError):  # noqa: N818 - as above
    """A disk does not take a file: it is full, a quota is used up, or a permission is missing.

    Args:
        path: the file or folder.
        needed_bytes: room that it needs; 0 if it could not even be opened.
        reason: what the operating system says.
        free_bytes: room on its file system; None if that is not known.
    """

    def __init__(
        self, path: Path, needed_bytes: int, reason: str, free_bytes: int | None = None
    ) -> None:
        free = "" if free_bytes is None else f" ({free_bytes:,} bytes free there)"
        wanted = f"write {needed_bytes:,} bytes" if needed_bytes else "open it for writing"
        super().__init__(f"{path}: expected to {wanted}, seen: {reason}{free}")
        self.path = path
        self.needed_bytes = needed_bytes
        self.why = reason


class TooLittleData(GradeError):  # noqa: N818 - as above
    """What was logged does not tell what was asked: too few units, or too little overlap."""


class DataError(BadInput):
    """A data folder is not in the documented format."""


def reason_name(reason: int) -> str:
    """A reason as metrics, logs and `grade redrive` call it; a number that a newer build knows.

    >>> reason_name(Reason.REASON_WRONG_KEY), reason_name(9999)
    ('wrong_key', 'reason_9999')
    """
    known = Reason.DESCRIPTOR.values_by_number.get(reason)
    return f"reason_{reason}" if known is None else known.name.removeprefix("REASON_").lower()


def cut(text: str) -> str:
    """Text that came in, as a message shows it.

    >>> cut("x" * 300)[-20:]
    'xxxxxx... (300 long)'
    """
    if len(text) <= LONGEST_SEEN:
        return text
    return f"{text[:LONGEST_SEEN]}... ({len(text)} long)"


def quoted(value: object) -> str:
    """Something that came in, as a message shows it, whatever it is.

    >>> quoted("feed"), quoted(7)
    ("'feed'", '7')
    """
    try:
        return cut(repr(value))
    except ValueError:
        # Python refuses to write whole numbers of more than some thousand digits.
        return f"one too long to be shown ({type(value).__name__})"
