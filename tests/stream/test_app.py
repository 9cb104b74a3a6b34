"""The owners of partitions against a real broker, without Faust in between."""

import asyncio
import dataclasses
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from grade.v1.generation_pb2 import Generation
from grade.v1.reward_group_pb2 import JoinRecord
from kafka.admin import NewTopic

from policy.errors import RetentionLost, StreamError
from policy.rewards import COMPUTATION
from policy.schema import Schema, parse_schema
from stream.broker import LocalBroker
from stream.codec import encode, partition_for
from stream.connection import LARGEST_REQUEST_BYTES, Connection, open_admin
from stream.generations import begin, ensure_first, generation_of
from stream.join import JoinLimits, Kind, Log, Output
from stream.join_logs import BATCH_BYTES, JoinLogs
from stream.owner import OwnerSettings
from stream.ownership import Ownership
from stream.terms import MAX_RECORD_BYTES_SETTING
from stream.topics import Topics
from tests.kafka import Produced, await_until, create_fresh, produce, read_topic
from tests.stream.join_messages import (
    SCHEMA,
    valid_conversion,
    valid_decision,
    valid_impression,
)

QUIET = OwnerSettings(ticks="producer", stall_timeout_s=0.0)


def definition(schema: Schema) -> Generation:
    return generation_of(schema, {MAX_RECORD_BYTES_SETTING: 1_000_000}, COMPUTATION)


def with_times(window_s: float, early_s: float, late_s: float) -> Schema:
    """The example's schema with other times."""
    text = SCHEMA.toml
    for name, value in {"window_s": window_s, "early_s": early_s, "late_s": late_s}.items():
        text, found = re.subn(rf"^{name} = .*$", f"{name} = {value}", text, flags=re.MULTILINE)
        assert found == 1
    return parse_schema(text)


class Worker:
    """Ownership of one partition, and what it asked of whoever fetches."""

    def __init__(
        self, logs: JoinLogs, topics: Topics, limits: JoinLimits, settings: OwnerSettings
    ) -> None:
        self.asked: list[tuple[str, str, int]] = []
        self.topics = topics
        self.ownership = Ownership(
            SCHEMA.policy, limits, settings, partitions=1, logs=logs, flow=self
        )

    def pause(self, topic: str, partition: int) -> None:
        self.asked.append(("pause", topic, partition))

    def resume(self, topic: str, partition: int) -> None:
        self.asked.append(("resume", topic, partition))

    async def rewind(self, topic: str, partition: int, offset: int) -> None:
        assert partition == 0
        self.asked.append(("rewind", topic, offset))

    async def claim(self) -> tuple[int, int]:
        """Where to begin in impressions and conversions."""
        begins = await self.ownership.claim([(topic, 0) for topic in self.topics.inputs])
        impressions, conversions = (begins[topic, 0] for topic in self.topics.inputs)
        return impressions, conversions

    def health(self) -> dict[str, Any]:
        health: dict[str, Any] = self.ownership.health()["0"]
        return health


class Scene:
    """Topics of one partition, and the records of the inputs as aiokafka fetches them."""

    def __init__(
        self, connection: Connection, schema: Schema = SCHEMA, max_open_groups: int = 1_000
    ) -> None:
        self.connection = connection
        self.topics = create_fresh(connection, partitions=1)
        self.schema = schema
        self.limits = JoinLimits(max_open_groups)
        ensure_first(connection, self.topics, definition(schema))

    def begin(self, schema: Schema) -> None:
        """Begin a generation."""
        begin(self.connection, self.topics, definition(schema), partitions=1)

    def delete(self, topic: str, before: int) -> None:
        """Delete a topic's records before an offset, as retention does."""
        with open_admin(self.connection) as admin:
            admin.delete_records({TopicPartition(topic, 0): before})

    def show(self, *request_ids: str) -> None:
        shown = []
        for name in request_ids:
            impression, decision = valid_impression(name), valid_decision(name)
            decision.schema_digest = self.schema.digest
            impression.decision.payload = encode(decision)
            shown.append((name, encode(impression)))
        self._produce(self.topics.impressions, shown)

    def click(self, *request_ids: str) -> None:
        self._produce(
            self.topics.conversions,
            [(name, encode(valid_conversion(name))) for name in request_ids],
        )

    def _produce(self, topic: str, records: list[tuple[str, bytes]]) -> None:
        assert all(partition_for(key.encode(), 1) == 0 for key, _ in records)
        produce(self.connection, topic, [Produced(value, key.encode()) for key, value in records])

    async def fetch(self, log: Log, start: int, end: int) -> list[Any]:
        """Records of an input log with offsets from start up to end."""
        topic = dict(zip(Log, self.topics.inputs, strict=True))[log]
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.connection.bootstrap_servers, auto_offset_reset="earliest"
        )
        await consumer.start()
        try:
            consumer.assign([TopicPartition(topic, 0)])
            consumer.seek(TopicPartition(topic, 0), start)
            return [await consumer.getone() for _ in range(start, end)]
        finally:
            await consumer.stop()

    def outputs(self) -> list[JoinRecord]:
        return [
            JoinRecord.FromString(record.value)
            for record in read_topic(self.connection, self.topics.reward_groups)
        ]

    def play(
        self,
        act: Callable[[Worker], Awaitable[None]],
        settings: OwnerSettings = QUIET,
    ) -> Worker:
        """Run an act of one worker; its owners end with it."""

        async def run() -> Worker:
            async with JoinLogs(self.connection, self.topics) as logs:
                worker = Worker(logs, self.topics, self.limits, settings)
                try:
                    await act(worker)
                finally:
                    worker.ownership.release_all_but([])
                    with suppress(asyncio.CancelledError):
                        worker.ownership.failed.cancel()
                return worker

        return asyncio.run(run())


@pytest.fixture
def scene(connection: Connection) -> Scene:
    return Scene(connection)


def recreate(connection: Connection, topic: str) -> None:
    """Delete a topic and create it again, empty."""
    with open_admin(connection) as admin:
        admin.delete_topics([topic])
        await_until(lambda: topic not in admin.list_topics(), 20.0, "the topic's end")
        admin.create_topics([NewTopic(topic, 1, 1)])


async def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Let the owners run until a condition is true."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


async def put(worker: Worker, log: Log, records: list[Any], end: int) -> None:
    """Hand over a batch and wait until its owner has taken it."""
    topic = dict(zip(Log, worker.topics.inputs, strict=True))[log]
    await worker.ownership.put(topic, 0, records, end)


def test_an_empty_output_gets_one_start_record(scene: Scene) -> None:
    """The second owner obeys the first one's start record, though the logs have grown."""
    scene.show("r1")

    async def claim(worker: Worker) -> None:
        assert await worker.claim() == (0, 0)

    scene.play(claim)
    scene.show("r2")
    scene.play(claim)
    [only] = scene.outputs()
    assert only.start.head.impression_offset == 0


def test_a_split_partition_is_refused(scene: Scene) -> None:
    """Impressions here and conversions elsewhere can't be joined."""

    async def claim(worker: Worker) -> None:
        await worker.ownership.claim([(scene.topics.impressions, 0)])

    with pytest.raises(StreamError, match=r"partition 0: expected both .* alone"):
        scene.play(claim)


def test_a_batch_that_does_not_continue_is_sought_again(scene: Scene) -> None:
    """Records ahead are not read; records that were read already are passed over."""
    scene.show("r1", "r2", "r3", "r4")

    async def act(worker: Worker) -> None:
        await worker.claim()
        records = await scene.fetch(Log.IMPRESSIONS, 0, 4)
        await put(worker, Log.IMPRESSIONS, records[2:], 4)
        await until(lambda: bool(worker.asked))
        assert worker.asked == [("rewind", scene.topics.impressions, 0)]
        await put(worker, Log.IMPRESSIONS, records[:3], 4)
        await put(worker, Log.IMPRESSIONS, records[1:], 4)
        await until(lambda: worker.health()["positions"]["impressions"] == 4)
        assert worker.health()["open_groups"] == 4
        assert len(worker.asked) == 1

    scene.play(act)


def test_the_same_gap_twice_ends_the_worker(scene: Scene) -> None:
    """What a seek does not bring is not in the log."""
    scene.show("r1", "r2", "r3")

    async def act(worker: Worker) -> None:
        await worker.claim()
        records = await scene.fetch(Log.IMPRESSIONS, 0, 3)
        for _ in range(2):
            await put(worker, Log.IMPRESSIONS, records[1:], 3)
        await worker.ownership.failed

    with pytest.raises(StreamError, match=r"expected offset 0 next, seen 1 twice"):
        scene.play(act)


def test_a_log_that_ends_before_what_was_read_ends_the_worker(scene: Scene) -> None:
    """It was truncated: nothing of it may be passed over as read already."""
    scene.show("r1", "r2", "r3", "r4")

    async def act(worker: Worker) -> None:
        await worker.claim()
        records = await scene.fetch(Log.IMPRESSIONS, 0, 4)
        await put(worker, Log.IMPRESSIONS, records, 4)
        await until(lambda: worker.health()["positions"]["impressions"] == 4)
        await put(worker, Log.IMPRESSIONS, records[:2], 2)
        await worker.ownership.failed

    with pytest.raises(
        StreamError,
        match=r"impressions partition 0: expected the log to reach at least offset 4, seen .* 2:",
    ):
        scene.play(act)


def test_a_log_that_was_created_anew_ends_the_worker(scene: Scene) -> None:
    """The broker itself is asked for the end, so also a fetcher that has died is no excuse."""
    scene.show("r1", "r2")

    async def act(worker: Worker) -> None:
        await worker.claim()
        await put(worker, Log.IMPRESSIONS, await scene.fetch(Log.IMPRESSIONS, 0, 2), 2)
        await until(lambda: worker.health()["positions"]["impressions"] == 2)
        await asyncio.to_thread(recreate, scene.connection, scene.topics.impressions)
        await worker.ownership.watch()

    with pytest.raises(StreamError, match=r"reach at least offset 2, seen its end at 0: .* anew"):
        scene.play(act)


def test_a_log_that_was_created_anew_and_has_grown_again_ends_the_worker(
    connection: Connection,
) -> None:
    """Its end tells nothing, but the record that was read last is another one."""
    scene, other = Scene(connection), Scene(connection)
    scene.show("r1", "r2")
    other.show("a1", "a2", "a3")

    async def act(worker: Worker) -> None:
        await worker.claim()
        await put(worker, Log.IMPRESSIONS, await scene.fetch(Log.IMPRESSIONS, 0, 2), 2)
        await until(lambda: worker.health()["positions"]["impressions"] == 2)
        await put(worker, Log.IMPRESSIONS, await other.fetch(Log.IMPRESSIONS, 0, 3), 3)
        await worker.ownership.failed

    with pytest.raises(StreamError, match=r"impressions partition 0: expected at offset 1 the rec"):
        scene.play(act)


def test_trouble_with_kafka_is_told_until_it_is_over(tmp_path: Path) -> None:
    """The broker goes and comes back; the worker stays."""
    broker = LocalBroker(tmp_path / "kafka", start_timeout_s=120.0)
    scene = Scene(Connection(broker.up().bootstrap_servers, client_id="grade-test"))

    async def act(worker: Worker) -> None:
        ownership = worker.ownership
        await worker.claim()
        watch = asyncio.create_task(ownership.watch())
        await asyncio.to_thread(broker.down)
        await until(lambda: ownership.kafka_trouble != "", 40.0)
        assert "expected offsets of the join's topics" in ownership.kafka_trouble
        await asyncio.to_thread(broker.up)
        await until(lambda: ownership.kafka_trouble == "", 60.0)
        watch.cancel()

    try:
        scene.play(act)
    finally:
        broker.down()


def test_impressions_pause_while_many_groups_are_open(connection: Connection) -> None:
    """At the bound the log is paused; when a group has left it is resumed."""
    scene = Scene(connection, with_times(0.05, 0.01, 0.1), max_open_groups=2)
    scene.show("r1", "r2")
    impressions = scene.topics.impressions

    async def act(worker: Worker) -> None:
        await worker.claim()
        await put(worker, Log.IMPRESSIONS, await scene.fetch(Log.IMPRESSIONS, 0, 2), 2)
        await until(lambda: worker.asked == [("pause", impressions, 0)])
        assert worker.health()["paused"] == ["impressions"]
        await asyncio.sleep(0.1)  # the window has to pass on the broker's clock
        scene.click("r1")
        await put(worker, Log.CONVERSIONS, await scene.fetch(Log.CONVERSIONS, 0, 1), 1)
        await until(lambda: ("resume", impressions, 0) in worker.asked)
        # The click is more than a window ahead of all impressions: these are to be read first.
        assert worker.health()["paused"] == ["conversions"]
        await until(lambda: worker.health()["unwritten_steps"] == 0)

    scene.play(act)
    groups = [record.group for record in scene.outputs() if record.HasField("group")]
    assert [group.impression.request_id for group in groups] == ["r1", "r2"]


def test_only_a_silent_log_that_was_read_to_its_end_is_ticked(scene: Scene) -> None:
    """Impressions have a record that is not read yet, so conversions alone are ticked."""
    scene.show("r1")

    async def act(worker: Worker) -> None:
        await worker.claim()
        await until(lambda: worker.health()["lag"]["conversions"] == 1)

    scene.play(act, OwnerSettings(idle_tick_interval_ms=10))
    assert len(read_topic(scene.connection, scene.topics.impressions)) == 1
    [tick] = read_topic(scene.connection, scene.topics.conversions)
    assert (tick.value, tick.headers) == (b"", [("grade-tick", b"")])


def test_a_partition_that_nobody_else_has_written_to_is_kept(scene: Scene) -> None:
    """After a rebalance the state goes on; once another owner has written, it is made anew."""
    scene.show("r1")

    async def act(worker: Worker) -> None:
        assert await worker.claim() == (0, 0)
        await put(worker, Log.IMPRESSIONS, await scene.fetch(Log.IMPRESSIONS, 0, 1), 1)
        await until(lambda: worker.health()["positions"]["impressions"] == 1)
        worker.ownership.suspend()
        assert await worker.claim() == (1, 0)
        start = scene.outputs()[0].SerializeToString(deterministic=True)
        async with JoinLogs(scene.connection, scene.topics) as other:
            await other.append(0, [Output(Kind.REWARD_GROUPS, b"", start + b"\x1a\x00")])
        worker.ownership.suspend()
        assert await worker.claim() == (0, 0)

    scene.play(act)


def test_the_watchdog_names_what_is_not_read(scene: Scene) -> None:
    """There are records and none is read: the worker ends."""
    scene.show("r1", "r2")

    async def act(worker: Worker) -> None:
        await worker.claim()
        await worker.ownership.watch()

    with pytest.raises(
        StreamError, match=r"impressions partition 0: expected to read on from offset 0 to 1, seen"
    ):
        scene.play(act)


def test_records_are_written_in_order_over_several_batches(scene: Scene) -> None:
    """More than a batch holds."""
    values = [bytes([n]) * (BATCH_BYTES // 2 - 1_000) for n in range(5)]

    async def write() -> bytes | None:
        async with JoinLogs(scene.connection, scene.topics) as logs:
            return await logs.append(0, [Output(Kind.REWARD_GROUPS, b"k", v) for v in values])

    assert asyncio.run(write()) == values[-1]
    written = read_topic(scene.connection, scene.topics.reward_groups)
    assert [record.value for record in written] == values


def test_a_record_that_no_topic_takes_is_refused(scene: Scene) -> None:
    """Before it is sent: the broker's answer would come too late to say which record."""

    async def write() -> None:
        async with JoinLogs(scene.connection, scene.topics) as logs:
            large = Output(Kind.DEAD_LETTERS, b"key-7", bytes(LARGEST_REQUEST_BYTES))
            await logs.append(0, [large])

    with pytest.raises(StreamError, match=r"dead-letters.* partition 0: expected .*key-7"):
        asyncio.run(write())


# --- accepted losses ---

ACCEPTING = dataclasses.replace(QUIET, accept_loss=True)


def claim_at(*begin: int) -> Callable[[Worker], Awaitable[None]]:
    """An act that claims the partition and expects to begin there."""

    async def claim(worker: Worker) -> None:
        assert await worker.claim() == begin

    return claim


def test_a_loss_is_refused_with_its_numbers_and_accepted_by_a_flag(scene: Scene) -> None:
    """The start that records it is obeyed by every later owner, without the flag too."""
    scene.play(claim_at(0, 0))
    scene.show("r1", "r2", "r3")
    scene.delete(scene.topics.impressions, before=2)
    with pytest.raises(
        RetentionLost,
        match=r"^partition 0: impressions: .* from offset 0, seen 2 .*; 2 impressions and "
        r"0 conversions that were not decided are gone: `grade join --accept-loss` records",
    ):
        scene.play(claim_at(0, 0))
    assert len(scene.outputs()) == 1

    scene.play(claim_at(2, 0), ACCEPTING)
    scene.play(claim_at(2, 0))
    [first, second] = scene.outputs()
    assert not first.start.HasField("loss")
    start = second.start
    assert (start.generation, start.segment, start.head.impression_offset) == (1, 1, 2)
    assert (start.loss.impressions, start.loss.conversions, start.loss.prev) == (2, 0, -1)


def test_an_output_that_retention_has_emptied_is_no_new_one(scene: Scene) -> None:
    """A fresh start would begin the inputs anew, as if nothing had been joined."""
    scene.play(claim_at(0, 0))
    scene.delete(scene.topics.reward_groups, before=1)
    with pytest.raises(
        RetentionLost,
        match=r"^partition 0: .*reward-groups.*: expected the last of the 1 records .* deleted; "
        r"how much was not decided is unknown: `grade join --accept-loss`",
    ):
        scene.play(claim_at(0, 0))
    scene.play(claim_at(0, 0), ACCEPTING)
    [start] = [each.start for each in scene.outputs()]
    assert (start.HasField("loss"), start.segment) == (True, 1)


def test_after_a_loss_the_generation_at_the_head_is_found(scene: Scene) -> None:
    """By the first boundary that is left; where none is, the latest one is in force."""
    scene.play(claim_at(0, 0))
    scene.show("r1", "r2")
    scene.begin(with_times(6, 1, 12))  # at offset 2 of the impressions
    scene.show("r3")
    scene.begin(with_times(7, 1, 14))  # at offset 4
    scene.show("r4")
    for head, in_force in ((1, 1), (3, 2), (5, 3)):
        scene.delete(scene.topics.impressions, before=head)
        scene.play(claim_at(head, 0), ACCEPTING)
        start = scene.outputs()[-1].start
        assert (start.head.impression_offset, start.generation) == (head, in_force)
    segments = [each.start.segment for each in scene.outputs()]
    assert segments == sorted(set(segments))
