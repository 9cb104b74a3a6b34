"""What a progress record of the join must say, worked out from the logs' times alone.

When the join writes progress depends on how its input arrived; what it then says does not. This is
a second way to the figures of design §3, rules 8 to 11, beside the join's own.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from grade.v1.reward_group_pb2 import Counts, Cursor, Progress, Standing

from stream.join import JoinSettings
from stream.logs import Log

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


class _Times:
    """Running maximum of the times of one log, from where the join began."""

    def __init__(self, log: Log, begin: int, fates: FateOffsets) -> None:
        times = [each.timestamp_ms for each in log.records if each.offset >= begin]
        self._times = np.maximum.accumulate(np.array(times, dtype=np.int64))
        self._begin = begin
        self.fates = fates

    def first_at_least(self, time_ms: int) -> int:
        """Offset of the first record whose time has reached `time_ms`; the end if none has."""
        return self._begin + int(np.searchsorted(self._times, time_ms, side="left"))

    def before(self, offset: int) -> int:
        """Time of the record before `offset`."""
        index = offset - self._begin
        return int(self._times[index - 1]) if index else _BEFORE_ALL_TIME

    def count(self, offset: int) -> tuple[int, int, int, int, int, int]:
        """Used, late, orphans, dead, ticks, and the rest (duplicates), before `offset`."""
        fates = self.fates
        used, late, orphans, dead, ticks = (
            bisect_left(each, offset)
            for each in (fates.used, fates.late, fates.orphans, fates.dead, fates.ticks)
        )
        rest = offset - self._begin - used - late - orphans - dead - ticks
        return used, late, orphans, dead, ticks, rest


class ExpectedProgress:
    """Progress records of one partition, by frontier.

    Args:
        settings: the join's settings.
        impressions: the impression log, complete from `begin`.
        conversions: the conversion log, complete from `begin`.
        begin: where the join began in both.
        impression_fates: what became of the impressions.
        conversion_fates: what became of the conversions.
    """

    def __init__(
        self,
        settings: JoinSettings,
        impressions: Log,
        conversions: Log,
        begin: tuple[int, int],
        impression_fates: FateOffsets,
        conversion_fates: FateOffsets,
    ) -> None:
        self._settings = settings
        self._impressions = _Times(impressions, begin[0], impression_fates)
        self._conversions = _Times(conversions, begin[1], conversion_fates)

    def of(self, seen: Progress) -> Progress:
        """The progress record that `seen` should be, for the frontier that it names."""
        frontier, window = seen.standing.frontier_ms, self._settings.window_ms
        early, late = self._settings.early_ms, self._settings.late_ms
        impressions, conversions = self._impressions, self._conversions
        done = Cursor(
            impression_offset=impressions.first_at_least(frontier),
            conversion_offset=conversions.first_at_least(frontier - early + 1),
        )
        # D = W + E and Dc = L + E: how long keys stay in the tables of impressions and conversions.
        rewind = Cursor(
            impression_offset=impressions.first_at_least(
                frontier - (early + late + window + early) + 1
            ),
            conversion_offset=conversions.first_at_least(frontier - (early + late + early) + 1),
        )
        grouped = impressions.fates.used
        before = bisect_left(grouped, done.impression_offset)
        standing = Standing(
            frontier_ms=frontier,
            prev=grouped[before - 1] if before else -1,
            done=done,
            rewind=rewind,
            rewind_impression_time_ms=impressions.before(rewind.impression_offset),
            rewind_conversion_time_ms=conversions.before(rewind.conversion_offset),
            counts=self._counts(done),
        )
        return Progress(
            policy=seen.policy,
            standing=standing,
            close_time_ms=frontier + window,
            settings_digest=seen.settings_digest,
            computation=seen.computation,
        )

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
