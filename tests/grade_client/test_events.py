"""Events end in the right partition of a real Kafka, once, and confirmed."""

import time
from pathlib import Path

import numpy as np
import pytest
from grade.v1.conversion_pb2 import Conversion
from grade.v1.decision_pb2 import ARM_POLICY, SignedDecision
from grade.v1.impression_pb2 import Impression

from grade_client import DeliveryFailed, EventProducer, EventRefused, Sampled
from policy.errors import TopicError
from stream.broker import LocalBroker
from stream.codec import is_tick, partition_for
from stream.connection import Connection, open_admin
from stream.topics import Topics
from tests.kafka import create_fresh, fresh_plan, read_topic


def sampled(request_id: str = "r1") -> Sampled:
    return Sampled(
        request_id=request_id,
        weights=np.array([0.5, 0.3, 0.2], np.float32),
        decision=SignedDecision(payload=b"the decision", key_id="k", mac=b"m"),
        epoch=1,
        version=7,
        arm=ARM_POLICY,
    )


def test_an_impression_arrives_as_it_was_shown(connection: Connection, topics: Topics) -> None:
    with EventProducer(connection, topics, "example") as events:
        before_ms = time.time_ns() // 1_000_000
        future = events.log_impression(
            sampled(),
            ["a", "b"],
            [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]],
            unshown_scores=np.array([[7.0, 8.0, 9.0]]),
        )
        logged = future.result(timeout=30)
    (record,) = read_topic(connection, topics.impressions)
    assert (record.partition, record.offset) == (logged.partition, logged.offset)
    assert (record.key, record.timestamp) == (b"r1", logged.timestamp_ms)
    assert record.partition == partition_for(b"r1", 2)
    impression = Impression.FromString(record.value)
    assert impression.shown_at_ms >= before_ms
    impression.shown_at_ms = 0
    assert impression == Impression(
        policy="example",
        request_id="r1",
        decision=sampled().decision,
        item_ids=["a", "b"],
        positions=[0, 1],
        scores=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
        unshown_scores=[7.0, 8.0, 9.0],
    )


def test_positions_may_be_given(connection: Connection, topics: Topics) -> None:
    with EventProducer(connection, topics, "example") as events:
        events.log_impression(sampled(), ["a", "b"], np.zeros((2, 3)), [4, 2], shown_at_ms=5)
    (record,) = read_topic(connection, topics.impressions)
    impression = Impression.FromString(record.value)
    assert list(impression.positions) == [4, 2]
    assert impression.shown_at_ms == 5


def test_a_conversion_follows_its_impression(connection: Connection, topics: Topics) -> None:
    with EventProducer(connection, topics, "example") as events:
        shown = events.log_impression(sampled("r9"), ["a"], np.zeros((1, 3)))
        events.log_conversion("r9", "a", "order", 12.5, conversion_id="c1", happened_at_ms=77)
        events.log_conversion("r9", "a", "click")
        events.log_conversion("r9", "a", "click")
        events.flush()
        assert (events.sent, events.confirmed, events.failed) == (4, 4, 0)
        partition = shown.result(timeout=0).partition
    records = read_topic(connection, topics.conversions)
    assert {record.partition for record in records} == {partition}
    assert {record.key for record in records} == {b"r9"}
    first, second, third = (Conversion.FromString(record.value) for record in records)
    assert first == Conversion(
        policy="example",
        request_id="r9",
        conversion_id="c1",
        item_id="a",
        outcome="order",
        value=12.5,
        happened_at_ms=77,
    )
    assert (second.value, second.outcome) == (1.0, "click")
    assert second.conversion_id
    assert second.conversion_id != third.conversion_id


def test_event_time_and_ticks(connection: Connection) -> None:
    topics = create_fresh(connection, timestamps="event")
    with EventProducer(connection, topics, "example") as events:
        events.log_impression(sampled(), ["a"], np.zeros((1, 3)), timestamp_ms=1_000)
        events.log_conversion("r1", "a", "click", timestamp_ms=2_000)
        for partition in range(events.partitions):
            events.tick("impressions", partition, 3_000)
            events.tick("conversions", partition, 3_000)
    mine = partition_for(b"r1", 2)
    for topic, event_ms in ((topics.impressions, 1_000), (topics.conversions, 2_000)):
        records = read_topic(connection, topic)
        times = {(r.partition, r.timestamp, is_tick(r.headers, r.value)) for r in records}
        assert times == {(mine, event_ms, False), (0, 3_000, True), (1, 3_000, True)}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((["a"], [[1.0, 2.0]]), "scores: expected the shape [1, 3], seen [1, 2]"),
        ((["a", "b"], [[1.0, 2.0, 3.0]]), "scores: expected the shape [2, 3], seen [1, 3]"),
        ((["a"], [1.0, 2.0, 3.0]), "scores: expected the shape [1, 3], seen [3]"),
        ((["a"], [[1.0, 2.0, np.nan]]), "scores: expected finite numbers, seen NaN or infinity"),
        ((["a"], [[1.0, 2.0, 3.0]], [0, 1]), "positions: expected one per item, 1, seen 2"),
    ],
)
def test_an_impression_that_does_not_fit_together_is_refused(
    connection: Connection, topics: Topics, arguments: tuple[object, ...], complaint: str
) -> None:
    with EventProducer(connection, topics, "example") as events:
        with pytest.raises(EventRefused) as refused:
            events.log_impression(sampled(), *arguments)  # type: ignore[arg-type]  # as given
        assert events.sent == 0
    assert str(refused.value) == complaint


def test_unshown_scores_must_have_every_objective(connection: Connection, topics: Topics) -> None:
    with EventProducer(connection, topics, "example") as events:
        with pytest.raises(EventRefused) as refused:
            events.log_impression(sampled(), ["a"], np.zeros((1, 3)), unshown_scores=[[1.0]])
    assert str(refused.value) == "unshown_scores: expected the shape [candidate, 3], seen [1, 1]"


def test_a_clock_in_the_future_is_refused_before_it_spoils_a_batch(
    connection: Connection, topics: Topics
) -> None:
    year_2099 = 4_070_908_800_000
    with EventProducer(connection, topics, "example") as events:
        with pytest.raises(EventRefused, match="timestamp_ms: expected at most an hour ahead"):
            events.log_conversion("r1", "a", "click", timestamp_ms=year_2099)
        assert events.sent == 0


@pytest.mark.parametrize("value", [-0.5, np.nan, np.inf])
def test_a_value_that_is_no_value_is_refused(
    connection: Connection, topics: Topics, value: float
) -> None:
    with EventProducer(connection, topics, "example") as events:
        with pytest.raises(EventRefused, match="value: expected a finite number >= 0, seen "):
            events.log_conversion("r1", "a", "click", value)
        assert events.sent == 0


def test_what_cannot_be_sent_is_not_counted_as_sent(connection: Connection, topics: Topics) -> None:
    with EventProducer(connection, topics, "example") as events:
        with pytest.raises(ValueError, match="Unrecognized partition 9"):
            events.tick("impressions", 9, 1_000)
        assert events.sent == 0


def test_too_large_an_event_is_refused(connection: Connection, topics: Topics) -> None:
    with EventProducer(connection, topics, "example") as events:
        with pytest.raises(EventRefused, match="not sent"):
            events.log_conversion("r1", "a", "x" * 1_000_000)
        events.log_conversion("r1", "a", "x" * 999_000)
        events.flush()
        assert (events.sent, events.confirmed) == (1, 1)


def test_an_event_that_kafka_refuses_is_not_silent(connection: Connection) -> None:
    topics = fresh_plan().topics
    with open_admin(connection) as admin:
        admin.create_topics(
            {
                topics.impressions: {"num_partitions": 1},
                topics.conversions: {
                    "num_partitions": 1,
                    # Refuses every event that is not from the last minute.
                    "configs": {"message.timestamp.before.max.ms": "60000"},
                },
            },
            wait_for_metadata=True,
        )
    with EventProducer(connection, topics, "example") as events:
        lost = events.log_conversion("r1", "a", "click", timestamp_ms=5)
        with pytest.raises(DeliveryFailed, match="1 given up; the first: InvalidTimestamp"):
            events.flush()
        with pytest.raises(DeliveryFailed, match="InvalidTimestamp"):
            lost.result(timeout=0)
        assert (events.sent, events.confirmed, events.failed) == (1, 0, 1)
        events.flush()  # told once
        kept = events.log_conversion("r2", "a", "click")
        events.flush()
        assert (events.sent, events.confirmed, events.failed) == (2, 1, 1)
    (record,) = read_topic(connection, topics.conversions)
    assert (record.key, record.offset) == (b"r2", kept.result(timeout=0).offset)


def test_missing_topics_are_named(connection: Connection) -> None:
    impatient = Connection(connection.bootstrap_servers, timeout_s=0.5)
    missing = fresh_plan().topics
    with pytest.raises(TopicError, match=f"{missing.impressions}: expected to exist"):
        EventProducer(impatient, missing, "example")


def test_unequal_partition_counts_are_refused(connection: Connection) -> None:
    topics = fresh_plan().topics
    with open_admin(connection) as admin:
        admin.create_topics(
            {topics.impressions: {"num_partitions": 2}, topics.conversions: {"num_partitions": 3}},
            wait_for_metadata=True,
        )
    with pytest.raises(TopicError, match="partitions: expected equal counts"):
        EventProducer(connection, topics, "example")


def test_no_event_is_given_up_for_its_age(connection: Connection, topics: Topics) -> None:
    """kafka-python's producer would send nothing any more; outages are in tests/operations."""
    with EventProducer(connection, topics, "example") as events:
        assert events._producer.config["delivery_timeout_ms"] > 7 * 86_400_000


@pytest.mark.usefixtures("kafka_may_go_away")
def test_an_absent_kafka_is_told_and_cannot_fill_the_memory(tmp_path: Path) -> None:
    broker = LocalBroker(tmp_path, start_timeout_s=120.0)
    connection = Connection(broker.up().bootstrap_servers)
    try:
        topics = create_fresh(connection)
        events = EventProducer(connection, topics, "example", max_unconfirmed=2)
    finally:
        broker.down()
    pending = [events.log_conversion("r1", "a", "click") for _ in range(2)]
    with pytest.raises(EventRefused, match="fewer than 2 unconfirmed events, seen 2"):
        events.log_conversion("r1", "a", "click")
    with pytest.raises(DeliveryFailed, match=r"within 0\.2 s, seen 2 unconfirmed"):
        events.close(0.2)
    for future in pending:
        with pytest.raises(DeliveryFailed):
            future.result(timeout=10)
    assert (events.sent, events.confirmed, events.failed) == (2, 0, 2)
