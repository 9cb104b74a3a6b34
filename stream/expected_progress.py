"""What a progress record of the join must say, worked out from the logs' times alone.

When the join writes progress depends on how its input arrived; what it then says does not. This is
a second way to the figures of design §3, rules 8 to 11, beside the join's own.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from grade.v1.reward_group_pb2 import Counts, Cursor, Progress, Standing, Start

from stream.logs import Log
from stream.terms import Terms

_BEFORE_ALL_TIME = -(2**63)


@dataclass(frozen=True, slots=True)
class FateOffsets:
    """Offsets, in rising order, of one log's records by what became of them."""

    used: Sequence[int]
    """Impressions: grouped. Conversions: joined."""
    dead: Sequence[int]
    ticks: Sequence[int]
    late: Sequence[int] = ()
    orphans: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class SegmentLog:
    """One input log from where a segment of the join begins in it."""

    log: Log
    begin: int
    """Offset of the first record that is read."""
    live: int
    """Records before this offset had been decided before the segment."""
    boundaries: Sequence[tuple[int, int]]
    """[offset, generation that begins] of the boundaries that begin one."""
    fates: FateOffsets
    """Of the records from `live` on."""


class _Times:
    """Running maximum of the times of one log, and the generations in force."""

    def __init__(self, segment: SegmentLog, terms: Mapping[int, Terms], generation: int) -> None:
        times = [each.timestamp_ms for each in segment.log.records if each.offset >= segment.begin]
        self.times = np.maximum.accumulate(np.array(times, dtype=np.int64))
        self.begin = segment.begin
        self.live = segment.live
        self.fates = segment.fates
        self._offsets = [offset for offset, _ in segment.boundaries]
        self._generations = [generation, *(begun for _, begun in segment.boundaries)]
        self.begun = [(self.time_of(offset), begun) for offset, begun in segment.boundaries]
        early = np.zeros_like(self.times)
        edges = [0, *(offset + 1 - self.begin for offset in self._offsets), len(times)]
        for at, begun in enumerate(self._generations):
            early[edges[at] : edges[at + 1]] = terms[begun].settings.early_ms
        # When every record up to one is decided, if it is a conversion.
        self._decided = np.maximum.accumulate(self.times + early)

    def generation_before(self, index: int) -> int:
        """The generation in force where so many records have been read."""
        return self._generations[bisect_left(self._offsets, self.begin + index)]

    def time_of(self, offset: int) -> int:
        """Time of a record."""
        return int(self.times[offset - self.begin])

    def after(self, time_ms: int) -> int:
        """How many records have a time up to `time_ms`."""
        return int(np.searchsorted(self.times, time_ms, side="right"))

    def first_at_least(self, time_ms: int) -> int:
        """Offset of the first record whose time has reached `time_ms`, not before `live`."""
        index = int(np.searchsorted(self.times, time_ms, side="left"))
        return max(self.live, self.begin + index)

    def first_undecided(self, time_ms: int) -> int:
        """Offset of the first conversion that is not decided by a time, not before `live`."""
        index = int(np.searchsorted(self._decided, time_ms, side="right"))
        return max(self.live, self.begin + index)

    def before(self, index: int) -> int:
        """Time of the record before one."""
        return int(self.times[index - 1]) if index else _BEFORE_ALL_TIME

    def count(self, offset: int) -> tuple[int, int, int, int, int, int]:
        """Used, late, orphans, dead, ticks, and the rest (duplicates), from `live` to `offset`."""
        fates = self.fates
        used, late, orphans, dead, ticks = (
            bisect_left(each, offset)
            for each in (fates.used, fates.late, fates.orphans, fates.dead, fates.ticks)
        )
        rest = offset - self.live - used - late - orphans - dead - ticks
        return used, late, orphans, dead, ticks, rest


class _Kept(NamedTuple):
    """What is still kept of both logs at some frontier."""

    impressions: int
    """Index of the first record that is."""
    conversions: int
    oldest: int
    newest: int
    """Generations whose horizons count."""


class ExpectedProgress:
    """Progress records of one partition's segment, by frontier.

    Args:
        terms: of every generation that was in force.
        start: the segment's start record.
        impressions: the impression log, complete from where the segment begins.
        conversions: the conversion log, complete from where the segment begins.
    """

    def __init__(
        self,
        terms: Mapping[int, Terms],
        start: Start,
        impressions: SegmentLog,
        conversions: SegmentLog,
    ) -> None:
        self._terms = terms
        self._start = start
        self._impressions = _Times(impressions, terms, start.generation)
        self._conversions = _Times(conversions, terms, start.generation)
        self._least_close_ms = _BEFORE_ALL_TIME
        if start.HasField("loss"):
            self._least_close_ms = start.loss.close_time_ms
        self._phases = self._find_phases()

    def of(self, seen: Progress) -> Progress:
        """The progress record that `seen` should be, for the frontier that it names."""
        frontier, start = seen.standing.frontier_ms, self._start
        impressions, conversions = self._impressions, self._conversions
        done = Cursor(
            impression_offset=impressions.first_at_least(frontier),
            conversion_offset=conversions.first_undecided(frontier),
        )
        grouped = impressions.fates.used
        before = bisect_left(grouped, done.impression_offset)
        first = start.loss.prev if start.HasField("loss") else -1
        kept = self._kept_at(frontier)
        standing = Standing(
            frontier_ms=frontier,
            prev=grouped[before - 1] if before else first,
            done=done,
            rewind=Cursor(
                impression_offset=impressions.begin + kept.impressions,
                conversion_offset=conversions.begin + kept.conversions,
            ),
            rewind_impression_time_ms=impressions.before(kept.impressions),
            rewind_conversion_time_ms=conversions.before(kept.conversions),
            counts=self._counts(done),
            rewind_impression_generation=impressions.generation_before(kept.impressions),
            rewind_conversion_generation=conversions.generation_before(kept.conversions),
            segment=start.segment,
            least_close_time_ms=self._least_close_ms if start.segment else 0,
        )
        terms, close_ms = self._at(frontier)
        return Progress(
            policy=start.policy,
            standing=standing,
            close_time_ms=close_ms,
            settings_digest=terms.digest,
            computation=terms.computation,
            generation=terms.generation,
        )

    def _at(self, frontier: int) -> tuple[Terms, int]:
        """The terms in force at a frontier, and the close time there."""
        terms, least = self._terms[self._start.generation], self._least_close_ms
        for time_ms, begun in self._impressions.begun:
            if time_ms < frontier:
                least = max(least, time_ms + terms.settings.window_ms)
                terms = self._terms[begun]
        return terms, max(frontier + terms.settings.window_ms, least)

    def _find_phases(self) -> list[tuple[int, _Kept]]:
        """[first frontier, what is kept just before it] of every stretch without a new generation.

        Impressions of a generation lie after its boundary's instant, conversions may lie in it.
        """
        begun = [(time_ms + 1, number) for time_ms, number in self._impressions.begun]
        begun += self._conversions.begun
        generation = self._start.generation
        phases = [(_BEFORE_ALL_TIME, _Kept(0, 0, generation, generation))]
        for from_ms, number in sorted(begun):
            kept = self._keep(from_ms - 1, phases[-1][1])
            phases.append((from_ms, kept._replace(newest=max(kept.newest, number))))
        return phases

    def _kept_at(self, frontier: int) -> _Kept:
        index = bisect_right(self._phases, frontier, key=lambda phase: phase[0])
        return self._keep(frontier, self._phases[index - 1][1])

    def _keep(self, frontier: int, kept: _Kept) -> _Kept:
        """Let go what does not matter at a frontier any more (rule 10)."""
        while True:
            newest = max(kept.oldest, kept.newest)
            settings = [self._terms[each].settings for each in range(kept.oldest, newest + 1)]
            window, early, late = (
                max(each.window_ms for each in settings),
                max(each.early_ms for each in settings),
                max(each.late_ms for each in settings),
            )
            # D = W + E and Dc = L + E: how long keys stay in the tables of both logs.
            impressions = self._impressions.after(frontier - (early + late + window + early))
            conversions = self._conversions.after(frontier - (early + late + early))
            impressions = max(impressions, kept.impressions)
            conversions = max(conversions, kept.conversions)
            oldest = min(
                self._impressions.generation_before(impressions),
                self._conversions.generation_before(conversions),
            )
            found = _Kept(impressions, conversions, oldest, kept.newest)
            if oldest == kept.oldest:
                return found
            kept = found

    def _counts(self, done: Cursor) -> Counts:
        grouped, _, _, dead, ticks, duplicates = self._impressions.count(done.impression_offset)
        joined, late, orphans, conversions_dead, conversion_ticks, conversion_duplicates = (
            self._conversions.count(done.conversion_offset)
        )
        return Counts(
            impressions_grouped=grouped,
            impressions_duplicate=duplicates,
            impressions_dead=dead,
            impressions_ticks=ticks,
            conversions_joined=joined,
            conversions_late=late,
            conversions_orphan=orphans,
            conversions_duplicate=conversion_duplicates,
            conversions_dead=conversions_dead,
            conversions_ticks=conversion_ticks,
        )
