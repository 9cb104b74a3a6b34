"""`grade up` as an operator uses it: it comes up, heals, stops cleanly and comes up again."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from cli.system import free_ports
from monitor.watch import ask
from stream.broker import LocalBroker
from tests.kafka import await_until
from tests.system import EXAMPLE


def up(folder: Path, ports: list[int]) -> subprocess.Popen[str]:
    broker, serve, *admin = ports
    environment = {
        "GRADE_BOOTSTRAP_SERVERS": f"127.0.0.1:{broker}",
        "GRADE_SERVE_PORT": str(serve),
        "GRADE_SERVE_ADMIN_PORT": str(admin[0]),
        "GRADE_JOIN_ADMIN_PORT": str(admin[1]),
        "GRADE_LEARN_ADMIN_PORT": str(admin[2]),
        "GRADE_PARTITIONS": "2",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "cli.main", "up", "--schema", str(EXAMPLE), "--data-dir", "data"],
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_broker(folder: Path) -> None:
    """SIGKILL the broker and wait for its successor."""
    pid = LocalBroker(folder).status().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await_until(lambda: LocalBroker(folder).status().pid not in (None, pid), 60, "a new broker")


def is_ok(port: int) -> bool:
    return (ask(port, "/health") or {}).get("status") == "ok"


def test_up_heals_stops_cleanly_and_comes_up_again(tmp_path: Path) -> None:
    ports = free_ports(5)
    serve, *_ = admin = ports[2:]
    for round_number in (1, 2):
        running = up(tmp_path, ports)
        try:
            await_until(lambda: all(map(is_ok, admin)), 120, "a healthy system")
            if round_number == 1:
                log = (tmp_path / "data" / "grade.log").read_text("utf-8")
                assert "serve_ready" in log
                kill_broker(tmp_path / "data" / "kafka")
        finally:
            running.send_signal(signal.SIGINT)
            out, _ = running.communicate(timeout=60)
        assert running.returncode == 0, out
        assert "Traceback" not in out
        assert ask(serve, "/health") is None
        assert not LocalBroker(tmp_path / "data" / "kafka").status().running


def test_a_missing_schema_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", "up", "--schema", "none.toml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "none.toml" in done.stderr
    assert "Traceback" not in done.stderr
