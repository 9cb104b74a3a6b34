"""Kafka is restarted, killed, full, and unreachable under load: nobody fails, the books balance.

The tests share one system with a broker of its own on a small disk.
"""

import gc
import logging
import os
import signal
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from stream.broker import LocalBroker
from stream.connection import Connection
from tests.kafka import await_until
from tests.operations.operated import Operated
from tests.operations.small_disk import SmallDisk, small_disk
from tests.system import running_system

OUTAGE_S = float(os.environ.get("OUTAGE_S", "120"))
"""How long the broker does not answer; two minutes is longer than what clients wait by default."""


@pytest.fixture(scope="module", autouse=True)
def clients_lose_their_sockets() -> Iterator[None]:
    """As `kafka_may_go_away`, for as long as the module's system lives."""
    logger = logging.getLogger("kafka")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@dataclass
class Scene:
    """A system, its broker, and the broker's disk."""

    operated: Operated
    broker: LocalBroker
    disk: SmallDisk

    @property
    def pid(self) -> int:
        """Process of the broker."""
        pid = self.broker.status().pid
        assert pid is not None
        return pid


@pytest.fixture(scope="module")
def scene(
    clients_lose_their_sockets: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("outages")
    with small_disk(folder / "disk", 512) as disk:
        broker = LocalBroker(disk.folder / "kafka", start_timeout_s=120.0)
        try:
            connection = Connection(broker.up().bootstrap_servers, client_id="grade-test")
            with running_system(connection, folder) as system:
                yield Scene(Operated(system), broker, disk)
        finally:
            disk.free()
            broker.down()


def test_kafka_is_restarted_and_killed(scene: Scene) -> None:
    with scene.operated.load() as traffic:
        traffic.await_more(60)
        scene.broker.down()
        traffic.await_more(60)
        scene.broker.up()
        traffic.await_more(120)
        os.kill(scene.pid, signal.SIGKILL)
        traffic.await_more(60)
        scene.broker.up()
        traffic.await_more(60)
    scene.operated.balance()


def test_kafkas_disk_is_full(scene: Scene) -> None:
    with scene.operated.load() as traffic:
        traffic.await_more(60)
        scene.disk.fill([scene.pid])
        await_until(lambda: not scene.broker.status().running, 60, "the end of the broker")
        traffic.await_more(60)
        scene.disk.free()
        scene.broker.up()
        traffic.await_more(60)
    scene.operated.balance()


def test_kafka_does_not_answer_for_two_minutes(scene: Scene, tmp_path: Path) -> None:
    operated = scene.operated
    with operated.load() as traffic:
        traffic.await_more(60)
        pid = scene.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            until = time.monotonic() + OUTAGE_S
            await_until(lambda: time.monotonic() > until, OUTAGE_S + 10, "the outage's end")
            health = {name: operated.system.health(name) for name in operated.system.ports}
        finally:
            os.kill(pid, signal.SIGCONT)
        print(health)
        traffic.await_more(60)
    operated.balance()
