"""Random histories of one partition's two input logs, small and full of coincidences.

Few requests, few milliseconds: so that repeats, early, late and lost conversions, broken records
and times that lie exactly on an edge are the rule and not the exception. Many have a boundary or
two, at which horizons, outcome types or objectives change.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import TypeVar

from google.protobuf.message import Message
from grade.v1.conversion_pb2 import Conversion
from grade.v1.decision_pb2 import ARM_HOLDOUT, ARM_POLICY, Decision, SignedDecision
from grade.v1.generation_pb2 import Generation
from grade.v1.impression_pb2 import Impression
from grade.v1.refused_pb2 import Reason

from policy.schema import Schema
from stream.codec import encode, partition_for
from stream.join import JoinLimits, Log, Record
from stream.terms import Terms
from tests.stream.join_generations import (
    ALL_OUTCOMES,
    OUTCOMES,
    SCHEMA,
    SCHEMAS,
    Definition,
    definition_as_read,
)
from tests.stream.join_oracle import Entry, Horizons

MAX_RECORD_BYTES = 1_400
MEMBERS = {
    3: ((0.5, 0.25, 0.25), (0.25, 0.5, 0.25), (0.125, 0.125, 0.75)),
    2: ((0.5, 0.5), (0.25, 0.75), (0.125, 0.875)),
}
BASELINE = {3: (0.5, 0.3, 0.2), 2: (0.5, 0.5)}
HEAVY = "z" * 1_000
"""An item whose conversions are large, so that few of them are too much for one request."""

Built = TypeVar("Built", Impression, Conversion)


@dataclass(frozen=True)
class History:
    """Both logs of a partition, complete, and the generations to join them under."""

    definitions: tuple[Definition, ...]
    """Of the generations, the first one first."""
    limits: JoinLimits
    partition: int
    partitions: int
    impressions: tuple[Entry[Impression], ...]
    conversions: tuple[Entry[Conversion], ...]

    @property
    def terms(self) -> dict[int, Terms]:
        """What the join is given."""
        return {each.number: definition_as_read(each) for each in self.definitions}

    @property
    def horizons(self) -> dict[int, Horizons]:
        """The terms that the oracle knows."""
        return {
            each.number: Horizons(
                each.window,
                each.early,
                each.late,
                4 * each.max_record_bytes,
                frozenset((SCHEMAS[each.objectives].digest,)),
                frozenset(OUTCOMES[each.outcomes]),
            )
            for each in self.definitions
        }

    @property
    def heads(self) -> dict[Log, int]:
        """First offset of each log."""
        return {
            Log.IMPRESSIONS: self.impressions[0].offset,
            Log.CONVERSIONS: self.conversions[0].offset,
        }

    @property
    def records(self) -> dict[Log, list[Record]]:
        """The logs as the join reads them."""
        return {
            Log.IMPRESSIONS: [_record(entry) for entry in self.impressions],
            Log.CONVERSIONS: [_record(entry) for entry in self.conversions],
        }

    def __repr__(self) -> str:
        """Only what decides: who, when and what, one record a line."""
        lines = [f"{self.limits} partition {self.partition} of {self.partitions}"]
        lines += [f"  {each}" for each in self.definitions]
        lines += [f"  impression {_told(entry)}" for entry in self.impressions]
        lines += [f"  conversion {_told(entry)}" for entry in self.conversions]
        return "\n".join(lines)


def random_history(rng: Random) -> History:
    """Draw a history; its last records are ticks that decide everything before them.

    Args:
        rng: where every choice comes from.
    """
    boundaries = rng.choice([0, 0, 1, 1, 2])
    definitions = [random_definition(rng, 1 + number) for number in range(1 + boundaries)]
    limits = JoinLimits(
        max_open_groups=rng.choice([1, 2, 3, 100]), progress_step_ms=rng.choice([1, 2, 5, 50])
    )
    partitions = rng.choice([1, 1, 3])
    writer = _Writer(rng, definitions, limits, rng.randrange(partitions), partitions)
    for _ in range(rng.randint(0, 80 if writer.heavy else 40)):
        writer.write_something()
    return writer.finish()


def random_definition(rng: Random, number: int) -> Definition:
    """Draw a generation; the first one has the example's outcomes and objectives."""
    window = rng.randint(1, 9)
    early = rng.randint(0, 5)
    if number > 1 and rng.random() < 0.3:
        # So short that windows of both generations overlap.
        window, early = rng.randint(1, 2), rng.randint(0, 1)
    return Definition(
        number,
        window,
        early,
        rng.randint(window, 2 * window + early),
        MAX_RECORD_BYTES if number == 1 else rng.choice([MAX_RECORD_BYTES, 1_500]),
        3 if number == 1 else rng.choice([3, 3, 2]),
        "some" if number == 1 else rng.choice(["some", "few", "many"]),
    )


def tick(offset: int, timestamp_ms: int) -> Record:
    """A record that only tells the time."""
    return Record(offset=offset, timestamp_ms=timestamp_ms, key=None, value=b"", tick=True)


@cache
def request_ids(partition: int, partitions: int, number: int = 4) -> tuple[str, ...]:
    """Some request ids whose key belongs to a partition."""
    names = (f"r{i}" for i in range(1000))
    mine = [name for name in names if partition_for(name.encode(), partitions) == partition]
    return tuple(mine[:number])


@cache
def impression(request_id: str, variant: int, objectives: int = 3) -> Impression:
    """A valid impression; variants differ in arm, items and candidates."""
    holdout = variant % 4 == 3
    items = ("x", "y", HEAVY)[: 1 + variant % 3]
    weights = (BASELINE[objectives],) if holdout else MEMBERS[objectives][: 2 + variant % 2]
    decision = Decision(
        policy=SCHEMA.policy,
        request_id=request_id,
        unit_id=f"unit-{variant}",
        epoch=1,
        version=1 + variant,
        schema_digest=SCHEMAS[objectives].digest,
        arm=ARM_HOLDOUT if holdout else ARM_POLICY,
        features=[12.0, 3.0, 0.25],
        alpha=[] if holdout else [2.0, 1.0, 1.0][:objectives],
        weights=[weight for row in weights for weight in row],
        # Gamma(objectives + 1) / Gamma(2) times the first weight.
        log_densities=[]
        if holdout
        else [math.log(math.factorial(objectives) * row[0]) for row in weights],
        executed=0 if holdout else variant % 2,
    )
    return Impression(
        policy=SCHEMA.policy,
        request_id=request_id,
        decision=SignedDecision(payload=encode(decision)),
        item_ids=items,
        positions=reversed(range(len(items))),
        scores=[0.125 * (1 + index) for index in range(objectives * len(items))],
        unshown_scores=[0.25, 0.5, 2.0][:objectives] * (variant % 2),
        shown_at_ms=variant,
    )


@cache
def conversion(
    request_id: str, conversion_id: str, item_id: str, outcome: str = "click"
) -> Conversion:
    """A valid conversion, of an item that may or may not have been shown."""
    return Conversion(
        policy=SCHEMA.policy,
        request_id=request_id,
        conversion_id=conversion_id,
        item_id=item_id,
        outcome=outcome,
        value=1.5,
        happened_at_ms=7,
    )


class _Writer:
    """Appends to both logs of a partition as time goes by."""

    def __init__(
        self,
        rng: Random,
        definitions: list[Definition],
        limits: JoinLimits,
        partition: int,
        partitions: int,
    ) -> None:
        self.rng = rng
        self.definitions = definitions
        self.limits = limits
        # In force at the end of each log.
        self.current = dict.fromkeys(Log, definitions[0])
        self.partition, self.partitions = partition, partitions
        # A heavy history brings one request more than it may have.
        self.heavy = heavy = rng.random() < 0.1
        requests = 1 if heavy else rng.randint(1, 4)
        self.requests = request_ids(partition, partitions)[:requests]
        self.now = rng.choice([0, -20, 1_000, 1_760_000_000_000])
        self.skew = rng.choice([0, 0, 0, definitions[0].window, -definitions[0].early])
        self.items = ["x", HEAVY, HEAVY] if heavy else rng.choice([["x"], ["x", "x", "y", "z"]])
        paces = [[0, 0, 0, 1, 1, 2, 3, 5, 30], [0, 0, 1], [1, 2, 5, 10]]
        self.conversion_ids = [f"c{i}" for i in range(40 if heavy else 4)]
        self.pace = [0, 1, 2] if heavy else rng.choice(paces)
        self.edges = rng.choice([0.0, 0.1, 0.5])
        if len(definitions) > 1 and rng.random() < 0.3:
            self.requests = self.requests[:1]
        self.unrest = 0.01 if len(definitions) == 1 else rng.choice([0.1, 0.2, 0.4])
        self.disorder = rng.choice([0.0, 0.1, 0.3])
        self.heads = (rng.choice([0, 5]), rng.choice([0, 7]))
        self.impressions: list[Entry[Impression]] = []
        self.conversions: list[Entry[Conversion]] = []
        self.shown: list[tuple[str, int]] = []

    def write_something(self) -> None:
        """Let some time pass, or none, and append one record to one of the logs."""
        rng = self.rng
        self.now += rng.choice(self.pace)
        if rng.random() < self.unrest:
            self._write_boundary()
            return
        kind = rng.choices(["valid", "tick", "broken"], [0.8, 0.1, 0.1])[0]
        if rng.random() < (0.2 if self.heavy else 0.45):
            self._write_impression(kind)
        else:
            self._write_conversion(kind)

    def finish(self) -> History:
        """Append ticks that decide everything, and return what was written."""
        stamps = [entry.timestamp_ms for entry in self.impressions]
        stamps += [entry.timestamp_ms for entry in self.conversions]
        end = max(stamps, default=self.now) + 1
        end += sum(each.window + each.early + each.late for each in self.definitions)
        self._append_impression(end, None, b"", None, tick=True)
        self._append_conversion(end, None, b"", None, tick=True)
        return History(
            tuple(self.definitions),
            self.limits,
            self.partition,
            self.partitions,
            tuple(self.impressions),
            tuple(self.conversions),
        )

    def _write_boundary(self) -> None:
        """Append the next boundary to a log, mostly to the one that is behind; or a useless one."""
        rng = self.rng
        log = rng.choice([Log.IMPRESSIONS, *Log])
        behind = min(Log, key=lambda each: self.current[each].number)
        if self.current[behind].number < self.current[log].number and rng.random() < 0.8:
            log = behind
        number, stamp = self.current[log].number, self._stamp()
        key, value, reason = rng.choice(BROKEN_BOUNDARIES)
        begins = 0
        if number < len(self.definitions) and rng.random() < 0.8:
            self.current[log] = self.definitions[number]
            begins = number + 1
        elif rng.random() < 0.5:
            begins = rng.randint(1, number)
        if begins:
            key, value, reason = b"", self.definitions[begins - 1].value, 0
        if log is Log.IMPRESSIONS:
            offset = self.heads[0] + len(self.impressions)
            shown: Entry[Impression] = Entry(
                offset, stamp, key, value, False, None, reason, boundary=True, begins=begins
            )
            self.impressions.append(shown)
        else:
            offset = self.heads[1] + len(self.conversions)
            done: Entry[Conversion] = Entry(
                offset, stamp, key, value, False, None, reason, boundary=True, begins=begins
            )
            self.conversions.append(done)

    def _write_impression(self, kind: str) -> None:
        stamp = self._stamp()
        request_id = self.rng.choice(self.requests)
        objectives = self.current[Log.IMPRESSIONS].objectives
        if self.rng.random() < 0.1 and len(self.definitions) > 1:
            objectives = self.rng.choice([2, 3])
        schema = SCHEMAS[objectives]
        message = impression(request_id, self.rng.randrange(5), objectives)
        if kind == "tick":
            self._append_impression(stamp, None, b"", None, tick=True)
        elif kind == "broken":
            broken = broken_impressions(request_id, self.partition, self.partitions, objectives)
            key, value, reason = self.rng.choice(broken)
            looked_at = schema if reason in FOUND_BEHIND_THE_SCHEMA else None
            self._append_impression(stamp, key, value, None, reason=reason, schema=looked_at)
        else:
            self.shown.append((request_id, stamp))
            self._append_impression(
                stamp, request_id.encode(), encode(message), message, schema=schema
            )

    def _write_conversion(self, kind: str) -> None:
        stamp = self._stamp() + self.skew
        request_id = self.rng.choice(self.requests)
        if self.shown and self.rng.random() < 0.7:
            request_id, shown_at = self.rng.choice(self.shown[-3:])
            if self.rng.random() < self.edges:
                stamp = max(stamp, shown_at + self._edge())
        outcome = self.rng.choice(OUTCOMES[self.current[Log.CONVERSIONS].outcomes])
        if self.rng.random() < 0.1:
            outcome = self.rng.choice(ALL_OUTCOMES)
        identity, item = self.rng.choice(self.conversion_ids), self.rng.choice(self.items)
        message = conversion(request_id, identity, item, outcome)
        if kind == "tick":
            self._append_conversion(stamp, None, b"", None, tick=True)
        elif kind == "broken":
            broken = broken_conversions(request_id, self.partition, self.partitions)
            key, value, reason = self.rng.choice(broken)
            looked_at = "order" if reason in FOUND_BEHIND_THE_OUTCOME else None
            self._append_conversion(stamp, key, value, None, reason=reason, outcome=looked_at)
        else:
            self._append_conversion(
                stamp, request_id.encode(), encode(message), message, outcome=outcome
            )

    def _stamp(self) -> int:
        back = self.rng.randint(1, 12) if self.rng.random() < self.disorder else 0
        return self.now - back

    def _edge(self) -> int:
        under = self.rng.choice(self.definitions)
        edge: int = self.rng.choice([-under.early, under.window, under.late])
        return edge + self.rng.randint(0, 1)

    def _append_impression(
        self,
        stamp: int,
        key: bytes | None,
        value: bytes | None,
        message: Impression | None,
        *,
        tick: bool = False,
        reason: int = 0,
        schema: Schema | None = None,
    ) -> None:
        offset = self.heads[0] + len(self.impressions)
        digest = schema.digest if schema else None
        self.impressions.append(Entry(offset, stamp, key, value, tick, message, reason, digest))

    def _append_conversion(
        self,
        stamp: int,
        key: bytes | None,
        value: bytes | None,
        message: Conversion | None,
        *,
        tick: bool = False,
        reason: int = 0,
        outcome: str | None = None,
    ) -> None:
        offset = self.heads[1] + len(self.conversions)
        self.conversions.append(
            Entry(offset, stamp, key, value, tick, message, reason, None, outcome)
        )


Broken = tuple[bytes | None, bytes | None, int]

FOUND_BEHIND_THE_SCHEMA = {
    Reason.REASON_WRONG_DIMENSION,
    Reason.REASON_NOT_FINITE,
    Reason.REASON_OUT_OF_RANGE,
    Reason.REASON_REPEATED_ITEM,
    Reason.REASON_NO_ITEMS,
}
"""Faults of an impression that count only if its decision's schema is taken."""

FOUND_BEHIND_THE_OUTCOME = {Reason.REASON_NOT_FINITE, Reason.REASON_OUT_OF_RANGE}
"""Faults of a conversion that count only if its outcome type is known."""

BROKEN_BOUNDARIES: tuple[Broken, ...] = (
    (b"", None, Reason.REASON_NULL_VALUE),
    (b"", b"", Reason.REASON_NULL_VALUE),
    (b"", b"\xff\xff", Reason.REASON_UNDECODABLE),
    (b"", encode(Generation(policy="p", generation=2)), Reason.REASON_UNKNOWN_POLICY),
)


@cache
def broken_impressions(
    request_id: str, partition: int, partitions: int, objectives: int = 3
) -> tuple[Broken, ...]:
    """Key, value and reason of impression records that are not valid, one fault each."""
    valid = impression(request_id, 0, objectives)
    two_items = impression(request_id, 1, objectives)
    key = request_id.encode()

    def changed(change: Callable[[Impression], object], of: Impression = valid) -> bytes:
        return encode(_changed(of, change))

    def redecided(change: Callable[[Decision], object]) -> bytes:
        decision = Decision.FromString(valid.decision.payload)
        change(decision)
        return changed(lambda message: _set(message.decision, payload=encode(decision)))

    return (
        *_broken_for_both(valid, request_id, partition, partitions),
        (key, changed(lambda m: m.unshown_scores.extend([0.5] * 900)), Reason.REASON_TOO_LARGE),
        (key, encode(_without(valid, "decision")), Reason.REASON_MISSING_FIELD),
        (
            key,
            changed(lambda m: _set(m.decision, payload=b"\xff\xff")),
            Reason.REASON_DECISION_UNDECODABLE,
        ),
        (key, redecided(lambda d: _set(d, request_id="r-x")), Reason.REASON_DECISION_MISMATCH),
        (key, redecided(lambda d: _set(d, schema_digest=b"0")), Reason.REASON_UNKNOWN_SCHEMA),
        (key, redecided(lambda d: d.weights.append(0.5)), Reason.REASON_WRONG_DIMENSION),
        (key, redecided(lambda d: d.log_densities.append(0.5)), Reason.REASON_WRONG_DIMENSION),
        (key, redecided(lambda d: _put(d.weights, math.nan)), Reason.REASON_NOT_FINITE),
        (key, redecided(lambda d: _put(d.alpha, 0.0)), Reason.REASON_OUT_OF_RANGE),
        (key, redecided(lambda d: _set(d, executed=9)), Reason.REASON_OUT_OF_RANGE),
        (key, changed(lambda m: m.positions.append(1)), Reason.REASON_WRONG_DIMENSION),
        (key, changed(lambda m: m.scores.pop()), Reason.REASON_WRONG_DIMENSION),
        (key, changed(lambda m: m.unshown_scores.append(1.0)), Reason.REASON_WRONG_DIMENSION),
        (key, changed(lambda m: _put(m.scores, math.inf)), Reason.REASON_NOT_FINITE),
        (
            key,
            changed(lambda m: _put(m.item_ids, m.item_ids[1]), two_items),
            Reason.REASON_REPEATED_ITEM,
        ),
        (
            key,
            encode(_without(valid, "item_ids", "positions", "scores")),
            Reason.REASON_NO_ITEMS,
        ),
    )


@cache
def broken_conversions(request_id: str, partition: int, partitions: int) -> tuple[Broken, ...]:
    """Key, value and reason of conversion records that are not valid, one fault each."""
    valid = conversion(request_id, "c0", "x", "order")
    key = request_id.encode()

    def changed(change: Callable[[Conversion], object]) -> bytes:
        return encode(_changed(valid, change))

    return (
        *_broken_for_both(valid, request_id, partition, partitions),
        (key, changed(lambda m: _set(m, item_id="x" * 3_000)), Reason.REASON_TOO_LARGE),
        (key, changed(lambda m: _set(m, conversion_id="")), Reason.REASON_MISSING_FIELD),
        (key, changed(lambda m: _set(m, item_id="")), Reason.REASON_MISSING_FIELD),
        (key, changed(lambda m: _set(m, outcome="refund")), Reason.REASON_UNKNOWN_OUTCOME),
        (key, changed(lambda m: _set(m, value=math.nan)), Reason.REASON_NOT_FINITE),
        (key, changed(lambda m: _set(m, value=-1.0)), Reason.REASON_OUT_OF_RANGE),
    )


def _broken_for_both(
    valid: Built, request_id: str, partition: int, partitions: int
) -> list[Broken]:
    key = request_id.encode()
    other = next(name for name in request_ids(partition, partitions) if name != request_id)
    broken: list[Broken] = [
        (key, None, Reason.REASON_NULL_VALUE),
        (key, b"\xff\xff\xff", Reason.REASON_UNDECODABLE),
        (
            key,
            encode(_changed(valid, lambda m: _set(m, request_id=""))),
            Reason.REASON_MISSING_FIELD,
        ),
        (key, encode(_changed(valid, lambda m: _set(m, policy="p"))), Reason.REASON_UNKNOWN_POLICY),
        (other.encode(), encode(valid), Reason.REASON_WRONG_KEY),
        (None, encode(valid), Reason.REASON_WRONG_KEY),
    ]
    if partitions > 1:
        elsewhere = request_ids((partition + 1) % partitions, partitions)[0]
        if isinstance(valid, Impression):
            stranger: Message = impression(elsewhere, 0)
        else:
            stranger = conversion(elsewhere, "c0", "x")
        broken.append((elsewhere.encode(), encode(stranger), Reason.REASON_WRONG_PARTITION))
    return broken


def _changed(message: Built, change: Callable[[Built], object]) -> Built:
    copy = type(message)()
    copy.CopyFrom(message)
    change(copy)
    return copy


def _without(message: Impression, *fields: str) -> Impression:
    copy = Impression()
    copy.CopyFrom(message)
    for name in fields:
        copy.ClearField(name)  # type: ignore[arg-type]  # names are checked when it runs
    return copy


def _set(message: Message, **fields: object) -> None:
    for name, value in fields.items():
        setattr(message, name, value)


def _put(values, value) -> None:  # type: ignore[no-untyped-def]
    values[0] = value


def _record(entry: Entry[Impression] | Entry[Conversion]) -> Record:
    return Record(
        entry.offset, entry.timestamp_ms, entry.key, entry.value, entry.tick, entry.boundary
    )


def _told(entry: Entry[Impression] | Entry[Conversion]) -> str:
    where = f"offset {entry.offset} at {entry.timestamp_ms}:"
    if entry.tick:
        return f"{where} tick"
    if entry.begins:
        return f"{where} boundary of {entry.begins}"
    if isinstance(entry.message, Impression):
        items = [item[:9] for item in entry.message.item_ids]
        return f"{where} {entry.message.request_id} shows {items}"
    if isinstance(entry.message, Conversion):
        message = entry.message
        item = message.item_id[:9]
        return f"{where} {message.request_id} {message.conversion_id} {message.outcome} of {item}"
    return f"{where} broken, {Reason.Name(Reason.ValueType(entry.reason))}"
