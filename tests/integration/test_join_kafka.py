"""`grade join` on a real broker: what it writes is what the logs say, whatever crashed when."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from policy.schema import Schema, load_schema
from stream.connection import Connection
from stream.topics import Topics
from tests.integration.join_process import (
    Joined,
    JoinProcess,
    Traffic,
    compare,
    running_join,
    total_groups,
    write_schema,
)
from tests.kafka import Produced, await_until, create_fresh, produce, read_topic

StartJoin = Callable[..., JoinProcess]


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

        def start(**choices: Any) -> JoinProcess:
            return stack.enter_context(running_join(connection, topics, tmp_path, **choices))

        yield start


def await_all_joined(connection: Connection, topics: Topics, schema: Schema) -> list[Joined]:
    """Wait until every group has left, and return the comparison."""

    def joined() -> list[Joined] | None:
        found = compare(connection, topics, schema)
        done = all(each.open_groups == 0 and each.seen == each.expected for each in found)
        return found if done else None

    found: list[Joined] = await_until(joined, 40.0, "the last group")
    return found


def await_some_groups(connection: Connection, topics: Topics, schema: Schema) -> None:
    """Wait until the first groups have left."""
    await_until(lambda: total_groups(compare(connection, topics, schema)), 30.0, "a group")


def test_groups_equal_a_run_in_this_process(
    connection: Connection,
    topics: Topics,
    schema: Schema,
    traffic: Traffic,
    start_join: StartJoin,
) -> None:
    """From an empty output: a start record, then every group and refused record, byte for byte."""
    worker = start_join()
    traffic.send(300)
    found = await_all_joined(connection, topics, schema)

    assert total_groups(found) == 300
    assert [len(each.starts) for each in found] == [1, 1]
    assert [each.repeats for each in found] == [0, 0]
    assert all(each.seen.refused for each in found)
    worker.await_healthy()
    assert worker.partitions == {0, 1}
    assert worker.stop() == 0


def test_kill_and_restart_lose_nothing(
    connection: Connection,
    topics: Topics,
    schema: Schema,
    traffic: Traffic,
    start_join: StartJoin,
) -> None:
    """Killed twice in the middle; what is written again is identical to what was there."""
    for number in range(2):
        worker = start_join(name=f"join-{number}")
        traffic.send(150)
        await_some_groups(connection, topics, schema)
        traffic.send(50)
        worker.kill()
    traffic.send(50)
    start_join(name="join-last")
    found = await_all_joined(connection, topics, schema)

    assert total_groups(found) == 450
    assert [len(each.starts) for each in found] == [1, 1]


def test_another_worker_takes_over(
    connection: Connection,
    topics: Topics,
    schema: Schema,
    traffic: Traffic,
    start_join: StartJoin,
) -> None:
    """Two workers share the partitions; when one is killed, the other gets on with both."""
    killed, left = start_join(name="killed"), start_join(name="left")
    workers = (killed, left)
    await_until(
        lambda: (
            {frozenset(each.partitions) for each in workers} == {frozenset({0}), frozenset({1})}
        ),
        40.0,
        "one partition each",
    )
    traffic.send(200)
    await_some_groups(connection, topics, schema)
    traffic.send(50)
    killed.kill()
    traffic.send(50)
    await_until(lambda: left.partitions == {0, 1}, 40.0, "both partitions at one worker")
    found = await_all_joined(connection, topics, schema)

    assert total_groups(found) == 300
    assert left.stop() == 0


def test_silent_partitions_make_progress_by_ticks(
    connection: Connection, topics: Topics, schema: Schema, start_join: StartJoin
) -> None:
    """Without any traffic log time goes on, and the owner says so."""
    start_join()

    def frontiers() -> list[int]:
        found = compare(connection, topics, schema)
        return [
            max((p.progress.standing.frontier_ms for p in f.progress), default=0) for f in found
        ]

    first = await_until(lambda: all(frontiers()) and frontiers(), 30.0, "progress")
    await_until(
        lambda: all(now > then + 1_000 for now, then in zip(frontiers(), first, strict=True)),
        30.0,
        "a second of log time",
    )
    ticks = read_topic(connection, topics.impressions)
    assert {(record.value, tuple(record.headers)) for record in ticks} == {
        (b"", (("grade-tick", b""),))
    }


def test_producer_ticks_leave_the_logs_alone(
    connection: Connection,
    topics: Topics,
    schema: Schema,
    traffic: Traffic,
    start_join: StartJoin,
) -> None:
    """Where the producer ticks, a worker reads to the end and appends nothing to the inputs."""
    worker = start_join(join_ticks="producer")
    traffic.send(50)
    ends = sum(len(read_topic(connection, topic)) for topic in topics.inputs)

    def read() -> int:
        partitions = worker.health().get("partitions", {}).values()
        return sum(sum(each["positions"].values()) for each in partitions)

    await_until(lambda: read() == ends, 30.0, "the end of the inputs")
    await_until(
        lambda: all(each.seen == each.expected for each in compare(connection, topics, schema)),
        30.0,
        "all that follows without ticks",
    )
    assert sum(len(read_topic(connection, topic)) for topic in topics.inputs) == ends


def test_control_records_are_named(
    connection: Connection, topics: Topics, start_join: StartJoin
) -> None:
    """A transaction leaves a gap that no seek fills: the worker ends and says why."""

    async def commit_transaction() -> None:
        producer = AIOKafkaProducer(
            bootstrap_servers=connection.bootstrap_servers, transactional_id=topics.prefix
        )
        await producer.start()
        async with producer.transaction():
            await producer.send_and_wait(topics.impressions, b"first", partition=1)
        await producer.stop()

    asyncio.run(commit_transaction())
    produce(connection, topics.impressions, [Produced(b"second", partition=1)])
    worker = start_join()
    assert worker.wait(60.0) == 1
    assert "impressions partition 1: expected offset 1 next, seen 2 twice" in worker.output
    assert "control records of a transactional producer" in worker.output
    assert "Traceback" not in worker.output


def test_wrong_topics_are_refused_up_front(connection: Connection, tmp_path: Path) -> None:
    """A worker that is told of another number of partitions does not start."""
    topics = create_fresh(connection, partitions=3)
    with running_join(connection, topics, tmp_path) as worker:
        assert worker.wait(30.0) == 1
        assert f"{topics.impressions}: partitions: expected 2, seen 3" in worker.output


def test_nobody_answers(topics: Topics, tmp_path: Path) -> None:
    """Without a broker a worker ends with a sentence, so that a supervisor tries again."""
    with running_join(Connection("127.0.0.1:1"), topics, tmp_path) as worker:
        assert worker.wait(60.0) == 1
        assert "error: expected a Kafka broker at 127.0.0.1:1" in worker.output
        assert "Traceback" not in worker.output
