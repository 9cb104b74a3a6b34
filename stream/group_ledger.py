"""How far one partition of the reward-groups topic has been read and learned.

Pure. The ledger, the offset of the last impression whose group was applied, turns a log that may
repeat itself into groups that are used exactly once: at or below it is a repeat; above it, the
record's `prev` must be the ledger, or the group before in a segment that an accepted loss has begun
anew behind the ledger. Repeats come from an old owner that did not know that it was
one, or from reading again after a restart.
"""

from collections import deque
from typing import NamedTuple

from grade.v1.reward_group_pb2 import Boundary, JoinRecord, Progress, RewardGroup, Start

from policy.errors import LedgerGap, StreamError


class Pending(NamedTuple):
    """A group that has been read and not been learned, or the end of a generation."""

    close_time_ms: int
    offset: int
    """Of its impression."""
    position: int
    """Of its record in the topic."""
    segment: int
    """Of which start record the partition was before it; see `Start.segment`."""
    group: RewardGroup | None
    """None: the generation ends here."""


class PartitionLedger:
    """Reads one partition.

    Args:
        generation: the one that is being learned.
        ledger: offset of the last impression whose group was applied, -1 before the first.
        position: where reading begins in the topic.
        segment: which start record is in force there.
    """

    def __init__(self, generation: int, ledger: int, position: int, segment: int) -> None:
        self.generation = generation
        """That reading has come to."""
        self.applied = ledger
        """Offset of the last impression whose group was taken."""
        self.position = position
        """Of the record that should come next."""
        self.reached_ms: int | None = None
        """Log time before which every group has been read; None before the first."""
        self.pending: deque[Pending] = deque()
        """What has been read and not been taken, in the order of the log."""
        self.waiting = 0
        """Groups among them; a number, which other threads may read while this one goes on."""
        self.repeats = 0
        """Groups that were read again and skipped."""
        self._ledger = ledger
        self._segment = segment
        # The last group of the segment, where a loss has set it back behind the ledger.
        self._set_back: int | None = None
        self._started = position > 0
        self._reached_at = position

    @property
    def next_position(self) -> int:
        """Where to read on, so that all that has not been taken is read again.

        Where nothing is waiting, it is the record that reached furthest: it is needed to know that
        slots are complete.
        """
        return self.pending[0].position if self.pending else self._reached_at

    @property
    def next_segment(self) -> int:
        """Which start record is in force at `next_position`."""
        return self.pending[0].segment if self.pending else self._segment

    @property
    def at_end(self) -> bool:
        """Whether every group of the generation that is being learned has been taken."""
        return bool(self.pending) and self.pending[0].group is None

    def take(self) -> Pending:
        """Take what has waited longest."""
        taken = self.pending.popleft()
        if taken.group is not None:
            self.applied = taken.offset
            self.waiting -= 1
        return taken

    def feed(self, record: JoinRecord, at: int, place: str) -> None:
        """Read one record.

        Args:
            record: the record.
            at: its offset in the topic.
            place: the same in words.

        Raises:
            LedgerGap: groups are missing between the ledger and this record.
            StreamError: it contradicts an earlier one.
        """
        if record.HasField("group"):
            self._feed_group(record.group, at, place)
        elif record.HasField("progress"):
            self._feed_progress(record.progress, at, place)
        elif record.HasField("boundary"):
            self._feed_boundary(record.boundary, at, place)
        else:
            self._feed_start(record.start, at, place)
        self.position = at + 1

    def _feed_group(self, group: RewardGroup, at: int, place: str) -> None:
        segment, prev = group.standing.segment, group.standing.prev
        # Of an earlier segment: an old owner's, after another had accepted a loss.
        if segment < self._segment or group.offset <= self._ledger:
            self.repeats += 1
            if segment == self._segment:
                self._reach(group.close_time_ms, at)
                if prev == self._set_back:
                    self._set_back = group.offset
            return
        self._check_turn(group.generation, segment, place)
        self._check_chain(prev, place)
        if self.reached_ms is not None and group.close_time_ms < self.reached_ms:
            raise StreamError(
                f"{place}: expected a close time of at least {self.reached_ms}, "
                f"seen {group.close_time_ms} for the group of impression {group.offset}"
            )
        self._ledger = group.offset
        self._set_back = None
        self.pending.append(Pending(group.close_time_ms, group.offset, at, segment, group))
        self.waiting += 1
        self._reach(group.close_time_ms, at)

    def _feed_progress(self, progress: Progress, at: int, place: str) -> None:
        standing = progress.standing
        if standing.segment < self._segment or progress.generation < self.generation:
            return
        self._check_turn(progress.generation, standing.segment, place)
        if standing.prev > self._ledger:
            raise _gap(place, self._ledger, standing.prev)
        self._reach(progress.close_time_ms, at)

    def _feed_boundary(self, boundary: Boundary, at: int, place: str) -> None:
        standing = boundary.standing
        if standing.segment < self._segment:
            return
        if boundary.generation >= self.generation:
            self._check_turn(boundary.generation, standing.segment, place)
            self._check_chain(standing.prev, place)
            self._end_generation(at)
        self._reach(boundary.close_time_ms, at)

    def _feed_start(self, start: Start, at: int, place: str) -> None:
        """Of several starts of one segment the first counts.

        Where it lies in a later generation, nothing is left of those before: they end here.
        """
        first = not self._started and start.segment == 0
        follows = start.segment > self._segment
        self._started = True
        if follows and start.loss.prev > self._ledger:
            raise _gap(place, self._ledger, start.loss.prev)
        if first or follows:
            for _ in range(start.generation - self.generation):
                self._end_generation(at)
            self._segment = start.segment
        if follows:
            self._reached_at = at
        if start.segment and start.segment == self._segment:
            self._reach(start.loss.close_time_ms, at)
            self._set_back = start.loss.prev if start.loss.prev < self._ledger else None

    def _end_generation(self, at: int) -> None:
        self.pending.append(Pending(0, -1, at, self._segment, None))
        self.generation += 1

    def _check_chain(self, prev: int, place: str) -> None:
        """Refuse a record before which a group is missing."""
        if prev not in (self._ledger, self._set_back):
            raise _gap(place, self._ledger, prev)

    def _check_turn(self, generation: int, segment: int, place: str) -> None:
        """Refuse a record that nothing has announced, or that comes after its generation's end."""
        if (generation, segment) != (self.generation, self._segment):
            raise StreamError(
                f"{place}: expected a record of generation {self.generation} in segment "
                f"{self._segment}, seen generation {generation} in segment {segment}"
            )

    def _reach(self, close_time_ms: int, at: int) -> None:
        if self.reached_ms is None or close_time_ms > self.reached_ms:
            self.reached_ms = close_time_ms
            self._reached_at = at


def _gap(place: str, expected: int, seen: int) -> LedgerGap:
    return LedgerGap(
        f"{place}: expected the group before it to be of impression {expected}, seen {seen}: "
        "groups are missing between them"
    )
