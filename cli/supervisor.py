"""Runs the system's processes as children: one log, restart with backoff, clean stop."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import structlog

from policy.durable_file import writing

log = structlog.get_logger(__name__)

FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 30.0
HEALTHY_AFTER_S = 30.0


@dataclass(frozen=True, slots=True)
class ProcessPlan:
    """One process that is to be kept running.

    Attributes:
        name: name in the log and in the live view.
        arguments: the `grade` verb and its options.
        environment: `GRADE_*` settings of this process.
        admin_port: where its /health answers.
    """

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    admin_port: int | None = None


@dataclass(slots=True)
class _Child:
    plan: ProcessPlan
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    delay_s: float = FIRST_DELAY_S
    due_at: float = 0.0
    restarts: int = 0


class Supervisor:
    """Starts processes in the order of their plans and stops them in the opposite one.

    A process that ends by itself is started again after a delay that doubles from 0.5 s to 30 s and
    is forgotten once the process has run for 30 s.

    Args:
        plans: what to run.
        log_path: file that receives the standard output and error of all of them.
        grace_s: how long a process may take to stop before it is killed.
    """

    def __init__(self, plans: Sequence[ProcessPlan], log_path: Path, grace_s: float = 10.0) -> None:
        self._children = [_Child(plan) for plan in plans]
        self._log_path = log_path
        self._grace_s = grace_s
        self._log: IO[bytes] | None = None

    def __enter__(self) -> Self:
        with writing(self._log_path, 0):
            self._log_path.parent.mkdir(parents=True, exist_ok=True)
            self._log = self._log_path.open("ab")
        try:
            for child in self._children:
                self._start(child)
        except BaseException:  # an interrupt too must not leave the first ones running
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def log_path(self) -> Path:
        """File with the output of every child."""
        return self._log_path

    @property
    def restarts(self) -> int:
        """How often a process had to be started again."""
        return sum(child.restarts for child in self._children)

    def process_ids(self) -> dict[str, int]:
        """Process id of each running child by its plan's name."""
        return {
            child.plan.name: child.process.pid
            for child in self._children
            if child.process is not None and child.process.poll() is None
        }

    def keep_running(self) -> None:
        """Start again what has ended and whose delay is over; call it about once a second."""
        now = time.monotonic()
        for child in self._children:
            if child.process is None:
                if now >= child.due_at:
                    child.restarts += 1
                    self._start(child)
                continue
            code = child.process.poll()
            if code is None:
                if now - child.started_at > HEALTHY_AFTER_S:
                    child.delay_s = FIRST_DELAY_S
                continue
            log.warning(
                "process_ended", name=child.plan.name, exit_code=code, restart_in_s=child.delay_s
            )
            child.process = None
            child.due_at = now + child.delay_s
            child.delay_s = min(2 * child.delay_s, LONGEST_DELAY_S)

    def start(self, names: Sequence[str]) -> None:
        """Start again what `stop` has stopped.

        Args:
            names: plans to start.
        """
        for child in self._children:
            if child.plan.name in names and child.process is None:
                child.delay_s = FIRST_DELAY_S
                self._start(child)

    def stop(self, names: Sequence[str] | None = None) -> None:
        """Stop processes, last started first: SIGTERM, and SIGKILL after the grace period.

        Args:
            names: plans to stop; None stops all and closes the log.
        """
        for child in reversed(self._children):
            if names is not None and child.plan.name not in names:
                continue
            process, child.process = child.process, None
            child.due_at = float("inf")
            if process is None or process.poll() is not None:
                continue
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(self._grace_s)
            except subprocess.TimeoutExpired:
                log.warning("process_killed", name=child.plan.name, grace_s=self._grace_s)
                process.kill()
                process.wait()
        if names is None and self._log is not None:
            self._log.close()
            self._log = None

    def _start(self, child: _Child) -> None:
        child.process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", *child.plan.arguments],
            env={**os.environ, **child.plan.environment},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            # A Ctrl-C in the terminal reaches the supervisor alone, which stops them in order.
            start_new_session=True,
        )
        child.started_at = time.monotonic()
        log.info("process_started", name=child.plan.name, pid=child.process.pid)
