"""Broken input into the running system: named, counted, kept; nothing else is disturbed."""

import json
import os
import signal
import urllib.request
from pathlib import Path

import grpc
import pytest
from grade.v1.conversion_pb2 import Conversion
from grade.v1.parameters_pb2 import ParameterSnapshot
from grade.v1.refused_pb2 import Reason, Refused

from grade_client import PolicyCallFailed, PolicyClient
from stream.codec import encode, partition_for
from stream.connection import Connection
from tests.kafka import Produced, await_until, produce, read_topic
from tests.system import RunningSystem, Traffic, running_system


def metrics(system: RunningSystem, name: str) -> str:
    url = f"http://127.0.0.1:{system.ports[name]}/metrics"
    with urllib.request.urlopen(url, timeout=5) as answer:
        return str(answer.read().decode())


def test_broken_records_requests_and_snapshots(connection: Connection, tmp_path: Path) -> None:
    with running_system(connection, tmp_path) as system:
        topics, policy = system.topics, system.schema.policy
        with Traffic(system, rate=50) as traffic:
            traffic.await_more(60)
            await_until(lambda: system.health("serve").get("version", 0) > 0, 30, "a version")

            # Records that cannot be used.
            key = b"r-broken"
            at = partition_for(key, system.settings.partitions)
            unknown = Conversion(
                policy=policy,
                request_id=key.decode(),
                conversion_id="c",
                item_id="i",
                outcome="wink",
                value=1.0,
            )
            produce(connection, topics.impressions, [Produced(b"\xff\xff no message", key, at)])
            produce(connection, topics.conversions, [Produced(encode(unknown), key, at)])

            # A request that cannot be answered.
            with PolicyClient(system.target, policy) as client:
                with pytest.raises(PolicyCallFailed) as refused:
                    client.sample("r", "u", [1.0, float("nan"), 2.0])
            assert refused.value.code == grpc.StatusCode.INVALID_ARGUMENT
            assert "features" in str(refused.value)
            assert "nan" in str(refused.value).lower()

            # A snapshot that must not be served: bytes that are not what their checksum says.
            before = system.health("serve")["version"]
            snapshot = ParameterSnapshot(
                policy=policy,
                epoch=1,
                version=1_000_000,
                schema_digest=system.schema.digest,
                parameters=b"not parameters",
                parameters_sha256=b"\0" * 32,
            )
            produce(
                connection,
                topics.parameters,
                [Produced(encode(snapshot), f"{policy}/1/1000000".encode())],
            )
            await_until(lambda: "checksum" in json.dumps(system.health("serve")), 20, "the refusal")
            await_until(
                lambda: before < system.health("serve")["version"] < 1_000_000,
                30,
                "the next good version",
            )
            # A learner that finds it in the topic goes on publishing.
            system.kill("learn")
            served = system.health("serve")["version"]
            await_until(
                lambda: served + 3 < system.health("serve")["version"] < 1_000_000,
                40,
                "versions after the learner's restart",
            )
            traffic.await_more(60)
        assert traffic.failures == []
        system.await_applied(traffic.shown)
        assert 'grade_join_refused_total{reason="undecodable"} 1.0' in metrics(system, "join")

        letters = [
            Refused.FromString(record.value)
            for record in read_topic(connection, topics.dead_letters)
        ]
        assert {(letter.topic, letter.reason) for letter in letters} == {
            ("impressions", Reason.REASON_UNDECODABLE),
            ("conversions", Reason.REASON_UNKNOWN_OUTCOME),
        }
        for letter in letters:
            assert letter.key == key
            assert "expected" in letter.message
            assert "seen" in letter.message
        assert [each.value for each in letters if each.topic == "conversions"] == [encode(unknown)]


def test_a_corrupt_checkpoint_is_refused_and_the_one_before_is_used(
    connection: Connection, tmp_path: Path
) -> None:
    with running_system(connection, tmp_path) as system:
        folder = system.settings.data_dir / "checkpoints" / system.settings.topic_prefix
        with Traffic(system, rate=50) as traffic:
            await_until(lambda: len(list(folder.glob("*.ckpt"))) >= 3, 60, "three checkpoints")
            os.kill(system.supervisor.process_ids()["learn"], signal.SIGSTOP)
            newest = max(folder.glob("*.ckpt"))
            content = bytearray(newest.read_bytes())
            content[len(content) // 2] ^= 0xFF
            newest.write_bytes(bytes(content))
            system.kill("learn")
            traffic.await_more(60)
        system.await_applied(traffic.shown)
        log = (tmp_path / "grade.log").read_text("utf-8")
        refusal = next(line for line in log.splitlines() if newest.name in line)
        assert "expected" in refusal
        assert "seen" in refusal
        report = system.stop_and_reconcile()
        assert report.ok, [*report.unconserved, *map(str, report.differences)]
        assert report.groups == traffic.shown
