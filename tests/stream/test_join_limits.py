"""The join's limits: bounded tables, retention, boundaries; and that the histories can tell.

The last tests break the oracle, one comparison at a time: a core with that bug could not be told
from a right one by histories that never touch the comparison.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from random import Random

import pytest
from grade.v1.impression_pb2 import Impression
from grade.v1.refused_pb2 import Reason

from policy.errors import BoundaryError, RetentionLost
from stream.codec import encode
from stream.join import Cursor, JoinLimits, JoinSettings, Log, PartitionJoin, Record
from stream.terms import first_terms
from tests.stream.join_checks import Expected
from tests.stream.join_generations import SCHEMA
from tests.stream.join_histories import (
    History,
    broken_conversions,
    broken_impressions,
    conversion,
    impression,
    random_history,
    tick,
)
from tests.stream.join_oracle import Horizons, Oracle
from tests.stream.join_owners import OutputPartition, Owner, new_join, standing

SETTINGS = JoinSettings(window_ms=10, early_ms=3, late_ms=20)


def join_of(settings: JoinSettings, limits: JoinLimits = JoinLimits()) -> PartitionJoin:  # noqa: B008 - frozen
    """A join under one generation of these settings."""
    return PartitionJoin(first_terms(SCHEMA, settings), partition=0, partitions=1, limits=limits)


# --- memory ---

Traffic = Callable[[int], Iterator[tuple[Log, bytes, bytes]]]


def ever_new_requests(i: int) -> Iterator[tuple[Log, bytes, bytes]]:
    """Every request is shown once and clicked twice, the second time late."""
    name = f"r{i}"
    yield Log.IMPRESSIONS, name.encode(), encode(impression.__wrapped__(name, 0))
    yield Log.CONVERSIONS, name.encode(), encode(conversion.__wrapped__(name, "c0", "x"))
    if i >= 12:
        old = f"r{i - 12}"
        yield Log.CONVERSIONS, old.encode(), encode(conversion.__wrapped__(old, "c1", "x"))


def ever_new_orphans(i: int) -> Iterator[tuple[Log, bytes, bytes]]:
    """Conversions of requests that were never shown."""
    name = f"r{i}"
    yield Log.CONVERSIONS, name.encode(), encode(conversion.__wrapped__(name, "c0", "x"))


def ever_new_lonely_impressions(i: int) -> Iterator[tuple[Log, bytes, bytes]]:
    """Requests that nobody reacts to."""
    name = f"r{i}"
    yield Log.IMPRESSIONS, name.encode(), encode(impression.__wrapped__(name, 3))


def ever_the_same(i: int) -> Iterator[tuple[Log, bytes, bytes]]:
    """One request, repeated without an end, so that every record is a duplicate."""
    yield Log.IMPRESSIONS, b"r", encode(impression("r", 0))
    yield Log.CONVERSIONS, b"r", encode(conversion("r", "c0", "x"))


def ever_broken(i: int) -> Iterator[tuple[Log, bytes, bytes]]:
    """Records that are not valid."""
    key, value, _ = broken_impressions("r", 0, 1)[1]
    yield Log.IMPRESSIONS, key or b"", value or b""
    key, value, _ = broken_conversions("r", 0, 1)[1]
    yield Log.CONVERSIONS, key or b"", value or b""


@pytest.mark.parametrize(
    "traffic",
    [
        ever_new_requests,
        ever_new_orphans,
        ever_new_lonely_impressions,
        ever_the_same,
        ever_broken,
    ],
)
def test_tables_are_bounded_by_time(traffic: Traffic) -> None:
    """Nothing grows with the number of requests that have been, only with those of the horizons."""
    join = join_of(SETTINGS, JoinLimits(progress_step_ms=5))
    start = join.start_record(Cursor(0, 0), 1)
    join.resume(start.value, [start.value], Cursor(0, 0))
    settled = late = 0
    for i in range(700):
        batches: dict[Log, list[Record]] = {log: [] for log in Log}
        for log, key, value in traffic(i):
            offset = join.position(log) + len(batches[log])
            batches[log].append(Record(offset, 100 + i, key, value, tick=False))
        for log in Log:
            offset = join.position(log) + len(batches[log])
            join.feed(log, [*batches[log], tick(offset, 100 + i)])
        if 100 <= i < 150:
            settled = max(settled, elements_in(join))
        elif i >= 650:
            late = max(late, elements_in(join))
    assert late <= settled + 8, f"{settled} elements after 150 ms, {late} after 700 ms"


def elements_in(value: object, seen: set[int] | None = None) -> int:
    """Number of elements in all containers that can be reached from a value."""
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, str | bytes | int | float | type(None) | type):
        return 0
    seen.add(id(value))
    if isinstance(value, Mapping):
        return len(value) + sum(elements_in(v, seen) for item in value.items() for v in item)
    if isinstance(value, Sequence | AbstractSet):
        return len(value) + sum(elements_in(v, seen) for v in value)
    names = [n for c in type(value).__mro__ for n in getattr(c, "__slots__", ())]
    parts = [getattr(value, name) for name in names if hasattr(value, name)]
    parts += list(getattr(value, "__dict__", {}).values())
    if not type(value).__module__.startswith(("stream.", "collections")):
        return 0
    return sum(elements_in(part, seen) for part in parts)


# --- retention and boundaries ---


def furthest(output: OutputPartition) -> Cursor:
    """Where the last record of an output partition makes a new owner read from."""
    rewind = standing(output.records()[-1]).rewind
    return Cursor(rewind.impression_offset, rewind.conversion_offset)


def partly_joined(seed: int) -> tuple[History, OutputPartition]:
    """A history that an owner has joined in part, so that something has been written."""
    rng = Random(seed)
    history = random_history(rng)
    output = OutputPartition()
    owner = Owner(history, output, rng)
    for _ in range(rng.randint(3, 60)):
        owner.act()
    return history, output


@pytest.mark.parametrize("seed", range(60))
def test_a_new_owner_needs_what_rewind_names_and_no_more(seed: int) -> None:
    """With the logs cut at `rewind` the rest comes out right; one record further it refuses."""
    history, output = partly_joined(seed)
    last = output.records()[-1]
    if last.HasField("start"):
        cut = Cursor(last.start.head.impression_offset, last.start.head.conversion_offset)
    else:
        cut = furthest(output)
    for head in (
        cut._replace(impression_offset=cut.impression_offset + 1),
        cut._replace(conversion_offset=cut.conversion_offset + 1),
    ):
        refusing = new_join(history)
        with pytest.raises(RetentionLost):
            refusing.resume(output.main[0].value, [output.main[-1].value], head)
    heads = dict(zip(Log, cut, strict=True))
    owner = Owner(history, output, Random(seed), heads)
    owner.resume(tail=1)
    owner.run()
    Expected(history).check(output)


@pytest.mark.parametrize(
    "change",
    [{"window_ms": 11}, {"early_ms": 2}, {"late_ms": 21}, {"max_record_bytes": 99}],
    ids=lambda c: next(iter(c)),
)
def test_other_settings_are_a_boundary(change: dict[str, int]) -> None:
    old = join_of(SETTINGS)
    new = join_of(dataclasses.replace(SETTINGS, **change))
    start = old.start_record(Cursor(0, 0), 1).value
    with pytest.raises(BoundaryError):
        new.resume(start, [start], Cursor(0, 0))


def test_limits_are_no_boundary() -> None:
    limits = JoinLimits(max_open_groups=7, progress_step_ms=125)
    start = join_of(SETTINGS).start_record(Cursor(2, 3), 1).value
    assert join_of(SETTINGS, limits).resume(start, [start], Cursor(2, 3)) == Cursor(2, 3)


def test_the_first_start_is_obeyed() -> None:
    """Two owners found the partition empty, so there are two starts (rule 14)."""
    first, second = join_of(SETTINGS), join_of(SETTINGS)
    values = [first.start_record(Cursor(2, 3), 1).value, second.start_record(Cursor(1, 1), 1).value]
    for join in (first, second):
        assert join.resume(values[0], values, Cursor(1, 1)) == Cursor(2, 3)
        assert (join.position(Log.IMPRESSIONS), join.position(Log.CONVERSIONS)) == (2, 3)


# --- the histories can tell ---


class RepeatsOneTooFew(Oracle):
    def repeats_impression(self, a: int, earlier: int, between: Sequence[Horizons]) -> bool:
        return a - earlier < min(each.impression_repeat for each in between)


class RepeatsWithinTheWindowOnly(Oracle):
    def repeats_impression(self, a: int, earlier: int, between: Sequence[Horizons]) -> bool:
        return a - earlier <= min(each.window for each in between)


class ConversionRepeatsOneTooFew(Oracle):
    def repeats_conversion(self, t: int, earlier: int, between: Sequence[Horizons]) -> bool:
        return t - earlier < min(each.conversion_repeat for each in between)


class ConversionRepeatsWithinTheLateHorizonOnly(Oracle):
    def repeats_conversion(self, t: int, earlier: int, between: Sequence[Horizons]) -> bool:
        return t - earlier <= min(each.late for each in between)


class NeverTooMuch(Oracle):
    def is_too_much(self, size: int, terms: Horizons) -> bool:
        return False


class EarlyIncluded(Oracle):
    def in_window(self, t: int, a: int, own: Horizons, shown: Horizons) -> bool:
        return a - min(own.early, shown.early) <= t <= a + shown.window


class WindowEndExcluded(Oracle):
    def in_window(self, t: int, a: int, own: Horizons, shown: Horizons) -> bool:
        return a - min(own.early, shown.early) < t < a + shown.window


class NothingEarly(Oracle):
    def in_window(self, t: int, a: int, own: Horizons, shown: Horizons) -> bool:
        return a <= t <= a + shown.window


class LateEndExcluded(Oracle):
    def in_late_horizon(self, t: int, a: int, own: Horizons, shown: Horizons) -> bool:
        return a + shown.window < t < a + shown.late


class ClosesAtTheWindowsEnd(Oracle):
    def is_closed(self, close: int, ct: int) -> bool:
        return ct >= close


class TimeOfTheRecordItself(Oracle):
    def times(self, log):  # type: ignore[no-untyped-def]
        return [entry.timestamp_ms for entry in log]


class TicksTellNoTime(Oracle):
    def times(self, log):  # type: ignore[no-untyped-def]
        last = log[-1:]
        kept = [
            e if not e.tick or e in last else dataclasses.replace(e, timestamp_ms=-(10**6))
            for e in log
        ]
        return super().times(kept)


class BrokenRecordsTellNoTime(Oracle):
    def times(self, log):  # type: ignore[no-untyped-def]
        kept = [e if not e.reason else dataclasses.replace(e, timestamp_ms=-(10**6)) for e in log]
        return super().times(kept)


class DoneOneTooFar(Oracle):
    def is_done_impression(self, a: int, frontier: int) -> bool:
        return a <= frontier


class DoneConversionsOneTooFar(Oracle):
    def is_done_conversion(self, t: int, frontier: int, own: Horizons) -> bool:
        return t <= frontier - own.early + 1


class RewindsOneTooFar(Oracle):
    def is_forgotten_impression(self, a: int, frontier: int, longest: Horizons) -> bool:
        return super().is_forgotten_impression(a - 1, frontier, longest)


class RewindsConversionsOneTooFar(Oracle):
    def is_forgotten_conversion(self, t: int, frontier: int, longest: Horizons) -> bool:
        return super().is_forgotten_conversion(t - 1, frontier, longest)


class TheFirstValidIsNoRepeatUnlessAccepted(Oracle):
    """Measures a repeat from the last accepted impression, not from the last valid one."""

    def _same_request(self, j: int, message: Impression) -> bool:
        return super()._same_request(j, message) and self._is_accepted(j)


class OwnRepeatAlone(Oracle):
    """Across a boundary as well."""

    def repeats_impression(self, a: int, earlier: int, between: Sequence[Horizons]) -> bool:
        return a - earlier <= between[-1].impression_repeat


class OwnConversionRepeatAlone(Oracle):
    """Across a boundary as well."""

    def repeats_conversion(self, t: int, earlier: int, between: Sequence[Horizons]) -> bool:
        return t - earlier <= between[-1].conversion_repeat


class EarlyOfTheImpressionAlone(Oracle):
    def in_window(self, t: int, a: int, own: Horizons, shown: Horizons) -> bool:
        return a - shown.early < t <= a + shown.window


class WindowOfTheConversion(Oracle):
    def in_window(self, t: int, a: int, own: Horizons, shown: Horizons) -> bool:
        return a - min(own.early, shown.early) < t <= a + own.window


class LateByTheConversion(Oracle):
    def in_late_horizon(self, t: int, a: int, own: Horizons, shown: Horizons) -> bool:
        return a + shown.window < t <= a + own.late


class LaterWindowWins(Oracle):
    def _impression_with(
        self, c: int, relation: Callable[[int, int, Horizons, Horizons], bool]
    ) -> int | None:
        accepted, self.accepted = self.accepted, self.accepted[::-1]
        found = super()._impression_with(c, relation)
        self.accepted = accepted
        return found


class NoGroupWaitsForItsBoundary(Oracle):
    def _close(self, i: int) -> int:
        return self.closes(self.impression_times[i], self.impression_terms[i])


class OutcomesOfTheConversionAlone(Oracle):
    def _unfit(self, c: int) -> int:
        found = super()._unfit(c)
        return 0 if found == Reason.REASON_UNKNOWN_OUTCOME else found


class HorizonsNeverGetShorter(Oracle):
    def oldest_that_matters(self, impressions: int, conversions: int) -> int:
        return self.beginning.generation


class HorizonsOfTheLaterRewind(Oracle):
    def oldest_that_matters(self, impressions: int, conversions: int) -> int:
        return max(impressions, conversions)


@pytest.mark.parametrize(
    "broken",
    [
        OwnRepeatAlone,
        OwnConversionRepeatAlone,
        EarlyOfTheImpressionAlone,
        WindowOfTheConversion,
        LateByTheConversion,
        LaterWindowWins,
        NoGroupWaitsForItsBoundary,
        OutcomesOfTheConversionAlone,
        HorizonsNeverGetShorter,
        HorizonsOfTheLaterRewind,
        NeverTooMuch,
        RepeatsOneTooFew,
        RepeatsWithinTheWindowOnly,
        ConversionRepeatsOneTooFew,
        ConversionRepeatsWithinTheLateHorizonOnly,
        EarlyIncluded,
        WindowEndExcluded,
        NothingEarly,
        LateEndExcluded,
        TimeOfTheRecordItself,
        TicksTellNoTime,
        BrokenRecordsTellNoTime,
        DoneOneTooFar,
        DoneConversionsOneTooFar,
        RewindsOneTooFar,
        RewindsConversionsOneTooFar,
        TheFirstValidIsNoRepeatUnlessAccepted,
    ],
)
def test_histories_tell_a_broken_rule_from_the_right_one(broken: type[Oracle]) -> None:
    """Some of the first 300 histories come out otherwise under the broken rule."""
    assert any(outcome(broken, seed) != outcome(Oracle, seed) for seed in range(300))


def outcome(rules: type[Oracle], seed: int) -> object:
    """All that an oracle says about a history."""
    history = random_history(Random(seed))
    oracle = rules(history.horizons, history.impressions, history.conversions)
    frontiers = sorted(set(oracle.impression_times))
    return (
        oracle.impression_fates,
        oracle.conversion_fates,
        oracle.groups(),
        oracle.boundaries(),
        [oracle.progress_standing(a) for a in frontiers],
    )
