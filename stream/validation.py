"""Which input records are valid: they decode, belong here, and hold numbers that can be computed.

What is valid depends on the record, the schema and the partition alone. Everything else becomes a
dead letter with its reason; nothing that passes may make the rewards fail or overflow.
"""

from functools import lru_cache
from math import isfinite
from typing import TypeVar

from google.protobuf.message import DecodeError
from grade.v1.conversion_pb2 import Conversion
from grade.v1.decision_pb2 import Decision
from grade.v1.impression_pb2 import Impression
from grade.v1.refused_pb2 import Reason

from policy.initial import LARGEST_FEATURE
from policy.schema import Schema
from stream.checks import (
    Invalid,
    Refusal,
    check_finite,
    check_length,
    check_name,
    check_time,
    check_unique,
    rows_of,
    shown,
)
from stream.codec import partition_for
from stream.decision_checks import check_group
from stream.join_records import Record

__all__ = ["Refusal", "read_conversion", "read_impression", "shown"]

LARGEST_VALUE = 1e15
"""Of a conversion; so sums of values stay exact to a unit and far from overflow."""

LAST_POSITION = 65_535
"""Greatest position of a shown item."""

LONGEST_REQUEST_ID = 128
"""Of request and unit, in bytes, as the contract says."""

LONGEST_ITEM_ID = 1_024
"""In bytes."""

LONGEST_CONVERSION_ID = 1_024
"""In bytes; every id is remembered for the late horizon."""

MOST_SHOWN = 4_096
"""Items of an impression: the learner pads every list of a slot to the longest."""

MOST_FUSED = 4_000_000
"""Members times candidates times objectives: so many numbers are held at once to rank them."""

# A request's conversions follow its impression, so most keys have been seen.
_partition_for = lru_cache(maxsize=65_536)(partition_for)

_M = TypeVar("_M", Impression, Conversion)


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
        members = _check_decision(impression, schema)
        _check_shown(impression, schema.n_objectives)
        _check_fused(impression, members)
    except Invalid as invalid:
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
    except Invalid as invalid:
        return invalid.refusal
    return conversion


def _decode(kind: type[_M], record: Record, max_bytes: int) -> _M:
    value = record.value
    if record.tick and value:
        raise Invalid(
            Reason.REASON_HEADER_MISMATCH, "tick", "a header and no value", f"{len(value)} bytes"
        )
    if not value:
        raise Invalid(Reason.REASON_NULL_VALUE, "value", kind.DESCRIPTOR.name, "none")
    size = len(value) + len(record.key or b"")
    if size > max_bytes:
        raise Invalid(
            Reason.REASON_TOO_LARGE, "record", f"at most {max_bytes} bytes", f"{size} bytes"
        )
    try:
        return kind.FromString(value)
    except DecodeError:
        raise Invalid(
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
        raise Invalid(Reason.REASON_MISSING_FIELD, "request_id", "a request's name", "none")
    if message.policy != schema.policy:
        reason = Reason.REASON_UNKNOWN_POLICY if message.policy else Reason.REASON_MISSING_FIELD
        raise Invalid(reason, "policy", shown(schema.policy), shown(message.policy))
    encoded = request_id.encode()
    if key != encoded:
        raise Invalid(
            Reason.REASON_WRONG_KEY, "key", f"the request_id {shown(request_id)}", shown(key)
        )
    check_name("request_id", request_id, "a request's name", LONGEST_REQUEST_ID)
    if partitions > 1:
        right = _partition_for(encoded, partitions)
        if right != partition:
            raise Invalid(
                Reason.REASON_WRONG_PARTITION,
                "partition",
                f"{right} of {partitions} for key {shown(key)} (murmur2)",
                partition,
            )


def _check_decision(impression: Impression, schema: Schema) -> int:
    """Check the decision; returns how many members its group has."""
    payload = impression.decision.payload
    if not payload:
        raise Invalid(
            Reason.REASON_MISSING_FIELD, "decision.payload", "the server's decision", "none"
        )
    try:
        decision = Decision.FromString(payload)
    except DecodeError:
        raise Invalid(
            Reason.REASON_DECISION_UNDECODABLE,
            "decision.payload",
            "Decision",
            f"{len(payload)} bytes that are none: {shown(payload[:32])}",
        ) from None
    if decision.request_id != impression.request_id or decision.policy != impression.policy:
        raise Invalid(
            Reason.REASON_DECISION_MISMATCH,
            "decision",
            f"one for request {shown(impression.request_id)} of policy {shown(schema.policy)}",
            f"request {shown(decision.request_id)} of policy {shown(decision.policy)}",
        )
    if decision.schema_digest != schema.digest:
        raise Invalid(
            Reason.REASON_UNKNOWN_SCHEMA,
            "decision.schema_digest",
            schema.digest.hex(),
            decision.schema_digest[:32].hex() or "none",
        )
    if (decision.epoch == 0) != (decision.version == 0):
        raise Invalid(
            Reason.REASON_OUT_OF_RANGE,
            "decision.version",
            "version 0 of epoch 0, or both at least 1",
            f"version {decision.version} of epoch {decision.epoch}",
        )
    check_name("decision.unit_id", decision.unit_id, "a unit's name", LONGEST_REQUEST_ID)
    features = decision.features[:]
    check_length("decision.features", len(features), schema.n_features)
    check_finite("decision.features", features)
    if max(features) > LARGEST_FEATURE or min(features) < -LARGEST_FEATURE:
        index = next(i for i, x in enumerate(features) if abs(x) > LARGEST_FEATURE)
        raise Invalid(
            Reason.REASON_OUT_OF_RANGE,
            f"decision.features[{index}]",
            f"{-LARGEST_FEATURE:g} to {LARGEST_FEATURE:g}",
            f"{features[index]:g}",
        )
    return check_group(decision, schema)


def _check_shown(impression: Impression, objectives: int) -> None:
    items, positions = impression.item_ids[:], impression.positions[:]
    if not items:
        raise Invalid(Reason.REASON_NO_ITEMS, "item_ids", "at least one item", "none")
    if len(items) > MOST_SHOWN:
        raise Invalid(
            Reason.REASON_TOO_LARGE, "item_ids", f"at most {MOST_SHOWN} items", len(items)
        )
    if "" in items:
        raise Invalid(
            Reason.REASON_MISSING_FIELD, "item_ids", "names", f"an empty one at {items.index('')}"
        )
    check_unique("item_ids", "item", items)
    if len("".join(items)) > LONGEST_ITEM_ID // 4 or not all(map(str.isprintable, items)):
        for item in items:
            check_name("item_ids", item, "an item's name", LONGEST_ITEM_ID)
    check_length("positions", len(positions), len(items))
    check_unique("positions", "position", positions)
    if max(positions) > LAST_POSITION:
        raise Invalid(
            Reason.REASON_OUT_OF_RANGE, "positions", f"at most {LAST_POSITION}", max(positions)
        )
    scores, unshown = impression.scores[:], impression.unshown_scores[:]
    check_length("scores", len(scores), len(items) * objectives)
    rows_of("unshown_scores", len(unshown), objectives)
    check_finite("scores", scores)
    check_finite("unshown_scores", unshown)
    check_time("shown_at_ms", impression.shown_at_ms)


def _check_fused(impression: Impression, members: int) -> None:
    """Ranking must fit into the memory of a worker."""
    numbers = members * (len(impression.scores) + len(impression.unshown_scores))
    if numbers > MOST_FUSED:
        raise Invalid(
            Reason.REASON_TOO_LARGE,
            "decision.weights and scores",
            f"at most {MOST_FUSED} members x candidates x objectives",
            numbers,
        )


def _check_outcome(conversion: Conversion, schema: Schema) -> None:
    check_name(
        "conversion_id", conversion.conversion_id, "a conversion's name", LONGEST_CONVERSION_ID
    )
    check_name("item_id", conversion.item_id, "an item's name", LONGEST_ITEM_ID)
    outcome, value = conversion.outcome, conversion.value
    if not outcome:
        raise Invalid(Reason.REASON_MISSING_FIELD, "outcome", "an outcome type", "none")
    if not any(outcome == known.name for known in schema.outcomes):
        known_names = ", ".join(known.name for known in schema.outcomes)
        raise Invalid(
            Reason.REASON_UNKNOWN_OUTCOME, "outcome", f"one of {known_names}"[:200], shown(outcome)
        )
    if not isfinite(value):
        raise Invalid(Reason.REASON_NOT_FINITE, "value", "a finite number", value)
    if not 0 <= value <= LARGEST_VALUE:
        raise Invalid(Reason.REASON_OUT_OF_RANGE, "value", f"0 to {LARGEST_VALUE:g}", value)
    check_time("happened_at_ms", conversion.happened_at_ms)
