"""How far one input log has been read, and what a record of the join says about it.

Everything in a `Standing` is a function of the two logs and the frontier A (design §3, rules 8 to
11). Two things make that work. First, what it names has always been read: a frontier is a time
that the impression log has reached, A ≤ it, so the first impression at or after A is known; and it
is only told when ct ≥ A + W, so the first conversion after A − E is known as well, and both rewinds
lie further back. Second, what lies before `done` has been decided: impressions before A by ct, and
conversions up to A − E because it ≥ A ≥ t + E.
"""

from collections import deque
from typing import Final, NamedTuple

from grade.v1.reward_group_pb2 import Standing

from policy.errors import StreamError
from stream.join_records import NEVER, Cursor, JoinSettings, Log, Record

OPEN: Final = 1_000
"""Fate of a record that is not decided yet. The others are indices into `LogReading.counts`; this
is none, so that counting a record too early is an error."""


# Fates, in the order of the contract's Counts.
GROUPED, DUPLICATE, DEAD, TICK = range(4)
JOINED, LATE, ORPHAN, CONVERSION_DUPLICATE, CONVERSION_DEAD, CONVERSION_TICK = range(6)


class Rewind(NamedTuple):
    """Where a new owner begins to read a log, and the log's time just before."""

    offset: int
    time_before_ms: int


class LogReading:
    """One input log as far as it has been read: its time, its records' fates, its positions.

    Args:
        log: which one, for messages.
        fates: number of different fates.
    """

    __slots__ = (
        "_before_ms",
        "_fates",
        "_first_above_ms",
        "_log",
        "_steps",
        "counts",
        "done",
        "live_from",
        "position",
        "time_ms",
    )

    def __init__(self, log: Log, fates: int) -> None:
        self._log = log
        self.counts = [0] * fates
        """[fate] records before `done`."""
        self.position = self.done = self.live_from = 0
        self.time_ms = NEVER
        """Running maximum of the timestamps read so far (rule 1)."""
        # The first record of every time, from the rewind on; and the time before these.
        self._steps: deque[tuple[int, int]] = deque()
        self._before_ms = NEVER
        # [time, fate] of every record from `done` on.
        self._fates: deque[list[int]] = deque()
        self._first_above_ms = NEVER

    def resume(self, rewind: Rewind, done: int, counts: list[int], first_above_ms: int) -> None:
        """Begin to read at a recovered rewind.

        Args:
            rewind: where to read from.
            done: everything before has been decided and written.
            counts: [fate] records before `done`.
            first_above_ms: the first record must be later, or the log is not the one that the
                output was made from.
        """
        self.position = rewind.offset
        self.time_ms = self._before_ms = rewind.time_before_ms
        self.done = self.live_from = done
        self.counts = counts
        self._first_above_ms = first_above_ms

    def check_first(self, record: Record) -> None:
        """Compare the first record that is read with what the recovered standing says of it.

        Raises:
            StreamError: the log is not the one that the output was made from.
        """
        if not self._steps and record.timestamp_ms <= self._first_above_ms:
            raise StreamError(
                f"{self._log.value}: expected a time above {self._first_above_ms} ms at the "
                f"rewind, offset {record.offset}, seen {record.timestamp_ms}: this is not the log "
                "that the reward groups were made from"
            )

    def advance(self, timestamp_ms: int) -> bool:
        """Count one record as read; whether the log's time has risen."""
        offset = self.position
        self.position = offset + 1
        if timestamp_ms > self.time_ms:
            self.time_ms = timestamp_ms
            self._steps.append((offset, timestamp_ms))
            return True
        return False

    def note(self, fate: int) -> list[int] | None:
        """Note the fate of the record just read.

        Returns:
            its cell [time, fate], to be changed when an open record is decided; None for a record
            that was counted before a crash.
        """
        if self.position <= self.live_from:
            return None
        cell = [self.time_ms, fate]
        self._fates.append(cell)
        return cell

    def settle_before_time(self, time_ms: int) -> None:
        """Move `done` to the first record at or after a time and count what lies before it."""
        fates, counts = self._fates, self.counts
        while fates[0][0] < time_ms:
            counts[fates.popleft()[1]] += 1
            self.done += 1

    def settle_before_offset(self, offset: int) -> None:
        """Move `done` to an offset and count what lies before it."""
        fates, counts = self._fates, self.counts
        while self.done < offset:
            counts[fates.popleft()[1]] += 1
            self.done += 1

    def rewind_after(self, time_ms: int) -> Rewind:
        """The first record later than a time. Times asked for never fall."""
        steps = self._steps
        while steps[0][1] <= time_ms:
            self._before_ms = steps.popleft()[1]
        return Rewind(steps[0][0], self._before_ms)


class Frontier:
    """How far the join has come, and the readings of both logs that this is worked out from.

    Args:
        settings: the join's horizons.
    """

    __slots__ = ("_settings", "conversions", "frontier_ms", "impressions", "prev")

    def __init__(self, settings: JoinSettings) -> None:
        self._settings = settings
        self.impressions = LogReading(Log.IMPRESSIONS, 4)
        self.conversions = LogReading(Log.CONVERSIONS, 6)
        self.frontier_ms = NEVER
        """A of the last group or progress record."""
        self.prev = -1
        """Offset of the last impression whose group has been written."""

    def begin(self, head: Cursor) -> None:
        """Begin where a start record says that the logs began."""
        self.impressions.resume(Rewind(head.impression_offset, NEVER), head[0], [0] * 4, NEVER)
        self.conversions.resume(Rewind(head.conversion_offset, NEVER), head[1], [0] * 6, NEVER)

    def resume(self, standing: Standing, prev: int) -> None:
        """Go on from the furthest record that has been written."""
        counts, frontier_ms = standing.counts, standing.frontier_ms
        self.frontier_ms, self.prev = frontier_ms, prev
        self.impressions.resume(
            Rewind(standing.rewind.impression_offset, standing.rewind_impression_time_ms),
            standing.done.impression_offset,
            [
                counts.impressions_grouped,
                counts.impressions_duplicate,
                counts.impressions_dead,
                counts.impressions_ticks,
            ],
            frontier_ms - self._settings.impression_rewind_ms,
        )
        self.conversions.resume(
            Rewind(standing.rewind.conversion_offset, standing.rewind_conversion_time_ms),
            standing.done.conversion_offset,
            [
                counts.conversions_joined,
                counts.conversions_late,
                counts.conversions_orphan,
                counts.conversions_duplicate,
                counts.conversions_dead,
                counts.conversions_ticks,
            ],
            frontier_ms - self._settings.conversion_rewind_ms,
        )

    def at_group(self, offset: int, time_ms: int) -> Standing:
        """Move to the group of an impression and say how far the join has come."""
        self.frontier_ms = time_ms
        self.impressions.settle_before_offset(offset + 1)
        standing = self._standing()
        self.prev = offset
        return standing

    def at_progress(self, frontier_ms: int) -> Standing:
        """Move to a time that both logs have passed and say how far the join has come."""
        self.frontier_ms = frontier_ms
        self.impressions.settle_before_time(frontier_ms)
        return self._standing()

    def _standing(self) -> Standing:
        frontier_ms, settings = self.frontier_ms, self._settings
        impressions, conversions = self.impressions, self.conversions
        conversions.settle_before_time(frontier_ms - settings.early_ms + 1)
        rewind = impressions.rewind_after(frontier_ms - settings.impression_rewind_ms)
        conversion_rewind = conversions.rewind_after(frontier_ms - settings.conversion_rewind_ms)
        standing = Standing(
            frontier_ms=frontier_ms,
            prev=self.prev,
            rewind_impression_time_ms=rewind.time_before_ms,
            rewind_conversion_time_ms=conversion_rewind.time_before_ms,
        )
        standing.done.impression_offset = impressions.done
        standing.done.conversion_offset = conversions.done
        standing.rewind.impression_offset = rewind.offset
        standing.rewind.conversion_offset = conversion_rewind.offset
        counts = standing.counts
        (
            counts.impressions_grouped,
            counts.impressions_duplicate,
            counts.impressions_dead,
            counts.impressions_ticks,
        ) = impressions.counts
        (
            counts.conversions_joined,
            counts.conversions_late,
            counts.conversions_orphan,
            counts.conversions_duplicate,
            counts.conversions_dead,
            counts.conversions_ticks,
        ) = conversions.counts
        return standing
