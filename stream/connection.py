"""How every process connects to Kafka through kafka-python: safe settings, in one place.

What kafka-python would do by default and must not here: begin at the end of a log when no position
is given, commit offsets, wait for a fetch for half a second while other requests queue behind it.
"""

import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grade.v1.refused_pb2 import Reason
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from policy.errors import GradeError, SettingsError, quoted

LARGEST_REQUEST_BYTES = 8 * 1024 * 1024
"""Largest record that a producer sends; topics may refuse smaller ones."""


class KafkaUnreachable(GradeError):  # noqa: N818 - named for what it is, as its neighbours are
    """No Kafka broker answers at the address that was given."""


@dataclass(frozen=True, slots=True)
class Connection:
    """Where Kafka is and who asks."""

    bootstrap_servers: str
    """Brokers as host:port, separated by commas."""
    client_id: str = "grade"
    """Name under which the brokers know this client."""
    timeout_s: float = 10.0
    """How long to wait for a broker's answer when connecting or asking."""

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of every bootstrap server.

        Raises:
            SettingsError: one of them is not host:port.

        >>> Connection("kafka-1:9092,[::1]:9093").addresses
        [('kafka-1', 9092), ('::1', 9093)]
        """
        found = []
        for server in self.bootstrap_servers.split(","):
            host, colon, port = server.strip().rpartition(":")
            if not (host and colon and port.isdecimal() and len(port) <= 5 and int(port) <= 65535):
                raise SettingsError(
                    f"bootstrap_servers: expected host:port, seen {quoted(server)}",
                    Reason.REASON_BAD_NAME,
                )
            found.append((host.strip("[]"), int(port)))
        return found


def open_producer(connection: Connection, **overrides: Any) -> KafkaProducer:
    """A producer that loses nothing it confirmed: idempotent, acknowledged by all replicas.

    Args:
        connection: where Kafka is.
        overrides: kafka-python settings that go before the ones chosen here.

    Raises:
        KafkaUnreachable: no broker answered in time.
    """
    settings: dict[str, Any] = {
        "enable_idempotence": True,
        "acks": "all",
        "linger_ms": 5,
        "batch_size": 128 * 1024,
        "max_request_size": LARGEST_REQUEST_BYTES,
        "max_block_ms": _milliseconds(connection.timeout_s),
        "request_timeout_ms": 30_000,
        "delivery_timeout_ms": 120_000,
        "reconnect_backoff_max_ms": 1_000,
        "allow_auto_create_topics": False,
    }
    return _open(KafkaProducer, connection, settings | overrides)


def close_producer(producer: KafkaProducer, timeout_s: float = 30.0) -> bool:
    """Flush and end a producer; what is not confirmed in time is given up.

    Returns:
        Whether everything was settled, confirmed or refused, in time.
    """
    try:
        producer.close(timeout_s)
    except KafkaError:
        # kafka-python raises from close() before it has ended its own thread.
        producer._sender.force_close()
        producer.close(timeout_s)
        return False
    return True


def open_consumer(connection: Connection, **overrides: Any) -> KafkaConsumer:
    """A consumer without a group that reads only where it was told to by `assign` and `seek`.

    A position that is missing or out of range raises from `poll`; it is never reset.

    Args:
        connection: where Kafka is.
        overrides: kafka-python settings that go before the ones chosen here.

    Raises:
        KafkaUnreachable: no broker answered in time.
    """
    settings: dict[str, Any] = {
        "group_id": None,
        "enable_auto_commit": False,
        "auto_offset_reset": "none",
        "max_poll_records": 5_000,
        # A broker answers a connection's requests in order, so an idle fetch delays what follows.
        "fetch_max_wait_ms": 50,
        "max_partition_fetch_bytes": LARGEST_REQUEST_BYTES,
        "reconnect_backoff_max_ms": 1_000,
        "allow_auto_create_topics": False,
    }
    return _open(KafkaConsumer, connection, settings | overrides)


def open_admin(connection: Connection, **overrides: Any) -> KafkaAdminClient:
    """An admin client.

    Args:
        connection: where Kafka is.
        overrides: kafka-python settings that go before the ones chosen here.

    Raises:
        KafkaUnreachable: no broker answered in time.
    """
    settings = {"request_timeout_ms": _milliseconds(connection.timeout_s)}
    return _open(KafkaAdminClient, connection, settings | overrides)


def partitions_of(consumer: KafkaConsumer, topic: str) -> list[TopicPartition]:
    """Every partition of a topic, in rising order; empty if there is no such topic."""
    found = consumer.partitions_for_topic(topic) or ()
    return [TopicPartition(topic, partition) for partition in sorted(found)]


def head_offsets(
    consumer: KafkaConsumer, partitions: Sequence[TopicPartition]
) -> dict[TopicPartition, int]:
    """Offset of the first record that each partition still has, its end if it has none."""
    return dict(consumer.beginning_offsets(list(partitions)))


def end_offsets(
    consumer: KafkaConsumer, partitions: Sequence[TopicPartition]
) -> dict[TopicPartition, int]:
    """Offset that the next record of each partition will get."""
    return dict(consumer.end_offsets(list(partitions)))


def read_all(
    consumer: KafkaConsumer,
    partitions: Sequence[TopicPartition],
    *,
    starts: Mapping[TopicPartition, int] | None = None,
    timeout_s: float = 30.0,
) -> Iterator[Any]:
    """Every record that the partitions hold now, each partition's in the order of its offsets.

    Args:
        consumer: its assignment and positions are replaced.
        partitions: partitions to read.
        starts: where to begin, instead of at the first record that is there.
        timeout_s: how long the next records may take to come.

    Raises:
        KafkaUnreachable: nothing came for `timeout_s` although there is something.
    """
    consumer.assign(list(partitions))
    ends = end_offsets(consumer, partitions)
    heads = {**head_offsets(consumer, partitions), **(starts or {})}
    for partition in partitions:
        consumer.seek(partition, heads[partition])
    pending = {p for p in partitions if heads[p] < ends[p]}
    deadline = time.monotonic() + timeout_s
    while pending:
        batches = consumer.poll(timeout_ms=200)
        for partition, records in batches.items():
            yield from (record for record in records if record.offset < ends[partition])
        done = {p for p in pending if consumer.position(p) >= ends[p]}
        if batches or done:
            deadline = time.monotonic() + timeout_s
        elif time.monotonic() > deadline:
            waiting = ", ".join(f"{p.topic}-{p.partition}" for p in sorted(pending))
            raise KafkaUnreachable(f"expected records of {waiting}, seen none for {timeout_s:g} s")
        consumer.pause(*done)
        pending -= done


def _open(kind: Any, connection: Connection, settings: dict[str, Any]) -> Any:
    timeout_ms = _milliseconds(connection.timeout_s)
    _await_listener(connection)
    try:
        return kind(
            bootstrap_servers=[f"{host}:{port}" for host, port in connection.addresses],
            client_id=connection.client_id,
            bootstrap_timeout_ms=timeout_ms,
            metadata_max_age_ms=60_000,
            **settings,
        )
    except KafkaError as error:
        raise KafkaUnreachable(_nobody(connection, str(error))) from error


def _await_listener(connection: Connection) -> None:
    """Wait until a bootstrap server accepts connections.

    kafka-python's constructors leave a thread and sockets behind when nobody answers.
    """
    deadline = time.monotonic() + connection.timeout_s
    while True:
        seen = ""
        for address in connection.addresses:
            try:
                socket.create_connection(address, timeout=connection.timeout_s).close()
                return
            except OSError as error:
                seen = str(error)
        if time.monotonic() >= deadline:
            raise KafkaUnreachable(_nobody(connection, seen))
        time.sleep(0.05)  # polling a port


def _nobody(connection: Connection, seen: str) -> str:
    return (
        f"expected a Kafka broker at {connection.bootstrap_servers}, seen none within "
        f"{connection.timeout_s:g} s ({seen}); `grade broker up` starts a local one"
    )


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
