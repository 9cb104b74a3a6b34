"""The join by brute force: the rules of the design, read off two complete logs.

Written from the design's text, not from the code: no state, no order of arrival, every question is
answered by looking at all records again. `stream.join` has to agree with it whatever the
interleaving, the batches and the crashes were.
"""

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from grade.v1.conversion_pb2 import Conversion
from grade.v1.impression_pb2 import Impression
from grade.v1.refused_pb2 import Reason
from grade.v1.reward_group_pb2 import Counts, Cursor, Standing

NOTHING_BEFORE = -(2**63)
JOINED_OVERHEAD = 32
"""Bytes that the core counts for a conversion on top of its value."""

Message = TypeVar("Message", Impression, Conversion)


class Fate(enum.Enum):
    """Where an input record ends, once both logs have been read to their ends."""

    GROUPED = "grouped"
    DUPLICATE = "duplicate"
    DEAD = "dead"
    TICK = "tick"
    JOINED = "joined"
    LATE = "late"
    ORPHAN = "orphan"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Entry(Generic[Message]):
    """One record of an input log, and what whoever wrote it meant it to be.

    Attributes:
        offset: its place in the log.
        timestamp_ms: what the broker stamped.
        key: the record's key.
        value: the record's value.
        tick: whether it only tells the time.
        message: the message if it is valid, None if it is a tick or invalid.
        reason: why it is invalid; 0 if it is not.
    """

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    tick: bool
    message: Message | None
    reason: int = 0


class Horizons(NamedTuple):
    """The join's settings: the design's W, E and L in milliseconds, and a bound on one request."""

    window: int
    early: int
    late: int
    request_bytes: int
    """Most bytes that the conversions of one request may have together within Dc."""

    @property
    def impression_repeat(self) -> int:
        """The design's D."""
        return self.window + self.early

    @property
    def conversion_repeat(self) -> int:
        """The design's Dc."""
        return self.late + self.early


class Side(NamedTuple):
    """One record that a side topic must hold."""

    fate: Fate
    reason: int
    time_ms: int
    impression_offset: int


class Group(NamedTuple):
    """One reward group: indexes into the two logs and how far the join had come."""

    impression: int
    members: tuple[int, ...]
    time_ms: int
    close_time_ms: int
    standing: Standing


class Oracle:
    """Fates, groups and standings of one partition's two complete logs.

    The comparisons of the rules are methods of their own, so that a test can show that the
    histories tell a wrong comparison from the right one.
    """

    def __init__(
        self,
        horizons: Horizons,
        impressions: Sequence[Entry[Impression]],
        conversions: Sequence[Entry[Conversion]],
    ) -> None:
        self.horizons = horizons
        self.impressions = impressions
        self.conversions = conversions
        self.impression_times = self.times(impressions)
        self.conversion_times = self.times(conversions)
        self.accepted = [i for i in range(len(impressions)) if self._is_accepted(i)]
        self.owners = [self._impression_with(c, self.in_window) for c in range(len(conversions))]
        self.impression_fates = [self._impression_fate(i) for i in range(len(impressions))]
        self.conversion_fates = [self._conversion_fate(c) for c in range(len(conversions))]

    # Rule 1.
    def times(self, log: Sequence[Entry[Message]]) -> list[int]:
        """[record] running maximum of the log's timestamps, in milliseconds."""
        return [max(entry.timestamp_ms for entry in log[: i + 1]) for i in range(len(log))]

    # Rule 2.
    def repeats_impression(self, a: int, earlier: int) -> bool:
        """Whether an impression at `a` repeats a valid one of its request at `earlier`."""
        return a - earlier <= self.horizons.impression_repeat

    # Rule 3.
    def repeats_conversion(self, t: int, earlier: int) -> bool:
        """Whether a conversion at `t` repeats a valid one of its id at `earlier`."""
        return t - earlier <= self.horizons.conversion_repeat

    # Not the design's: what keeps a group small enough to be written.
    def is_too_much(self, size: int) -> bool:
        """Whether a request's conversions within Dc are too large together."""
        return size > self.horizons.request_bytes

    # Rule 4.
    def in_window(self, t: int, a: int) -> bool:
        """Whether a conversion at `t` belongs to an impression at `a`."""
        return a - self.horizons.early < t <= a + self.horizons.window

    # Rule 5.
    def in_late_horizon(self, t: int, a: int) -> bool:
        """Whether a conversion at `t` is late for an impression at `a`."""
        return a + self.horizons.window < t <= a + self.horizons.late

    # Rule 5.
    def has_waited(self, t: int, it: int) -> bool:
        """Whether impressions read up to `it` rule out that one follows for `t`."""
        return it >= t + self.horizons.early

    # Rule 6.
    def is_closed(self, a: int, ct: int) -> bool:
        """Whether the group of an impression at `a` leaves when conversions are read up to `ct`."""
        return ct > a + self.horizons.window

    # Rule 9.
    def is_done_impression(self, a: int, frontier: int) -> bool:
        """Whether a progress record's `done` lies beyond an impression record at `a`."""
        return a < frontier

    # Rule 9.
    def is_done_conversion(self, t: int, frontier: int) -> bool:
        """Whether `done` lies beyond a conversion record at `t`."""
        return t <= frontier - self.horizons.early

    # Rule 10.
    def is_forgotten_impression(self, a: int, frontier: int) -> bool:
        """Whether a new owner need not read an impression record at `a`."""
        horizons = self.horizons
        return a <= frontier - (horizons.early + horizons.late + horizons.impression_repeat)

    # Rule 10.
    def is_forgotten_conversion(self, t: int, frontier: int) -> bool:
        """Whether a new owner need not read a conversion record at `t`."""
        return t <= frontier - (self.horizons.early + self.horizons.conversion_repeat)

    def frontier(self, impressions_read: int, conversions_read: int) -> int | None:
        """Frontier of a progress record after so many records of each log; None before both began.

        Rule 8.
        """
        if impressions_read == 0 or conversions_read == 0:
            return None
        ct = self.conversion_times[conversions_read - 1]
        it = self.impression_times[impressions_read - 1]
        return min(ct - self.horizons.window, it)

    def groups(self) -> list[Group]:
        """Every group that has left, in the order of the impressions' offsets (rule 6)."""
        return [
            Group(
                impression=i,
                members=tuple(
                    c
                    for c, fate in enumerate(self.conversion_fates)
                    if fate is Fate.JOINED and self.owners[c] == i
                ),
                time_ms=self.impression_times[i],
                close_time_ms=self.impression_times[i] + self.horizons.window,
                standing=self.group_standing(i),
            )
            for i, fate in enumerate(self.impression_fates)
            if fate is Fate.GROUPED
        ]

    def group_standing(self, i: int) -> Standing:
        """What the group of impression `i` says about how far the join had come."""
        return self._standing(self.impression_times[i], done_impressions=i + 1, before=i)

    def progress_standing(self, frontier: int) -> Standing:
        """What a progress record at `frontier` says about how far the join had come."""
        done = sum(self.is_done_impression(a, frontier) for a in self.impression_times)
        return self._standing(frontier, done_impressions=done, before=done)

    def impression_sides(self) -> dict[int, Side]:
        """Offset to side output, of the impression log."""
        return {
            entry.offset: Side(fate, entry.reason, time, -1)
            for entry, time, fate in zip(
                self.impressions, self.impression_times, self.impression_fates, strict=True
            )
            if fate is Fate.DEAD
        }

    def conversion_sides(self) -> dict[int, Side]:
        """Offset to side output, of the conversion log."""
        sides = {}
        for c, fate in enumerate(self.conversion_fates):
            reason, impression_offset = self.conversions[c].reason, -1
            if fate is Fate.LATE:
                late_for = self._impression_with(c, self.in_late_horizon)
                assert late_for is not None
                reason = Reason.REASON_LATE
                impression_offset = self.impressions[late_for].offset
            elif fate is Fate.ORPHAN:
                reason = Reason.REASON_ORPHAN
            elif fate is Fate.DEAD and reason == 0:
                too_much = self.is_too_much(self._request_bytes(c))
                reason = Reason.REASON_TOO_LARGE if too_much else Reason.REASON_ITEM_NOT_SHOWN
            elif fate is not Fate.DEAD:
                continue
            sides[self.conversions[c].offset] = Side(
                fate, reason, self.conversion_times[c], impression_offset
            )
        return sides

    def _is_accepted(self, i: int) -> bool:
        message = self.impressions[i].message
        if message is None:
            return False
        return not any(
            earlier is not None
            and (earlier.policy, earlier.request_id) == (message.policy, message.request_id)
            and self.repeats_impression(self.impression_times[i], self.impression_times[j])
            for j, earlier in enumerate(entry.message for entry in self.impressions[:i])
        )

    def _is_repeated_conversion(self, c: int) -> bool:
        message = self.conversions[c].message
        assert message is not None
        identity = (message.policy, message.request_id, message.conversion_id)
        return any(
            earlier is not None
            and (earlier.policy, earlier.request_id, earlier.conversion_id) == identity
            and self.repeats_conversion(self.conversion_times[c], self.conversion_times[d])
            for d, earlier in enumerate(entry.message for entry in self.conversions[:c])
        )

    def _request_bytes(self, c: int) -> int:
        """Size of the valid conversions of conversion `c`'s request within Dc, itself included."""
        message = self.conversions[c].message
        assert message is not None
        return sum(
            len(entry.value or b"") + JOINED_OVERHEAD
            for d, entry in enumerate(self.conversions[: c + 1])
            if entry.message is not None
            and (entry.message.policy, entry.message.request_id)
            == (message.policy, message.request_id)
            and self.repeats_conversion(self.conversion_times[c], self.conversion_times[d])
        )

    def _impression_with(self, c: int, relation: Callable[[int, int], bool]) -> int | None:
        """The accepted impression of conversion `c`'s request that stands in `relation` to it."""
        conversion = self.conversions[c].message
        if conversion is None:
            return None
        for i in self.accepted:
            impression = self.impressions[i].message
            assert impression is not None
            same_request = (impression.policy, impression.request_id) == (
                conversion.policy,
                conversion.request_id,
            )
            if same_request and relation(self.conversion_times[c], self.impression_times[i]):
                return i
        return None

    def _has_left(self, i: int) -> bool:
        read = self.conversion_times
        return bool(read) and self.is_closed(self.impression_times[i], read[-1])

    def _impression_fate(self, i: int) -> Fate:
        entry = self.impressions[i]
        if entry.tick:
            return Fate.TICK
        if entry.message is None:
            return Fate.DEAD
        if i not in self.accepted:
            return Fate.DUPLICATE
        return Fate.GROUPED if self._has_left(i) else Fate.OPEN

    def _conversion_fate(self, c: int) -> Fate:
        entry = self.conversions[c]
        if entry.tick:
            return Fate.TICK
        if entry.message is None:
            return Fate.DEAD
        if self._is_repeated_conversion(c):
            return Fate.DUPLICATE
        if self.is_too_much(self._request_bytes(c)):
            return Fate.DEAD
        owner = self.owners[c]
        if owner is not None:
            impression = self.impressions[owner].message
            assert impression is not None
            if entry.message.item_id not in impression.item_ids:
                return Fate.DEAD
            return Fate.JOINED if self._has_left(owner) else Fate.OPEN
        read = self.impression_times
        if not read or not self.has_waited(self.conversion_times[c], read[-1]):
            return Fate.OPEN
        late_for = self._impression_with(c, self.in_late_horizon)
        return Fate.ORPHAN if late_for is None else Fate.LATE

    def _standing(self, frontier: int, *, done_impressions: int, before: int) -> Standing:
        done_conversions = sum(self.is_done_conversion(t, frontier) for t in self.conversion_times)
        rewind_impressions = sum(
            self.is_forgotten_impression(a, frontier) for a in self.impression_times
        )
        rewind_conversions = sum(
            self.is_forgotten_conversion(t, frontier) for t in self.conversion_times
        )
        previous = [self.impressions[i].offset for i in self.accepted if i < before]
        return Standing(
            frontier_ms=frontier,
            prev=previous[-1] if previous else -1,
            done=self._cursor(done_impressions, done_conversions),
            rewind=self._cursor(rewind_impressions, rewind_conversions),
            rewind_impression_time_ms=_time_before(self.impression_times, rewind_impressions),
            rewind_conversion_time_ms=_time_before(self.conversion_times, rewind_conversions),
            counts=self._counts(done_impressions, done_conversions),
        )

    def _cursor(self, impressions: int, conversions: int) -> Cursor:
        """The offsets that follow so many records of each log."""
        return Cursor(
            impression_offset=self.impressions[0].offset + impressions,
            conversion_offset=self.conversions[0].offset + conversions,
        )

    def _counts(self, impressions: int, conversions: int) -> Counts:
        first = self.impression_fates[:impressions]
        second = self.conversion_fates[:conversions]
        return Counts(
            impressions_grouped=first.count(Fate.GROUPED),
            impressions_duplicate=first.count(Fate.DUPLICATE),
            impressions_dead=first.count(Fate.DEAD),
            impressions_ticks=first.count(Fate.TICK),
            conversions_joined=second.count(Fate.JOINED),
            conversions_late=second.count(Fate.LATE),
            conversions_orphan=second.count(Fate.ORPHAN),
            conversions_duplicate=second.count(Fate.DUPLICATE),
            conversions_dead=second.count(Fate.DEAD),
            conversions_ticks=second.count(Fate.TICK),
        )


def _time_before(times: Sequence[int], records: int) -> int:
    return times[records - 1] if records else NOTHING_BEFORE
