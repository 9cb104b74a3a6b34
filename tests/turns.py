"""Whose turn it is when several pytest workers share one machine.

A test that measures, or that needs the machine's cores, is marked `alone`: while it runs no worker
runs another one. Without pytest-xdist there is nothing to wait for.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def turn(folder: Path, *, alone: bool) -> Iterator[None]:
    """Wait until the test may run, and keep others waiting that may not run beside it.

    Args:
        folder: shared by all workers.
        alone: whether nothing else may run meanwhile.
    """
    with (folder / "queue.lock").open("w") as queue, (folder / "room.lock").open("w") as room:
        # Who waits for an empty room keeps the queue, so that nobody can slip in again and again.
        fcntl.flock(queue, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(queue, fcntl.LOCK_UN)
        yield


@contextmanager
def one_at_a_time(folder: Path, name: str) -> Iterator[None]:
    """Keep the other workers from doing the same meanwhile.

    Args:
        folder: shared by all workers.
        name: of what is done.
    """
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
