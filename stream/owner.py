"""The owner of one partition: batches in, effects out, and a tick when the logs are silent.

It reads nothing by itself and decides nothing: the core (stream/join.py) does. What it adds is
order: outputs go to a writer that keeps rule 12 of design §3 (stream/step_writer.py), which also
says why the next batch may be read meanwhile; a batch that does not continue its log is sought
again; a log that the core cannot take further is paused; a log that has been read to its end and
stays silent gets a tick.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import structlog

from policy.errors import OffsetGap, RetentionLost, StreamError
from stream import join_metrics as metrics
from stream.fetched import portions, records_from
from stream.join import Log, PartitionJoin, Record
from stream.join_logs import JoinLogs
from stream.step_writer import StepWriter

log = structlog.get_logger(__name__)

BUFFERED_BATCHES = 4
"""Batches that wait in front of a partition's core."""


@dataclass(frozen=True, slots=True)
class OwnerSettings:
    """How partitions are owned; none of it changes what is written."""

    ticks: Literal["owner", "producer"] = "owner"
    """Who ticks silent logs: their owner (live) or the producer (replaying history)."""
    tick_interval_ms: int = 100
    """Interval of ticks while something is open."""
    idle_tick_interval_ms: int = 1_000
    """Interval of ticks while nothing is open."""
    stall_timeout_s: float = 30.0
    """With records to read and none read for so long, the worker ends itself."""
    accept_loss: bool = False
    """Whether to go on without input records that retention has deleted before they were joined."""


class Flow(Protocol):
    """What an owner may ask of whoever fetches for it."""

    def pause(self, topic: str, partition: int) -> None:
        """Stop fetching; what has been fetched may still come."""

    def resume(self, topic: str, partition: int) -> None:
        """Go on fetching."""

    async def rewind(self, topic: str, partition: int, offset: int) -> None:
        """Fetch again from an offset."""


@dataclass(slots=True)
class _LogState:
    """What an owner knows of one of its two logs."""

    end: int
    """Offset that the next record will get, as far as is known."""
    heard_at: float
    """When it was last read from or ticked, on the monotonic clock."""
    paused: bool = False
    last: Record | None = None
    """The last record that was read."""
    gaps: set[tuple[int, int]] = field(default_factory=set)
    """Gaps [expected, seen] met since the last batch that could be read."""


class PartitionOwner:
    """Owns one partition until it is cancelled.

    Args:
        core: the partition's join, resumed.
        partition: the partition.
        logs: where to write.
        flow: how to steer the fetching.
        settings: how to own.
        written: value of the partition's last reward-groups record.
        ends: per log, the offset that its next record will get.
    """

    def __init__(
        self,
        core: PartitionJoin,
        partition: int,
        logs: JoinLogs,
        flow: Flow,
        settings: OwnerSettings,
        written: bytes,
        ends: Mapping[Log, int],
    ) -> None:
        self.partition = partition
        self._core = core
        self._logs = logs
        self._flow = flow
        self._settings = settings
        self._writer = StepWriter(logs, partition, written)
        now = time.monotonic()
        self._states = {each: _LogState(ends[each], now) for each in Log}
        self._batches: asyncio.Queue[tuple[Log, Sequence[Any]]] = asyncio.Queue(BUFFERED_BATCHES)
        self._suspended = False
        self._settled = True
        self._progress_at = now
        self._progress_time_s = time.time()

    # --- owning ---

    async def run(self) -> None:
        """Read what is put, and tick.

        Raises:
            StreamError: the same offsets are missing twice, retention has deleted them, or a log
                is not the one that was read.
            BoundaryError: this build lacks the computation of a generation that begins.
            KafkaUnreachable: an output was not acknowledged.
        """
        tasks = [asyncio.create_task(work) for work in (self._read_on(), self._writer.run())]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def put(self, each: Log, fetched: Sequence[Any], end: int) -> None:
        """Hand over a batch; waits while too many are in front of it.

        Args:
            each: the log.
            fetched: consecutive records as aiokafka gives them.
            end: offset that the log's next record will get, as far as is known.

        Raises:
            StreamError: the log ends before what has been read of it.
        """
        if not self._suspended:
            self.learn_end(each, end)
            await self._batches.put((each, fetched))

    def suspend(self) -> None:
        """Read and tick no more until `continue_from` or cancellation; the step at hand ends."""
        self._suspended = True
        while not self._batches.empty():
            self._batches.get_nowait()

    def may_continue(self, written: bytes) -> bool:
        """Whether the state is still that of the partition: nobody has written in the meantime.

        Args:
            written: value of the partition's last reward-groups record.
        """
        settled = self._settled and not self._writer.unwritten
        return settled and written == self._writer.written

    def continue_from(self) -> dict[Log, int]:
        """End the suspension; returns where to read from."""
        self.suspend()
        self._suspended = False
        for each, state in self._states.items():
            state.gaps.clear()
            state.heard_at = self._progress_at = time.monotonic()
            state.paused = False
            self._steer(each)
        return self.positions()

    def positions(self) -> dict[Log, int]:
        """Per log, the offset that is read next."""
        return {each: self._core.position(each) for each in Log}

    def learn_end(self, each: Log, end: int, position: int | None = None) -> None:
        """Note how far a log goes.

        Args:
            each: the log.
            end: offset that its next record will get.
            position: how far it had been read when `end` was asked for; None means as now.

        Raises:
            StreamError: the log ends before what has been read of it.
        """
        self._check_reaches(each, end, position)
        state = self._states[each]
        state.end = max(state.end, end)

    # --- watching ---

    def lag(self, each: Log) -> int:
        """Records of a log that are not read yet, as far as is known."""
        return max(0, self._states[each].end - self._core.position(each))

    def check(self) -> None:
        """Compare with the watchdog's patience.

        Raises:
            StreamError: there are records to read and none has been read for too long.
        """
        silent_s = time.monotonic() - self._progress_at
        if self._suspended or silent_s < self._settings.stall_timeout_s:
            return
        for each in Log:
            if self.lag(each) and self._core.readable(each):
                raise StreamError(
                    f"{self._place(each)}: expected to read on from offset "
                    f"{self._core.position(each)} to {self._states[each].end - 1}, "
                    f"seen nothing for {silent_s:.0f} s"
                )

    def excuse(self) -> None:
        """Be patient from now on anew: nothing can be read while Kafka is away."""
        self._progress_at = time.monotonic()

    def health(self) -> dict[str, Any]:
        """Positions, lag, generations, open groups and steps that are not acknowledged yet."""
        return {
            "positions": {each.value: self._core.position(each) for each in Log},
            "lag": {each.value: self.lag(each) for each in Log},
            "generation": {each.value: self._core.generation(each) for each in Log},
            "paused": [each.value for each in Log if self._states[each].paused],
            "open_groups": self._core.open_groups,
            "unwritten_steps": self._writer.unwritten,
            "last_progress_s": round(self._progress_time_s, 3),
        }

    def show(self) -> None:
        """Bring the partition's metrics up to date."""
        metrics.OPEN_GROUPS.labels(self.partition).set(self._core.open_groups)
        for each in Log:
            metrics.LAG.labels(self.partition, each.value).set(self.lag(each))

    # --- reading ---

    async def _read_on(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._patience_s()):
                    each, fetched = await self._batches.get()
            except TimeoutError:
                pass
            else:
                self._settled = False
                try:
                    await self._read(each, fetched)
                except StreamError:
                    # What was read before is sound, and a new owner may not be able to read it
                    # again.
                    await self._writer.finish()
                    raise
                self._settled = True
            await self._tick()

    async def _read(self, each: Log, fetched: Sequence[Any]) -> None:
        for portion in portions(fetched):
            records = records_from(portion, self._core.position(each))
            self._check_same(each, portion)
            if not records or self._suspended:
                continue
            try:
                with metrics.FEED_SECONDS.time():
                    step = self._core.feed(each, records)
            except OffsetGap as gap:
                await self._on_gap(each, gap)
                return
            state = self._states[each]
            state.gaps.clear()
            state.last = records[-1]
            state.heard_at = self._progress_at = time.monotonic()
            self._progress_time_s = time.time()
            metrics.RECORDS_READ.labels(each.value).inc(len(records))
            await self._writer.put(step)
            for steered in Log:
                self._steer(steered)
            await asyncio.sleep(0)  # the others' turn: neither needs to have waited

    def _steer(self, each: Log) -> None:
        """Pause a log that the core cannot take further, and resume it when it can (rule 7)."""
        state, topic = self._states[each], self._logs.topic_of[each]
        if self._suspended:
            return
        if not self._core.readable(each):
            # Again each time: Faust resumes a partition by itself when its buffer has emptied.
            state.paused = True
            self._flow.pause(topic, self.partition)
        elif state.paused:
            state.paused = False
            self._flow.resume(topic, self.partition)

    async def _on_gap(self, each: Log, gap: OffsetGap) -> None:
        """Fetch again from where the core is; the same gap twice is one of the log's own."""
        state, met = self._states[each], (gap.expected, gap.seen)
        metrics.GAPS.labels(each.value).inc()
        if met in state.gaps:
            [extents] = (await self._logs.extents([each], [self.partition])).values()
            if extents[0].head > gap.expected:
                raise RetentionLost(
                    f"{self._place(each)}: expected to read on from offset {gap.expected}, seen "
                    f"{extents[0].head} as the first that retention has left: "
                    f"{extents[0].head - gap.expected} records are lost"
                ) from None
            raise StreamError(
                f"{self._place(each)}: expected offset {gap.expected} next, seen {gap.seen} twice: "
                "the log was compacted or holds control records of a transactional producer; "
                "its cleanup.policy must be delete and its producers must not use transactions"
            ) from None
        state.gaps.add(met)
        log.warning(
            "offset_gap",
            log=each.value,
            partition=self.partition,
            expected=gap.expected,
            seen=gap.seen,
        )
        position = self._core.position(each)
        await self._flow.rewind(self._logs.topic_of[each], self.partition, position)

    def _check_reaches(self, each: Log, end: int, position: int | None = None) -> None:
        """Refuse a log that was truncated or deleted and created again behind the reader."""
        position = self._core.position(each) if position is None else position
        if end < position:
            raise StreamError(
                f"{self._place(each)}: expected the log to reach at least offset {position}, seen "
                f"its end at {end}: it was truncated or created anew, and what it holds now does "
                "not continue what was read"
            )

    def _check_same(self, each: Log, fetched: Sequence[Any]) -> None:
        """Refuse a log whose last read record, when it comes again, is another one."""
        last = self._states[each].last
        if last is None or not fetched[0].offset <= last.offset <= fetched[-1].offset:
            return
        for record in fetched:
            seen = (record.timestamp, record.key, record.value)
            if record.offset == last.offset and seen != (last.timestamp_ms, last.key, last.value):
                raise StreamError(
                    f"{self._place(each)}: expected at offset {last.offset} the record of time "
                    f"{last.timestamp_ms} that was read there, seen another one of time "
                    f"{record.timestamp}: the log was truncated or created anew"
                )

    # --- ticking ---

    async def _tick(self) -> None:
        """Append a tick to each log that has been read to its end and is silent."""
        now, interval_s = time.monotonic(), self._interval_s()
        due = [
            each
            for each in Log
            if self._may_tick(each) and now - self._states[each].heard_at >= interval_s
        ]
        if due:
            offsets = await asyncio.gather(*(self._logs.tick(each, self.partition) for each in due))
            for each, offset in zip(due, offsets, strict=True):
                self._check_reaches(each, offset)
                self.learn_end(each, offset + 1)
                self._states[each].heard_at = time.monotonic()
                metrics.TICKS.labels(each.value).inc()

    def _may_tick(self, each: Log) -> bool:
        return (
            self._settings.ticks == "owner"
            and not self._suspended
            and not self.lag(each)
            and self._core.readable(each)
        )

    def _interval_s(self) -> float:
        settings = self._settings
        return (
            settings.idle_tick_interval_ms if self._core.idle else settings.tick_interval_ms
        ) / 1e3

    def _patience_s(self) -> float:
        """How long to wait for a batch before looking for a tick that is due."""
        interval_s, now = self._interval_s(), time.monotonic()
        silent = [now - self._states[each].heard_at for each in Log if self._may_tick(each)]
        return max(0.0, interval_s - max(silent, default=0.0))

    def _place(self, each: Log) -> str:
        return f"{each.value} partition {self.partition}"
