"""Hot swap on a real Kafka: the newest good snapshot serves, and nothing stops the old one."""

import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from grade.v1.decision_pb2 import ARM_POLICY, Decision
from grade.v1.parameters_pb2 import ParameterSnapshot
from grade.v1.policy_service_pb2 import SampleRequest

from policy.dirichlet import log_density
from policy.errors import FileNotWritten
from policy.schema import parse_schema
from serving.engine import Engine
from serving.server import PolicyServer
from serving.snapshot_file import read_snapshot, write_snapshot
from stream.codec import encode
from stream.connection import Connection, open_producer
from stream.topics import Topics
from tests.kafka import Produced, await_until, produce
from tests.serving.parameters import (
    EXAMPLE,
    key_of,
    made_context,
    made_snapshot,
    made_tensors,
    publish,
)
from tests.serving.running import NO_TOPICS, NOBODY, calling, running_server


def _engine(server: PolicyServer) -> Engine:
    return server.engines["example"]


def _serves(server: PolicyServer, version: int, epoch: int = 1) -> None:
    await_until(
        lambda: _engine(server).policy.order == (epoch, version), what=f"version {version} serving"
    )


def _refused(server: PolicyServer, count: int) -> str:
    await_until(lambda: server.health()["refused"] >= count, what=f"{count} refusals")
    return str(server.health()["last_refused"])


def test_starts_from_the_newest_and_follows(connection: Connection, topics: Topics) -> None:
    publish(connection, topics.parameters, [made_snapshot(v) for v in range(1, 41)])
    with running_server(connection, topics) as server:
        assert _engine(server).policy.order == (1, 40)
        assert [swap["version"] for swap in server.swaps()] == [40]
        assert server.health()["kafka"] == "following"
        publish(connection, topics.parameters, [made_snapshot(41)])
        _serves(server, 41)
        swap = server.swaps()[-1]
        assert (swap["epoch"], swap["slot"], swap["slot_ms"]) == (1, 1041, 250)
        assert 0 <= swap["wall_ms"] - swap["record_ms"] < 5000
        with calling(server) as stub:
            answer = stub.Sample(SampleRequest(context=made_context(1)), timeout=10)
        assert answer.version == 41


def test_an_empty_topic_means_the_baseline(connection: Connection, topics: Topics) -> None:
    with running_server(connection, topics) as server:
        assert server.health()["kafka"] == "following"
        assert _engine(server).policy.order == (0, 0)
        publish(connection, topics.parameters, [made_snapshot(1)])
        _serves(server, 1)


def test_order_is_epoch_then_version(connection: Connection, topics: Topics) -> None:
    publish(connection, topics.parameters, [made_snapshot(9)])
    with running_server(connection, topics) as server:
        publish(connection, topics.parameters, [made_snapshot(8), made_snapshot(2, epoch=2)])
        _serves(server, 2, epoch=2)
        publish(connection, topics.parameters, [made_snapshot(10)])
        publish(connection, topics.parameters, [made_snapshot(3, epoch=2)])
        _serves(server, 3, epoch=2)
        assert [(s["epoch"], s["version"]) for s in server.swaps()] == [(1, 9), (2, 2), (2, 3)]


def test_tombstones_and_other_policies_change_nothing(
    connection: Connection, topics: Topics
) -> None:
    other = parse_schema(EXAMPLE.toml.replace('"example"', '"other"'))
    publish(connection, topics.parameters, [made_snapshot(1)])
    with running_server(connection, topics) as server:
        produce(connection, topics.parameters, [Produced(None, key_of(made_snapshot(1)))])
        publish(connection, topics.parameters, [made_snapshot(7, schema=other), made_snapshot(2)])
        _serves(server, 2)
        assert server.health()["refused"] == 0
    with running_server(connection, topics) as server:
        assert _engine(server).policy.order == (1, 2)


def _broken(version: int, kind: str) -> bytes:
    """Value of a record that must be refused."""
    snapshot = made_snapshot(version)
    if kind == "checksum":
        snapshot.parameters_sha256 = bytes(32)
    elif kind == "schema":
        snapshot.schema_digest = bytes(32)
    elif kind == "tensors":
        cut = made_tensors(EXAMPLE, 1)
        del cut["gate"]
        snapshot = made_snapshot(version, tensors=cut)
    elif kind == "finite":
        spoiled = made_tensors(EXAMPLE, 1)
        spoiled["mean_bias"][1] = np.nan
        snapshot = made_snapshot(version, tensors=spoiled)
    elif kind == "bounds":
        spoiled = made_tensors(EXAMPLE, 1)
        spoiled["gate"][0] = 2
        snapshot = made_snapshot(version, tensors=spoiled)
    elif kind == "key":
        snapshot.version += 1
    elif kind == "decode":
        return b"\xff\xff not a message"
    return encode(snapshot)


KINDS = ["checksum", "schema", "tensors", "finite", "bounds", "key", "decode"]


def test_each_bad_snapshot_is_refused_and_the_old_policy_serves(
    connection: Connection, topics: Topics
) -> None:
    good = made_snapshot(1)
    publish(connection, topics.parameters, [good])
    with running_server(connection, topics) as server, calling(server) as stub:
        request = SampleRequest(context=made_context(1))
        before = stub.Sample(request, timeout=10)
        for number, kind in enumerate(KINDS, start=1):
            version = 1 + number
            key = f"example/1/{version}".encode()
            produce(connection, topics.parameters, [Produced(_broken(version, kind), key)])
            message = _refused(server, number)
            assert f"{topics.parameters} offset {number}: snapshot refused by {kind}" in message
            assert "expected" in message
            assert "seen" in message
            assert stub.Sample(request, timeout=10) == before
        produce(connection, topics.parameters, [Produced(b"", b"no key")])
        assert "key policy/epoch/version, seen b'no key'" in _refused(server, len(KINDS) + 1)
        # Python refuses to read so many digits.
        endless = b"example/" + b"1" * 5_000 + b"/1"
        produce(connection, topics.parameters, [Produced(b"", endless)])
        assert "key policy/epoch/version, seen 5010 bytes" in _refused(server, len(KINDS) + 2)
        assert server.health()["status"] == "ok"
        assert server.health()["refused_by_check"] == dict.fromkeys(KINDS, 1) | {"key": 3}
        publish(connection, topics.parameters, [made_snapshot(20)])
        _serves(server, 20)


def test_a_bad_newest_snapshot_at_start_falls_back(connection: Connection, topics: Topics) -> None:
    publish(connection, topics.parameters, [made_snapshot(v) for v in (1, 2)])
    bad = [Produced(_broken(v, "finite"), f"example/1/{v}".encode()) for v in (3, 4)]
    produce(connection, topics.parameters, bad)
    with running_server(connection, topics) as server:
        assert _engine(server).policy.order == (1, 2)
        assert server.health()["refused_by_check"] == {"finite": 2}


def test_no_request_fails_while_versions_are_swapped(
    connection: Connection, topics: Topics
) -> None:
    versions = 60
    stop = threading.Event()
    answers: list[list[Decision]] = []
    errors: list[grpc.RpcError] = []

    def ask(server: PolicyServer, caller: int) -> None:
        mine: list[Decision] = []
        answers.append(mine)
        with calling(server) as stub:
            number = 0
            while not stop.is_set():
                number += 1
                context = made_context(caller * 1_000_000 + number)
                try:
                    answer = stub.Sample(SampleRequest(context=context), timeout=30)
                except grpc.RpcError as error:
                    errors.append(error)
                    return
                mine.append(Decision.FromString(answer.decision.payload))

    with running_server(connection, topics) as server:
        threads = [threading.Thread(target=ask, args=(server, caller)) for caller in range(3)]
        for thread in threads:
            thread.start()
        with open_producer(connection) as producer:
            for version in range(1, versions + 1):
                snapshot = made_snapshot(version)
                sent = producer.send(
                    topics.parameters, encode(snapshot), key=key_of(snapshot), partition=0
                )
                sent.get(30)
        _serves(server, versions)
        seen = [len(mine) for mine in answers]
        await_until(lambda: all(len(a) > n + 5 for a, n in zip(answers, seen, strict=True)))
        stop.set()
        for thread in threads:
            thread.join()
        swapped = [swap["version"] for swap in server.swaps()]
    assert errors == []
    assert swapped == sorted(set(swapped))
    assert len(swapped) >= 20
    alphas = {v: _engine(server).load(made_snapshot(v)) for v in swapped}
    floors = EXAMPLE.floors()
    for mine in answers:
        order = [decision.version for decision in mine]
        assert order == sorted(order)
        assert order[-1] == versions
        for decision in mine:
            assert decision.arm == ARM_POLICY
            alpha = np.array(decision.alpha)
            weights = np.array(decision.weights, dtype=np.float32).reshape(-1, 3)
            expected = log_density(weights, alpha, floors)
            assert list(decision.log_densities) == expected.tolist()
            if decision.version:
                features = np.array([decision.features], dtype=np.float32)
                assert alphas[decision.version].alpha(features)[0].tolist() == alpha.tolist()


def test_kafka_away_at_start_serves_the_last_good_snapshot(tmp_path: Path) -> None:
    file = tmp_path / "example.snapshot"
    write_snapshot(file, made_snapshot(12))
    with running_server(
        NOBODY, NO_TOPICS, ready_timeout_s=0.3, snapshot_folder=file.parent
    ) as server:
        health = server.health()
        assert (health["status"], health["version"], health["kafka_age_s"]) == ("ok", 12, -1)
        await_until(lambda: server.health()["kafka"] == "away")
        assert "expected a Kafka broker at 127.0.0.1:9" in server.health()["kafka_trouble"]
        assert [swap["record_ms"] for swap in server.swaps()] == [None]


@pytest.mark.parametrize(
    ("content", "check"),
    [
        (b"damaged", "file"),
        (None, "schema"),
    ],
)
def test_a_bad_last_good_file_is_refused_and_the_baseline_serves(
    tmp_path: Path, content: bytes | None, check: str
) -> None:
    file = tmp_path / "example.snapshot"
    if content is None:
        snapshot = made_snapshot(12)
        snapshot.schema_digest = bytes(32)
        write_snapshot(file, snapshot)
    else:
        file.write_bytes(content)
    with running_server(
        NOBODY, NO_TOPICS, ready_timeout_s=0.0, snapshot_folder=file.parent
    ) as server:
        assert _engine(server).policy.order == (0, 0)
        assert server.health()["refused_by_check"] == {check: 1}
        assert str(file) in server.health()["last_refused"]


def _written(file: Path) -> ParameterSnapshot:
    snapshot = read_snapshot(file)
    assert snapshot is not None
    return snapshot


def test_the_last_good_snapshot_is_kept_on_disk(
    connection: Connection, topics: Topics, tmp_path: Path
) -> None:
    file = tmp_path / "serve" / "example.snapshot"
    publish(connection, topics.parameters, [made_snapshot(1)])
    with running_server(connection, topics, snapshot_folder=file.parent) as server:
        await_until(file.exists)
        assert _written(file) == made_snapshot(1)
        produce(
            connection,
            topics.parameters,
            [
                Produced(encode(made_snapshot(2)), b"example/1/2"),
                Produced(_broken(3, "finite"), b"example/1/3"),
            ],
        )
        _serves(server, 2)
    assert _written(file) == made_snapshot(2)


def test_a_snapshot_that_could_not_be_written_is_written_later(
    connection: Connection, topics: Topics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "example.snapshot"
    tried = threading.Event()

    def full(path: Path, snapshot: ParameterSnapshot) -> None:
        tried.set()
        raise FileNotWritten(path, snapshot.ByteSize(), "No space left on device")

    monkeypatch.setattr("serving.reload.write_snapshot", full)
    publish(connection, topics.parameters, [made_snapshot(1)])
    with running_server(connection, topics, snapshot_folder=file.parent):
        assert tried.wait(20)
        monkeypatch.undo()
    assert _written(file) == made_snapshot(1)


def test_a_missing_topic_is_waited_for(connection: Connection) -> None:
    with running_server(connection, Topics("no.such"), ready_timeout_s=0.5) as server:
        await_until(lambda: server.health()["kafka"] == "away")
        assert (
            "no.such.parameters.v1: expected 1 partition, seen 0"
            in server.health()["kafka_trouble"]
        )
        assert server.health()["status"] == "ok"


@pytest.mark.alone
def test_a_new_snapshot_serves_soon(connection: Connection, topics: Topics) -> None:
    with (
        running_server(connection, topics) as server,
        open_producer(connection, linger_ms=0) as producer,
    ):
        delays = []
        for version in range(1, 11):
            snapshot = made_snapshot(version)
            value = encode(snapshot)
            began = time.monotonic()
            producer.send(topics.parameters, value, key=key_of(snapshot), partition=0).get(30)
            _serves(server, version)
            delays.append(time.monotonic() - began)
    assert sorted(delays)[len(delays) // 2] < 0.5
