"""The boundary records in both input logs, at which a generation begins."""

from collections.abc import Sequence
from typing import Any

from google.protobuf.message import DecodeError
from grade.v1.generation_pb2 import Generation
from kafka import TopicPartition
from kafka.errors import KafkaError

from stream.codec import BOUNDARY_HEADER, encode, has_boundary_header
from stream.connection import (
    Connection,
    KafkaUnreachable,
    close_producer,
    open_consumer,
    open_producer,
    read_all,
)
from stream.topics import Topics

TIMEOUT_S = 30.0
"""How long the broker may take to acknowledge a record."""


def write_missing(
    connection: Connection, topics: Topics, generation: Generation, since_ms: int, partitions: int
) -> None:
    """Write a generation's boundaries where they are missing.

    Those of the impressions are acknowledged before those of the conversions are written.

    Args:
        connection: where Kafka is.
        topics: names of the topics.
        generation: as its topic has it.
        since_ms: time of its record in that topic, milliseconds since 1970 UTC.
        partitions: partitions of the inputs.

    Raises:
        KafkaUnreachable: no broker answers.
    """
    places = missing(connection, topics, generation, since_ms, partitions)
    for topic in topics.inputs:
        of_topic = [each for each in places if each.topic == topic]
        append(connection, of_topic, b"", encode(generation), [BOUNDARY_HEADER])


def missing(
    connection: Connection, topics: Topics, generation: Generation, since_ms: int, partitions: int
) -> list[TopicPartition]:
    """The partitions of the inputs that do not have a generation's boundary yet.

    It can only stand behind the generation's own record, by the broker's time. If the clocks of
    several brokers differ it may be overlooked and is written again; the join counts the second one
    as a tick.

    Args:
        connection: where Kafka is.
        topics: names of the topics.
        generation: as its topic has it.
        since_ms: time of its record in that topic, milliseconds since 1970 UTC.
        partitions: partitions of the inputs.

    Returns:
        Impressions before conversions.

    Raises:
        KafkaUnreachable: no broker answers.
    """
    places = [TopicPartition(t, p) for t in topics.inputs for p in range(partitions)]
    consumer = open_consumer(connection)
    try:
        since = consumer.offsets_for_times(dict.fromkeys(places, since_ms))
        return [
            place
            for place in places
            if since[place] is None
            or not any(
                _begins(record, generation)
                for record in read_all(consumer, [place], starts={place: since[place].offset})
            )
        ]
    finally:
        consumer.close()


def append(
    connection: Connection,
    places: Sequence[TopicPartition],
    key: bytes,
    value: bytes,
    headers: Sequence[tuple[str, bytes]] = (),
) -> None:
    """Write a record into each of some partitions and wait until all are acknowledged.

    Raises:
        KafkaUnreachable: one was not acknowledged.
    """
    if not places:
        return
    producer = open_producer(connection)
    try:
        sent = [
            producer.send(p.topic, value, key=key, partition=p.partition, headers=list(headers))
            for p in places
        ]
        for place, future in zip(places, sent, strict=True):
            try:
                future.get(TIMEOUT_S)
            except KafkaError as error:
                raise KafkaUnreachable(
                    f"{place.topic} partition {place.partition}: expected the broker to "
                    f"acknowledge a generation, seen {error!r}"
                ) from error
    finally:
        close_producer(producer)


def _begins(record: Any, generation: Generation) -> bool:
    if not has_boundary_header(record.headers):
        return False
    try:
        found = Generation.FromString(record.value or b"")
    except DecodeError:
        return False
    names = found.policy, found.generation
    return names == (generation.policy, generation.generation)
