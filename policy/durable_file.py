"""Files that are replaced whole: a reader, or a crash at any moment, finds the old or the new one.

Every file that a process of this project writes goes through here, so that a full disk, a quota or
a missing permission is told everywhere in the same words: what could not be written, where, how
much room it needs, and how much there is.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from policy.errors import FileNotWritten


def replace_file(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a file beside its final name, then rename it; what cannot be written leaves no trace.

    Args:
        path: the file; its folder is made if it is not there.
        content: all that it will hold.
        durable: whether to return only when it would survive a loss of power. It costs a flush of
            the disk; without it the file is replaced as a whole all the same.

    Raises:
        FileNotWritten: the old file, if there was one, is still there.
    """
    # Several processes may write the same file: each has a name of its own until the renaming.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with writing(path, len(content)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()  # half a file would take the room that is missing
            raise
        if durable:
            _flush_folder(path.parent)


@contextlib.contextmanager
def writing(path: Path, needed_bytes: int) -> Iterator[None]:
    """Say in one sentence what could not be written, if the block raises an OSError.

    Args:
        path: the file or folder that is written.
        needed_bytes: room that it needs; 0 for opening alone.

    Raises:
        FileNotWritten: in place of the OSError.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise FileNotWritten(path, needed_bytes, reason, _free_bytes(path)) from error


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free_bytes(path: Path) -> int | None:
    """Room on the file system of the nearest folder that exists; None if it cannot be told."""
    for folder in path.parents:
        with contextlib.suppress(OSError):
            return shutil.disk_usage(folder).free
    return None
