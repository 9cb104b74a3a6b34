"""A disk is full at every writer: each says what it could not write, and nothing else suffers.

Kafka's own disk is in test_kafka_outages.py.
"""

import importlib.resources
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from grade.v1.parameters_pb2 import Version

from cli.settings import environment_of
from cli.supervisor import Supervisor
from cli.system import free_ports
from cli.up import _start_again
from monitor.watch import ask
from policy.durable_file import replace_file
from policy.errors import FileNotWritten
from serving.snapshot_file import read_snapshot
from stream.broker import LocalBroker
from stream.connection import Connection
from tests.kafka import await_until, read_topic
from tests.operations.operated import checkpoints
from tests.operations.small_disk import SmallDisk, small_disk
from tests.system import RunningSystem, running_system

GRADE = [sys.executable, "-m", "cli.main"]


@pytest.fixture
def disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], record_property: Callable[..., None]
) -> Iterator[SmallDisk]:
    """A disk of 64 MB."""
    with small_disk(tmp_path / "disk", 64) as disk:
        record_property("disk", disk.kind)
        with capsys.disabled():
            print(f"\nthe full disk is a {disk.kind}")
        try:
            yield disk
        finally:
            disk.free()


@contextmanager
def simulating(
    system: RunningSystem, folder: Path
) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """`grade simulate` that writes its files into a folder, and its admin port."""
    [port] = free_ports(1)
    files = {"--status-file": "status.json", "--json": "report.json", "--calls": "calls.npy"}
    arguments = [each for name, file in files.items() for each in (name, str(folder / file))]
    settings = environment_of(system.settings)
    with subprocess.Popen(
        [*GRADE, "simulate", "--rate", "60", "--target", system.target, *arguments],
        env={**os.environ, **settings, "GRADE_SIMULATE_ADMIN_PORT": str(port)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process, port
        finally:
            process.kill()


def read_up_to(system: RunningSystem) -> int:
    """How many impressions the join has read."""
    owned = system.health("join").get("partitions", {}).values()
    return sum(each["positions"]["impressions"] for each in owned)


def test_the_disk_under_a_whole_system_is_full(
    connection: Connection, tmp_path: Path, disk: SmallDisk
) -> None:
    """Log, checkpoints, snapshot, the traffic's files and the report: all on one disk."""
    marketplace = importlib.resources.files("simulator") / "marketplace.toml"
    with (
        running_system(connection, disk.folder, text=marketplace.read_text("utf-8")) as system,
        simulating(system, disk.folder) as (traffic, traffic_port),
    ):
        await_until((disk.folder / "status.json").exists, 20, "a status")
        await_until(lambda: served_but_not_on_disk(system) in range(2, 10), 60, "some versions")
        disk.fill([*system.supervisor.process_ids().values(), traffic.pid])

        status = await_until(lambda: waiting_for_the_disk(system), 30, "a learner that waits")
        assert ".ckpt: expected to write " in status
        assert f"bytes, seen: {disk.reason} (" in status
        await_until(lambda: system.health("serve")["disk_trouble"], 30, "the server's trouble")
        assert ".snapshot: expected to write " in system.health("serve")["disk_trouble"]
        version = system.health("learn")["version"]
        assert published(system) == version, "nothing is published that no checkpoint has"
        assert max(int(file.stem[9:]) for file in checkpoints(system).glob("*.ckpt")) == version

        asked, read = ask(traffic_port, "/health")["decisions"], read_up_to(system)
        await_until(lambda: ask(traffic_port, "/health")["decisions"] > asked + 60, 30, "requests")
        await_until(lambda: read_up_to(system) > read + 60, 30, "the join to go on")
        assert ask(traffic_port, "/health")["failed_rpcs"] == 0
        assert {name: system.health(name)["status"] for name in ("serve", "join")} == {
            "serve": "ok",
            "join": "ok",
        }

        traffic.send_signal(signal.SIGTERM)
        _, told = traffic.communicate(timeout=60)
        assert traffic.returncode == 1
        assert "status_not_written" in told
        assert "error: " in told
        assert "report.json: expected to write " in told
        assert "Traceback" not in told
        books = reconcile_to(disk, system)
        assert books.returncode == 1
        assert "conserved and reconciled" in books.stdout
        assert "books.json: expected to write " in books.stderr
        assert "Traceback" not in books.stderr
        assert published(system) == version

        disk.free()
        await_until(lambda: system.health("learn")["status"] == "ok", 30, "a learner that goes on")
        owned = system.health("join")["partitions"].values()
        await_until(lambda: not any(each["open_groups"] for each in owned), 30, "closed groups")
        system.await_applied(1)
        await_until(lambda: system.health("serve")["disk_trouble"] == "", 30, "a new snapshot")
        log = system.supervisor.log_path.read_text("utf-8", errors="replace")
        assert "snapshot_file_written" in log
        assert system.supervisor.restarts == 0
        report = system.stop_and_reconcile()
        assert report.ok, [*report.unconserved, *map(str, report.differences)]
        assert report.impressions.open == 0


def served_but_not_on_disk(system: RunningSystem) -> int:
    """By how many versions the server's last good snapshot is behind."""
    settings, policy = system.settings, system.schema.policy
    file = settings.data_dir / "serve" / settings.topic_prefix / f"{policy}.snapshot"
    snapshot = read_snapshot(file)
    return 0 if snapshot is None else system.health("serve")["version"] - snapshot.version


def waiting_for_the_disk(system: RunningSystem) -> Any:
    status = system.health("learn")["status"]
    return status if status.startswith("waiting for the disk: ") else None


def published(system: RunningSystem) -> int:
    """The last version in the versions topic."""
    records = read_topic(system.connection, system.topics.versions)
    return max(Version.FromString(record.value).version for record in records)


def reconcile_to(disk: SmallDisk, system: RunningSystem) -> "subprocess.CompletedProcess[str]":
    """`grade reconcile --json` with its file on the full disk."""
    with subprocess.Popen(
        [*GRADE, "reconcile", "--json", str(disk.folder / "books.json")],
        env={**os.environ, **environment_of(system.settings)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        disk.fill([process.pid])
        out, told = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, told)


def test_what_was_there_stays_and_nothing_half_written_does(disk: SmallDisk) -> None:
    file = disk.folder / "folder" / "file"
    replace_file(file, b"old")
    disk.fill([os.getpid()])
    with pytest.raises(FileNotWritten) as refused:
        replace_file(file, b"new" * 100_000)
    disk.free()
    sentence = f"{file}: expected to write 300,000 bytes, seen: {disk.reason} ("
    assert str(refused.value).startswith(sentence)
    assert (file.read_bytes(), list(file.parent.iterdir())) == (b"old", [file])
    replace_file(file, b"new" * 100_000)
    assert file.read_bytes() == b"new" * 100_000


def test_a_broker_that_finds_no_room_is_told_of_and_tried_again(
    disk: SmallDisk, capsys: pytest.CaptureFixture[str]
) -> None:
    """`grade up` goes on serving while its Kafka cannot be started."""
    local = LocalBroker(disk.folder / "kafka")
    disk.fill([os.getpid()])
    with pytest.raises(FileNotWritten, match=r"server\.properties: expected to write"):
        local.up()
    _start_again(local)
    disk.free()
    assert "kafka_not_started" in capsys.readouterr().out
    assert not local.status().running


def test_a_log_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    log = tmp_path / "file" / "grade.log"
    with pytest.raises(FileNotWritten, match=r"grade\.log: expected to open it for writing"):
        Supervisor([], log).__enter__()
