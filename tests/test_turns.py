"""Tests that are marked `alone` have the machine for themselves, and nobody waits for ever."""

import threading
from pathlib import Path

from tests.turns import one_at_a_time, turn


class Room:
    """Counts who is in it, from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.inside = 0
        self.most = 0

    def enter(self) -> None:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)

    def leave(self) -> None:
        with self._lock:
            self.inside -= 1


def test_ordinary_tests_share_the_room(tmp_path: Path) -> None:
    both = threading.Barrier(2, timeout=20)

    def ordinary() -> None:
        with turn(tmp_path, alone=False):
            both.wait()  # broken unless both are in at the same time

    threads = [threading.Thread(target=ordinary) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not both.broken


def test_a_test_that_must_be_alone_is_and_others_cannot_keep_it_out(tmp_path: Path) -> None:
    room, done = Room(), threading.Event()
    seen: list[int] = []

    def ordinary() -> None:
        while not done.is_set():
            with turn(tmp_path, alone=False):
                room.enter()
                room.leave()

    threads = [threading.Thread(target=ordinary) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        with turn(tmp_path, alone=True):
            seen.append(room.inside)
    done.set()
    for thread in threads:
        thread.join()
    assert seen == [0] * 20


def test_one_at_a_time(tmp_path: Path) -> None:
    room = Room()

    def work() -> None:
        for _ in range(50):
            with one_at_a_time(tmp_path, "broker"):
                room.enter()
                room.leave()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert room.most == 1
