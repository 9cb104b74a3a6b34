"""What is read together is read as if it had been read one by one."""

import struct
from collections.abc import Callable
from random import Random

import pytest
from grade.v1.decision_pb2 import ARM_POLICY, Decision
from grade.v1.impression_pb2 import Impression

from stream import screening
from stream.codec import encode, partition_for
from stream.join_records import JoinSettings, Record, SoundImpression
from stream.screening import FEWEST, ImpressionReader
from stream.terms import Terms, first_terms
from stream.validation import Refusal, read_impression
from tests.bad_input.test_mutations import mutated, twisted
from tests.stream.join_messages import SCHEMA, valid_decision, valid_impression

MOST_BYTES = 4_000
TERMS: Terms = first_terms(
    SCHEMA,
    JoinSettings(SCHEMA.window_ms, SCHEMA.early_ms, SCHEMA.late_ms, max_record_bytes=MOST_BYTES),
)[1]


def record(value: bytes | None, key: bytes | None = b"r1", *, tick: bool = False) -> Record:
    return Record(0, 1_000, key, value, tick)


def one_by_one(records: list[Record], partitions: int) -> list[SoundImpression | Refusal]:
    found: list[SoundImpression | Refusal] = []
    for each in records:
        read = read_impression(SCHEMA, each, 0, partitions, max_bytes=MOST_BYTES)
        found.append(needed(read) if isinstance(read, Impression) else read)
    return found


def needed(impression: Impression) -> SoundImpression:
    """What the join keeps, number by number."""
    decision = Decision.FromString(impression.decision.payload)
    numbers = [*impression.scores, *impression.unshown_scores]
    weights = decision.weights if decision.arm == ARM_POLICY else []
    return SoundImpression(
        impression.request_id,
        encode(impression),
        b"".join(struct.pack("<f", number) for number in numbers),
        b"".join(struct.pack("<f", number) for number in weights),
    )


def with_decision(change: Callable[[Decision], object]) -> bytes:
    decision, impression = valid_decision(), valid_impression()
    change(decision)
    impression.decision.payload = encode(decision)
    return encode(impression)


def longer(value: bytes, more: bytes) -> bytes:
    """An impression whose decision's payload has further bytes at its end."""
    impression = Impression.FromString(value)
    impression.decision.payload += more
    return encode(impression)


SOUND = encode(valid_impression())


def test_sound_impressions_are_not_asked_about_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(screening, "read_impression")
    impressions = [valid_impression(), valid_impression(holdout=True)] * FEWEST
    read = ImpressionReader(TERMS, 0, 1).read([record(encode(each)) for each in impressions])
    assert read == [needed(each) for each in impressions]


def test_mutations_are_refused_alike() -> None:
    rng, records = Random(5), []
    for number in range(3_000):
        impression = valid_impression(holdout=number % 5 == 0)
        decision = Decision.FromString(impression.decision.payload)
        for _ in range(rng.choice((0, 1, 1, 2))):
            twisted(rng, rng.choice((impression, decision)))
        if number % 3:
            impression.decision.payload = encode(decision)
        value = encode(impression)
        records.append(record(mutated(rng, value) if number % 4 == 0 else value))
    read = ImpressionReader(TERMS, 0, 1).read(records)
    assert read == one_by_one(records, 1)
    kinds = {each.reason if isinstance(each, Refusal) else None for each in read}
    assert len(kinds) > 12, "many kinds of broken, and sound ones"


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b"", id="no value"),
        pytest.param(SOUND + SOUND, id="everything twice"),
        pytest.param(SOUND + Impression(shown_at_ms=-1).SerializeToString(), id="last one counts"),
        pytest.param(SOUND + Impression(scores=[1.0]).SerializeToString(), id="in two pieces"),
        pytest.param(SOUND + b"\x35" + bytes(4), id="a score that is not packed"),
        pytest.param(longer(SOUND, b"\x55" + bytes(4)), id="a weight that is not packed"),
        pytest.param(longer(SOUND, Decision(alpha=[1.0]).SerializeToString()), id="more alpha"),
        pytest.param(SOUND + b"\xf8\x07\x01", id="a field that is not known"),
        pytest.param(SOUND[9:] + SOUND[:9], id="fields in another order"),
        pytest.param(SOUND + b"\x40\x80\x00", id="a number in more bytes than it needs"),
        pytest.param(encode(valid_impression()) + bytes(MOST_BYTES), id="too large"),
        pytest.param(with_decision(lambda d: setattr(d, "executed", 99)), id="no such member"),
        pytest.param(with_decision(lambda d: setattr(d, "version", 0)), id="half a version"),
    ],
)
def test_whatever_the_wire_holds_is_read_alike(value: bytes) -> None:
    records = [record(SOUND)] * FEWEST + [record(value)]
    assert ImpressionReader(TERMS, 0, 1).read(records) == one_by_one(records, 1)


def test_keys_and_partitions_are_read_alike() -> None:
    records = [record(SOUND, b"r2"), record(SOUND, None), record(SOUND, tick=True)]
    for number in range(40):
        request_id = f"{'r' * (number % 7)}{number}"
        impression, decision = valid_impression(), valid_decision()
        impression.request_id = decision.request_id = request_id
        impression.decision.payload = encode(decision)
        records.append(record(encode(impression), request_id.encode()))
    read = ImpressionReader(TERMS, 0, 3).read(records)
    assert read == one_by_one(records, 3)
    here = [isinstance(each, SoundImpression) for each in read[3:]]
    assert here == [partition_for(each.key or b"", 3) == 0 for each in records[3:]]
