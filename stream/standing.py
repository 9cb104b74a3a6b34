"""How far one input log has been read, and what a record of the join says about it.

Everything in a `Standing` is a function of the two logs and the frontier A (design §3, rules 8 to
11). Two things make that work. First, what it names has always been read: a frontier is a time
that the impression log has reached, A ≤ it, so the first impression at or after A is known; and it
is only told when ct ≥ A + W, so the first conversion after A − E is known as well, and both rewinds
lie further back. Second, what lies before `done` has been decided: impressions before A by ct, and
a conversion with t + E ≤ A because it ≥ A ≥ t + E.
"""

from bisect import insort
from collections import deque
from collections.abc import Mapping
from typing import Final, NamedTuple

from grade.v1.reward_group_pb2 import Standing, Start

from policy.errors import StreamError
from stream.horizons import Horizons
from stream.join_records import NEVER, Cursor, Log, Record
from stream.terms import Terms

OPEN: Final = 1_000
"""Fate of a record that is not decided yet. The others are indices into `LogReading.counts`; this
is none, so that counting a record too early is an error."""


# Fates, in the order of the contract's Counts.
GROUPED, DUPLICATE, DEAD, TICK = range(4)
JOINED, LATE, ORPHAN, CONVERSION_DUPLICATE, CONVERSION_DEAD, CONVERSION_TICK = range(6)


class Rewind(NamedTuple):
    """Where a new owner begins to read a log, the log's time just before, and its generation."""

    offset: int
    time_before_ms: int
    generation: int


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
        "_rewind",
        "_steps",
        "counts",
        "done",
        "generation",
        "live_from",
        "patience_ms",
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
        self.generation = 0
        """In force behind the last record read."""
        self.patience_ms = 0
        """How long after its time a record may have to wait to be decided."""
        # [offset, time, generation before it] of the first record of every time, from the rewind
        # on; and the time before these.
        self._steps: deque[tuple[int, int, int]] = deque()
        self._before_ms = NEVER
        # [when it is decided, fate] of every record from `done` on.
        self._fates: deque[list[int]] = deque()
        self._first_above_ms = NEVER
        # What was asked for last; it holds for many groups.
        self._rewind: Rewind | None = None

    def resume(self, rewind: Rewind, done: int, counts: list[int], first_above_ms: int) -> None:
        """Begin to read at a recovered rewind.

        Args:
            rewind: where to read from.
            done: everything before has been decided and written.
            counts: [fate] records before `done`.
            first_above_ms: the first record must be later, or the log is not the one that the
                output was made from.
        """
        self.position, self.generation = rewind.offset, rewind.generation
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
            self._steps.append((offset, timestamp_ms, self.generation))
            return True
        return False

    def note(self, fate: int) -> list[int] | None:
        """Note the fate of the record just read.

        Returns:
            its cell [when it is decided, fate], to be changed when an open record is decided; None
            for a record that was counted before a crash.
        """
        if self.position <= self.live_from:
            return None
        cell = [self.time_ms + self.patience_ms, fate]
        self._fates.append(cell)
        return cell

    def settle_before_time(self, time_ms: int) -> None:
        """Move `done` to the first record decided at or after a time; count what lies before."""
        fates, counts = self._fates, self.counts
        while fates and fates[0][0] < time_ms:
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
        steps, rewind = self._steps, self._rewind
        while steps[0][1] <= time_ms:
            self._before_ms = steps.popleft()[1]
            rewind = None
        if rewind is None:
            offset, _, generation = steps[0]
            rewind = self._rewind = Rewind(offset, self._before_ms, generation)
        return rewind


class Frontier:
    """How far the join has come, and the readings of both logs that this is worked out from.

    Args:
        terms: of every generation that is known; grows as boundaries are met.
    """

    __slots__ = (
        "_changes",
        "_horizons",
        "_resumed_ms",
        "_segment",
        "_terms",
        "close_ms",
        "conversions",
        "frontier_ms",
        "impressions",
        "least_close_ms",
        "prev",
    )

    def __init__(self, terms: Mapping[int, Terms]) -> None:
        self._terms = terms
        self.impressions = LogReading(Log.IMPRESSIONS, 4)
        self.conversions = LogReading(Log.CONVERSIONS, 6)
        self.frontier_ms = NEVER
        """A of the last record told."""
        self.close_ms = NEVER
        """Close time of the last record told."""
        self.prev = -1
        """Offset of the last impression whose group has been written."""
        self.least_close_ms = NEVER
        """No group closes before it, because of an accepted loss."""
        self._segment = 0
        self._horizons: Horizons
        # [frontier from which on it counts, generation] of boundaries that were read, in order.
        self._changes: list[tuple[int, int]] = []
        self._resumed_ms = NEVER

    def begin(self, start: Start, done: Cursor) -> None:
        """Begin where a start record says that the logs began.

        Args:
            start: the record.
            done: what lies before only has to be remembered.
        """
        generation = start.generation
        head = Cursor(start.head.impression_offset, start.head.conversion_offset)
        if start.HasField("loss"):
            self.prev, self.least_close_ms = start.loss.prev, start.loss.close_time_ms
        self._segment = start.segment
        self._horizons = Horizons(self._terms, generation, generation)
        self.impressions.resume(Rewind(head[0], NEVER, generation), done[0], [0] * 4, NEVER)
        self.conversions.resume(Rewind(head[1], NEVER, generation), done[1], [0] * 6, NEVER)

    def resume(self, standing: Standing, prev: int, close_ms: int) -> None:
        """Go on from the furthest record that has been written.

        Raises:
            BoundaryError: a generation that matters is not known.
        """
        counts, frontier_ms = standing.counts, standing.frontier_ms
        self.frontier_ms = self._resumed_ms = frontier_ms
        self.prev, self.close_ms = prev, close_ms
        self._segment = standing.segment
        if self._segment:
            self.least_close_ms = standing.least_close_time_ms
        generations = (
            standing.rewind_impression_generation,
            standing.rewind_conversion_generation,
        )
        self._horizons = Horizons(self._terms, min(generations), max(generations))
        # Boundaries between rewind and frontier, which are read again, may have made them longer.
        longest = Horizons(self._terms, min(generations), max(self._terms))
        self.impressions.resume(
            Rewind(
                standing.rewind.impression_offset,
                standing.rewind_impression_time_ms,
                standing.rewind_impression_generation,
            ),
            standing.done.impression_offset,
            [
                counts.impressions_grouped,
                counts.impressions_duplicate,
                counts.impressions_dead,
                counts.impressions_ticks,
            ],
            frontier_ms - longest.impression_rewind_ms,
        )
        self.conversions.resume(
            Rewind(
                standing.rewind.conversion_offset,
                standing.rewind_conversion_time_ms,
                standing.rewind_conversion_generation,
            ),
            standing.done.conversion_offset,
            [
                counts.conversions_joined,
                counts.conversions_late,
                counts.conversions_orphan,
                counts.conversions_duplicate,
                counts.conversions_dead,
                counts.conversions_ticks,
            ],
            frontier_ms - longest.conversion_rewind_ms,
        )

    def cross(self, log: Log, generation: int) -> None:
        """Begin a generation in one log, at the boundary record that has just been read.

        Its horizons count from the first frontier on at which records of it may matter: impressions
        of it lie at or after the boundary's time, so beyond it; conversions of it at that time.
        """
        reading = self.impressions if log is Log.IMPRESSIONS else self.conversions
        reading.generation = generation
        insort(self._changes, (reading.time_ms + (log is Log.IMPRESSIONS), generation))

    def at_group(self, standing: Standing, offset: int, time_ms: int, close_ms: int) -> None:
        """Move to the group of an impression and say how far the join has come.

        Args:
            standing: an empty one, to be filled.
            offset: of the impression.
            time_ms: of the impression.
            close_ms: of the group.
        """
        self.at_boundary(standing, offset, time_ms, close_ms)
        self.prev = offset

    def at_boundary(self, standing: Standing, offset: int, time_ms: int, close_ms: int) -> None:
        """Move to a boundary and say how far the join has come; arguments as in `at_group`."""
        self.frontier_ms, self.close_ms = time_ms, close_ms
        self.impressions.settle_before_offset(offset + 1)
        self._tell(standing)

    def pass_boundary(self, time_ms: int) -> None:
        """Move beyond a boundary that was written, or given up, before this owner."""
        self.frontier_ms = max(self.frontier_ms, time_ms)

    def at_progress(self, standing: Standing, frontier_ms: int, close_ms: int) -> None:
        """Move to a time that both logs have passed and say how far the join has come."""
        self.frontier_ms, self.close_ms = frontier_ms, close_ms
        self.impressions.settle_before_time(frontier_ms)
        self._tell(standing)

    def _rewinds(self) -> tuple[Rewind, Rewind]:
        """Where a new owner must begin in both logs, for the frontier."""
        changes = self._changes
        while changes and changes[0][0] <= self.frontier_ms:
            from_ms, generation = changes.pop(0)
            if from_ms > self._resumed_ms:
                # By what counted before; nobody had to keep more.
                self._let_go(from_ms - 1)
            horizons = self._horizons
            if generation > horizons.newest:
                self._horizons = Horizons(self._terms, horizons.oldest, generation)
        return self._let_go(self.frontier_ms)

    def _let_go(self, frontier_ms: int) -> tuple[Rewind, Rewind]:
        """Forget what does not matter at a frontier, generations included."""
        while True:
            horizons = self._horizons
            impressions = self.impressions.rewind_after(frontier_ms - horizons.impression_rewind_ms)
            conversions = self.conversions.rewind_after(frontier_ms - horizons.conversion_rewind_ms)
            oldest = min(impressions.generation, conversions.generation)
            if oldest == horizons.oldest:
                return impressions, conversions
            self._horizons = Horizons(self._terms, oldest, horizons.newest)

    def _tell(self, standing: Standing) -> None:
        frontier_ms = self.frontier_ms
        impressions, conversions = self.impressions, self.conversions
        conversions.settle_before_time(frontier_ms + 1)
        rewind, conversion_rewind = self._rewinds()
        standing.frontier_ms, standing.prev = frontier_ms, self.prev
        standing.rewind_impression_time_ms = rewind.time_before_ms
        standing.rewind_conversion_time_ms = conversion_rewind.time_before_ms
        standing.rewind_impression_generation = rewind.generation
        standing.rewind_conversion_generation = conversion_rewind.generation
        if self._segment:
            standing.segment, standing.least_close_time_ms = self._segment, self.least_close_ms
        done, begin = standing.done, standing.rewind
        done.impression_offset, done.conversion_offset = impressions.done, conversions.done
        begin.impression_offset, begin.conversion_offset = rewind.offset, conversion_rewind.offset
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
