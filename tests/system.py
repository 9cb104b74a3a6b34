"""The whole system as real processes, for tests."""

import os
import re
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cli.settings import Settings, load_settings
from cli.supervisor import Supervisor
from cli.system import (
    admin_ports,
    free_ports,
    process_plans,
    wait_until_healthy,
)
from cli.wiring import topic_plan
from grade_client import EventProducer, PolicyCallFailed, PolicyClient
from monitor.watch import LoopWatch, ask
from policy.schema import Schema, load_schema
from stream.connection import Connection
from stream.generations import read_generations
from stream.reconcile import ReconcileReport, TopicContent, reconcile
from stream.topics import Topics, create
from tests.kafka import await_until

EXAMPLE = Path(__file__).parent / "example_schema.toml"


@dataclass
class RunningSystem:
    """Server, join workers and learner of one test, under a topic prefix of their own."""

    settings: Settings
    schema: Schema
    connection: Connection
    supervisor: Supervisor
    ports: dict[str, int]

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.settings.serve_port}"

    @property
    def topics(self) -> Topics:
        return Topics(self.settings.topic_prefix)

    def health(self, name: str) -> dict[str, Any]:
        """What a process's /health answers; status "away" if it does not."""
        return ask(self.ports[name], "/health") or {"status": "away"}

    def kill(self, name: str) -> None:
        """SIGKILL a process and wait until its successor is healthy."""
        pid = self.supervisor.process_ids()[name]
        os.kill(pid, signal.SIGKILL)
        await_until(
            lambda: self.supervisor.process_ids().get(name, pid) != pid, 30, f"new process {name}"
        )
        await_until(lambda: self.health(name).get("status") == "ok", 60, f"{name} healthy again")

    def await_applied(self, groups: int, timeout_s: float = 60.0) -> None:
        """Wait until so many groups were learned from and the server has the last version."""
        with LoopWatch(self.connection, self.topics, self.ports) as watch:
            applied = 0

            def reached() -> bool:
                nonlocal applied
                picture = watch.refresh()
                return picture.groups >= groups and watch.latency.waiting == 0

            await_until(reached, timeout_s, f"{groups} groups applied and served")

    def stop_and_reconcile(self) -> ReconcileReport:
        """Stop the processes and recompute everything from the topics."""
        self.supervisor.stop(list(self.ports))
        return reconcile(
            read_generations(self.connection, self.topics, self.schema.policy),
            TopicContent(self.connection, self.topics),
        )


@contextmanager
def running_system(
    connection: Connection,
    folder: Path,
    *,
    text: str | None = None,
    window_s: float = 1.5,
    join_workers: int = 1,
) -> Iterator[RunningSystem]:
    """Start a system with a short window and keep it running.

    Args:
        connection: the broker.
        folder: for everything on disk.
        text: the schema, tests/example_schema.toml by default; its times are replaced.
        window_s: attribution window.
        join_workers: number of join workers.
    """
    schema_path = folder / "policy.toml"
    text = EXAMPLE.read_text(encoding="utf-8") if text is None else text
    for name, value in {"window_s": window_s, "early_s": 0.5, "late_s": 2 * window_s}.items():
        text, found = re.subn(rf"^{name} = [\d.]+", f"{name} = {value}", text, flags=re.M)
        assert found == 1, name
    schema_path.write_text(text, encoding="utf-8")
    schema = load_schema(schema_path)
    ports = free_ports(4)
    settings = load_settings(
        {
            "schema_path": schema_path,
            "data_dir": folder / "data",
            "bootstrap_servers": connection.bootstrap_servers,
            "topic_prefix": f"t{uuid.uuid4().hex[:12]}",
            "partitions": 2,
            "serve_port": ports[0],
            "serve_admin_port": ports[1],
            "join_admin_port": ports[2],
            "learn_admin_port": ports[3],
            "join_session_timeout_s": 6.0,
            "join_group": f"g{uuid.uuid4().hex[:12]}",
        }
    )
    create(connection, topic_plan(settings, schema))
    plans = process_plans(settings, join_workers)
    stopping = threading.Event()
    with Supervisor(plans, folder / "grade.log") as supervisor:

        def keep() -> None:
            while not stopping.wait(0.1):
                supervisor.keep_running()

        wait_until_healthy(admin_ports(plans), supervisor)
        keeper = threading.Thread(target=keep)
        keeper.start()
        try:
            yield RunningSystem(settings, schema, connection, supervisor, admin_ports(plans))
        except BaseException:
            print((folder / "grade.log").read_text("utf-8")[-8000:])
            raise
        finally:
            stopping.set()
            keeper.join()


class Traffic:
    """Requests with impressions and clicks at a steady rate, from a thread; counts what failed.

    Args:
        system: what is asked.
        rate: requests per second.
        name: first part of the request ids; other traffic of the same system needs another one.
    """

    def __init__(self, system: RunningSystem, rate: float = 100.0, name: str = "request") -> None:
        self._system = system
        self._name = name
        self._interval_s = 1 / rate
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._play)
        self.shown = 0
        self.failures: list[tuple[float, PolicyCallFailed]] = []
        self.versions: list[tuple[int, int]] = []

    def __enter__(self) -> "Traffic":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def await_more(self, count: int, timeout_s: float = 40.0) -> None:
        """Wait until so many further requests were answered and shown."""
        wanted = self.shown + count
        await_until(lambda: self.shown >= wanted, timeout_s, f"{count} more requests")

    def _play(self) -> None:
        policy = self._system.schema.policy
        random = np.random.default_rng(7)
        with (
            PolicyClient(self._system.target, policy) as client,
            EventProducer(self._system.connection, self._system.topics, policy) as events,
        ):
            number = 0
            while not self._stop.wait(self._interval_s):
                number += 1
                try:
                    sampled = client.sample(
                        f"{self._name}-{number}",
                        f"unit-{number % 50}",
                        random.normal(size=3).tolist(),
                    )
                except PolicyCallFailed as failure:
                    self.failures.append((time.time(), failure))
                    continue
                self.versions.append((sampled.epoch, sampled.version))
                scores = random.uniform(0.01, 0.9, size=(4, 3))
                items = [f"item-{k}" for k in range(4)]
                events.log_impression(sampled, items, scores)
                self.shown += 1
                if number % 2 == 0:
                    clicked = int(np.argmax(scores[:, 0]))
                    events.log_conversion(
                        sampled.request_id, items[clicked], "click", conversion_id="c"
                    )
                if number % 10 == 0:  # a repeat, and one whose impression never was
                    events.log_conversion(
                        sampled.request_id, items[clicked], "click", conversion_id="c"
                    )
                    events.log_conversion(f"nobody-{self._name}-{number}", "item-1", "click")
