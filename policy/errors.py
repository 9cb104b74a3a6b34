"""Every error that this project raises on purpose.

GradeError
├── SettingsError        a setting is missing, malformed or out of range
├── SchemaError          a policy's schema file is wrong
├── InvalidContext       a request's context is not what the schema asks for
├── SnapshotRefused      published parameters may not be served
├── CheckpointRefused    a checkpoint file may not be loaded
├── LedgerGap            reward groups are missing between two records
├── StreamError          what was found in a topic contradicts the design
│   ├── OffsetGap        a log's offsets are not contiguous
│   ├── RetentionLost    records that are needed have been deleted
│   └── BoundaryError    a record was written under other settings
├── TopicError           a topic is missing or has a wrong setting
├── BrokerError          the local Kafka broker cannot be run
├── FileNotWritten       a disk does not take a file
├── KafkaUnreachable     no broker answers (stream/connection.py)
├── PolicyCallFailed     the policy server refused or did not answer (grade_client/errors.py)
├── EventRefused         an event cannot be sent (grade_client/errors.py)
├── DeliveryFailed       events were given up (grade_client/errors.py)
└── DataError            a data folder is not in the documented format

Messages say what was expected and what was seen.
"""

from pathlib import Path


class GradeError(Exception):
    """Base of all errors raised on purpose; its text is fit to be shown to a person."""


class SettingsError(GradeError):
    """A setting is missing, malformed or out of range."""


class SchemaError(GradeError):
    """A policy's schema file is wrong."""


class InvalidContext(GradeError):  # noqa: N818 - named for what it is, as its neighbours are
    """A request's context is not what the schema asks for.

    Args:
        field: path of the field in the request, such as ``context.features``.
        expected: what would have been right.
        seen: what was there.
    """

    def __init__(self, field: str, expected: str, seen: str) -> None:
        super().__init__(f"{field}: expected {expected}, seen {seen}")
        self.field = field
        self.expected = expected
        self.seen = seen


class SnapshotRefused(GradeError):  # noqa: N818 - as above
    """Published parameters may not be served.

    Args:
        check: name of the check that failed, such as ``checksum``.
        expected: what would have been right.
        seen: what was there.
    """

    def __init__(self, check: str, expected: str, seen: str) -> None:
        super().__init__(f"snapshot refused by {check}: expected {expected}, seen {seen}")
        self.check = check
        self.expected = expected
        self.seen = seen


class CheckpointRefused(GradeError):  # noqa: N818 - as above
    """A checkpoint file may not be loaded."""


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
        self.reason = reason


class DataError(GradeError):
    """A data folder is not in the documented format."""
