"""`grade learn` and `grade reconcile` as processes, on topics that hold a whole small world."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from grade.v1.reward_group_pb2 import JoinRecord

from cli.system import free_ports
from policy.trainer_settings import TrainerSettings
from stream.codec import encode
from stream.connection import Connection
from stream.logs import Log
from stream.reconcile import WholeContent
from stream.topics import Topics
from tests.kafka import Produced, await_until, create_fresh, produce, read_topic
from tests.stream import learner_world as world

GRADE = [sys.executable, "-m", "cli.main"]
SCHEMA = Path(__file__).parent.parent / "example_schema.toml"
FIRST = world.generation(trainer=TrainerSettings())
"""The generation that the command's default settings begin."""


@pytest.fixture(scope="module")
def content() -> WholeContent:
    """What the topics of a system hold that was run with the command's default settings."""
    return world.content(seed=5, first=FIRST)


@pytest.fixture
def event_topics(connection: Connection) -> Topics:
    return create_fresh(connection, timestamps="event")


def environment(connection: Connection, topics: Topics, folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "GRADE_BOOTSTRAP_SERVERS": connection.bootstrap_servers,
        "GRADE_TOPIC_PREFIX": topics.prefix,
        "GRADE_PARTITIONS": "2",
        "GRADE_SCHEMA_PATH": str(SCHEMA),
        "GRADE_DATA_DIR": str(folder),
        "GRADE_LOG_FORMAT": "json",
    }


def reconcile(
    arguments: Sequence[str], environment: Mapping[str, str]
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*GRADE, "reconcile", *arguments],
        env=dict(environment),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def write(connection: Connection, topic: str, logs: Sequence[Log]) -> None:
    """Write logs to a topic, times and headers included."""
    produce(
        connection,
        topic,
        [
            Produced(each.value, each.key, partition, each.timestamp_ms, [*each.headers])  # type: ignore[list-item]  # two packages' types
            for partition, log in enumerate(logs)
            for each in log.records
        ],
    )


def write_join(connection: Connection, topics: Topics, content: WholeContent) -> None:
    """Write the generation, the inputs and what the join made of them."""
    produce(connection, topics.generations, [Produced(encode(FIRST), b"example")])
    for topic, logs in (
        (topics.impressions, content.impressions),
        (topics.conversions, content.conversions),
        (topics.reward_groups, content.reward_groups),
        (topics.late, content.late),
        (topics.orphans, content.orphans),
        (topics.dead_letters, content.dead_letters),
    ):
        write(connection, topic, logs)


def health(port: int) -> Any:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return json.load(error)
    except OSError:
        return {}


def test_learn_publishes_and_ends_with_0_on_sigterm(
    connection: Connection, event_topics: Topics, content: WholeContent, tmp_path: Path
) -> None:
    write_join(connection, event_topics, content)
    (port,) = free_ports(1)
    settings = environment(connection, event_topics, tmp_path)
    process = subprocess.Popen(
        [*GRADE, "learn"],
        env={**settings, "GRADE_LEARN_ADMIN_PORT": str(port)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        versions = len(content.versions.records)
        await_until(lambda: health(port).get("version") == versions, 60.0, "every version")
        assert health(port)["status"] == "ok"
        process.send_signal(signal.SIGTERM)
        output, log = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, log
    assert [each.value for each in read_topic(connection, event_topics.versions)] == [
        each.value for each in content.versions.records
    ]
    assert output == ""


def test_reconcile_prints_the_sums_and_ends_with_1_on_the_first_difference(
    connection: Connection, event_topics: Topics, content: WholeContent, tmp_path: Path
) -> None:
    write_join(connection, event_topics, content)
    write(connection, event_topics.versions, [content.versions])
    write(connection, event_topics.parameters, [content.parameters])
    settings = environment(connection, event_topics, tmp_path)
    report = tmp_path / "report.json"

    # Neither a schema nor the learner's settings are needed.
    nobodys = {**settings, "GRADE_SCHEMA_PATH": "nowhere.toml", "GRADE_LEARN_SLOT_MS": "999"}
    sound = reconcile(["--json", str(report)], nobodys)
    assert sound.returncode == 0, sound.stdout + sound.stderr
    assert "conserved and reconciled" in sound.stdout
    found = json.loads(report.read_text())
    assert found["conserved"] is True
    assert found["reconciled"] is True
    assert found["groups"] == 60
    assert found["versions_compared"] == len(content.versions.records)
    assert (found["groups_lost"], found["groups_applied_twice"]) == (0, 0)

    group = next(
        each
        for each in content.reward_groups[1].records
        if JoinRecord.FromString(each.value or b"").HasField("group")
    )
    message = JoinRecord.FromString(group.value or b"")
    message.group.rewards.ideal += 1
    produce(
        connection, event_topics.reward_groups, [Produced(encode(message), group.key, partition=1)]
    )
    broken = reconcile(["--versions", "2..4", "--json", str(report)], nobodys)
    assert broken.returncode == 1, broken.stdout + broken.stderr
    assert json.loads(report.read_text())["versions_compared"] == 3
    assert "not compared: " in broken.stdout
    offset = content.reward_groups[1].end
    place = f"{event_topics.reward_groups} partition 1 offset {offset}"
    assert f"DIFFERENCE: {place}: group.rewards.ideal: expected" in broken.stdout
