"""Faust at the speed of aiokafka: one Faust event per fetched batch, read from where the app says.

Faust spends 140 to 300 µs on each event, so an event is a batch. Nothing rests on what Faust
remembers of positions: it keeps no acknowledgements (`acks=False` on the topic), commits nothing,
and its read offsets, below which it would drop records without a word, are cleared. Whoever takes
the batches checks that their offsets are contiguous.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import faust
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, AppT, ConsumerMessage, Message
from yarl import URL

FETCH_WAIT_MS = 50
"""How long a broker may keep a fetch that finds nothing. It answers one fetch of a client at a time
and a partition that is read to its end meanwhile has to wait for the next one."""

StartOffsets = Callable[[set[TP]], Awaitable[Mapping[TP, int]]]


class FetchedBatch(NamedTuple):
    """Value of an event: consecutive records of one partition, as aiokafka fetched them."""

    topic: str
    partition: int
    records: Sequence[Any]
    end: int
    """Offset that the partition's next record will get, as far as the fetch knew."""


class _ConsumerThread(driver.AIOKafkaConsumerThread):
    """Faust has 1.5 s here and no setting for it."""

    def _create_consumer(self, loop: asyncio.AbstractEventLoop) -> Any:
        consumer: Any = super()._create_consumer(loop)
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS  # read when it starts
        return consumer


class BatchConsumer(driver.Consumer):
    """Yields one message per partition and fetch."""

    logger = logging.getLogger("faust.transport")

    def _new_consumer_thread(self) -> driver.AIOKafkaConsumerThread:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Message]]:
        """Fetch once; what arrives during a rebalance is left: all is sought again after it.

        What was fetched of a partition that has been paused meanwhile is handed on all the same:
        the position is past it, so it would not come again, and the join takes it. (Faust leaves it
        out, and a log that then falls silent would never be read to its end.)
        """
        fetched, _ = await self._wait_next_records(timeout)
        generation = self.app.consumer_generation_id
        for tp, records in (fetched or {}).items():
            if self.should_stop or not self.flow_active:
                return
            if generation != self.app.consumer_generation_id:
                return
            end = self.highwater(tp)
            self.app.monitor.track_tp_end_offset(tp, end)
            self._read_offset[tp] = None
            yield tp, self._to_batch_message(tp, records, end)

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Where to begin after an assignment: Faust asks here, the app answers."""
        offsets = await cast(BatchTransport, self.transport).start_offsets(self.assignment())
        await self._thread.seek_wait(offsets)
        return offsets

    async def rewind(self, tp: TP, offset: int) -> None:
        """Read a partition again from an offset."""
        await self._thread.seek_wait({tp: offset})

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Faust's guess at a stuck stream; the app has a watchdog that knows."""

    def _to_batch_message(self, tp: TP, records: Sequence[Any], end: int) -> ConsumerMessage:
        last = records[-1]
        return ConsumerMessage(
            tp.topic,
            tp.partition,
            last.offset,
            last.timestamp / 1000.0,
            last.timestamp_type,
            None,
            None,
            cast(bytes, FetchedBatch(tp.topic, tp.partition, records, end)),
            None,
            tp=tp,
            generation_id=self.app.consumer_generation_id,
        )


class BatchTransport(driver.Transport):
    """A transport whose consumer is a `BatchConsumer`.

    Args:
        url: the brokers.
        app: the Faust app.
        start_offsets: told the assigned partitions, answers where to begin in each.
    """

    Consumer = BatchConsumer

    def __init__(self, url: list[URL], app: AppT, *, start_offsets: StartOffsets) -> None:
        super().__init__(url, app)
        self.start_offsets = start_offsets


class BatchSchema(faust.Schema[Any, Any]):
    """Hands batches on as they are."""

    def loads_key(self, app: AppT, message: Message, **_: Any) -> Any:
        """The message's key."""
        return message.key

    def loads_value(self, app: AppT, message: Message, **_: Any) -> Any:
        """The message's value, a `FetchedBatch`."""
        return message.value
