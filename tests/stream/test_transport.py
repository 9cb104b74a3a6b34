"""The batch transport hands on all that it fetched, whatever happens to the partition meanwhile."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiokafka import AIOKafkaConsumer
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from stream.transport import FETCH_WAIT_MS, BatchConsumer

PAUSED = TP("conversions", 2)


def consumer_paused_while_fetching() -> Any:
    """What `getmany` sees of Faust when its partition is paused between fetch and return."""
    active = {PAUSED}

    async def wait_next_records(timeout: float) -> tuple[dict[TP, list[Any]], set[TP]]:
        active.discard(PAUSED)  # Faust changes the set that it has returned before
        return {PAUSED: [SimpleNamespace(offset=4919)]}, active

    return SimpleNamespace(
        _wait_next_records=wait_next_records,
        _buffered_partitions=set(),
        _read_offset={PAUSED: 4918},
        _to_batch_message=lambda tp, records, end: (records, end),
        app=SimpleNamespace(
            consumer_generation_id=1,
            monitor=SimpleNamespace(track_tp_end_offset=lambda tp, end: None),
        ),
        should_stop=False,
        flow_active=True,
        highwater=lambda tp: 4924,
    )


async def fetch_once(consumer: Any) -> list[tuple[TP, Any]]:
    return [each async for each in BatchConsumer.getmany(consumer, 0.1)]


def test_what_was_fetched_before_a_pause_is_handed_on() -> None:
    """The position is past these records: left out, they would never come again."""
    consumer = consumer_paused_while_fetching()
    [(tp, message)] = asyncio.run(fetch_once(consumer))
    records, end = cast(tuple[list[Any], int], message)
    assert (tp, [record.offset for record in records], end) == (PAUSED, [4919], 4924)


def test_nothing_is_handed_on_when_a_rebalance_began_during_the_fetch() -> None:
    """Every partition is sought again after it."""
    consumer = consumer_paused_while_fetching()
    consumer.flow_active = False
    assert asyncio.run(fetch_once(consumer)) == []


def test_a_fetch_that_finds_nothing_comes_back_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Faust makes becomes as a client that was told so: aiokafka's name for it still holds."""
    thread = driver.AIOKafkaConsumerThread
    monkeypatch.setattr(thread, "__init__", lambda self, consumer, **_: None)

    async def waits_ms() -> list[int]:
        by_faust = AIOKafkaConsumer(fetch_max_wait_ms=1_500)
        told = AIOKafkaConsumer(fetch_max_wait_ms=FETCH_WAIT_MS)
        monkeypatch.setattr(thread, "_create_consumer", lambda self, loop: by_faust)
        batches = cast(Any, SimpleNamespace(loop=None, beacon=None))
        made = BatchConsumer._new_consumer_thread(batches)._create_consumer(batches.loop)
        found = [vars(client)["_fetch_max_wait_ms"] for client in (told, made)]
        await asyncio.gather(told.stop(), by_faust.stop())
        return found

    assert asyncio.run(waits_ms()) == [FETCH_WAIT_MS, FETCH_WAIT_MS]
