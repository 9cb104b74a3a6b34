"""Broken folders of real requests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from grade.v1.refused_pb2 import Reason

from tests.bad_input.case import Case
from tests.evaluation.folders import tiny_tables, write

Tables = dict[str, dict[str, list[Any]]]
MakeFolder = Callable[[Path], object]


def _folder(
    name: str, make: MakeFolder, reason: "Reason.ValueType", *said: str
) -> Case[MakeFolder]:
    return Case(f"data folder {name}", make, reason, said)


def _tables(
    name: str, change: Callable[[Tables], object], reason: "Reason.ValueType", *said: str
) -> Case[MakeFolder]:
    def make(folder: Path) -> None:
        tables = tiny_tables()
        change(tables)
        write(folder, tables)

    return _folder(name, make, reason, *said)


def _cell(
    name: str,
    place: tuple[str, str, int],
    value: object,
    reason: "Reason.ValueType",
    *said: str,
) -> Case[MakeFolder]:
    table, column, row = place

    def change(tables: Tables) -> None:
        tables[table][column][row] = value

    return _tables(name, change, reason, f"{table}.parquet: {column}: ", *said)


def _then(change: Callable[[Path], object]) -> MakeFolder:
    """A sound folder, then a change to its files."""
    return lambda folder: change(write(folder, tiny_tables()))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def _as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _column_twice(folder: Path) -> None:
    columns = tiny_tables()["requests"]
    arrays = [pa.array(values) for values in columns.values()]
    table = pa.Table.from_arrays([*arrays, arrays[0]], names=[*columns, next(iter(columns))])
    pq.write_table(table, folder / "requests.parquet")


def _file_instead(folder: Path) -> None:
    folder.rmdir()
    folder.write_bytes(b"")


def _remove_rows(tables: Tables) -> None:
    for table in tables.values():
        for values in table.values():
            values.clear()


def _remove_items(tables: Tables) -> None:
    for values in tables["impressions"].values():
        del values[2:]


DATA_FOLDERS = [
    _folder(
        "that is not there",
        lambda folder: folder.rmdir(),
        Reason.REASON_UNAVAILABLE,
        "expected a folder of requests, seen none",
    ),
    _folder(
        "that is a file",
        _file_instead,
        Reason.REASON_UNAVAILABLE,
        "expected a folder of requests, seen a file",
    ),
    _folder(
        "that is empty",
        lambda folder: None,
        Reason.REASON_UNAVAILABLE,
        "requests.parquet: expected a parquet file, seen none",
    ),
    _folder(
        "with a folder for a table",
        _then(lambda folder: _as_folder(folder / "impressions.parquet")),
        Reason.REASON_UNAVAILABLE,
        "impressions.parquet: expected a parquet file, seen a folder",
    ),
    _folder(
        "with a table cut short",
        _then(lambda folder: _cut(folder / "conversions.parquet")),
        Reason.REASON_UNDECODABLE,
        "conversions.parquet: expected a parquet file, seen:",
    ),
    _folder(
        "with a table of text",
        _then(lambda folder: (folder / "requests.parquet").write_text("request_id,user_id\n")),
        Reason.REASON_UNDECODABLE,
        "requests.parquet: expected a parquet file, seen:",
    ),
    _folder(
        "with an empty file",
        _then(lambda folder: (folder / "requests.parquet").write_bytes(b"")),
        Reason.REASON_UNDECODABLE,
        "requests.parquet: expected a parquet file, seen:",
    ),
    _folder(
        "with a column twice",
        _then(_column_twice),
        Reason.REASON_REPEATED_NAME,
        "requests.parquet: expected every column once, seen 'request_id' twice",
    ),
    _tables(
        "without a column",
        lambda t: t["impressions"].pop("position"),
        Reason.REASON_MISSING_FIELD,
        "impressions.parquet: expected a column position, seen request_id, item_id",
    ),
    _tables(
        "without requests",
        _remove_rows,
        Reason.REASON_MISSING_FIELD,
        "requests.parquet: expected at least 1 request, seen none",
    ),
    _tables(
        "with an unknown feature",
        lambda t: t["requests"].update(ctx_mood=[1.0, 2.0]),
        Reason.REASON_UNKNOWN_FEATURE,
        "expected the columns ctx_* to be the schema's features, seen ctx_mood besides",
    ),
    _tables(
        "with an unknown objective",
        lambda t: t["impressions"].update(score_luck=[1.0] * 4),
        Reason.REASON_UNKNOWN_OBJECTIVE,
        "expected the columns score_* to be the schema's objectives, seen score_luck besides",
    ),
    _tables(
        "without items for a request",
        _remove_items,
        Reason.REASON_NO_ITEMS,
        "impressions.parquet: expected at least 1 item for every request, seen none for 1: b",
    ),
    _cell(
        "with a request twice",
        ("requests", "request_id", 1),
        "a",
        Reason.REASON_REPEATED_NAME,
        "expected each name once, seen 'a' in row 2",
    ),
    _cell(
        "with a nameless request",
        ("requests", "request_id", 1),
        None,
        Reason.REASON_MISSING_FIELD,
        "expected a text or a whole number, seen nothing in row 2",
    ),
    _cell(
        "with a request of a long name",
        ("requests", "request_id", 1),
        "b" * 129,
        Reason.REASON_OUT_OF_RANGE,
        "expected at most 128 bytes, seen 'bbb",
    ),
    _cell(
        "with a request with a NUL",
        ("requests", "request_id", 1),
        "b\0",
        Reason.REASON_BAD_NAME,
        "expected no control characters, seen 'b\\x00' in row 2",
    ),
    _tables(
        "whose units are halves",
        lambda t: t["requests"].update(user_id=[0.5, 1.5]),
        Reason.REASON_WRONG_TYPE,
        "user_id: expected a text or a whole number, seen 0.5 in rows 1, 2",
    ),
    _cell(
        "whose time goes back",
        ("requests", "time_ms", 1),
        999,
        Reason.REASON_INCONSISTENT,
        "expected times that rise from row to row, seen 999 in row 2",
    ),
    _cell(
        "whose time is before 1970",
        ("requests", "time_ms", 0),
        -5,
        Reason.REASON_OUT_OF_RANGE,
        "expected milliseconds since 1970",
        "seen -5 in row 1",
    ),
    _cell(
        "whose time is in microseconds",
        ("requests", "time_ms", 1),
        1_700_000_000_000_000,
        Reason.REASON_OUT_OF_RANGE,
        "seen 1700000000000000 in row 2",
    ),
    _tables(
        "whose time is a text",
        lambda t: t["requests"].update(time_ms=["1000", "2000"]),
        Reason.REASON_WRONG_TYPE,
        "time_ms: expected integer milliseconds, seen type string",
    ),
    _cell(
        "with a feature that is NaN",
        ("requests", "ctx_age", 0),
        float("nan"),
        Reason.REASON_NOT_FINITE,
        "expected a finite number, seen NaN in row 1",
    ),
    _cell(
        "with an absurd feature",
        ("requests", "ctx_age", 0),
        -2e9,
        Reason.REASON_OUT_OF_RANGE,
        "expected at most 1e+09 in size, seen -2000000000.0 in row 1",
    ),
    _cell(
        "with an impression of an unknown request",
        ("impressions", "request_id", 3),
        "c",
        Reason.REASON_UNKNOWN_REQUEST,
        "expected a request of requests.parquet, seen 'c' in row 4",
    ),
    _cell(
        "with an item twice",
        ("impressions", "item_id", 1),
        1,
        Reason.REASON_REPEATED_ITEM,
        "expected each item once per request, seen '1' in row 2",
    ),
    _cell(
        "with a position twice",
        ("impressions", "position", 1),
        0,
        Reason.REASON_INCONSISTENT,
        "expected 0, 1, 2 ... each once per request, seen 0 in row 2",
    ),
    _cell(
        "without a position",
        ("impressions", "position", 1),
        None,
        Reason.REASON_MISSING_FIELD,
        "expected a whole number, seen nothing in row 2",
    ),
    _cell(
        "with an infinite score",
        ("impressions", "score_q", 2),
        float("-inf"),
        Reason.REASON_NOT_FINITE,
        "expected a finite number, seen -inf in row 3",
    ),
    _cell(
        "with a score beyond float32",
        ("impressions", "score_q", 2),
        1e300,
        Reason.REASON_NOT_FINITE,
        "expected a finite number, seen 1e+300 in row 3",
    ),
    _cell(
        "with a list shown at another time than its request",
        ("impressions", "time_ms", 2),
        2_001,
        Reason.REASON_INCONSISTENT,
        "expected the time of the request, seen 2001 in row 3",
    ),
    _cell(
        "with an unknown outcome",
        ("conversions", "type", 0),
        "wink",
        Reason.REASON_UNKNOWN_OUTCOME,
        "expected an outcome type of the schema (click, buy), seen 'wink' in row 1",
    ),
    _cell(
        "with a conversion worth less than nothing",
        ("conversions", "value", 1),
        -1.0,
        Reason.REASON_OUT_OF_RANGE,
        "expected a finite number >= 0, seen -1.0 in row 2",
    ),
    _cell(
        "with a conversion worth too much",
        ("conversions", "value", 1),
        1e16,
        Reason.REASON_OUT_OF_RANGE,
        "expected at most 1e+15, seen 1e+16 in row 2",
    ),
    _cell(
        "with a conversion worth nothing known",
        ("conversions", "value", 1),
        None,
        Reason.REASON_NOT_FINITE,
        "expected a finite number >= 0, seen NaN in row 2",
    ),
]
