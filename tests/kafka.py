"""Helpers for tests on the real broker; the fixtures are in tests/conftest.py."""

import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

from kafka import TopicPartition

from stream.connection import Connection, open_consumer, open_producer, partitions_of, read_all
from stream.topics import TopicPlan, Topics, create


class Produced(NamedTuple):
    """One record to be written."""

    value: bytes | None
    key: bytes | None = None
    partition: int = 0
    timestamp_ms: int | None = None
    headers: list[tuple[str, bytes]] | None = None


def fresh_plan(
    *,
    partitions: int = 2,
    timestamps: Literal["broker", "event"] = "broker",
    window_ms: int = 5_000,
    early_ms: int = 1_000,
    late_ms: int = 10_000,
) -> TopicPlan:
    """A plan under a prefix of its own; the times are those of tests/example_schema.toml."""
    topics = Topics(f"t{uuid.uuid4().hex[:12]}")
    return TopicPlan(topics, partitions, window_ms, early_ms, late_ms, timestamps)


def create_fresh(connection: Connection, **choices: Any) -> Topics:
    """Create the topics of a `fresh_plan`."""
    plan = fresh_plan(**choices)
    create(connection, plan)
    return plan.topics


def produce(connection: Connection, topic: str, records: Iterable[Produced]) -> list[int]:
    """Write records, in order within their partition, and return their offsets."""
    with open_producer(connection) as producer:
        sent = [
            producer.send(
                topic,
                record.value,
                key=record.key,
                headers=record.headers,
                partition=record.partition,
                timestamp_ms=record.timestamp_ms,
            )
            for record in records
        ]
        producer.flush(30)
        return [future.get(30).offset for future in sent]


def read_topic(connection: Connection, topic: str, partition: int | None = None) -> list[Any]:
    """All records that a topic, or one partition of it, holds now, as kafka-python gives them."""
    with open_consumer(connection) as consumer:
        wanted = (
            partitions_of(consumer, topic)
            if partition is None
            else [TopicPartition(topic, partition)]
        )
        return sorted(
            read_all(consumer, wanted), key=lambda record: (record.partition, record.offset)
        )


def await_until(
    condition: Callable[[], Any], timeout_s: float = 20.0, what: str = "the condition"
) -> Any:
    """Poll until a condition is true, and return its value.

    Raises:
        AssertionError: it did not become true in time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not come true within {timeout_s:g} s"
        time.sleep(0.02)  # polling a condition
