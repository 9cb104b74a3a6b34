"""The join by brute force: the rules of the design, read off two complete logs.

Written from the design's text, not from the code: no state, no order of arrival, every question is
answered by looking at all records again. `stream.join` has to agree with it whatever the
interleaving, the batches and the crashes were.
"""

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
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
        message: the message if it can be valid, None if it is a tick, a boundary or invalid.
        reason: why it is invalid under all terms; 0 if it is not.
        schema: digest of the schema that its decision needs; None if nobody looks.
        outcome: the outcome type that it needs; None if nobody looks.
        boundary: whether it has the header of one.
        begins: number of the generation that it begins, 0 if it is no (sound) boundary.
    """

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    tick: bool
    message: Message | None
    reason: int = 0
    schema: bytes | None = None
    outcome: str | None = None
    boundary: bool = False
    begins: int = 0


class Horizons(NamedTuple):
    """A generation's terms: the design's W, E and L in milliseconds, and what it takes."""

    window: int
    early: int
    late: int
    request_bytes: int
    """Most bytes that the conversions of one request may have together within Dc."""
    schemas: frozenset[bytes] = frozenset()
    """Digests of the schemas whose decisions are taken."""
    outcomes: frozenset[str] = frozenset()
    """Names of the outcome types."""

    @property
    def impression_repeat(self) -> int:
        """The design's D."""
        return self.window + self.early

    @property
    def conversion_repeat(self) -> int:
        """The design's Dc."""
        return self.late + self.early


class Beginning(NamedTuple):
    """What a start record says, beside the heads: where the two logs begin that are given."""

    generation: int = 1
    done: tuple[int, int] = (0, 0)
    """Offsets before which records are only remembered."""
    prev: int = -1
    least_close_ms: int = NOTHING_BEFORE
    segment: int = 0


class Crossing(NamedTuple):
    """A boundary of the impression log that begins a generation."""

    impression: int
    """Its index in the log."""
    time_ms: int
    close_time_ms: int
    begins: int


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


_FROM_THE_FIRST = Beginning()


class Oracle:
    """Fates, groups and standings of one partition's two complete logs.

    The comparisons of the rules are methods of their own, so that a test can show that the
    histories tell a wrong comparison from the right one.
    """

    def __init__(
        self,
        terms: Mapping[int, Horizons],
        impressions: Sequence[Entry[Impression]],
        conversions: Sequence[Entry[Conversion]],
        beginning: Beginning = _FROM_THE_FIRST,
    ) -> None:
        self.terms = terms
        self.impressions = impressions
        self.conversions = conversions
        self.beginning = beginning
        self.impression_times = self.times(impressions)
        self.conversion_times = self.times(conversions)
        self.impression_generations = self.generations(impressions)
        self.conversion_generations = self.generations(conversions)
        self.impression_terms = [terms[each] for each in self.impression_generations]
        self.conversion_terms = [terms[each] for each in self.conversion_generations]
        self.impression_reasons = [
            _reason(entry, under)
            for entry, under in zip(impressions, self.impression_terms, strict=True)
        ]
        self.conversion_reasons = [
            _reason(entry, under)
            for entry, under in zip(conversions, self.conversion_terms, strict=True)
        ]
        self.crossings = self._crossings()
        self.accepted = [i for i in range(len(impressions)) if self._is_accepted(i)]
        self.owners = [self._impression_with(c, self.in_window) for c in range(len(conversions))]
        self.impression_fates = [self._impression_fate(i) for i in range(len(impressions))]
        self.conversion_fates = [self._conversion_fate(c) for c in range(len(conversions))]
        self._forgotten: dict[int, tuple[int, int]] = {}

    # Rule 1.
    def times(self, log: Sequence[Entry[Message]]) -> list[int]:
        """[record] running maximum of the log's timestamps, in milliseconds."""
        return [max(entry.timestamp_ms for entry in log[: i + 1]) for i in range(len(log))]

    def generations(self, log: Sequence[Entry[Message]]) -> list[int]:
        """[record] the generation in force at its offset; a boundary's own is the one it ends."""
        found, current = [], self.beginning.generation
        for entry in log:
            found.append(current)
            if entry.begins == current + 1:
                current += 1
        return found

    # Rule 2.
    def repeats_impression(self, a: int, earlier: int, between: Sequence[Horizons]) -> bool:
        """Whether an impression at `a` repeats one of its request at `earlier`.

        `between`: the terms of the generations from the earlier one's to its own.
        """
        return a - earlier <= min(each.impression_repeat for each in between)

    # Rule 3.
    def repeats_conversion(self, t: int, earlier: int, between: Sequence[Horizons]) -> bool:
        """Whether a conversion at `t` repeats one of its id at `earlier`."""
        return t - earlier <= min(each.conversion_repeat for each in between)

    # Not the design's: what keeps a group small enough to be written.
    def is_too_much(self, size: int, terms: Horizons) -> bool:
        """Whether a request's conversions within Dc are too large together."""
        return size > terms.request_bytes

    # Rule 4.
    def in_window(self, t: int, a: int, own: Horizons, shown: Horizons) -> bool:
        """Whether a conversion at `t` belongs to an impression at `a`, `shown` under its terms."""
        return a - min(own.early, shown.early) < t <= a + shown.window

    # Rule 5.
    def in_late_horizon(self, t: int, a: int, own: Horizons, shown: Horizons) -> bool:
        """Whether a conversion at `t` is late for an impression at `a`."""
        return a + shown.window < t <= a + shown.late

    # Rule 5.
    def has_waited(self, t: int, it: int, own: Horizons) -> bool:
        """Whether impressions read up to `it` rule out that one follows for `t`."""
        return it >= t + own.early

    # Rule 6.
    def closes(self, a: int, shown: Horizons) -> int:
        """Log time up to which the window of an impression at `a` is open."""
        return a + shown.window

    # Rule 6.
    def is_closed(self, close: int, ct: int) -> bool:
        """Whether what closes at `close` leaves when conversions are read up to `ct`."""
        return ct > close

    # Rule 9.
    def is_done_impression(self, a: int, frontier: int) -> bool:
        """Whether a progress record's `done` lies beyond an impression record at `a`."""
        return a < frontier

    # Rule 9.
    def is_done_conversion(self, t: int, frontier: int, own: Horizons) -> bool:
        """Whether `done` lies beyond a conversion record at `t`, if beyond all before it."""
        return t <= frontier - own.early

    # Rule 10.
    def is_forgotten_impression(self, a: int, frontier: int, longest: Horizons) -> bool:
        """Whether a new owner need not read an impression record at `a`."""
        return a <= frontier - (longest.early + longest.late + longest.impression_repeat)

    # Rule 10.
    def is_forgotten_conversion(self, t: int, frontier: int, longest: Horizons) -> bool:
        """Whether a new owner need not read a conversion record at `t`."""
        return t <= frontier - (longest.early + longest.conversion_repeat)

    # Rule 10.
    def oldest_that_matters(self, impressions: int, conversions: int) -> int:
        """The oldest generation whose horizons count, from those in force at the two rewinds."""
        return min(impressions, conversions)

    def frontier(self) -> int | None:
        """Frontier of a progress record once all is read; None before there can be one.

        Rule 8; a boundary that has not left holds it back.
        """
        if not self.impressions or not self.conversions:
            return None
        ct, it = self.conversion_times[-1], self.impression_times[-1]
        if not self.is_closed(self.beginning.least_close_ms, ct):
            return None
        left = [each for each in self.crossings if self.is_closed(each.close_time_ms, ct)]
        current = left[-1].begins if left else self.beginning.generation
        held = [each.time_ms for each in self.crossings[len(left) :]]
        return min(ct - self.terms[current].window, it, *held)

    def progress_generation(self, frontier: int) -> int:
        """The generation in force at a frontier: of impressions, the boundary's instant is old."""
        passed = [each for each in self.crossings if each.time_ms < frontier]
        return passed[-1].begins if passed else self.beginning.generation

    def progress_close(self, frontier: int) -> int:
        """Close time of a progress record."""
        passed = [each.close_time_ms for each in self.crossings if each.time_ms < frontier]
        terms = self.terms[self.progress_generation(frontier)]
        return max(self.closes(frontier, terms), self.beginning.least_close_ms, *passed)

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
                close_time_ms=self._close(i),
                standing=self.group_standing(i),
            )
            for i, fate in enumerate(self.impression_fates)
            if fate is Fate.GROUPED and self._is_new(i)
        ]

    def boundaries(self) -> list[tuple[Crossing, Standing]]:
        """Every boundary that has left, and how far the join had come."""
        ct = self.conversion_times[-1] if self.conversions else NOTHING_BEFORE
        return [
            (each, self.group_standing(each.impression))
            for each in self.crossings
            if self.is_closed(each.close_time_ms, ct) and self._is_new(each.impression)
        ]

    def group_standing(self, i: int) -> Standing:
        """What the group of impression `i`, or its boundary, says of how far the join had come."""
        return self._standing(self.impression_times[i], done_impressions=i + 1, before=i)

    def progress_standing(self, frontier: int) -> Standing:
        """What a progress record at `frontier` says about how far the join had come."""
        done = sum(self.is_done_impression(a, frontier) for a in self.impression_times)
        return self._standing(frontier, done_impressions=done, before=done)

    def impression_sides(self) -> dict[int, Side]:
        """Offset to side output, of the impression log."""
        return {
            self.impressions[i].offset: Side(
                fate, self.impression_reasons[i], self.impression_times[i], -1
            )
            for i, fate in enumerate(self.impression_fates)
            if fate is Fate.DEAD and self._is_new(i)
        }

    def conversion_sides(self) -> dict[int, Side]:
        """Offset to side output, of the conversion log."""
        sides = {}
        for c, fate in enumerate(self.conversion_fates):
            if self.conversions[c].offset < self.beginning.done[1]:
                continue
            reason, impression_offset = self.conversion_reasons[c], -1
            if fate is Fate.LATE:
                late_for = self._impression_with(c, self.in_late_horizon)
                assert late_for is not None
                reason = Reason.REASON_LATE
                impression_offset = self.impressions[late_for].offset
            elif fate is Fate.ORPHAN:
                reason = Reason.REASON_ORPHAN
            elif fate is Fate.DEAD and reason == 0:
                too_much = self.is_too_much(self._request_bytes(c), self.conversion_terms[c])
                reason = Reason.REASON_TOO_LARGE if too_much else self._unfit(c)
            elif fate is not Fate.DEAD:
                continue
            sides[self.conversions[c].offset] = Side(
                fate, reason, self.conversion_times[c], impression_offset
            )
        return sides

    def _crossings(self) -> list[Crossing]:
        found: list[Crossing] = []
        for i, entry in enumerate(self.impressions):
            if entry.begins == self.impression_generations[i] + 1:
                time = self.impression_times[i]
                earlier = [each.close_time_ms for each in found]
                close = max(
                    self.closes(time, self.impression_terms[i]),
                    self.beginning.least_close_ms,
                    *earlier,
                )
                found.append(Crossing(i, time, close, entry.begins))
        return found

    def _close(self, i: int) -> int:
        """Close time of impression `i`'s group: not before the generations before have closed."""
        before = [each.close_time_ms for each in self.crossings if each.impression < i]
        own = self.closes(self.impression_times[i], self.impression_terms[i])
        return max(own, self.beginning.least_close_ms, *before)

    def _is_new(self, i: int) -> bool:
        return self.impressions[i].offset >= self.beginning.done[0]

    def _between(self, first: int, last: int) -> list[Horizons]:
        return [self.terms[each] for each in range(first, last + 1)]

    def _is_accepted(self, i: int) -> bool:
        message = self.impressions[i].message
        if message is None or self.impression_reasons[i]:
            return False
        earlier = [j for j in range(i) if self._same_request(j, message)]
        if not earlier:
            return True
        last, generations = earlier[-1], self.impression_generations
        return not self.repeats_impression(
            self.impression_times[i],
            self.impression_times[last],
            self._between(generations[last], generations[i]),
        )

    def _same_request(self, j: int, message: Impression) -> bool:
        other = self.impressions[j].message
        return (
            other is not None
            and not self.impression_reasons[j]
            and (other.policy, other.request_id) == (message.policy, message.request_id)
        )

    def _conversions_like(self, c: int, *, same_id: bool) -> list[int]:
        """The valid conversions before `c` of its request, or of its request and id."""
        message = self.conversions[c].message
        assert message is not None
        found = []
        for d in range(c):
            other = self.conversions[d].message
            if other is None or self.conversion_reasons[d]:
                continue
            if (other.policy, other.request_id) != (message.policy, message.request_id):
                continue
            if not same_id or other.conversion_id == message.conversion_id:
                found.append(d)
        return found

    def _is_within_repeat(self, c: int, d: int) -> bool:
        generations = self.conversion_generations
        return self.repeats_conversion(
            self.conversion_times[c],
            self.conversion_times[d],
            self._between(generations[d], generations[c]),
        )

    def _is_repeated_conversion(self, c: int) -> bool:
        earlier = self._conversions_like(c, same_id=True)
        return bool(earlier) and self._is_within_repeat(c, earlier[-1])

    def _request_bytes(self, c: int) -> int:
        """Size of the valid conversions of conversion `c`'s request within Dc, itself included."""
        like = self._conversions_like(c, same_id=False)
        counted = [d for d in like if self._is_within_repeat(c, d)]
        return sum(len(self.conversions[d].value or b"") + JOINED_OVERHEAD for d in [*counted, c])

    def _impression_with(
        self, c: int, relation: Callable[[int, int, Horizons, Horizons], bool]
    ) -> int | None:
        """The first accepted impression of conversion `c`'s request in `relation` to it."""
        conversion = self.conversions[c].message
        if conversion is None or self.conversion_reasons[c]:
            return None
        for i in self.accepted:
            impression = self.impressions[i].message
            assert impression is not None
            same_request = (impression.policy, impression.request_id) == (
                conversion.policy,
                conversion.request_id,
            )
            if same_request and relation(
                self.conversion_times[c],
                self.impression_times[i],
                self.conversion_terms[c],
                self.impression_terms[i],
            ):
                return i
        return None

    def _has_left(self, i: int) -> bool:
        read = self.conversion_times
        return bool(read) and self.is_closed(self._close(i), read[-1])

    def _impression_fate(self, i: int) -> Fate:
        entry = self.impressions[i]
        if entry.tick or entry.begins:
            return Fate.TICK
        if self.impression_reasons[i]:
            return Fate.DEAD
        if i not in self.accepted:
            return Fate.DUPLICATE
        return Fate.GROUPED if self._has_left(i) else Fate.OPEN

    def _unfit(self, c: int) -> int:
        """Why conversion `c` can be no member of the group whose window it lies in; 0 if it can."""
        entry, owner = self.conversions[c], self.owners[c]
        assert entry.message is not None
        assert owner is not None
        impression = self.impressions[owner].message
        assert impression is not None
        if entry.message.item_id not in impression.item_ids:
            return Reason.REASON_ITEM_NOT_SHOWN
        if entry.message.outcome not in self.impression_terms[owner].outcomes:
            return Reason.REASON_UNKNOWN_OUTCOME
        return 0

    def _conversion_fate(self, c: int) -> Fate:
        entry = self.conversions[c]
        if entry.tick or entry.begins:
            return Fate.TICK
        if self.conversion_reasons[c]:
            return Fate.DEAD
        if self._is_repeated_conversion(c):
            return Fate.DUPLICATE
        if self.is_too_much(self._request_bytes(c), self.conversion_terms[c]):
            return Fate.DEAD
        owner = self.owners[c]
        if owner is not None:
            if self._unfit(c):
                return Fate.DEAD
            return Fate.JOINED if self._has_left(owner) else Fate.OPEN
        read = self.impression_times
        own = self.conversion_terms[c]
        if not read or not self.has_waited(self.conversion_times[c], read[-1], own):
            return Fate.OPEN
        late_for = self._impression_with(c, self.in_late_horizon)
        return Fate.ORPHAN if late_for is None else Fate.LATE

    def _rewinds(self, frontier: int) -> tuple[int, int]:
        """How many records of each log a new owner need not read (rule 10), for a frontier.

        Time is walked through millisecond by millisecond: the generations that matter at each are
        those from the older one in force at the two rewinds, to the newest in force by then.
        """
        begun = self._begun()
        before = min((time for time, _ in begun), default=frontier + 1) - 1
        if frontier <= before:
            return self._forgotten_in_one(frontier)
        known = max(self._forgotten, default=before)
        gone = self._forgotten.get(known) or self._forgotten_in_one(before)
        for now in range(known + 1, frontier + 1):
            newest = max((n for time, n in begun if time <= now), default=0)
            gone = self._forgotten[now] = self._forget(now, gone, newest)
        return self._forgotten[frontier]

    def _begun(self) -> list[tuple[int, int]]:
        """From when on which generations matter: impressions, after their boundary's instant."""
        impressions = zip(self.impressions, self.impression_times, strict=True)
        conversions = zip(self.conversions, self.conversion_times, strict=True)
        begun = [(time + 1, entry.begins) for entry, time in impressions if entry.begins]
        return begun + [(time, entry.begins) for entry, time in conversions if entry.begins]

    def _forgotten_in_one(self, frontier: int) -> tuple[int, int]:
        """The same before any boundary matters."""
        own = self.terms[self.beginning.generation]
        impressions = [
            self.is_forgotten_impression(a, frontier, own) for a in self.impression_times
        ]
        conversions = [
            self.is_forgotten_conversion(t, frontier, own) for t in self.conversion_times
        ]
        return sum(impressions), sum(conversions)

    def _forget(self, now: int, gone: tuple[int, int], newest: int) -> tuple[int, int]:
        """What more is let go at one instant."""
        impressions, conversions = gone
        while True:
            oldest = self.oldest_that_matters(
                self.impression_generations[impressions], self.conversion_generations[conversions]
            )
            matter = self._between(oldest, max(oldest, newest))
            longest = Horizons(
                max(each.window for each in matter),
                max(each.early for each in matter),
                max(each.late for each in matter),
                0,
            )
            before = impressions, conversions
            while self.is_forgotten_impression(self.impression_times[impressions], now, longest):
                impressions += 1
            while self.is_forgotten_conversion(self.conversion_times[conversions], now, longest):
                conversions += 1
            if (impressions, conversions) == before:
                return before

    def _standing(self, frontier: int, *, done_impressions: int, before: int) -> Standing:
        done_conversions = len(
            list(
                takewhile(
                    lambda c: self.is_done_conversion(
                        self.conversion_times[c], frontier, self.conversion_terms[c]
                    ),
                    range(len(self.conversions)),
                )
            )
        )
        rewind_impressions, rewind_conversions = self._rewinds(frontier)
        new = [self.impressions[i].offset for i in self.accepted if i < before and self._is_new(i)]
        beginning = self.beginning
        return Standing(
            frontier_ms=frontier,
            prev=new[-1] if new else beginning.prev,
            done=self._cursor(
                max(done_impressions, self._old(self.impressions, beginning.done[0])),
                max(done_conversions, self._old(self.conversions, beginning.done[1])),
            ),
            rewind=self._cursor(rewind_impressions, rewind_conversions),
            rewind_impression_time_ms=_time_before(self.impression_times, rewind_impressions),
            rewind_conversion_time_ms=_time_before(self.conversion_times, rewind_conversions),
            rewind_impression_generation=self.impression_generations[rewind_impressions],
            rewind_conversion_generation=self.conversion_generations[rewind_conversions],
            counts=self._counts(done_impressions, done_conversions),
            segment=beginning.segment,
            least_close_time_ms=beginning.least_close_ms if beginning.segment else 0,
        )

    @staticmethod
    def _old(log: Sequence[Entry[Message]], done: int) -> int:
        """How many records of a log were done before it begins."""
        return sum(entry.offset < done for entry in log)

    def _cursor(self, impressions: int, conversions: int) -> Cursor:
        """The offsets that follow so many records of each log."""
        return Cursor(
            impression_offset=self.impressions[0].offset + impressions,
            conversion_offset=self.conversions[0].offset + conversions,
        )

    def _counts(self, impressions: int, conversions: int) -> Counts:
        done = self.beginning.done
        first = self.impression_fates[self._old(self.impressions, done[0]) : impressions]
        second = self.conversion_fates[self._old(self.conversions, done[1]) : conversions]
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


def _reason(entry: Entry[Impression] | Entry[Conversion], terms: Horizons) -> int:
    """Why an entry is invalid under some terms; 0 if it is not."""
    if entry.schema is not None and entry.schema not in terms.schemas:
        return Reason.REASON_UNKNOWN_SCHEMA
    if entry.outcome is not None and entry.outcome not in terms.outcomes:
        return Reason.REASON_UNKNOWN_OUTCOME
    return entry.reason


def _time_before(times: Sequence[int], records: int) -> int:
    return times[records - 1] if records else NOTHING_BEFORE
