"""An owner reads on while what it has read leads to outputs that are not acknowledged yet."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from policy.errors import StreamError
from stream.codec import encode
from stream.join import Cursor, Kind, Log, Output
from stream.owner import OwnerSettings, PartitionOwner
from tests.stream.join_messages import valid_impression
from tests.stream.join_partition import Partition

TOPIC_OF = {log: log.value for log in Log}


class Slow:
    """The join's topics; nothing is acknowledged before `open` is set."""

    def __init__(self) -> None:
        self.topic_of = TOPIC_OF
        self.open = asyncio.Event()
        self.written: list[Output] = []

    async def append(self, partition: int, outputs: Iterable[Output]) -> bytes | None:
        sent = list(outputs)
        await self.open.wait()
        self.written += sent
        return sent[-1].value if sent[-1].kind is Kind.REWARD_GROUPS else None

    async def extents(self, logs: Sequence[Log], partitions: Sequence[int]) -> dict[int, Any]:
        return {partition: [SimpleNamespace(head=0)] for partition in partitions}


class StillFlow:
    """Whoever fetches; never asked for anything but to fetch again."""

    def pause(self, topic: str, partition: int) -> None:
        raise AssertionError

    def resume(self, topic: str, partition: int) -> None:
        raise AssertionError

    async def rewind(self, topic: str, partition: int, offset: int) -> None:
        assert topic == Log.IMPRESSIONS.value


def play(act: Callable[[PartitionOwner, Slow, bytes], Awaitable[None]]) -> None:
    """Run an act beside an owner that begins with empty logs; an error of the owner ends it."""

    async def run() -> None:
        join, logs = Partition().new_owner(), Slow()
        start = join.start_record(Cursor(0, 0), 1).value
        join.resume(start, [start], Cursor(0, 0))
        writing: Any = logs
        ends = dict.fromkeys(Log, 0)
        settings = OwnerSettings(ticks="producer")
        owner = PartitionOwner(join, 0, writing, StillFlow(), settings, start, ends)
        tasks = [asyncio.ensure_future(act(owner, logs, start)), asyncio.create_task(owner.run())]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=20)
        assert done, "the act or the owner has ended"
        for task in tasks:
            task.cancel()
        for each in done:
            each.result()

    asyncio.run(run())


def fetched(offset: int, value: bytes | None = None) -> SimpleNamespace:
    """An impression as aiokafka gives it: a sound one unless a value is given."""
    request_id = f"r{offset}"
    value = encode(valid_impression(request_id)) if value is None else value
    return SimpleNamespace(
        offset=offset, timestamp=1_000, key=request_id.encode(), value=value, headers=()
    )


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)


def test_the_next_batch_is_read_before_the_last_one_is_acknowledged() -> None:
    async def act(owner: PartitionOwner, logs: Slow, start: bytes) -> None:
        await owner.put(Log.IMPRESSIONS, [fetched(0, b"broken")], 1)
        await owner.put(Log.IMPRESSIONS, [fetched(1), fetched(2, b"broken")], 3)
        await until(lambda: owner.positions()[Log.IMPRESSIONS] == 3)
        assert owner.health()["unwritten_steps"] == 2
        assert not owner.may_continue(start), "not everything that was read has been written"
        logs.open.set()
        await until(lambda: owner.health()["unwritten_steps"] == 0)
        assert [each.key for each in logs.written] == [b"r0", b"r2"]
        assert owner.may_continue(start)

    play(act)


def test_what_was_read_is_written_before_an_owner_ends_for_what_it_cannot_read() -> None:
    written = []

    async def act(owner: PartitionOwner, logs: Slow, start: bytes) -> None:
        await owner.put(Log.IMPRESSIONS, [fetched(0, b"broken")], 1)
        for _ in range(2):
            await owner.put(Log.IMPRESSIONS, [fetched(5)], 6)
        await until(lambda: owner.positions()[Log.IMPRESSIONS] == 1)
        logs.open.set()
        written.append(logs.written)
        await asyncio.Future()

    with pytest.raises(StreamError, match="expected offset 1 next, seen 5 twice"):
        play(act)
    assert [each.key for each in written[0]] == [b"r0"]


@pytest.mark.parametrize("records", [1, 1_000, 1_001, 2_500])
def test_a_large_batch_is_read_in_portions(records: int) -> None:
    async def act(owner: PartitionOwner, logs: Slow, start: bytes) -> None:
        logs.open.set()
        await owner.put(Log.IMPRESSIONS, [fetched(n, b"broken") for n in range(records)], records)
        await until(lambda: len(logs.written) == records)
        assert [each.key for each in logs.written] == [b"r%d" % n for n in range(records)]

    play(act)
