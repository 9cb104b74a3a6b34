"""Which input records are valid: they decode, belong here, and hold numbers that can be computed.

What is valid depends on the record, the schema and the partition alone. Everything else becomes a
dead letter with its reason; nothing that passes may make the rewards fail or overflow.
"""

from collections.abc import Collection
from functools import lru_cache
from math import isfinite
from typing import NamedTuple, TypeVar

from google.protobuf.message import DecodeError
from grade.v1.conversion_pb2 import Conversion
from grade.v1.decision_pb2 import ARM_HOLDOUT, ARM_POLICY, Decision
from grade.v1.impression_pb2 import Impression
from grade.v1.refused_pb2 import Reason

from policy.initial import LARGEST_FEATURE
from policy.schema import Schema
from stream.codec import partition_for
from stream.join_records import Record

LARGEST_VALUE = 1e15
"""Of a conversion; so sums of values stay exact to a unit and far from overflow."""

LAST_POSITION = 65_535
"""Greatest position of a shown item."""

LONGEST_REQUEST_ID = 128
"""In bytes, as the contract says."""

LONGEST_CONVERSION_ID = 1_024
"""In bytes; every id is remembered for the late horizon."""

SIMPLEX_TOLERANCE = 1e-3
"""How far the sum of a member's weights may be from 1."""

_LONGEST_SHOWN = 60

# A request's conversions follow its impression, so most keys have been seen.
_partition_for = lru_cache(maxsize=65_536)(partition_for)

_M = TypeVar("_M", Impression, Conversion)


class Refusal(NamedTuple):
    """Why a record is not valid."""

    reason: "Reason.ValueType"
    message: str


def read_impression(
    schema: Schema,
    record: Record,
    partition: int,
    partitions: int,
    *,
    max_bytes: int = 1_000_000,
) -> Impression | Refusal:
    """Decode and check a record of the impression log that is no tick, and the decision in it.

    Args:
        schema: the policy's schema.
        record: the record.
        partition: the partition it was read from.
        partitions: how many partitions there are.
        max_bytes: how large key and value may be together.
    """
    try:
        impression = _decode(Impression, record, max_bytes)
        _check_place(impression, record, schema, partition, partitions)
        _check_decision(impression, schema)
        _check_shown(impression, schema.n_objectives)
    except _Invalid as invalid:
        return invalid.refusal
    return impression


def read_conversion(
    schema: Schema,
    record: Record,
    partition: int,
    partitions: int,
    *,
    max_bytes: int = 1_000_000,
) -> Conversion | Refusal:
    """Decode and check a record of the conversion log that is no tick; see `read_impression`."""
    try:
        conversion = _decode(Conversion, record, max_bytes)
        _check_place(conversion, record, schema, partition, partitions)
        _check_outcome(conversion, schema)
    except _Invalid as invalid:
        return invalid.refusal
    return conversion


def shown(value: str | bytes | None) -> str:
    """A value as it is shown in a message: quoted, and cut if it is long.

    >>> shown("a" * 100)
    "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa... (100 long)"
    """
    if value is None:
        return "none"
    quoted = ascii(value[:_LONGEST_SHOWN])
    if len(quoted) <= _LONGEST_SHOWN:
        return quoted
    return f"{quoted[:_LONGEST_SHOWN]}... ({len(value)} long)"


class _Invalid(Exception):  # noqa: N818 - a verdict, not an error
    """Carries a refusal out of the checks."""

    def __init__(self, reason: "Reason.ValueType", what: str, expected: str, seen: object) -> None:
        super().__init__()
        self.refusal = Refusal(reason, f"{what}: expected {expected}, seen {seen}")


def _decode(kind: type[_M], record: Record, max_bytes: int) -> _M:
    value = record.value
    if record.tick and value:
        raise _Invalid(
            Reason.REASON_UNDECODABLE, "tick", "a header and no value", f"{len(value)} bytes"
        )
    if not value:
        raise _Invalid(Reason.REASON_NULL_VALUE, "value", kind.DESCRIPTOR.name, "none")
    size = len(value) + len(record.key or b"")
    if size > max_bytes:
        raise _Invalid(
            Reason.REASON_TOO_LARGE, "record", f"at most {max_bytes} bytes", f"{size} bytes"
        )
    try:
        return kind.FromString(value)
    except DecodeError:
        raise _Invalid(
            Reason.REASON_UNDECODABLE,
            "value",
            kind.DESCRIPTOR.name,
            f"{len(value)} bytes that are none: {shown(value[:32])}",
        ) from None


def _check_place(
    message: Impression | Conversion,
    record: Record,
    schema: Schema,
    partition: int,
    partitions: int,
) -> None:
    request_id, key = message.request_id, record.key
    if not request_id:
        raise _Invalid(Reason.REASON_MISSING_FIELD, "request_id", "a request's name", "none")
    if message.policy != schema.policy:
        reason = Reason.REASON_UNKNOWN_POLICY if message.policy else Reason.REASON_MISSING_FIELD
        raise _Invalid(reason, "policy", shown(schema.policy), shown(message.policy))
    encoded = request_id.encode()
    if key != encoded:
        raise _Invalid(
            Reason.REASON_WRONG_KEY, "key", f"the request_id {shown(request_id)}", shown(key)
        )
    if len(encoded) > LONGEST_REQUEST_ID:
        raise _Invalid(
            Reason.REASON_OUT_OF_RANGE,
            "request_id",
            f"at most {LONGEST_REQUEST_ID} bytes",
            f"{len(encoded)} bytes",
        )
    if partitions > 1:
        right = _partition_for(encoded, partitions)
        if right != partition:
            raise _Invalid(
                Reason.REASON_WRONG_PARTITION,
                "partition",
                f"{right} of {partitions} for key {shown(key)} (murmur2)",
                partition,
            )


def _check_decision(impression: Impression, schema: Schema) -> None:
    payload = impression.decision.payload
    if not payload:
        raise _Invalid(
            Reason.REASON_MISSING_FIELD, "decision.payload", "the server's decision", "none"
        )
    try:
        decision = Decision.FromString(payload)
    except DecodeError:
        raise _Invalid(
            Reason.REASON_DECISION_UNDECODABLE,
            "decision.payload",
            "Decision",
            f"{len(payload)} bytes that are none: {shown(payload[:32])}",
        ) from None
    if decision.request_id != impression.request_id or decision.policy != impression.policy:
        raise _Invalid(
            Reason.REASON_DECISION_MISMATCH,
            "decision",
            f"one for request {shown(impression.request_id)} of policy {shown(schema.policy)}",
            f"request {shown(decision.request_id)} of policy {shown(decision.policy)}",
        )
    if decision.schema_digest != schema.digest:
        raise _Invalid(
            Reason.REASON_UNKNOWN_SCHEMA,
            "decision.schema_digest",
            schema.digest.hex(),
            decision.schema_digest[:32].hex() or "none",
        )
    features = decision.features[:]
    _check_length("decision.features", len(features), schema.n_features)
    _check_finite("decision.features", features)
    if max(features) > LARGEST_FEATURE or min(features) < -LARGEST_FEATURE:
        index = next(i for i, x in enumerate(features) if abs(x) > LARGEST_FEATURE)
        raise _Invalid(
            Reason.REASON_OUT_OF_RANGE,
            f"decision.features[{index}]",
            f"{-LARGEST_FEATURE:g} to {LARGEST_FEATURE:g}",
            f"{features[index]:g}",
        )
    _check_group(decision, schema.n_objectives)


def _check_group(decision: Decision, objectives: int) -> None:
    weights = decision.weights[:]  # a slice is a list, and read at once
    members = _rows("decision.weights", len(weights), objectives)
    if not members:
        raise _Invalid(
            Reason.REASON_WRONG_DIMENSION, "decision.weights", f"a multiple of {objectives}", 0
        )
    alpha, densities = decision.alpha[:], decision.log_densities[:]
    if decision.arm == ARM_POLICY:
        _check_length("decision.alpha", len(alpha), objectives)
        _check_length("decision.log_densities", len(densities), members)
    elif decision.arm == ARM_HOLDOUT:
        _check_length("decision.alpha in the holdout arm", len(alpha), 0)
        _check_length("decision.log_densities in the holdout arm", len(densities), 0)
    else:
        raise _Invalid(
            Reason.REASON_OUT_OF_RANGE, "decision.arm", "policy or holdout", int(decision.arm)
        )
    _check_finite("decision.weights", weights)
    _check_finite("decision.alpha", alpha)
    _check_finite("decision.log_densities", densities)
    if alpha and min(alpha) <= 0:
        raise _Invalid(Reason.REASON_OUT_OF_RANGE, "decision.alpha", "above 0", min(alpha))
    if min(weights) < 0:
        raise _Invalid(Reason.REASON_OUT_OF_RANGE, "decision.weights", "at least 0", min(weights))
    for member, total in enumerate(map(sum, zip(*[iter(weights)] * objectives, strict=True))):
        if abs(total - 1) > SIMPLEX_TOLERANCE:
            raise _Invalid(
                Reason.REASON_OUT_OF_RANGE,
                f"decision.weights of member {member}",
                "a sum of 1",
                f"{total:.6g}",
            )
    if decision.executed >= members:
        raise _Invalid(
            Reason.REASON_OUT_OF_RANGE,
            "decision.executed",
            f"one of the {members} members, counted from 0",
            decision.executed,
        )


def _check_shown(impression: Impression, objectives: int) -> None:
    items, positions = impression.item_ids[:], impression.positions[:]
    if not items:
        raise _Invalid(Reason.REASON_NO_ITEMS, "item_ids", "at least one item", "none")
    if "" in items:
        raise _Invalid(
            Reason.REASON_MISSING_FIELD, "item_ids", "names", f"an empty one at {items.index('')}"
        )
    if len(set(items)) < len(items):
        raise _Invalid(Reason.REASON_REPEATED_ITEM, "item_ids", "every item once", _repeated(items))
    _check_length("positions", len(positions), len(items))
    if len(set(positions)) < len(positions):
        raise _Invalid(
            Reason.REASON_REPEATED_ITEM, "positions", "every position once", _repeated(positions)
        )
    if max(positions) > LAST_POSITION:
        raise _Invalid(
            Reason.REASON_OUT_OF_RANGE, "positions", f"at most {LAST_POSITION}", max(positions)
        )
    scores, unshown = impression.scores[:], impression.unshown_scores[:]
    _check_length("scores", len(scores), len(items) * objectives)
    _rows("unshown_scores", len(unshown), objectives)
    _check_finite("scores", scores)
    _check_finite("unshown_scores", unshown)


def _check_outcome(conversion: Conversion, schema: Schema) -> None:
    identity = conversion.conversion_id
    if not identity:
        raise _Invalid(Reason.REASON_MISSING_FIELD, "conversion_id", "a conversion's name", "none")
    if len(identity) > LONGEST_CONVERSION_ID // 4:
        size = len(identity.encode())
        if size > LONGEST_CONVERSION_ID:
            raise _Invalid(
                Reason.REASON_OUT_OF_RANGE,
                "conversion_id",
                f"at most {LONGEST_CONVERSION_ID} bytes",
                f"{size} bytes",
            )
    if not conversion.item_id:
        raise _Invalid(Reason.REASON_MISSING_FIELD, "item_id", "an item's name", "none")
    outcome, value = conversion.outcome, conversion.value
    if not outcome:
        raise _Invalid(Reason.REASON_MISSING_FIELD, "outcome", "an outcome type", "none")
    if not any(outcome == known.name for known in schema.outcomes):
        known_names = ", ".join(known.name for known in schema.outcomes)
        raise _Invalid(
            Reason.REASON_UNKNOWN_OUTCOME, "outcome", f"one of {known_names}"[:200], shown(outcome)
        )
    if not isfinite(value):
        raise _Invalid(Reason.REASON_NOT_FINITE, "value", "a finite number", value)
    if not 0 <= value <= LARGEST_VALUE:
        raise _Invalid(Reason.REASON_OUT_OF_RANGE, "value", f"0 to {LARGEST_VALUE:g}", value)


def _check_finite(name: str, numbers: Collection[float]) -> None:
    # An infinite or undefined term makes the sum so; only sums of huge doubles do without one.
    if not isfinite(sum(numbers)):
        for index, number in enumerate(numbers):
            if not isfinite(number):
                raise _Invalid(
                    Reason.REASON_NOT_FINITE, f"{name}[{index}]", "a finite number", number
                )


def _check_length(name: str, seen: int, expected: int) -> None:
    if seen != expected:
        raise _Invalid(Reason.REASON_WRONG_DIMENSION, name, f"{expected} numbers", seen)


def _rows(name: str, length: int, columns: int) -> int:
    rows, rest = divmod(length, columns)
    if rest:
        raise _Invalid(Reason.REASON_WRONG_DIMENSION, name, f"a multiple of {columns}", length)
    return rows


def _repeated(values: list[str] | list[int]) -> str:
    seen: set[str | int] = set()
    for value in values:
        if value in seen:
            return f"{shown(value) if isinstance(value, str) else value} twice"
        seen.add(value)
    return "none"
