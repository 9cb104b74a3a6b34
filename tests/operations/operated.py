"""A running system on which operators work: traffic over many steps, and its books at any time."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cli.settings import environment_of
from cli.system import free_ports
from monitor.watch import ask
from stream.generations import read_generations
from stream.reconcile import ReconcileReport, TopicContent, reconcile
from tests.kafka import await_until
from tests.system import RunningSystem, Traffic

RATE = 60.0
"""Requests per second."""


@dataclass
class Operated:
    """A system, and all that was ever shown in it."""

    system: RunningSystem
    shown: int = 0
    """Impressions of earlier steps, each of which becomes one group."""
    failures: list[Any] = field(default_factory=list)
    """Requests that failed."""
    _steps: int = 0

    @contextmanager
    def load(self) -> Iterator[Traffic]:
        """Traffic for one step; no request of it may fail and no event may be given up."""
        self._steps += 1
        with Traffic(self.system, RATE, name=f"step-{self._steps}") as traffic:
            yield traffic
        self.shown += traffic.shown
        assert traffic.failures == []

    def balance(self, timeout_s: float = 90.0) -> ReconcileReport:
        """Wait until all is learned and served, then recompute everything beside what runs."""
        system = self.system
        system.await_applied(self.shown, timeout_s)
        report = reconcile(
            read_generations(system.connection, system.topics, system.schema.policy),
            TopicContent(system.connection, system.topics),
        )
        assert report.unconserved == []
        assert report.differences == []
        assert (report.versions.groups_lost, report.versions.groups_applied_twice) == (0, 0)
        assert report.groups == self.shown
        return report

    def replace(self, name: str) -> None:
        """SIGTERM a process and wait until its successor is healthy."""
        pid = self.system.supervisor.process_ids()[name]
        os.kill(pid, signal.SIGTERM)
        await_until(
            lambda: self.system.supervisor.process_ids().get(name, pid) != pid, 30, f"new {name}"
        )
        await_until(lambda: self.system.health(name).get("status") == "ok", 60, f"healthy {name}")


class Process:
    """A process of the system that the test itself starts and stops.

    Args:
        system: whose settings it has.
        arguments: the `grade` verb and its options.
        log_path: file that receives its output.
        admin_port: name of the setting of its admin port.
        changes: `GRADE_*` settings that differ.
    """

    def __init__(
        self,
        system: RunningSystem,
        arguments: list[str],
        log_path: Path,
        *,
        admin_port: str = "GRADE_LEARN_ADMIN_PORT",
        changes: Mapping[str, str] | None = None,
    ) -> None:
        [self.port] = free_ports(1)
        environment = {**environment_of(system.settings), **(changes or {})}
        self.log_path = log_path
        with log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cli.main", *arguments],
                env={**os.environ, **environment, admin_port: str(self.port)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def output(self) -> str:
        return self.log_path.read_text(encoding="utf-8")

    def health(self) -> dict[str, Any]:
        """What its /health answers; status "away" if it does not."""
        assert self.process.poll() is None, self.output
        return ask(self.port, "/health") or {"status": "away"}

    def await_ok(self) -> None:
        """Wait until it is healthy."""
        await_until(lambda: self.health()["status"] == "ok", 60, "health")

    def stop(self) -> int:
        """SIGTERM, unless it has ended; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()
            self.process.wait()


def checkpoints(system: RunningSystem, data_dir: Path | None = None) -> Path:
    """Folder of the learner's checkpoints."""
    return (data_dir or system.settings.data_dir) / "checkpoints" / system.settings.topic_prefix
