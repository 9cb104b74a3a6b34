"""Steps are written in their order, each part acknowledged before the next, while others wait."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest
from grade.v1.refused_pb2 import Reason, Refused
from grade.v1.reward_group_pb2 import JoinRecord

from stream.codec import encode
from stream.join_records import Kind, Output, Step
from stream.step_writer import WAITING_STEPS, StepWriter


class Slow:
    """The join's topics; every append waits until it is let through."""

    def __init__(self) -> None:
        self.sent: list[list[bytes]] = []
        self.acknowledged = asyncio.Semaphore(0)
        self.error: Exception | None = None

    async def append(self, partition: int, outputs: Iterable[Output]) -> bytes | None:
        assert partition == 3
        sent = list(outputs)
        self.sent.append([each.key for each in sent])
        await self.acknowledged.acquire()
        if self.error is not None:
            raise self.error
        told = [each.value for each in sent if each.kind is Kind.REWARD_GROUPS]
        return told[-1] if told else None


def step(number: int, *, side: bool = True, groups: bool = True, progress: bool = True) -> Step:
    """A step whose outputs' keys are its number and what they are."""
    refused = encode(Refused(reason=Reason.REASON_LATE))
    record = JoinRecord()
    record.progress.close_time_ms = number
    told = encode(record)
    return Step(
        [Output(Kind.LATE, b"%d refused" % number, refused)] * side,
        [Output(Kind.REWARD_GROUPS, b"%d group" % number, b"group")] * groups,
        [Output(Kind.REWARD_GROUPS, b"%d progress" % number, told)] * progress,
    )


def play(act: Callable[[Slow, StepWriter], Awaitable[None]]) -> None:
    """Run an act beside a writer of partition 3; an error of the writer ends it."""

    async def run() -> None:
        logs = Slow()
        writing: Any = logs
        writer = StepWriter(writing, 3, b"start")
        tasks = [asyncio.ensure_future(act(logs, writer)), asyncio.create_task(writer.run())]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=20)
        assert done, "the act or the writer has ended"
        for task in tasks:
            task.cancel()
        for each in done:
            each.result()

    asyncio.run(run())


async def rest() -> None:
    """Let everything run that can."""
    for _ in range(50):
        await asyncio.sleep(0)


def test_a_group_waits_for_what_was_refused_before_it() -> None:
    async def act(logs: Slow, writer: StepWriter) -> None:
        await writer.put(step(1))
        await rest()
        assert logs.sent == [[b"1 refused"]]
        logs.acknowledged.release()
        await rest()
        assert logs.sent == [[b"1 refused"], [b"1 group", b"1 progress"]]
        assert (writer.unwritten, writer.written) == (1, b"start")
        logs.acknowledged.release()
        await writer.finish()
        assert (writer.unwritten, writer.written) == (0, step(1).progress[0].value)

    play(act)


def test_steps_that_have_come_together_are_written_together() -> None:
    async def act(logs: Slow, writer: StepWriter) -> None:
        await writer.put(step(1, side=False, progress=False))
        await rest()
        for number in (2, 3):
            await writer.put(step(number))
        await writer.put(step(4, side=False, groups=False))
        await rest()
        assert logs.sent == [[b"1 group"]], "one at a time"
        logs.acknowledged.release()
        await rest()
        assert logs.sent[1:] == [[b"2 refused", b"3 refused"]]
        logs.acknowledged.release()
        await rest()
        told = [b"2 group", b"2 progress", b"3 group", b"3 progress", b"4 progress"]
        assert logs.sent[2:] == [told]
        assert writer.written == b"group"
        logs.acknowledged.release()
        await writer.finish()

    play(act)


def test_what_waits_is_bounded() -> None:
    """As many as wait, and one that is being written."""

    async def act(logs: Slow, writer: StepWriter) -> None:
        taken = 0

        async def put_many() -> None:
            nonlocal taken
            for number in range(20):
                await writer.put(step(number, side=False))
                await rest()
                taken += 1

        putting = asyncio.create_task(put_many())
        while taken < WAITING_STEPS + 1:
            await asyncio.sleep(0)
        await asyncio.gather(*(rest() for _ in range(5)))
        assert taken == WAITING_STEPS + 1
        for _ in range(20):
            logs.acknowledged.release()
        await putting
        await writer.finish()
        assert [key for keys in logs.sent for key in keys if key.endswith(b"group")] == [
            b"%d group" % number for number in range(20)
        ]

    play(act)


def test_nothing_is_written_for_an_empty_step() -> None:
    async def act(logs: Slow, writer: StepWriter) -> None:
        await writer.put(Step([], [], []))
        await writer.finish()
        assert (logs.sent, writer.unwritten) == ([], 0)

    play(act)


def test_nothing_follows_what_was_not_acknowledged() -> None:
    async def act(logs: Slow, writer: StepWriter) -> None:
        logs.error = OSError("away")
        await writer.put(step(1))
        logs.acknowledged.release()
        await asyncio.Future()

    with pytest.raises(OSError, match="away"):
        play(act)
