"""The batch transport hands on all that it fetched, whatever happens to the partition meanwhile."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from faust.types import TP

from stream.transport import BatchConsumer

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
