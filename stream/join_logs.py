"""What the owner of a partition reads back and writes through aiokafka: outputs, ticks, offsets."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from types import TracebackType
from typing import Any, NamedTuple, Self

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError
from google.protobuf.message import DecodeError
from grade.v1.generation_pb2 import Generation

from policy.errors import StreamError
from stream.codec import TICK_HEADER, TICK_VALUE, has_boundary_header
from stream.connection import LARGEST_REQUEST_BYTES, Connection, KafkaUnreachable
from stream.generations import read_generations
from stream.join_records import Kind, Log, Output
from stream.topics import Topics

log = structlog.get_logger(__name__)

STOP_TIMEOUT_S = 5.0
"""Longest wait for a client to stop."""

BATCH_BYTES = 1024 * 1024
"""Records are written in batches of about this size."""

RECORD_OVERHEAD_BYTES = 1024
"""Most bytes that a record batch adds to the key and value of its only record."""


class Extent(NamedTuple):
    """What a partition holds: offsets from `head` up to, not including, `end`."""

    head: int
    end: int


class JoinLogs:
    """The topics of the join; an asynchronous context manager.

    One producer writes everything, idempotently and acknowledged by all replicas. A partition of a
    topic never has more than one batch unacknowledged, as long as it has one owner.

    Args:
        connection: where Kafka is.
        topics: names of the topics.

    Raises:
        KafkaUnreachable: from every method, if no broker answers in time.
    """

    def __init__(self, connection: Connection, topics: Topics) -> None:
        self._connection = connection
        self._topics = topics
        self.topic_of: Mapping[Log | Kind, str] = {
            Log.IMPRESSIONS: topics.impressions,
            Log.CONVERSIONS: topics.conversions,
            Kind.LATE: topics.late,
            Kind.ORPHANS: topics.orphans,
            Kind.DEAD_LETTERS: topics.dead_letters,
            Kind.REWARD_GROUPS: topics.reward_groups,
        }
        self._reading = asyncio.Lock()
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        servers = [f"{host}:{port}" for host, port in self._connection.addresses]
        self._producer: Any = AIOKafkaProducer(
            bootstrap_servers=servers,
            client_id=self._connection.client_id,
            enable_idempotence=True,
            acks="all",
            max_batch_size=BATCH_BYTES,
            max_request_size=LARGEST_REQUEST_BYTES,
        )
        self._reader: Any = AIOKafkaConsumer(
            bootstrap_servers=servers,
            client_id=self._connection.client_id,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            fetch_max_wait_ms=50,
            max_partition_fetch_bytes=LARGEST_REQUEST_BYTES,
        )
        for client in (self._producer, self._reader):
            self._open.push_async_callback(_stop, client)
            try:
                await client.start()
            except KafkaError as error:
                await self._open.aclose()
                raise KafkaUnreachable(
                    f"expected a Kafka broker at {self._connection.bootstrap_servers}, "
                    f"seen {error!r}"
                ) from error
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._open.aclose()

    async def append(self, partition: int, outputs: Iterable[Output]) -> bytes | None:
        """Write records and wait until they are acknowledged: topics at once, each in order.

        Args:
            partition: partition of every topic that is written to.
            outputs: what to write.

        Returns:
            value of the last reward-groups record, None if there is none.

        Raises:
            StreamError: a record is larger than the topics take.
        """
        by_kind: dict[Kind, list[Output]] = {}
        for output in outputs:
            by_kind.setdefault(output.kind, []).append(output)
        await asyncio.gather(
            *(self._append(self.topic_of[kind], partition, same) for kind, same in by_kind.items())
        )
        groups = by_kind.get(Kind.REWARD_GROUPS)
        return groups[-1].value if groups else None

    async def tick(self, log: Log, partition: int) -> int:
        """Append a tick to an input log; returns its offset."""
        batch = self._producer.create_batch()
        batch.append(key=None, value=TICK_VALUE, timestamp=None, headers=[TICK_HEADER])
        return await self._send(self.topic_of[log], partition, batch)

    async def extents(
        self, what: Sequence[Log | Kind], partitions: Iterable[int]
    ) -> dict[int, list[Extent]]:
        """What is there: for each partition the extents of the topics, in the order given."""
        found = {p: [TopicPartition(self.topic_of[each], p) for each in what] for p in partitions}
        every = [tp for tps in found.values() for tp in tps]
        try:
            heads = await self._reader.beginning_offsets(every)
            ends = await self._reader.end_offsets(every)
        except KafkaError as error:
            raise KafkaUnreachable(f"expected offsets of the join's topics, {error!r}") from error
        return {p: [Extent(heads[tp], ends[tp]) for tp in tps] for p, tps in found.items()}

    async def generations(self, policy: str) -> list[Generation]:
        """Every generation of the policy that has begun, numbers rising from 1.

        Raises:
            StreamError: the first records of their topic have been deleted.
        """
        return await asyncio.to_thread(read_generations, self._connection, self._topics, policy)

    async def read_groups(self, partition: int, start: int, end: int) -> list[bytes]:
        """Values of the reward-groups records with offsets from `start` up to, not `end`."""
        topic = self.topic_of[Kind.REWARD_GROUPS]
        async with aclosing(self._read(topic, partition, Extent(start, end))) as records:
            return [record.value async for record in records]

    async def first_boundary(self, each: Log, partition: int, extent: Extent) -> int | None:
        """Number of the first generation that begins in a part of an input log; None if none."""
        async with aclosing(self._read(self.topic_of[each], partition, extent)) as records:
            async for record in records:
                if has_boundary_header(record.headers):
                    with suppress(DecodeError):
                        return Generation.FromString(record.value or b"").generation
        return None

    async def _read(self, topic: str, partition: int, extent: Extent) -> AsyncGenerator[Any]:
        """Records of a partition, with offsets from `extent.head` up to, not `extent.end`."""
        tp, (start, end) = TopicPartition(topic, partition), extent
        async with self._reading:
            self._reader.assign([tp])
            try:
                self._reader.seek(tp, start)
                while start < end:
                    async with asyncio.timeout(self._connection.timeout_s):
                        fetched: dict[TopicPartition, list[Any]] = {}
                        while not fetched:
                            fetched = await self._reader.getmany(tp, timeout_ms=1000)
                    for record in fetched[tp]:
                        if record.offset < end:
                            yield record
                        start = record.offset + 1
            except (KafkaError, TimeoutError) as error:
                raise KafkaUnreachable(
                    f"{topic} partition {partition}: expected offsets {start} to {end - 1}, "
                    f"seen {error!r}"
                ) from error
            finally:
                self._reader.unsubscribe()

    async def _append(self, topic: str, partition: int, records: Sequence[Output]) -> None:
        batch = self._producer.create_batch()
        for record in records:
            size = len(record.key) + len(record.value) + RECORD_OVERHEAD_BYTES
            if size > LARGEST_REQUEST_BYTES:
                raise StreamError(
                    f"{topic} partition {partition}: expected records of at most "
                    f"{LARGEST_REQUEST_BYTES} bytes, seen {size} for key {record.key!r}"
                )
            if batch.append(key=record.key, value=record.value, timestamp=None) is None:
                await self._send(topic, partition, batch)
                batch = self._producer.create_batch()
                batch.append(key=record.key, value=record.value, timestamp=None)
        await self._send(topic, partition, batch)

    async def _send(self, topic: str, partition: int, batch: Any) -> int:
        batch.close()
        try:
            sent = await self._producer.send_batch(batch, topic, partition=partition)
            return int((await sent).offset)
        except KafkaError as error:
            raise KafkaUnreachable(
                f"{topic} partition {partition}: expected the broker to acknowledge "
                f"{batch.record_count()} records, seen {error!r}"
            ) from error


async def _stop(client: Any) -> None:
    """Stop an aiokafka client, which lets the cancellation of a task of its own escape.

    A producer would wait for its last batch for as long as Kafka is away. To give it up is safe:
    what was not acknowledged is written again by the next owner.
    """
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await client.stop()
    except TimeoutError:
        log.warning("kafka_client_did_not_stop", waited_s=STOP_TIMEOUT_S)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
