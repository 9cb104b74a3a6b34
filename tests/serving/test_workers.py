"""`grade serve --workers N`: several processes on one port that answer as one."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grade.v1.policy_service_pb2 import SampleBatchRequest, SampleRequest
from grade.v1.policy_service_pb2_grpc import PolicyServiceStub

from policy.errors import SettingsError
from serving.shared_port import shared_port
from stream.codec import encode
from stream.connection import Connection
from stream.topics import Topics
from tests.kafka import await_until, create_fresh
from tests.serving.parameters import EXAMPLE_PATH, made_context, made_snapshot, publish

WORKERS = 2
CONNECTIONS = 24
"""That all of them go to one of two workers happens once in eight million."""


class Group:
    """A running `grade serve --workers`."""

    def __init__(self, folder: Path, process: "subprocess.Popen[bytes]") -> None:
        self.folder = folder
        self.process = process
        self.port = 0
        self.admin_port = 0

    def log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8")

    def await_ready(self) -> None:
        def written() -> bool:
            assert self.process.poll() is None, self.log()
            return (self.folder / "port").exists()

        await_until(written, timeout_s=90, what="the port file")
        self.port = int((self.folder / "port").read_text(encoding="ascii"))
        lines = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        [ready] = [x for x in lines if x["event"] == "serve_ready" and "workers" in x]
        self.admin_port = ready["admin_port"]

    def page(self, path: str) -> str:
        url = f"http://127.0.0.1:{self.admin_port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return str(error.read().decode())

    def health(self) -> dict[str, Any]:
        health: dict[str, Any] = json.loads(self.page("/health"))
        return health

    def started(self) -> list[int]:
        """Process ids of all workers that were ever started."""
        lines = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return [line["pid"] for line in lines if line["event"] == "worker_started"]


def environment(folder: Path, changes: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GRADE_")}
    return kept | {
        "GRADE_SCHEMA_PATH": str(EXAMPLE_PATH),
        "GRADE_DATA_DIR": str(folder),
        "GRADE_SERVE_PORT": "0",
        "GRADE_SERVE_ADMIN_PORT": "0",
        "GRADE_SERVE_WORKERS": str(WORKERS),
        "GRADE_LOG_FORMAT": "json",
        **changes,
    }


@contextmanager
def group(folder: Path, changes: dict[str, str]) -> Iterator[Group]:
    with (folder / "log").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", "serve", "--port-file", str(folder / "port")],
            env=environment(folder, changes),
            stderr=output,
        )
    running = Group(folder, process)
    try:
        running.await_ready()
        yield running
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def topics(broker: Any) -> Topics:
    return create_fresh(Connection(broker.bootstrap_servers))


@pytest.fixture(scope="module")
def running(
    broker: Any, topics: Topics, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Group]:
    changes = {
        "GRADE_BOOTSTRAP_SERVERS": broker.bootstrap_servers,
        "GRADE_TOPIC_PREFIX": topics.prefix,
    }
    with group(tmp_path_factory.mktemp("workers"), changes) as found:
        yield found


def connect(port: int) -> grpc.Channel:
    """A connection of its own: channels in one process share them otherwise."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    return grpc.insecure_channel(f"127.0.0.1:{port}", options=options)


def answers(port: int, number: int) -> list[bytes]:
    """The answers to one request over many connections, single and in a batch."""
    request = SampleRequest(context=made_context(number))
    found = []
    for _ in range(CONNECTIONS):
        with connect(port) as channel:
            stub = PolicyServiceStub(channel)
            found.append(encode(stub.Sample(request, timeout=30)))
            batch = SampleBatchRequest(policy="example", requests=[request])
            found += [encode(each) for each in stub.SampleBatch(batch, timeout=30).responses]
    return found


def decided_by(running: Group) -> dict[str, float]:
    """Decisions by worker."""
    found = re.findall(
        r"^grade_serving_decisions_total\{([^}]*)\} (\S+)$", running.page("/metrics"), re.M
    )
    labels = [(dict(re.findall(r'(\w+)="([^"]*)"', each)), float(count)) for each, count in found]
    return {label["worker"]: count for label, count in labels if label["policy"] == "example"}


def test_a_version_reaches_all_workers_and_all_answer_alike(
    running: Group, connection: Connection, topics: Topics
) -> None:
    publish(connection, topics.parameters, [made_snapshot(1)])
    await_until(lambda: running.health()["version"] == 1, what="version 1 at all workers")
    health = running.health()
    assert health["status"] == "ok"
    assert {name: each["version"] for name, each in health["workers"].items()} == {"1": 1, "2": 1}
    assert health["policies"]["example"]["version"] == 1
    assert len(set(answers(running.port, 1))) == 1
    decided = decided_by(running)
    assert sum(decided.values()) == 2 * CONNECTIONS
    assert decided.keys() == {"1", "2"}, "the connections are spread over the workers"
    swaps = json.loads(running.page("/swaps"))
    assert [(swap["policy"], swap["version"]) for swap in swaps] == [("example", 1)]
    assert 0 <= swaps[0]["wall_ms"] - swaps[0]["record_ms"] < 60_000


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_second_server_on_the_port_is_refused(
    running: Group, workers: str, tmp_path: Path
) -> None:
    changes = {"GRADE_SERVE_WORKERS": workers, "GRADE_SERVE_READY_TIMEOUT_S": "0"}
    second = subprocess.run(
        [sys.executable, "-m", "cli.main", "serve", "--port", str(running.port)],
        env=environment(tmp_path, changes),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert second.returncode == 2
    assert f"expected an address that is free, seen 127.0.0.1:{running.port}" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_killed_worker_is_started_again(running: Group) -> None:
    before = running.started()
    os.kill(before[0], signal.SIGKILL)
    await_until(lambda: len(running.started()) > len(before), 30, "a new worker")
    await_until(lambda: running.health()["status"] == "ok", 60, "all workers healthy again")
    assert running.health()["workers"]["1"]["version"] == running.health()["version"]
    assert len(set(answers(running.port, 2))) == 1


def test_sigterm_drains_all_workers(tmp_path: Path) -> None:
    changes = {"GRADE_BOOTSTRAP_SERVERS": "127.0.0.1:9", "GRADE_SERVE_READY_TIMEOUT_S": "0"}
    with group(tmp_path, changes) as running:
        requests = [SampleRequest(context=made_context(n)) for n in range(1000)]
        batch = SampleBatchRequest(policy="example", requests=requests)
        channels = [connect(running.port) for _ in range(8)]
        calls = [
            PolicyServiceStub(channel).SampleBatch.future(batch, timeout=60)
            for channel in channels
            for _ in range(3)
        ]
        calls[0].result()
        running.process.send_signal(signal.SIGTERM)
        assert [len(call.result().responses) for call in calls] == [1000] * 24
        for channel in channels:
            channel.close()
        assert running.process.wait(timeout=30) == 0
        workers = running.started()
    assert len(workers) == WORKERS
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    with shared_port("127.0.0.1", running.port) as port:
        assert port == running.port


def test_workers_end_when_their_parent_was_killed(tmp_path: Path) -> None:
    changes = {"GRADE_BOOTSTRAP_SERVERS": "127.0.0.1:9", "GRADE_SERVE_READY_TIMEOUT_S": "0"}
    # The folder of the workers' ports is left behind by the kill.
    with group(tmp_path, changes | {"TMPDIR": str(tmp_path)}) as running:
        running.process.kill()
        running.process.wait()
        await_until(lambda: running.log().count('"serve_stopped"') == WORKERS, 30, "their end")


def test_a_platform_that_cannot_share_ports_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "SO_REUSEPORT")
    with pytest.raises(SettingsError, match=r"serve_workers: expected 1, .*\(no SO_REUSEPORT\)"):
        with shared_port("127.0.0.1", 0):
            pass


def test_a_reserved_port_is_taken_for_all_others() -> None:
    with shared_port("127.0.0.1", 0) as port:
        with pytest.raises(SettingsError, match=f"seen 127.0.0.1:{port}, which cannot"):
            with shared_port("127.0.0.1", port):
                pass
    with shared_port("127.0.0.1", port) as again:
        assert again == port


def test_an_address_of_another_machine_gives_a_sentence() -> None:
    with pytest.raises(SettingsError, match=r"seen 192\.0\.2\.1:0, which cannot"):
        with shared_port("192.0.2.1", 0):
            pass
