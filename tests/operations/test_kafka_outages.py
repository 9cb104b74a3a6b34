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

import pytest

from stream.broker import LocalBroker
from stream.connection import Connection
from tests.kafka import await_until
from tests.operations.operated import Operated
from tests.operations.small_disk import SmallDisk, small_disk
from tests.system import RunningSystem, running_system

OUTAGE_S = float(os.environ.get("OUTAGE_S", "45"))
"""How long the broker does not answer. By default a little longer than what any client of ours
waits for one answer, which is 40 s; OUTAGE_S=120 makes it the two minutes that are promised."""


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
                print(f"the small disk is a {disk.kind}")
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


def test_kafka_does_not_answer(scene: Scene) -> None:
    operated = scene.operated
    with operated.load() as traffic:
        traffic.await_more(60)
        pid = scene.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(OUTAGE_S)  # the length of the outage is what is tested
            assert_said_by_all(operated.system)
        finally:
            os.kill(pid, signal.SIGCONT)
        traffic.await_more(60)
    operated.balance()
    await_until(lambda: all_is_well(operated.system), 30, "health")


def assert_said_by_all(system: RunningSystem) -> None:
    """Every process tells that Kafka is away, and the server serves."""
    serve, join, learn = (system.health(name) for name in ("serve", "join", "learn"))
    assert serve["status"] == "ok"
    assert serve["kafka"] == "away"
    assert serve["kafka_age_s"] > OUTAGE_S - 5
    assert join["kafka_trouble"] != "" or join["status"] == "away", "it waits, or is restarted"
    assert learn["status"].startswith("waiting for Kafka (")


def all_is_well(system: RunningSystem) -> bool:
    """Every process is healthy and hears from Kafka."""
    answers = {name: system.health(name) for name in system.ports}
    return (
        all(answer["status"] == "ok" for answer in answers.values())
        and answers["serve"]["kafka"] == "following"
        and answers["join"]["kafka_trouble"] == ""
    )
