"""The supervisor keeps its children running and stops them cleanly."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cli import supervisor
from cli.supervisor import ProcessPlan, Supervisor


def wait_for(what: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "condition not reached in time"
        time.sleep(0.02)  # polling a child process


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_killed_process_is_started_again_and_stop_ends_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_DELAY_S", 0.05)
    # `config` ends at once by itself: each end is a restart.
    plans = [ProcessPlan("ends", ["config"], {"GRADE_PARTITIONS": "3"})]
    with Supervisor(plans, tmp_path / "log") as running:

        def restarted() -> bool:
            running.keep_running()
            return running.restarts >= 1

        wait_for(restarted)
    assert running.process_ids() == {}
    assert b"partitions" in (tmp_path / "log").read_bytes()


def test_stop_goes_from_last_to_first_and_kills_what_does_not_listen(tmp_path: Path) -> None:
    plans = [ProcessPlan("deaf", ["config"], {})]
    running = Supervisor(plans, tmp_path / "log", grace_s=0.3)
    with running:
        child = running._children[0]
        assert child.process is not None
        child.process.wait(20)
        # A process that ignores SIGTERM takes the place of the one that ended.
        ready = tmp_path / "ready"
        child.process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import signal, time, pathlib; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
                f"pathlib.Path({str(ready)!r}).touch(); time.sleep(60)",
            ]
        )
        pid = child.process.pid
        wait_for(ready.exists)
        assert alive(pid)
    assert not alive(pid)


def test_backoff_doubles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Supervisor([ProcessPlan("ends", ["config"], {})], tmp_path / "log") as running:
        child = running._children[0]
        for expected in (1.0, 2.0, 4.0):
            if child.process is None:
                child.due_at = 0.0
                running.keep_running()
            assert child.process is not None
            child.process.send_signal(signal.SIGKILL)
            child.process.wait()
            running.keep_running()
            assert child.delay_s == expected
