"""What is refused, why, and what the message says."""

import math
from collections.abc import Callable

import pytest
from grade.v1.conversion_pb2 import Conversion
from grade.v1.decision_pb2 import ARM_UNSPECIFIED, Decision
from grade.v1.impression_pb2 import Impression
from grade.v1.refused_pb2 import Reason

from stream.codec import encode, partition_for
from stream.join import Record
from stream.validation import (
    LARGEST_VALUE,
    LAST_POSITION,
    Refusal,
    read_conversion,
    read_impression,
)
from tests.stream.join_messages import (
    SCHEMA,
    valid_conversion,
    valid_decision,
    valid_impression,
)

LONGEST_MESSAGE = 500


def record(value: bytes | None, key: bytes | None = b"r1", *, tick: bool = False) -> Record:
    return Record(0, 1_000, key, value, tick)


def impression_with(change: Callable[[Impression], object]) -> Refusal | Impression:
    impression = valid_impression()
    change(impression)
    return read_impression(SCHEMA, record(encode(impression)), 0, 1)


def decision_with(change: Callable[[Decision], object]) -> Refusal | Impression:
    decision = valid_decision()
    change(decision)
    return impression_with(lambda i: setattr(i.decision, "payload", encode(decision)))


def conversion_with(change: Callable[[Conversion], object]) -> Refusal | Conversion:
    conversion = valid_conversion()
    change(conversion)
    return read_conversion(SCHEMA, record(encode(conversion)), 0, 1)


def test_a_valid_impression() -> None:
    read = read_impression(SCHEMA, record(encode(valid_impression())), 0, 1)
    assert read == valid_impression()


def test_a_valid_impression_of_the_holdout_arm() -> None:
    value = encode(valid_impression(holdout=True))
    assert isinstance(read_impression(SCHEMA, record(value), 0, 1), Impression)


def test_a_valid_conversion() -> None:
    read = read_conversion(SCHEMA, record(encode(valid_conversion())), 0, 1)
    assert read == valid_conversion()


@pytest.mark.parametrize("read", [read_impression, read_conversion])
@pytest.mark.parametrize(
    ("broken", "reason", "said"),
    [
        (record(None), Reason.REASON_NULL_VALUE, "seen none"),
        (record(b""), Reason.REASON_NULL_VALUE, "seen none"),
        (record(b"12", tick=True), Reason.REASON_HEADER_MISMATCH, "seen 2 bytes"),
        (record(b"\xff\xff"), Reason.REASON_UNDECODABLE, r"2 bytes that are none: b'\xff\xff'"),
        (record(b"\x12" * 1_001), Reason.REASON_TOO_LARGE, "at most 1000 bytes, seen 1003 bytes"),
    ],
)
def test_bytes_that_are_no_message(
    read: Callable[..., object], broken: Record, reason: int, said: str
) -> None:
    refusal = read(SCHEMA, broken, 0, 1, max_bytes=1_000)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == reason
    assert said in refusal.message


def test_exactly_the_largest_record_is_accepted() -> None:
    value = encode(valid_conversion())
    size = len(value) + len(b"r1")
    assert isinstance(read_conversion(SCHEMA, record(value), 0, 1, max_bytes=size), Conversion)
    refusal = read_conversion(SCHEMA, record(value), 0, 1, max_bytes=size - 1)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == Reason.REASON_TOO_LARGE


@pytest.mark.parametrize(
    ("change", "reason", "said"),
    [
        (lambda m: m.ClearField("request_id"), Reason.REASON_MISSING_FIELD, "request_id"),
        (lambda m: m.ClearField("policy"), Reason.REASON_MISSING_FIELD, "policy"),
        (
            lambda m: setattr(m, "policy", "other"),
            Reason.REASON_UNKNOWN_POLICY,
            "expected 'example', seen 'other'",
        ),
        (
            lambda m: setattr(m, "request_id", "r2"),
            Reason.REASON_WRONG_KEY,
            "expected the request_id 'r2', seen b'r1'",
        ),
    ],
)
def test_a_record_that_does_not_belong_here(
    change: Callable[[Impression | Conversion], object], reason: int, said: str
) -> None:
    for refusal in (impression_with(change), conversion_with(change)):
        assert isinstance(refusal, Refusal)
        assert refusal.reason == reason
        assert said in refusal.message


def test_a_record_without_a_key() -> None:
    refusal = read_conversion(SCHEMA, record(encode(valid_conversion()), None), 0, 1)
    assert refusal == Refusal(
        Reason.REASON_WRONG_KEY, "key: expected the request_id 'r1', seen none"
    )


def test_a_record_of_another_partition() -> None:
    right = partition_for(b"r1", 4)
    value = encode(valid_conversion())
    for partition in range(4):
        read = read_conversion(SCHEMA, record(value), partition, 4)
        if partition == right:
            assert isinstance(read, Conversion)
        else:
            assert read == Refusal(
                Reason.REASON_WRONG_PARTITION,
                f"partition: expected {right} of 4 for key b'r1' (murmur2), seen {partition}",
            )


@pytest.mark.parametrize(("length", "valid"), [(128, True), (129, False)])
def test_the_longest_request_id(length: int, valid: bool) -> None:
    name = "é" * (length // 2) + "x" * (length % 2)
    value = encode(valid_conversion(name))
    read = read_conversion(SCHEMA, record(value, name.encode()), 0, 1)
    assert isinstance(read, Conversion) == valid
    if isinstance(read, Refusal):
        assert read == Refusal(
            Reason.REASON_OUT_OF_RANGE, "request_id: expected at most 128 bytes, seen 129 bytes"
        )


@pytest.mark.parametrize(
    ("change", "reason", "said"),
    [
        (lambda m: m.ClearField("decision"), Reason.REASON_MISSING_FIELD, "decision.payload"),
        (
            lambda m: setattr(m.decision, "payload", b"\xff"),
            Reason.REASON_DECISION_UNDECODABLE,
            "1 bytes that are none",
        ),
        (lambda m: m.ClearField("item_ids"), Reason.REASON_NO_ITEMS, "at least one item"),
        (lambda m: m.item_ids.__setitem__(1, ""), Reason.REASON_MISSING_FIELD, "empty one at 1"),
        (
            lambda m: m.item_ids.__setitem__(1, "lamp"),
            Reason.REASON_REPEATED_ITEM,
            "every item once, seen 'lamp' twice",
        ),
        (
            lambda m: m.positions.append(2),
            Reason.REASON_WRONG_DIMENSION,
            "positions: expected 2 numbers, seen 3",
        ),
        (
            lambda m: m.positions.__setitem__(1, 0),
            Reason.REASON_REPEATED_ITEM,
            "every position once, seen 0 twice",
        ),
        (
            lambda m: m.positions.__setitem__(1, LAST_POSITION + 1),
            Reason.REASON_OUT_OF_RANGE,
            "at most 65535, seen 65536",
        ),
        (
            lambda m: m.scores.pop(),
            Reason.REASON_WRONG_DIMENSION,
            "scores: expected 6 numbers, seen 5",
        ),
        (
            lambda m: m.scores.__setitem__(3, math.nan),
            Reason.REASON_NOT_FINITE,
            "scores[3]: expected a finite number, seen nan",
        ),
        (
            lambda m: m.unshown_scores.append(1),
            Reason.REASON_WRONG_DIMENSION,
            "unshown_scores: expected a multiple of 3, seen 4",
        ),
        (
            lambda m: m.unshown_scores.__setitem__(0, -math.inf),
            Reason.REASON_NOT_FINITE,
            "unshown_scores[0]: expected a finite number, seen -inf",
        ),
    ],
)
def test_a_broken_impression(
    change: Callable[[Impression], object], reason: int, said: str
) -> None:
    refusal = impression_with(change)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == reason
    assert said in refusal.message


@pytest.mark.parametrize(
    ("change", "reason", "said"),
    [
        (
            lambda d: setattr(d, "request_id", "r2"),
            Reason.REASON_DECISION_MISMATCH,
            "expected one for request 'r1' of policy 'example', seen request 'r2' of",
        ),
        (lambda d: setattr(d, "policy", "p"), Reason.REASON_DECISION_MISMATCH, "policy 'p'"),
        (lambda d: setattr(d, "schema_digest", b"\xab"), Reason.REASON_UNKNOWN_SCHEMA, "seen ab"),
        (lambda d: d.ClearField("schema_digest"), Reason.REASON_UNKNOWN_SCHEMA, "seen none"),
        (
            lambda d: d.features.pop(),
            Reason.REASON_WRONG_DIMENSION,
            "decision.features: expected 3 numbers, seen 2",
        ),
        (
            lambda d: d.features.__setitem__(2, math.inf),
            Reason.REASON_NOT_FINITE,
            "decision.features[2]",
        ),
        (
            lambda d: d.features.__setitem__(1, -3e38),
            Reason.REASON_OUT_OF_RANGE,
            "decision.features[1]: expected -1e+09 to 1e+09, seen -3e+38",
        ),
        (
            lambda d: d.weights.pop(),
            Reason.REASON_WRONG_DIMENSION,
            "decision.weights: expected a multiple of 3, seen 5",
        ),
        (lambda d: d.ClearField("weights"), Reason.REASON_EMPTY_GROUP, "one member, seen none"),
        (
            lambda d: d.weights.__setitem__(4, math.nan),
            Reason.REASON_NOT_FINITE,
            "decision.weights[4]",
        ),
        (
            lambda d: (d.weights.__setitem__(0, -0.25), d.weights.__setitem__(1, 1.0)),
            Reason.REASON_OUT_OF_RANGE,
            "decision.weights: expected at least 0, seen -0.25",
        ),
        (
            lambda d: d.weights.__setitem__(3, 0.127),
            Reason.REASON_OUT_OF_RANGE,
            "member 1: expected a sum of 1, seen 1.002",
        ),
        (
            lambda d: d.alpha.append(1),
            Reason.REASON_WRONG_DIMENSION,
            "decision.alpha: expected 3 numbers, seen 4",
        ),
        (
            lambda d: d.alpha.__setitem__(0, 0),
            Reason.REASON_OUT_OF_RANGE,
            "decision.alpha: expected above 0, seen 0.0",
        ),
        (lambda d: d.alpha.__setitem__(0, math.inf), Reason.REASON_NOT_FINITE, "decision.alpha[0]"),
        (
            lambda d: d.log_densities.pop(),
            Reason.REASON_WRONG_DIMENSION,
            "decision.log_densities: expected 2 numbers, seen 1",
        ),
        (
            lambda d: d.log_densities.__setitem__(1, math.nan),
            Reason.REASON_NOT_FINITE,
            "decision.log_densities[1]",
        ),
        (
            lambda d: setattr(d, "executed", 2),
            Reason.REASON_OUT_OF_RANGE,
            "expected one of the 2 members, counted from 0, seen 2",
        ),
        (
            lambda d: setattr(d, "arm", ARM_UNSPECIFIED),
            Reason.REASON_OUT_OF_RANGE,
            "decision.arm: expected policy or holdout, seen 0",
        ),
    ],
)
def test_a_broken_decision(change: Callable[[Decision], object], reason: int, said: str) -> None:
    refusal = decision_with(change)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == reason
    assert said in refusal.message


def test_weights_that_are_off_by_rounding_are_valid() -> None:
    def change(decision: Decision) -> None:
        decision.weights[3] = 0.1259
        decision.log_densities[1] = math.log(6 * 0.1259 / 1.0009)

    assert isinstance(decision_with(change), Impression)


def test_finite_numbers_whose_sum_overflows_are_too_large_but_finite() -> None:
    def change(decision: Decision) -> None:
        decision.alpha[:] = [1.5e308, 1.5e308, 1.0]

    refusal = decision_with(change)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == Reason.REASON_OUT_OF_RANGE


@pytest.mark.parametrize(("off", "valid"), [(0.9e-5, True), (-0.9e-5, True), (1.2e-5, False)])
def test_a_density_is_that_of_the_weights(off: float, valid: bool) -> None:
    def change(decision: Decision) -> None:
        decision.log_densities[0] = math.log(3) * (1 + off)

    read = decision_with(change)
    assert isinstance(read, Impression) == valid
    if isinstance(read, Refusal):
        assert read.reason == Reason.REASON_INCONSISTENT
        assert "log_densities[0]: expected 1.09861" in read.message


def test_the_holdout_arm_has_no_density() -> None:
    decision = valid_decision(holdout=True)
    decision.log_densities.append(0.5)
    refusal = impression_with(lambda i: setattr(i.decision, "payload", encode(decision)))
    assert isinstance(refusal, Refusal)
    assert refusal.reason == Reason.REASON_WRONG_DIMENSION


@pytest.mark.parametrize(
    ("change", "reason", "said"),
    [
        (lambda m: m.ClearField("conversion_id"), Reason.REASON_MISSING_FIELD, "conversion_id"),
        (
            lambda m: setattr(m, "conversion_id", "é" * 513),
            Reason.REASON_OUT_OF_RANGE,
            "conversion_id: expected at most 1024 bytes, seen 1026 bytes",
        ),
        (lambda m: m.ClearField("item_id"), Reason.REASON_MISSING_FIELD, "item_id"),
        (lambda m: m.ClearField("outcome"), Reason.REASON_MISSING_FIELD, "outcome"),
        (
            lambda m: setattr(m, "outcome", "refund"),
            Reason.REASON_UNKNOWN_OUTCOME,
            "expected one of click, order, seen 'refund'",
        ),
        (lambda m: setattr(m, "value", math.nan), Reason.REASON_NOT_FINITE, "seen nan"),
        (lambda m: setattr(m, "value", math.inf), Reason.REASON_NOT_FINITE, "seen inf"),
        (lambda m: setattr(m, "value", -0.5), Reason.REASON_OUT_OF_RANGE, "seen -0.5"),
        (
            lambda m: setattr(m, "value", 2 * LARGEST_VALUE),
            Reason.REASON_OUT_OF_RANGE,
            "expected 0 to 1e+15, seen 2000000000000000.0",
        ),
    ],
)
def test_a_broken_conversion(
    change: Callable[[Conversion], object], reason: int, said: str
) -> None:
    refusal = conversion_with(change)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == reason
    assert said in refusal.message


def test_an_outcome_may_be_worth_nothing() -> None:
    assert isinstance(conversion_with(lambda m: setattr(m, "value", 0.0)), Conversion)


@pytest.mark.parametrize("field", ["policy", "request_id", "outcome", "item_id"])
def test_a_message_does_not_repeat_a_megabyte(field: str) -> None:
    refusal = conversion_with(lambda m: setattr(m, field, "\U0001f4a3" * 200_000))
    assert isinstance(refusal, Refusal)
    assert len(refusal.message.encode()) <= LONGEST_MESSAGE
