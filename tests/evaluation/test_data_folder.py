"""A folder is read as documented, and what is wrong with one is said with file, column and rows."""

import math
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.data_folder import read_data_folder
from policy.errors import DataError
from tests.evaluation.folders import tiny_schema, tiny_tables, write

Tables = dict[str, dict[str, list[Any]]]


def read_error(folder: Path, tables: Tables) -> str:
    with pytest.raises(DataError) as caught:
        read_data_folder(write(folder, tables), tiny_schema())
    return str(caught.value)


def test_columns_come_in_the_schemas_order_whatever_theirs_is(tmp_path: Path) -> None:
    folder = read_data_folder(write(tmp_path, tiny_tables()), tiny_schema())
    assert folder.request_ids == ["a", "b"]
    assert folder.unit_ids == ["7", "8"]
    np.testing.assert_array_equal(folder.features, [[30, 10], [40, 11]])
    np.testing.assert_allclose(folder.scores, [[0.5, 1], [0.25, 2], [0.1, 3], [0.2, 4]])
    assert folder.item_ids == ["1", "2", "1", "3"]
    assert folder.items(1) == slice(2, 4)
    buy = folder.conversions[1]
    assert (buy.request, folder.item_ids[buy.item], buy.outcome, buy.value) == (0, "2", "buy", 2.0)
    assert folder.remarks == []


def test_impressions_need_not_be_sorted(tmp_path: Path) -> None:
    tables = tiny_tables()
    for column in tables["impressions"].values():
        column.reverse()
    folder = read_data_folder(write(tmp_path, tables), tiny_schema())
    assert folder.item_ids == ["2", "1", "3", "1"]
    assert folder.positions.tolist() == [1, 0, 1, 0]
    assert folder.item_ids[folder.conversions[0].item] == "2"


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("requests", "ctx_age"),
        ("requests", "user_id"),
        ("impressions", "score_q"),
        ("impressions", "position"),
        ("conversions", "type"),
    ],
)
def test_a_missing_column_is_named(tmp_path: Path, table: str, column: str) -> None:
    tables = tiny_tables()
    del tables[table][column]
    assert f"{table}.parquet: expected a column {column}, seen " in read_error(tmp_path, tables)


WRONG_VALUES = [
    ("requests", "request_id", 1, "a", "each name once, seen 'a' in row 2"),
    ("requests", "time_ms", 1, 999, "times that rise from row to row, seen 999 in row 2"),
    ("requests", "ctx_age", 0, math.nan, "a finite number, seen NaN in row 1"),
    ("impressions", "request_id", 3, "x", "a request of requests.parquet, seen 'x' in row 4"),
    ("impressions", "score_p", 2, math.nan, "a finite number, seen NaN in row 3"),
    ("impressions", "score_p", 2, None, "a finite number, seen NaN in row 3"),
    ("impressions", "score_q", 1, 1e300, "a finite number, seen 1e+300 in row 2"),
    ("impressions", "item_id", 1, 1, "each item once per request, seen '1' in row 2"),
    ("impressions", "position", 3, 2, "0, 1, 2 ... each once per request, seen 2 in row 4"),
    ("impressions", "time_ms", 0, 1_001, "the time of the request, seen 1001 in row 1"),
    ("conversions", "time_ms", 1, 1, "times that rise from row to row, seen 1 in row 2"),
    (
        "conversions",
        "type",
        0,
        "x",
        "an outcome type of the schema (click, buy), seen 'x' in row 1",
    ),
    ("conversions", "value", 1, -1.0, "a finite number >= 0, seen -1.0 in row 2"),
]


@pytest.mark.parametrize(("table", "column", "row", "value", "expected"), WRONG_VALUES)
def test_a_wrong_value_is_named_with_its_row(
    tmp_path: Path, table: str, column: str, row: int, value: object, expected: str
) -> None:
    tables = tiny_tables()
    tables[table][column][row] = value
    assert read_error(tmp_path, tables) == (
        f"{tmp_path / table}.parquet: {column}: expected {expected}"
    )


@pytest.mark.parametrize(
    ("column", "value", "what"),
    [
        ("request_id", "x", "name a request that is not in requests.parquet"),
        ("item_id", 3, "name an item that was not shown in their request"),
    ],
)
def test_conversions_of_something_unknown_are_left_out_and_counted(
    tmp_path: Path, column: str, value: object, what: str
) -> None:
    tables = tiny_tables()
    tables["conversions"][column][0] = value
    folder = read_data_folder(write(tmp_path, tables), tiny_schema())
    assert [conversion.outcome for conversion in folder.conversions] == ["buy"]
    assert folder.remarks == [
        f"{tmp_path}/conversions.parquet: 1 of 2 rows {what} and are left out: row 1"
    ]


def test_a_repeated_conversion_is_left_out_and_counted(tmp_path: Path) -> None:
    tables = tiny_tables()
    tables["conversions"]["conversion_id"][1] = "a/2/click"
    folder = read_data_folder(write(tmp_path, tables), tiny_schema())
    assert len(folder.conversions) == 1
    assert "1 of 2 rows repeat an earlier conversion_id of their request" in folder.remarks[0]


@pytest.mark.parametrize(
    ("time_ms", "kept"),
    # A second before the request of 10 s, and two late horizons of 20 minutes after it.
    [(8_999, 0), (9_000, 1), (2_410_000, 1), (2_410_001, 0), (2**62, 0)],
)
def test_a_conversion_far_from_its_request_is_left_out_and_counted(
    tmp_path: Path, time_ms: int, kept: int
) -> None:
    tables = tiny_tables()
    tables["requests"]["time_ms"] = [10_000, 10_000]
    tables["impressions"]["time_ms"] = [10_000] * 4
    tables["conversions"] = {name: rows[:1] for name, rows in tables["conversions"].items()}
    tables["conversions"]["time_ms"] = [time_ms]
    folder = read_data_folder(write(tmp_path, tables), tiny_schema())
    assert len(folder.conversions) == kept
    remark = (
        f"{tmp_path}/conversions.parquet: 1 of 1 rows are outside the time from 1000 ms before to "
        "2400000 ms after their request and are left out: row 1"
    )
    assert folder.remarks == [remark][kept:]


@pytest.mark.parametrize("table", ["requests", "impressions", "conversions"])
def test_times_in_another_unit_are_refused(tmp_path: Path, table: str) -> None:
    tables = tiny_tables()
    tables[table]["time_ms"] = [datetime.fromtimestamp(t / 1000) for t in tables[table]["time_ms"]]
    assert read_error(tmp_path, tables) == (
        f"{tmp_path / table}.parquet: time_ms: expected integer milliseconds, "
        "seen type timestamp[us]"
    )


def test_many_rows_are_counted_and_the_first_named(tmp_path: Path) -> None:
    tables = tiny_tables()
    tables["impressions"]["score_p"] = [math.nan] * 4
    assert read_error(tmp_path, tables).endswith("seen NaN in rows 1, 2, 3, 4")


def test_a_score_that_the_schema_does_not_know_is_refused(tmp_path: Path) -> None:
    tables = tiny_tables()
    tables["impressions"]["score_extra"] = [0.0] * 4
    assert read_error(tmp_path, tables).endswith(
        "expected the columns score_* to be the schema's objectives, seen score_extra besides"
    )


def test_a_request_without_items_is_refused(tmp_path: Path) -> None:
    tables = tiny_tables()
    for column in tables["impressions"].values():
        del column[2:]
    assert read_error(tmp_path, tables).endswith(
        "expected at least 1 item for every request, seen none for 1: b"
    )


def test_a_missing_folder_and_a_broken_file_are_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a folder of requests, seen none"):
        read_data_folder(tmp_path / "nowhere", tiny_schema())
    with pytest.raises(DataError, match=r"requests\.parquet: expected a parquet file, seen none"):
        read_data_folder(tmp_path, tiny_schema())
    write(tmp_path, tiny_tables())
    (tmp_path / "requests.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match=r"requests\.parquet: expected a parquet file, seen: "):
        read_data_folder(tmp_path, tiny_schema())


def test_text_where_numbers_belong_is_refused(tmp_path: Path) -> None:
    tables = tiny_tables()
    tables["requests"]["ctx_age"] = ["old", "young"]
    assert read_error(tmp_path, tables).endswith("ctx_age: expected numbers, seen type string")
