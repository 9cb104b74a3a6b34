"""The last good snapshot on disk: what a server starts from while Kafka is away.

The file is a line that names the format, the sha256 of the rest, and a serialized
ParameterSnapshot.
"""

import hashlib
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError
from grade.v1.parameters_pb2 import ParameterSnapshot
from grade.v1.refused_pb2 import Reason

from policy.durable_file import replace_file
from policy.errors import SnapshotRefused
from stream.codec import encode

FORMAT: Final = b"grade last good snapshot, format 1\n"
_DIGEST_BYTES: Final = 32


def write_snapshot(path: Path, snapshot: ParameterSnapshot) -> None:
    """Replace the file, so that a crash at any moment leaves the old or the new one.

    Args:
        path: the file; its folder is made if it is not there.
        snapshot: a snapshot that was checked.

    Raises:
        FileNotWritten: the disk does not take it; the old file stays.
    """
    content = encode(snapshot)
    replace_file(path, FORMAT + hashlib.sha256(content).digest() + content)


def read_snapshot(path: Path) -> ParameterSnapshot | None:
    """Read the file.

    Returns:
        the snapshot; None if there is no such file.

    Raises:
        SnapshotRefused: by the check `file`: it cannot be read or is damaged.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SnapshotRefused(
            "file", f"{path} to be readable", str(error.strerror), Reason.REASON_UNAVAILABLE
        ) from None
    digest, body = content[len(FORMAT) :][:_DIGEST_BYTES], content[len(FORMAT) + _DIGEST_BYTES :]
    if not content.startswith(FORMAT):
        raise SnapshotRefused(
            "file",
            f"{path} to begin with {FORMAT!r}",
            repr(content[: len(FORMAT)]),
            Reason.REASON_UNDECODABLE,
        )
    if hashlib.sha256(body).digest() != digest:
        raise SnapshotRefused(
            "file",
            f"{path} to match its checksum",
            f"{len(content)} bytes that do not",
            Reason.REASON_CHECKSUM,
        )
    try:
        return ParameterSnapshot.FromString(body)
    except DecodeError as error:
        raise SnapshotRefused(
            "file",
            f"{path} to hold a ParameterSnapshot",
            str(error),
            Reason.REASON_UNDECODABLE,
        ) from None
