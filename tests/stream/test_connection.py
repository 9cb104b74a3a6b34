"""Clients read only where they were told to, and say when Kafka is not there."""

import socket
import time

import pytest
from kafka import TopicPartition
from kafka.errors import NoOffsetForPartitionError, OffsetOutOfRangeError

from policy.errors import SettingsError
from stream.connection import (
    Connection,
    KafkaUnreachable,
    close_producer,
    end_offsets,
    head_offsets,
    open_consumer,
    open_producer,
    partitions_of,
    read_all,
)
from stream.topics import Topics
from tests.kafka import Produced, await_until, create_fresh, fresh_plan, produce, read_topic


@pytest.mark.parametrize("servers", ["", "kafka", "kafka:", ":9092", "kafka:99999", "a:1,,b:2"])
def test_an_address_must_be_host_and_port(servers: str) -> None:
    with pytest.raises(SettingsError, match="bootstrap_servers: expected host:port, seen"):
        _ = Connection(servers).addresses


def test_an_absent_kafka_is_told_within_the_timeout() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(KafkaUnreachable) as refused:
        open_consumer(Connection(f"127.0.0.1:{port}", timeout_s=0.3))
    assert time.monotonic() - started < 5.0
    assert f"expected a Kafka broker at 127.0.0.1:{port}, seen none within 0.3 s" in str(
        refused.value
    )


def test_offsets_and_partitions(connection: Connection, topics: Topics) -> None:
    records = [Produced(b"0"), Produced(b"1", partition=1), Produced(b"2", partition=1)]
    assert produce(connection, topics.impressions, records) == [0, 0, 1]
    with open_consumer(connection) as consumer:
        both = partitions_of(consumer, topics.impressions)
        assert both == [
            TopicPartition(topics.impressions, 0),
            TopicPartition(topics.impressions, 1),
        ]
        assert head_offsets(consumer, both) == {both[0]: 0, both[1]: 0}
        assert end_offsets(consumer, both) == {both[0]: 1, both[1]: 2}
        assert partitions_of(consumer, fresh_plan().topics.late) == []


def test_read_all_reads_everything_once_in_order(connection: Connection) -> None:
    topics = create_fresh(connection, partitions=3)
    records = [Produced(str(n).encode(), partition=n % 2) for n in range(10_000)]
    produce(connection, topics.late, records)
    found = read_topic(connection, topics.late)
    assert [(r.partition, r.offset, int(r.value)) for r in found] == [
        (p, i, 2 * i + p) for p in (0, 1) for i in range(5_000)
    ]
    assert read_topic(connection, topics.late, partition=2) == []
    assert [int(r.value) for r in read_topic(connection, topics.late, 1)[:2]] == [1, 3]


def test_read_all_ends_where_the_log_ended_when_it_began(
    connection: Connection, topics: Topics
) -> None:
    partition = TopicPartition(topics.late, 0)
    produce(connection, topics.late, [Produced(b"before")] * 3)
    with open_consumer(connection) as consumer:
        reading = read_all(consumer, [partition])
        first = next(reading)
        produce(connection, topics.late, [Produced(b"after")])
        assert [first.value, *(record.value for record in reading)] == [b"before"] * 3


def test_a_consumer_that_was_not_told_where_to_read_refuses(
    connection: Connection, topics: Topics
) -> None:
    produce(connection, topics.late, [Produced(b"x")])
    with open_consumer(connection) as consumer:
        consumer.assign([TopicPartition(topics.late, 0)])
        with pytest.raises(NoOffsetForPartitionError):
            consumer.poll(timeout_ms=5_000)


def test_a_position_outside_the_log_is_never_reset(connection: Connection, topics: Topics) -> None:
    produce(connection, topics.late, [Produced(b"x")])
    with open_consumer(connection) as consumer:
        partition = TopicPartition(topics.late, 0)
        consumer.assign([partition])
        consumer.seek(partition, 1_000)
        with pytest.raises(OffsetOutOfRangeError):
            await_until(lambda: consumer.poll(timeout_ms=500))


def test_closing_settles_what_was_sent(connection: Connection, topics: Topics) -> None:
    producer = open_producer(connection)
    futures = [producer.send(topics.late, b"x", partition=0) for _ in range(100)]
    assert close_producer(producer) is True
    assert [future.get(0).offset for future in futures] == list(range(100))
