"""The learner's checkpoint folder: one owner at a time, and patience with a disk that is full."""

import fcntl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TextIO, TypeVar

import structlog

from policy import checkpoint
from policy.durable_file import writing
from policy.errors import FileNotWritten
from stream import learner_metrics as metrics
from stream.version_chain import ChainState

log = structlog.get_logger(__name__)

STANDBY_S = 0.2
"""How often a learner that stands by looks whether the folder is free."""

RETRY_S = (0.2, 5.0)
"""First and longest wait before a disk that refused is tried again."""

_T = TypeVar("_T")


class Stopped(Exception):  # noqa: N818 - not an error: the learner was asked to stop
    """The learner was asked to stop while it waited for Kafka, a disk or another learner."""


class CheckpointFolder:
    """Where one learner keeps its checkpoints.

    Args:
        folder: the folder; made if it is not there.
        keep: checkpoints that stay.
        stop: ends every wait.
    """

    def __init__(self, folder: Path, keep: int, stop: threading.Event) -> None:
        self._folder = folder
        self._keep = keep
        self._stop = stop
        self._lock: TextIO | None = None
        self.waits_for: str | None = None
        """What is waited for, in words; None while nothing is."""

    def own(self) -> None:
        """Wait until no other learner uses the folder; one that crashed holds it no longer.

        Raises:
            Stopped: the learner was asked to stop.
        """
        self._lock = self._until_written(self._open_lock)
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if self.waits_for is None:
                    self.waits_for = f"standing by: another learner uses {self._folder}"
                    log.warning("standing_by", folder=str(self._folder))
                if self._stop.wait(STANDBY_S):
                    raise Stopped from error
            else:
                self.waits_for = None
                return

    def write(self, state: ChainState) -> None:
        """Make a state durable, however long the disk refuses it.

        Raises:
            Stopped: the learner was asked to stop before the disk took it.
        """
        self._until_written(
            lambda: checkpoint.write(self._folder, state.tensors, state.metadata, keep=self._keep)
        )

    def release(self) -> None:
        """Let another learner have the folder."""
        if self._lock is not None:
            self._lock.close()

    def _open_lock(self) -> TextIO:
        path = self._folder / "lock"
        with writing(path, 0):
            self._folder.mkdir(parents=True, exist_ok=True)
            return path.open("w", encoding="utf-8")

    def _until_written(self, write: Callable[[], _T]) -> _T:
        wait_s, longest_s = RETRY_S
        while True:
            try:
                written = write()
            except FileNotWritten as error:
                self.waits_for = f"waiting for the disk: {error}"
                metrics.WRITES_REFUSED.inc()
                log.error("checkpoint_not_written", retry_s=wait_s, reason=str(error))
                if self._stop.wait(wait_s):
                    raise Stopped from error
                wait_s = min(wait_s * 2, longest_s)
            else:
                self.waits_for = None
                return written
