"""Every broken record is refused by the join's validation, by its reason and in words."""

import pytest

from stream.codec import has_tick_header
from stream.join_records import Log, Record
from stream.validation import Refusal, read_conversion, read_impression
from tests.bad_input.case import Case, named
from tests.bad_input.messages import SCHEMA, conversion, decision, impression
from tests.bad_input.records import INVALID, PARTITIONS, BrokenRecord
from tests.kafka import Produced


def verdict(log: Log, made: Produced) -> object:
    read = read_impression if log is Log.IMPRESSIONS else read_conversion
    record = Record(0, 0, made.key, made.value, has_tick_header(made.headers or []))
    return read(SCHEMA, record, made.partition, PARTITIONS)


@pytest.mark.parametrize("case", INVALID, ids=named)
def test_a_broken_record_is_refused(case: Case[BrokenRecord]) -> None:
    refusal = verdict(case.broken.log, case.broken.made("bad-1"))
    assert isinstance(refusal, Refusal)
    case.check(refusal.reason, refusal.message)


def test_what_the_cases_begin_with_is_sound() -> None:
    for log, value in (
        (Log.IMPRESSIONS, impression("bad-1")),
        (Log.IMPRESSIONS, impression("bad-1", decision("bad-1", holdout=True))),
        (Log.CONVERSIONS, conversion("bad-1")),
    ):
        sound = BrokenRecord(log, lambda r, value=value: value.SerializeToString())  # type: ignore[misc]  # bound now
        assert not isinstance(verdict(log, sound.made("bad-1")), Refusal)
