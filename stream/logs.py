"""Topics read completely: from their first record to the end that they have now."""

from collections.abc import Sequence
from contextlib import closing
from typing import NamedTuple

from policy.errors import TopicError
from stream.connection import (
    Connection,
    end_offsets,
    head_offsets,
    open_consumer,
    partitions_of,
    read_all,
)


class LogRecord(NamedTuple):
    """One record of a topic as it was read."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] = ()


class Log(NamedTuple):
    """One partition, complete: its first offset, its end, and the records between them.

    Where the topic is compacted offsets are missing between `head` and `end`.
    """

    head: int
    end: int
    records: list[LogRecord]


def read_logs(
    connection: Connection, topics: Sequence[str], *, partition: int | None = None
) -> dict[str, list[Log]]:
    """Read topics one after the other, each up to the end that it has when its turn comes.

    What is read first can only have been made from records that lie in what is read after it, where
    outputs are named before their inputs.

    Args:
        connection: how to reach Kafka.
        topics: names of the topics.
        partition: the only one to read; every one if left out.

    Returns:
        topic → [partition] log, or the one log.

    Raises:
        TopicError: there is no topic of that name.
        KafkaUnreachable: no broker answers, or reading stands still.
    """
    consumer = open_consumer(connection)
    try:
        logs = {}
        for topic in topics:
            partitions = partitions_of(consumer, topic)
            if not partitions:
                raise TopicError(f"expected the topic {topic}, seen none of that name")
            if partition is not None:
                partitions = [each for each in partitions if each.partition == partition]
            heads, ends = head_offsets(consumer, partitions), end_offsets(consumer, partitions)
            found = {each.partition: Log(heads[each], ends[each], []) for each in partitions}
            for record in read_all(consumer, partitions):
                log = found[record.partition]
                if record.offset < log.end:
                    log.records.append(
                        LogRecord(
                            record.offset,
                            record.timestamp,
                            record.key,
                            record.value,
                            record.headers,
                        )
                    )
            logs[topic] = [found[each.partition] for each in partitions]
        return logs
    finally:
        consumer.close()


def count_partitions(connection: Connection, topic: str) -> int:
    """How many partitions a topic has.

    Raises:
        TopicError: there is no topic of that name.
        KafkaUnreachable: no broker answers.
    """
    with closing(open_consumer(connection)) as consumer:
        found = len(partitions_of(consumer, topic))
    if not found:
        raise TopicError(f"expected the topic {topic}, seen none of that name")
    return found
