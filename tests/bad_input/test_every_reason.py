"""The tables of broken input are complete: every reason, every kind, every name once."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from grade.v1.refused_pb2 import Reason

from policy.errors import reason_name
from tests.bad_input.calls import CALLS
from tests.bad_input.case import Case
from tests.bad_input.checkpoints import CHECKPOINTS
from tests.bad_input.configuration import CONFIGURATION
from tests.bad_input.data_folders import DATA_FOLDERS
from tests.bad_input.records import INVALID, UNJOINED
from tests.bad_input.schema_files import SCHEMA_FILES
from tests.bad_input.snapshots import FILES, LOADED, RECORDS

PAGE = Path(__file__).parent.parent.parent / "docs" / "bad-input.md"

_RECORDS = [*INVALID, *UNJOINED]
KINDS: dict[str, list[Case[Any]]] = {
    "impression": [case for case in _RECORDS if case.name.startswith("impression")],
    "conversion": [case for case in _RECORDS if case.name.startswith("conversion")],
    "call": [*CALLS],
    "snapshot": [*RECORDS, *LOADED, *FILES],
    "checkpoint": [*CHECKPOINTS],
    "schema file": [*SCHEMA_FILES],
    "configuration": [*CONFIGURATION],
    "data folder": [*DATA_FOLDERS],
}
ALL = [case for cases in KINDS.values() for case in cases]


def test_every_case_has_a_name_of_its_own() -> None:
    assert [name for name, count in Counter(case.name for case in ALL).items() if count > 1] == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_broken_in_ten_ways(kind: str) -> None:
    assert len(KINDS[kind]) >= 10


def test_there_are_eighty_and_more() -> None:
    assert len(ALL) >= 80


def test_every_reason_has_a_case() -> None:
    seen = {case.reason for case in ALL}
    missing = [
        Reason.Name(reason)
        for reason in Reason.values()
        if reason not in seen and reason != Reason.REASON_UNSPECIFIED
    ]
    assert missing == []


def test_the_page_explains_every_reason_once_and_no_other() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|$", PAGE.read_text("utf-8"), re.M)
    expected = [reason_name(reason) for reason in Reason.values()[1:]]
    assert [name for name, _, _ in rows] == expected
    assert all(len(meaning) > 20 and len(to_do) > 10 for _, meaning, to_do in rows)
