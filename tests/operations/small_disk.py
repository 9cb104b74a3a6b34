"""A disk that a test can fill: a tmpfs of its own where that is permitted, else a stand-in.

The stand-in lowers the size of files that given processes may write (RLIMIT_FSIZE): their next
write fails in the kernel as on a full disk, with EFBIG in place of ENOSPC. Every test that uses a
disk tells which of the two it had.
"""

import contextlib
import os
import resource
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

STAND_IN = "SMALL_DISK_STAND_IN"
"""Environment variable that, if set, has tests use the stand-in where a tmpfs is permitted too."""

_CHUNK_BYTES = 1 << 20


@dataclass
class SmallDisk:
    """A folder whose disk can be filled and freed."""

    folder: Path
    kind: Literal["tmpfs", "stand-in"]
    reason: str
    """What the operating system says when it is full."""
    _limited: dict[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def _ballast(self) -> Path:
        return self.folder / "ballast"

    def fill(self, processes: Iterable[int]) -> None:
        """Leave no room.

        Args:
            processes: those that write here; the stand-in knows no others.
        """
        if self.kind == "tmpfs":
            with contextlib.suppress(OSError), self._ballast.open("ab", buffering=0) as file:
                while file.write(b"\0" * _CHUNK_BYTES):
                    pass
            assert shutil.disk_usage(self.folder).free == 0
            return
        for process in processes:
            self._limited[process] = resource.prlimit(process, resource.RLIMIT_FSIZE)
            _, hard = self._limited[process]
            resource.prlimit(process, resource.RLIMIT_FSIZE, (1, hard))

    def free(self) -> None:
        """Make room again."""
        if self.kind == "tmpfs":
            self._ballast.unlink(missing_ok=True)
        while self._limited:
            process, limits = self._limited.popitem()
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(process, resource.RLIMIT_FSIZE, limits)


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[SmallDisk]:
    """A disk at a folder, which is made.

    Args:
        folder: where.
        megabytes: its size, if it is a real one.
    """
    folder.mkdir()
    mounted = not os.environ.get(STAND_IN) and _as_root(
        "mount", "-t", "tmpfs", "-o", f"size={megabytes}m,uid={os.getuid()}", "grade", str(folder)
    )
    try:
        yield (
            SmallDisk(folder, "tmpfs", "No space left on device")
            if mounted
            else SmallDisk(folder, "stand-in", "File too large")
        )
    finally:
        if mounted:
            # Lazily: what a test that failed left open must not keep the folder.
            assert _as_root("umount", "--lazy", str(folder))


def _as_root(*command: str) -> bool:
    """Run a command as root if that needs no password; whether it succeeded."""
    prefix = [] if os.geteuid() == 0 else ["sudo", "--non-interactive"]
    try:
        done = subprocess.run([*prefix, *command], capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0
