"""Generations on a real broker: workers cross boundaries, accidents stop, losses are recorded."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
from grade.v1.reward_group_pb2 import JoinRecord
from kafka import TopicPartition

from policy import rewards
from policy.schema import Schema, load_schema
from stream.codec import has_boundary_header
from stream.connection import Connection, open_admin
from stream.generations import read_generations, settings_of
from stream.reconcile import ReconcileReport, TopicContent, reconcile
from stream.topics import Topics
from tests.integration import newer_build
from tests.integration.join_process import (
    ROOT,
    Joined,
    JoinProcess,
    Traffic,
    compare,
    environment_of_join,
    running_join,
    total_groups,
    write_schema,
)
from tests.kafka import await_until, read_topic

StartJoin = Callable[..., JoinProcess]

NEWER = "tests.integration.newer_build"


@pytest.fixture
def schema(tmp_path: Path) -> Schema:
    return load_schema(write_schema(tmp_path))


@pytest.fixture
def traffic(connection: Connection, topics: Topics, schema: Schema) -> Traffic:
    return Traffic(connection, topics, schema)


@pytest.fixture
def start_join(connection: Connection, topics: Topics, tmp_path: Path) -> Iterator[StartJoin]:
    """Starts workers that are killed after the test."""
    with ExitStack() as stack:
        yield lambda **choices: stack.enter_context(
            running_join(connection, topics, tmp_path, **choices)
        )


def begin(environment: Mapping[str, str], build: str = "cli.main") -> str:
    """`grade generation begin`; returns what it says."""
    done = subprocess.run(
        [sys.executable, "-m", build, "generation", "begin"],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def await_all_joined(connection: Connection, topics: Topics, schema: Schema) -> list[Joined]:
    """Wait until every group and boundary has left, and return the comparison."""

    def joined() -> list[Joined] | None:
        found = compare(connection, topics, schema)
        done = all(each.open_groups == 0 and each.seen == each.expected for each in found)
        return found if done else None

    found: list[Joined] = await_until(joined, 60.0, "the last group")
    return found


def await_share(*workers: JoinProcess) -> None:
    """Wait until two workers have one partition each."""
    await_until(
        lambda: (
            {frozenset(each.partitions) for each in workers} == {frozenset({0}), frozenset({1})}
        ),
        40.0,
        "one partition each",
    )


def reconciled(connection: Connection, topics: Topics) -> ReconcileReport:
    """The report of `grade reconcile` over all that the join has written."""
    generations = read_generations(connection, topics, "example")
    report = reconcile(generations, TopicContent(connection, topics), versions="none")
    assert (report.unconserved, report.differences) == ([], [])
    return report


def numbers(found: Joined) -> list[int]:
    """Generation of each group, in the order of the output."""
    records = map(JoinRecord.FromString, found.seen.groups)
    return [each.group.generation for each in records if each.HasField("group")]


def test_workers_cross_a_boundary_and_one_of_them_is_killed(
    connection: Connection,
    topics: Topics,
    schema: Schema,
    traffic: Traffic,
    start_join: StartJoin,
    tmp_path: Path,
) -> None:
    """Under load, nobody stops for it; who takes over for the killed one crosses too."""
    killed, left = start_join(name="killed"), start_join(name="left")
    await_share(killed, left)
    traffic.send(100)
    longer = write_schema(tmp_path, window_s=1.5)
    told = begin(environment_of_join(connection, topics, longer))
    assert "attribution.window_s: 1.0 → 1.5" in told
    traffic.send(100)
    # Groups of the first generation are open behind the boundary, and one worker goes.
    killed.kill()
    traffic.send(50)
    refused = start_join(name="refused")  # by the schema that is no longer in force
    assert refused.wait(60.0) == 2
    assert (
        "error: attribution.window_s: expected 1.5 as in generation 2, seen 1.0" in refused.output
    )
    assert "`grade generation begin`" in refused.output
    assert "Traceback" not in refused.output
    second = start_join(name="second", schema_path=longer)
    await_share(second, left)
    traffic.send(50)
    found = await_all_joined(connection, topics, schema)

    assert total_groups(found) == 300
    assert [each.boundaries for each in found] == [[2], [2]]
    assert all(each.conserved for each in found)
    for each in found:
        assert numbers(each) == sorted(numbers(each))
        assert set(numbers(each)) == {1, 2}
    assert left.process.poll() is None
    assert reconciled(connection, topics).groups == 300


def test_a_race_of_first_starts_leaves_one_running(
    connection: Connection, topics: Topics, start_join: StartJoin
) -> None:
    """Two workers with different settings begin the first generation at once: one is obeyed."""
    slots = {"100": start_join(name="one", learn_slot_ms="100")}
    slots["200"] = start_join(name="two", learn_slot_ms="200")

    def ended() -> list[str]:
        return [slot for slot, worker in slots.items() if worker.process.poll() is not None]

    [loser] = await_until(ended, 40.0, "one worker's end")
    [winner] = slots.keys() - {loser}
    assert slots[loser].process.returncode == 2
    assert f"learn_slot_ms: expected {winner} as in generation 1, seen {loser}" in (
        slots[loser].output
    )
    slots[winner].await_healthy()
    [first] = read_generations(connection, topics, "example")
    assert settings_of(first)["learn_slot_ms"] == int(winner)


def test_rolling_upgrade_across_a_computation(
    connection: Connection,
    topics: Topics,
    schema: Schema,
    traffic: Traffic,
    start_join: StartJoin,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Old and new workers share the load until the boundary; there the old one stops by itself."""
    monkeypatch.setitem(rewards.COMPUTATIONS, newer_build.NEWER, newer_build.doubled)
    old = start_join(name="old")
    environment = environment_of_join(connection, topics, write_schema(tmp_path))
    with traffic.load():
        traffic.await_more(20)
        new = start_join(name="new", build=NEWER)
        await_share(old, new)
        traffic.await_more(20)
        assert "computation: 1 → 2" in begin(environment, NEWER)
        assert old.wait(30.0) == 2
        assert "expected a reward computation that this build has (1), seen 2" in old.output
        assert "start a newer build" in old.output
        assert "Traceback" not in old.output
        again = start_join(name="again")
        assert again.wait(30.0) == 2
        assert "computation: expected 2 as in generation 2, seen 1" in again.output
        await_until(lambda: new.partitions == {0, 1}, 40.0, "both partitions at the new worker")
        traffic.await_more(20)
        told = begin(environment, NEWER)
        assert "generation 2" in told
    found = await_all_joined(connection, topics, schema)

    for topic in topics.inputs:
        records = read_topic(connection, topic)
        boundaries = [each.partition for each in records if has_boundary_header(each.headers)]
        assert boundaries == [0, 1], "written once, though the command was run again"
    assert total_groups(found) == traffic.requests > 60
    assert [each.boundaries for each in found] == [[2], [2]]
    assert all(each.conserved for each in found)
    assert new.stop() == 0
    assert reconciled(connection, topics).groups == traffic.requests


def test_an_accepted_loss_is_recorded_and_what_is_left_is_joined(
    connection: Connection,
    topics: Topics,
    schema: Schema,
    traffic: Traffic,
    start_join: StartJoin,
) -> None:
    """Retention took undecided records of both logs while the join was down."""
    worker = start_join(name="first")
    traffic.send(100)
    await_until(
        lambda: total_groups(compare(connection, topics, schema)) > 50, 30.0, "the first groups"
    )
    worker.kill()
    traffic.send(100)
    heads = {}
    for topic in topics.inputs:
        end = read_topic(connection, topic, 0)[-1].offset + 1
        heads[TopicPartition(topic, 0)] = end - 10
    with open_admin(connection) as admin:
        admin.delete_records(heads)

    refusing = start_join(name="refusing")
    assert refusing.wait(60.0) == 1
    head = heads[TopicPartition(topics.impressions, 0)]
    assert "error: partition 0: impressions: expected to read from offset" in refusing.output
    assert f"seen {head} as the first that retention has left" in refusing.output
    assert "were not decided are gone: `grade join --accept-loss` records" in refusing.output
    start_join(name="accepting", options=["--accept-loss"]).await_healthy()
    traffic.send(100)
    found = await_all_joined(connection, topics, schema)

    lost, whole = found
    assert [each.HasField("loss") for each in lost.starts] == [False, True]
    assert len(whole.starts) == 1
    start = lost.starts[1]
    assert (start.head.impression_offset, start.head.conversion_offset) == tuple(heads.values())
    assert (
        f"{start.loss.impressions} impressions and {start.loss.conversions} conversions that"
        in (refusing.output)
    )
    assert start.loss.impressions > 0
    assert whole.conserved
    assert lost.conserved
    assert total_groups([whole, lost]) > 100
    [told] = reconciled(connection, topics).losses
    assert f"{start.loss.impressions} impressions" in told
