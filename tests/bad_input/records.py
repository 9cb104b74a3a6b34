"""Broken records of the input logs."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from grade.v1.decision_pb2 import ARM_UNSPECIFIED
from grade.v1.refused_pb2 import Reason

from stream.codec import TICK_HEADER, encode, partition_for
from stream.join_records import Log
from tests.bad_input.case import Case
from tests.bad_input.messages import (
    changed_conversion,
    changed_impression,
    conversion,
    decision,
    impression,
    redecided,
)
from tests.kafka import Produced

PARTITIONS = 2


@dataclass(frozen=True)
class BrokenRecord:
    """How a broken record of a request is made; only its value unless told otherwise."""

    log: Log
    value: Callable[[str], bytes | None]
    key: Callable[[str], bytes | None] = str.encode
    elsewhere: bool = False
    """In another partition than its key's."""
    headers: tuple[tuple[str, bytes], ...] = ()

    def made(self, request_id: str) -> Produced:
        """The record."""
        key = self.key(request_id)
        at = partition_for(key or b"", PARTITIONS)
        if self.elsewhere:
            at = (at + 1) % PARTITIONS
        return Produced(self.value(request_id), key, at, headers=list(self.headers))


def _set(message: Any, **fields: object) -> None:
    for name, value in fields.items():
        setattr(message, name, value)


def _put(numbers: Any, value: float, at: int = 0) -> None:
    numbers[at] = value


def _put_all(numbers: Any, *values: float) -> None:
    numbers[: len(values)] = values


def _clear(message: Any, *fields: str) -> None:
    for name in fields:
        message.ClearField(name)


def _not_utf8(value: Callable[[str], bytes]) -> Callable[[str], bytes]:
    """The policy's name becomes bytes that are no UTF-8."""
    return lambda request_id: value(request_id).replace(b"example", b"exam\xffle", 1)


_IMPRESSION = changed_impression(lambda m: None)
_CONVERSION = changed_conversion(lambda m: None)
_LONG = "x" * 2_000


def _for_both(log: Log, change: Callable[..., Callable[[str], bytes]]) -> list[Case[BrokenRecord]]:
    """What is broken in the same way in both logs."""
    sound = change(lambda m: None)
    kind = log.value[:-1]

    def case(
        name: str, broken: BrokenRecord, reason: "Reason.ValueType", *said: str
    ) -> Case[BrokenRecord]:
        return Case(f"{kind} {name}", broken, reason, said)

    return [
        case(
            "cut short",
            BrokenRecord(log, lambda r: sound(r)[:40]),
            Reason.REASON_UNDECODABLE,
            f"value: expected {kind.capitalize()}, seen 40 bytes that are none",
        ),
        case(
            "of other bytes",
            BrokenRecord(log, lambda r: b"\xff\xff no message"),
            Reason.REASON_UNDECODABLE,
            "seen 13 bytes that are none: b'\\xff\\xff no message'",
        ),
        case(
            "that is no UTF-8",
            BrokenRecord(log, _not_utf8(sound)),
            Reason.REASON_UNDECODABLE,
            "bytes that are none",
        ),
        case(
            "without a value",
            BrokenRecord(log, lambda r: None),
            Reason.REASON_NULL_VALUE,
            f"expected {kind.capitalize()}, seen none",
        ),
        case(
            "under a tick's header",
            BrokenRecord(log, sound, headers=(TICK_HEADER,)),
            Reason.REASON_HEADER_MISMATCH,
            "tick: expected a header and no value, seen",
        ),
        case(
            "larger than a record may be",
            BrokenRecord(log, lambda r: sound(r) + b"\x7a" + b"\xc0\x84\x3d" + bytes(1_000_000)),
            Reason.REASON_TOO_LARGE,
            "at most 1000000 bytes, seen 1000",
        ),
        case(
            "without a request",
            BrokenRecord(log, change(lambda m: m.ClearField("request_id"))),
            Reason.REASON_MISSING_FIELD,
            "request_id: expected a request's name, seen none",
        ),
        case(
            "without a policy",
            BrokenRecord(log, change(lambda m: m.ClearField("policy"))),
            Reason.REASON_MISSING_FIELD,
            "policy: expected 'example', seen ''",
        ),
        case(
            "of an unknown policy",
            BrokenRecord(log, change(lambda m: _set(m, policy="nobody"))),
            Reason.REASON_UNKNOWN_POLICY,
            "policy: expected 'example', seen 'nobody'",
        ),
        case(
            "under another key",
            BrokenRecord(log, sound, key=lambda r: b"another"),
            Reason.REASON_WRONG_KEY,
            "key: expected the request_id 'bad-",
            "seen b'another'",
        ),
        case(
            "without a key",
            BrokenRecord(log, sound, key=lambda r: None),
            Reason.REASON_WRONG_KEY,
            "seen none",
        ),
        case(
            "in another partition",
            BrokenRecord(log, sound, elsewhere=True),
            Reason.REASON_WRONG_PARTITION,
            "of 2 for key b'bad-",
        ),
        case(
            "of a request with a NUL",
            BrokenRecord(
                log,
                change(lambda m: _set(m, request_id="a\0b")),
                key=lambda r: b"a\0b",
            ),
            Reason.REASON_BAD_NAME,
            "request_id: expected no control characters, seen 'a\\x00b'",
        ),
        case(
            "of a request with a long name",
            BrokenRecord(
                log,
                change(lambda m: _set(m, request_id="é" * 65)),
                key=lambda r: ("é" * 65).encode(),
            ),
            Reason.REASON_OUT_OF_RANGE,
            "request_id: expected at most 128 bytes, seen 130 bytes",
        ),
    ]


def _impression(
    name: str, value: Callable[[str], bytes], reason: "Reason.ValueType", *said: str
) -> Case[BrokenRecord]:
    return Case(f"impression {name}", BrokenRecord(Log.IMPRESSIONS, value), reason, said)


def _conversion(
    name: str, value: Callable[[str], bytes], reason: "Reason.ValueType", *said: str
) -> Case[BrokenRecord]:
    return Case(f"conversion {name}", BrokenRecord(Log.CONVERSIONS, value), reason, said)


def _many_items(request_id: str) -> bytes:
    return encode(impression(request_id, items=tuple(str(i) for i in range(4_097))))


def _many_fused(request_id: str) -> bytes:
    """1,000 members times 1,400 candidates of 3 objectives."""
    items = tuple(str(i) for i in range(1_399))
    return encode(impression(request_id, decision(request_id, members=1_000), items=items))


SHOWN = [
    _impression(
        "that is a conversion",
        lambda r: encode(conversion(r)),
        Reason.REASON_UNDECODABLE,
        "value: expected Impression",
    ),
    _impression(
        "without items",
        changed_impression(lambda m: _clear(m, "item_ids", "positions")),
        Reason.REASON_NO_ITEMS,
        "item_ids: expected at least one item, seen none",
    ),
    _impression(
        "with a nameless item",
        changed_impression(lambda m: m.item_ids.__setitem__(1, "")),
        Reason.REASON_MISSING_FIELD,
        "item_ids: expected names, seen an empty one at 1",
    ),
    _impression(
        "with an item twice",
        changed_impression(lambda m: m.item_ids.__setitem__(1, "lamp")),
        Reason.REASON_REPEATED_ITEM,
        "every item once, seen 'lamp' twice",
    ),
    _impression(
        "with a line break in an item",
        changed_impression(lambda m: m.item_ids.__setitem__(1, "so\nfa")),
        Reason.REASON_BAD_NAME,
        "no control characters, seen 'so\\nfa'",
    ),
    _impression(
        "with an item of a long name",
        changed_impression(lambda m: m.item_ids.__setitem__(1, _LONG)),
        Reason.REASON_OUT_OF_RANGE,
        "item_ids: expected at most 1024 bytes, seen 2000 bytes",
    ),
    _impression(
        "with too many items",
        _many_items,
        Reason.REASON_TOO_LARGE,
        "item_ids: expected at most 4096 items, seen 4097",
    ),
    _impression(
        "that cannot be ranked at once",
        _many_fused,
        Reason.REASON_TOO_LARGE,
        "at most 4000000 members x candidates x objectives, seen 4200000",
    ),
    _impression(
        "with too few positions",
        changed_impression(lambda m: m.positions.pop()),
        Reason.REASON_WRONG_DIMENSION,
        "positions: expected 2 numbers, seen 1",
    ),
    _impression(
        "with a position twice",
        changed_impression(lambda m: _put(m.positions, 1)),
        Reason.REASON_REPEATED_ITEM,
        "every position once, seen 1 twice",
    ),
    _impression(
        "with an absurd position",
        changed_impression(lambda m: _put(m.positions, 2**32 - 1)),
        Reason.REASON_OUT_OF_RANGE,
        "positions: expected at most 65535, seen 4294967295",
    ),
    _impression(
        "with too few scores",
        changed_impression(lambda m: m.scores.pop()),
        Reason.REASON_WRONG_DIMENSION,
        "scores: expected 6 numbers, seen 5",
    ),
    _impression(
        "with a score that is NaN",
        changed_impression(lambda m: _put(m.scores, math.nan)),
        Reason.REASON_NOT_FINITE,
        "scores[0]: expected a finite number, seen nan",
    ),
    _impression(
        "with a score beyond float32",
        changed_impression(lambda m: _put(m.scores, 1e300, 5)),
        Reason.REASON_NOT_FINITE,
        "scores[5]: expected a finite number, seen inf",
    ),
    _impression(
        "with half a candidate",
        changed_impression(lambda m: m.unshown_scores.append(1.0)),
        Reason.REASON_WRONG_DIMENSION,
        "unshown_scores: expected a multiple of 3, seen 4",
    ),
    _impression(
        "with an unshown score that is infinite",
        changed_impression(lambda m: _put(m.unshown_scores, -math.inf, 2)),
        Reason.REASON_NOT_FINITE,
        "unshown_scores[2]: expected a finite number, seen -inf",
    ),
    _impression(
        "shown before 1970",
        changed_impression(lambda m: _set(m, shown_at_ms=-1)),
        Reason.REASON_OUT_OF_RANGE,
        "shown_at_ms: expected milliseconds since 1970",
        "seen -1",
    ),
    _impression(
        "shown in microseconds",
        changed_impression(lambda m: _set(m, shown_at_ms=1_700_000_000_000_000)),
        Reason.REASON_OUT_OF_RANGE,
        "at most 4102444800000, seen 1700000000000000",
    ),
]

DECIDED = [
    _impression(
        "without a decision",
        changed_impression(lambda m: m.ClearField("decision")),
        Reason.REASON_MISSING_FIELD,
        "decision.payload: expected the server's decision, seen none",
    ),
    _impression(
        "whose decision is cut short",
        changed_impression(lambda m: _set(m.decision, payload=m.decision.payload[:-1])),
        Reason.REASON_DECISION_UNDECODABLE,
        "decision.payload: expected Decision",
    ),
    _impression(
        "with the decision of another request",
        redecided(lambda d: _set(d, request_id="another")),
        Reason.REASON_DECISION_MISMATCH,
        "expected one for request 'bad-",
        "seen request 'another'",
    ),
    _impression(
        "with the decision of another policy",
        redecided(lambda d: _set(d, policy="another")),
        Reason.REASON_DECISION_MISMATCH,
        "of policy 'another'",
    ),
    _impression(
        "decided under an unknown schema",
        redecided(lambda d: _set(d, schema_digest=b"\xab" * 32)),
        Reason.REASON_UNKNOWN_SCHEMA,
        "decision.schema_digest: expected",
        "seen abab",
    ),
    _impression(
        "decided by version 7 of epoch 0",
        redecided(lambda d: _set(d, epoch=0)),
        Reason.REASON_OUT_OF_RANGE,
        "version 0 of epoch 0, or both at least 1, seen version 7 of epoch 0",
    ),
    _impression(
        "decided by version 0 of epoch 1",
        redecided(lambda d: _set(d, version=0)),
        Reason.REASON_OUT_OF_RANGE,
        "seen version 0 of epoch 1",
    ),
    _impression(
        "decided for nobody",
        redecided(lambda d: d.ClearField("unit_id")),
        Reason.REASON_MISSING_FIELD,
        "decision.unit_id: expected a unit's name, seen none",
    ),
    _impression(
        "decided on too few features",
        redecided(lambda d: d.features.pop()),
        Reason.REASON_WRONG_DIMENSION,
        "decision.features: expected 3 numbers, seen 2",
    ),
    _impression(
        "decided on a feature that is NaN",
        redecided(lambda d: _put(d.features, math.nan, 2)),
        Reason.REASON_NOT_FINITE,
        "decision.features[2]: expected a finite number, seen nan",
    ),
    _impression(
        "decided on an absurd feature",
        redecided(lambda d: _put(d.features, -3e38)),
        Reason.REASON_OUT_OF_RANGE,
        "decision.features[0]: expected -1e+09 to 1e+09, seen -3e+38",
    ),
    _impression(
        "decided by an unknown arm",
        redecided(lambda d: _set(d, arm=ARM_UNSPECIFIED)),
        Reason.REASON_OUT_OF_RANGE,
        "decision.arm: expected policy or holdout, seen 0",
    ),
    _impression(
        "with an empty group",
        redecided(lambda d: _clear(d, "weights", "log_densities")),
        Reason.REASON_EMPTY_GROUP,
        "decision.weights: expected at least one member, seen none",
    ),
    _impression(
        "with half a member",
        redecided(lambda d: d.weights.pop()),
        Reason.REASON_WRONG_DIMENSION,
        "decision.weights: expected a multiple of 3, seen 11",
    ),
    _impression(
        "with too many members",
        redecided(lambda d: d.weights.extend([0.0] * 3 * 1_025)),
        Reason.REASON_TOO_LARGE,
        "at most 1024 members, seen 1029",
    ),
    _impression(
        "with a weight that is NaN",
        redecided(lambda d: _put(d.weights, math.nan, 4)),
        Reason.REASON_NOT_FINITE,
        "decision.weights[4]: expected a finite number, seen nan",
    ),
    _impression(
        "with a negative weight",
        redecided(lambda d: _put_all(d.weights, -0.5, 1.45)),
        Reason.REASON_OUT_OF_RANGE,
        "decision.weights: expected at least 0, seen -0.5",
    ),
    _impression(
        "with weights off the simplex",
        redecided(lambda d: _put(d.weights, 3.0, 3)),
        Reason.REASON_OUT_OF_RANGE,
        "decision.weights of member 1: expected a sum of 1, seen 3.",
    ),
    _impression(
        "with a weight below its floor",
        redecided(lambda d: _put_all(d.weights, 0.5, 0.46, 0.04)),
        Reason.REASON_OUT_OF_RANGE,
        "decision.weights of 'price': expected at least its floor 0.05, seen 0.04",
    ),
    _impression(
        "with too many alpha",
        redecided(lambda d: d.alpha.append(1.0)),
        Reason.REASON_WRONG_DIMENSION,
        "decision.alpha: expected 3 numbers, seen 4",
    ),
    _impression(
        "with an alpha of 0",
        redecided(lambda d: _put(d.alpha, 0.0)),
        Reason.REASON_OUT_OF_RANGE,
        "decision.alpha: expected above 0, seen 0.0",
    ),
    _impression(
        "with an infinite alpha",
        redecided(lambda d: _put(d.alpha, math.inf)),
        Reason.REASON_NOT_FINITE,
        "decision.alpha[0]: expected a finite number, seen inf",
    ),
    _impression(
        "with an absurd alpha",
        redecided(lambda d: _put(d.alpha, 1e300)),
        Reason.REASON_OUT_OF_RANGE,
        "decision.alpha: expected at most 1e+06, seen 1e+300",
    ),
    _impression(
        "with a density that is NaN",
        redecided(lambda d: _put(d.log_densities, math.nan, 1)),
        Reason.REASON_NOT_FINITE,
        "decision.log_densities[1]: expected a finite number, seen nan",
    ),
    _impression(
        "with too few densities",
        redecided(lambda d: d.log_densities.pop()),
        Reason.REASON_WRONG_DIMENSION,
        "decision.log_densities: expected 4 numbers, seen 3",
    ),
    _impression(
        "with a density of other weights",
        redecided(lambda d: _put(d.log_densities, 7.5)),
        Reason.REASON_INCONSISTENT,
        "decision.log_densities[0]: expected",
        "the weights' density under alpha, seen 7.5",
    ),
    _impression(
        "that executed a member that is not there",
        redecided(lambda d: _set(d, executed=4)),
        Reason.REASON_OUT_OF_RANGE,
        "decision.executed: expected one of the 4 members, counted from 0, seen 4",
    ),
    _impression(
        "of the holdout with a density",
        redecided(lambda d: d.log_densities.append(1.0), holdout=True),
        Reason.REASON_WRONG_DIMENSION,
        "in the holdout arm: expected 0 numbers, seen 1",
    ),
    _impression(
        "of the holdout with other weights",
        redecided(lambda d: d.weights.__setitem__(slice(0, 3), [0.2, 0.3, 0.5]), holdout=True),
        Reason.REASON_INCONSISTENT,
        "the schema's baseline 0.5, 0.3, 0.2, seen 0.2, 0.3, 0.5",
    ),
]

CONVERTED = [
    _conversion(
        "that is an impression",
        lambda r: encode(impression(r)),
        Reason.REASON_UNDECODABLE,
        "value: expected Conversion",
    ),
    _conversion(
        "without a name",
        changed_conversion(lambda m: m.ClearField("conversion_id")),
        Reason.REASON_MISSING_FIELD,
        "conversion_id: expected a conversion's name, seen none",
    ),
    _conversion(
        "with a NUL in its name",
        changed_conversion(lambda m: _set(m, conversion_id="c\0")),
        Reason.REASON_BAD_NAME,
        "conversion_id: expected no control characters, seen 'c\\x00'",
    ),
    _conversion(
        "with a long name",
        changed_conversion(lambda m: _set(m, conversion_id=_LONG)),
        Reason.REASON_OUT_OF_RANGE,
        "conversion_id: expected at most 1024 bytes, seen 2000 bytes",
    ),
    _conversion(
        "without an item",
        changed_conversion(lambda m: m.ClearField("item_id")),
        Reason.REASON_MISSING_FIELD,
        "item_id: expected an item's name, seen none",
    ),
    _conversion(
        "of an item with a long name",
        changed_conversion(lambda m: _set(m, item_id=_LONG)),
        Reason.REASON_OUT_OF_RANGE,
        "item_id: expected at most 1024 bytes, seen 2000 bytes",
    ),
    _conversion(
        "without an outcome",
        changed_conversion(lambda m: m.ClearField("outcome")),
        Reason.REASON_MISSING_FIELD,
        "outcome: expected an outcome type, seen none",
    ),
    _conversion(
        "with an unknown outcome",
        changed_conversion(lambda m: _set(m, outcome="wink")),
        Reason.REASON_UNKNOWN_OUTCOME,
        "outcome: expected one of click, order, seen 'wink'",
    ),
    _conversion(
        "worth NaN",
        changed_conversion(lambda m: _set(m, value=math.nan)),
        Reason.REASON_NOT_FINITE,
        "value: expected a finite number, seen nan",
    ),
    _conversion(
        "worth infinity",
        changed_conversion(lambda m: _set(m, value=math.inf)),
        Reason.REASON_NOT_FINITE,
        "value: expected a finite number, seen inf",
    ),
    _conversion(
        "worth less than nothing",
        changed_conversion(lambda m: _set(m, value=-0.01)),
        Reason.REASON_OUT_OF_RANGE,
        "value: expected 0 to 1e+15, seen -0.01",
    ),
    _conversion(
        "worth too much",
        changed_conversion(lambda m: _set(m, value=1e300)),
        Reason.REASON_OUT_OF_RANGE,
        "value: expected 0 to 1e+15, seen 1e+300",
    ),
    _conversion(
        "that happened before 1970",
        changed_conversion(lambda m: _set(m, happened_at_ms=-(2**63))),
        Reason.REASON_OUT_OF_RANGE,
        "happened_at_ms: expected milliseconds since 1970",
        "seen -9223372036854775808",
    ),
    _conversion(
        "that happened in nanoseconds",
        changed_conversion(lambda m: _set(m, happened_at_ms=1_700_000_000_000_000_000)),
        Reason.REASON_OUT_OF_RANGE,
        "at most 4102444800000, seen 1700000000000000000",
    ),
]

INVALID = [
    *_for_both(Log.IMPRESSIONS, changed_impression),
    *_for_both(Log.CONVERSIONS, changed_conversion),
    *SHOWN,
    *DECIDED,
    *CONVERTED,
]
"""What a record's own bytes and place tell."""

UNJOINED = [
    _conversion(
        "of an item that was not shown",
        changed_conversion(lambda m: _set(m, item_id="rug")),
        Reason.REASON_ITEM_NOT_SHOWN,
        "item_id: expected one of the 2 items of impression",
        "('lamp', 'sofa'), seen 'rug'",
    ),
    _conversion(
        "after its window",
        _CONVERSION,
        Reason.REASON_LATE,
        "time: expected at most 5000 ms after impression",
        "seen 6000 ms",
    ),
    _conversion(
        "of a list that nobody saw",
        _CONVERSION,
        Reason.REASON_ORPHAN,
        "request_id: expected an impression of it",
        "seen none",
    ),
]
"""What only the two logs together tell."""
