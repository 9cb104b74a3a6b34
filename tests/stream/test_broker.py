"""The local broker starts, stops, survives, and says what is wrong."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from policy.errors import BrokerError
from stream.broker import BrokerStatus, LocalBroker
from stream.connection import Connection
from tests.kafka import Produced, await_until, create_fresh, produce, read_topic


@pytest.fixture
def told() -> list[str]:
    """The sentences that the broker of the test told."""
    return []


@pytest.fixture
def local(tmp_path: Path, told: list[str]) -> Iterator[LocalBroker]:
    """A broker of the test's own, in a folder whose name has a space and an accent."""
    broker = LocalBroker(tmp_path / "données kafka", start_timeout_s=120.0, progress=told.append)
    yield broker
    broker.down()


@pytest.fixture
def listener() -> Iterator[int]:
    """A port that another program listens on."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def test_data_and_port_survive_a_restart_and_a_kill(local: LocalBroker, told: list[str]) -> None:
    first = local.up()
    connection = Connection(first.bootstrap_servers)
    topics = create_fresh(connection)
    produce(connection, topics.impressions, [Produced(b"kept", key=b"request")])
    assert local.up() == first, "a second up is no second broker"

    assert local.down() is True
    assert local.status() == BrokerStatus(first.data_dir, False, None, first.port)
    assert local.down() is False

    second = local.up()
    assert (second.port, second.running) == (first.port, True)
    assert second.pid is not None
    assert second.pid != first.pid
    (record,) = read_topic(connection, topics.impressions)
    assert (record.key, record.value) == (b"request", b"kept")

    os.kill(second.pid, signal.SIGKILL)
    await_until(lambda: not local.status().running)
    assert local.status().stale_pid == second.pid
    local.up()
    assert any(f"process {second.pid}, which is not this broker" in line for line in told)
    (record,) = read_topic(connection, topics.impressions)
    assert record.value == b"kept"


def test_never_started(local: LocalBroker, tmp_path: Path) -> None:
    folder = (tmp_path / "données kafka").resolve()
    assert local.status() == BrokerStatus(folder, running=False, pid=None, port=None)
    assert local.down() is False


def test_a_pid_file_that_names_another_process_is_stale(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        (tmp_path / "broker.pid").write_text(f"{other.pid}\n")
        broker = LocalBroker(tmp_path)
        assert broker.status().running is False
        assert broker.status().stale_pid == other.pid
        assert broker.down() is False
        assert other.poll() is None, "a process that is not the broker is left alone"
        other.communicate(b"\n")
    assert not (tmp_path / "broker.pid").exists()


@pytest.mark.parametrize("text", ["", "not a number", "-1", "999999999"])
def test_a_senseless_pid_file_is_stale(tmp_path: Path, text: str) -> None:
    (tmp_path / "broker.pid").write_text(text)
    status = LocalBroker(tmp_path).status()
    assert status.running is False
    assert status.stale_pid is not None


def test_a_taken_port_is_named(tmp_path: Path, listener: int) -> None:
    with pytest.raises(BrokerError) as refused:
        LocalBroker(tmp_path, listener).up()
    assert str(refused.value).startswith(f"port {listener}: expected to be free, seen in use")


def test_another_port_than_the_running_brokers_is_refused(
    broker: BrokerStatus, listener: int
) -> None:
    with pytest.raises(BrokerError) as refused:
        LocalBroker(broker.data_dir, listener).up()
    assert f"expected port {listener}" in str(refused.value)
    assert f"already running on port {broker.port}" in str(refused.value)


def test_a_broker_that_ends_while_starting_shows_its_last_words(tmp_path: Path) -> None:
    broker = LocalBroker(tmp_path, start_timeout_s=120.0)
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "meta.properties").write_text("version=1\ncluster.id=x\nnode.id=77\n")
    with pytest.raises(BrokerError) as refused:
        broker.up()
    text = str(refused.value)
    assert "expected Apache Kafka to start, seen it end with code 1" in text
    assert "Stored node id 77" in text
    assert broker.status().stale_pid is None


def test_a_broker_that_does_not_answer_in_time_is_ended(tmp_path: Path) -> None:
    broker = LocalBroker(tmp_path, start_timeout_s=0.0)
    with pytest.raises(BrokerError, match="seen no answer in 0 s"):
        broker.up()
    assert broker.status().running is False
