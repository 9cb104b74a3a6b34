"""Reads a folder of real requests; docs/data-folder.md describes the format.

What would make a replay meaningless is refused (`DataError`). Conversions of a request or an item
that the folder does not have, or far from their request's time, as a real log may well hold them,
are left out and counted. Either way the rows are named; row 1 is a table's first.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from policy.errors import DataError
from policy.schema import Schema

CONTEXT_PREFIX, SCORE_PREFIX = "ctx_", "score_"
_ROWS_NAMED = 5


class LoggedConversion(NamedTuple):
    """One outcome as the folder holds it."""

    conversion_id: str
    request: int
    """Index of its request."""
    item: int
    """Index of its item among all items."""
    outcome: str
    value: float
    time_ms: int


@dataclass(frozen=True, slots=True)
class DataFolder:
    """Requests in the order of their file, with what was shown and what came of it."""

    request_ids: list[str]
    unit_ids: list[str]
    times_ms: npt.NDArray[np.int64]
    """[request]"""
    features: npt.NDArray[np.float32]
    """[request, feature] in the schema's order."""
    first_item: npt.NDArray[np.int64]
    """[request + 1] items of request r are those from first_item[r] to before first_item[r + 1]."""
    item_ids: list[str]
    """[item]"""
    positions: npt.NDArray[np.int64]
    """[item] position in its list, 0 is the top."""
    scores: npt.NDArray[np.float32]
    """[item, objective] in the schema's order."""
    conversions: list[LoggedConversion]
    """By rising time."""
    remarks: list[str]
    """A sentence for each kind of row that was left out."""

    def items(self, request: int) -> slice:
        """Where the items of a request are."""
        return slice(int(self.first_item[request]), int(self.first_item[request + 1]))


def read_data_folder(path: Path, schema: Schema) -> DataFolder:
    """Read and check a folder.

    Args:
        path: the folder.
        schema: its features, objectives and outcome types must be those of the folder; the order
            of columns does not matter.

    Raises:
        DataError: one sentence: file, column or rows, what was expected, what was seen.
    """
    if not path.is_dir():
        raise DataError(f"{path}: expected a folder of requests, seen none")
    requests = _Table(path / "requests.parquet")
    impressions = _Table(path / "impressions.parquet")
    conversions = _Table(path / "conversions.parquet")
    remarks: list[str] = []

    request_ids = requests.texts("request_id")
    requests.refuse_repeats("request_id", request_ids)
    times = requests.rising_times("time_ms")
    if not request_ids:
        raise DataError(f"{requests.path}: expected at least 1 request, seen none")
    features = requests.matrix(CONTEXT_PREFIX, [f.name for f in schema.features], "features")

    row_of = {request_id: row for row, request_id in enumerate(request_ids)}
    owners = impressions.owners(row_of)
    item_ids = impressions.texts("item_id")
    positions = impressions.integers("position")
    scores = impressions.matrix(SCORE_PREFIX, [o.name for o in schema.objectives], "objectives")
    shown_at = impressions.milliseconds("time_ms")
    impressions.refuse(shown_at != times[owners], "time_ms", "the time of the request", shown_at)

    order = np.argsort(owners, kind="stable")
    first_item = np.searchsorted(owners[order], np.arange(len(request_ids) + 1))
    impressions.refuse_repeats(
        "item_id", list(zip(owners.tolist(), item_ids, strict=True)), "each item once per request"
    )
    _check_positions(impressions, owners, positions, first_item)
    empty = np.flatnonzero(np.diff(first_item) == 0)
    if empty.size:
        raise DataError(
            f"{impressions.path}: expected at least 1 item for every request, seen none for "
            f"{len(empty)}: {', '.join(request_ids[r] for r in empty[:_ROWS_NAMED])}"
        )
    item_of = {(int(owners[row]), item_ids[row]): place for place, row in enumerate(order.tolist())}
    return DataFolder(
        request_ids=request_ids,
        unit_ids=requests.texts("user_id"),
        times_ms=times,
        features=features,
        first_item=first_item,
        item_ids=[item_ids[row] for row in order.tolist()],
        positions=positions[order],
        scores=scores[order],
        conversions=_conversions(conversions, schema, times, row_of, item_of, remarks),
        remarks=remarks,
    )


def _conversions(
    table: "_Table",
    schema: Schema,
    request_times: npt.NDArray[np.int64],
    row_of: dict[str, int],
    item_of: dict[tuple[int, str], int],
    remarks: list[str],
) -> list[LoggedConversion]:
    times = table.rising_times("time_ms")
    values = table.numbers("value")
    table.refuse(~(np.isfinite(values) & (values >= 0)), "value", "a finite number >= 0", values)
    outcomes = table.texts("type")
    known = {o.name for o in schema.outcomes}
    table.refuse(
        np.array([outcome not in known for outcome in outcomes], dtype=bool),
        "type",
        "an outcome type of the schema (" + ", ".join(o.name for o in schema.outcomes) + ")",
        outcomes,
    )
    request_ids, item_ids = table.texts("request_id"), table.texts("item_id")
    conversion_ids = table.texts("conversion_id")
    found: list[LoggedConversion] = []
    seen: set[tuple[int, str]] = set()
    left_out: dict[str, list[int]] = {}
    # Played, these could not join, and one of them years away would be years of slots.
    outside = (
        f"are outside the time from {schema.early_ms} ms before to {2 * schema.late_ms} ms after "
        "their request"
    )
    for row, request_id in enumerate(request_ids):
        request = row_of.get(request_id)
        item = None if request is None else item_of.get((request, item_ids[row]))
        if request is None:
            left_out.setdefault("name a request that is not in requests.parquet", []).append(row)
        elif item is None:
            left_out.setdefault("name an item that was not shown in their request", []).append(row)
        elif (request, conversion_ids[row]) in seen:
            left_out.setdefault("repeat an earlier conversion_id of their request", []).append(row)
        elif not -schema.early_ms <= times[row] - request_times[request] <= 2 * schema.late_ms:
            left_out.setdefault(outside, []).append(row)
        else:
            seen.add((request, conversion_ids[row]))
            found.append(
                LoggedConversion(
                    conversion_ids[row],
                    request,
                    item,
                    outcomes[row],
                    float(values[row]),
                    int(times[row]),
                )
            )
    for what, rows in left_out.items():
        remarks.append(
            f"{table.path}: {len(rows)} of {len(request_ids)} rows {what} and are left out: "
            f"{_rows(rows)}"
        )
    return found


def _check_positions(
    table: "_Table",
    owners: npt.NDArray[np.int64],
    positions: npt.NDArray[np.int64],
    first_item: npt.NDArray[np.int64],
) -> None:
    """Positions of a request must be 0, 1, 2 ... each once."""
    by_position = np.lexsort((positions, owners))
    expected = np.arange(len(positions)) - first_item[owners[by_position]]
    wrong = np.zeros(len(positions), dtype=bool)
    wrong[by_position] = positions[by_position] != expected
    table.refuse(wrong, "position", "0, 1, 2 ... each once per request", positions)


class _Table:
    """One parquet file, read column by column; every complaint names file, column and rows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise DataError(
                f"{path}: reading parquet needs pyarrow: pip install 'grade-stream[monitor]'"
            ) from None
        try:
            self._table: Any = pyarrow.parquet.read_table(path)
        except FileNotFoundError:
            raise DataError(f"{path}: expected a parquet file, seen none") from None
        except pyarrow.ArrowException as error:
            raise DataError(f"{path}: expected a parquet file, seen: {error}") from None

    def refuse(
        self,
        wrong: npt.NDArray[np.bool_],
        column: str,
        expected: str,
        seen: "Sequence[object] | npt.NDArray[Any]",
    ) -> None:
        """Raise if any row is wrong."""
        rows = np.flatnonzero(wrong).tolist()
        if rows:
            raise DataError(
                f"{self.path}: {column}: expected {expected}, seen {_plain(seen[rows[0]])} "
                f"in {_rows(rows)}"
            )

    def texts(self, column: str) -> list[str]:
        """A column of names; whole numbers are taken as text."""
        values = self._column(column).to_pylist()
        wrong = np.array(
            [isinstance(v, bool) or not isinstance(v, str | int) or v == "" for v in values],
            dtype=bool,
        )
        self.refuse(wrong, column, "a text or a whole number", values)
        return [str(v) for v in values]

    def numbers(self, column: str) -> npt.NDArray[np.float64]:
        """A column of numbers; what is missing is NaN."""
        return np.asarray(self._as_type(column, "float64", "numbers"), dtype=np.float64)

    def integers(self, column: str) -> npt.NDArray[np.int64]:
        """A column of whole numbers, none missing."""
        found = self._column(column)
        missing = found.is_null().to_numpy(zero_copy_only=False)
        self.refuse(missing, column, "a whole number", [None] * len(missing))
        return np.asarray(self._as_type(column, "int64", "whole numbers"), dtype=np.int64)

    def milliseconds(self, column: str) -> npt.NDArray[np.int64]:
        """A column of times, none missing; parquet's own timestamps may count in another unit."""
        import pyarrow

        kind = self._column(column).type
        if not (pyarrow.types.is_integer(kind) or pyarrow.types.is_null(kind)):
            raise DataError(
                f"{self.path}: {column}: expected integer milliseconds, seen type {kind}"
            )
        return self.integers(column)

    def rising_times(self, column: str) -> npt.NDArray[np.int64]:
        """Milliseconds since 1970 UTC that never go back."""
        times = self.milliseconds(column)
        back = np.concatenate(([False], np.diff(times) < 0))
        self.refuse(back, column, "times that rise from row to row", times)
        self.refuse(times < 0, column, "milliseconds since 1970", times)
        return times

    def matrix(self, prefix: str, names: Sequence[str], what: str) -> npt.NDArray[np.float32]:
        """[row, name] the columns prefix + name, finite."""
        here = [c.removeprefix(prefix) for c in self._table.column_names if c.startswith(prefix)]
        unknown = sorted(set(here) - set(names))
        if unknown:
            raise DataError(
                f"{self.path}: expected the columns {prefix}* to be the schema's {what}, seen "
                f"{', '.join(prefix + name for name in unknown)} besides"
            )
        columns = []
        for name in names:
            values = self.numbers(prefix + name)
            with np.errstate(over="ignore"):
                narrow = values.astype(np.float32)
            self.refuse(~np.isfinite(narrow), prefix + name, "a finite number", values)
            columns.append(narrow)
        return np.ascontiguousarray(np.stack(columns, axis=1))

    def owners(self, row_of: dict[str, int]) -> npt.NDArray[np.int64]:
        """[row] index of the request that the row belongs to."""
        request_ids = self.texts("request_id")
        owners = np.array([row_of.get(r, -1) for r in request_ids], dtype=np.int64)
        self.refuse(owners < 0, "request_id", "a request of requests.parquet", request_ids)
        return owners

    def refuse_repeats(
        self, column: str, values: Sequence[object], expected: str = "each name once"
    ) -> None:
        """Raise if a value occurs twice."""
        seen: set[object] = set()
        repeated = np.zeros(len(values), dtype=bool)
        for row, value in enumerate(values):
            repeated[row] = value in seen
            seen.add(value)
        last = [v[-1] if isinstance(v, tuple) else v for v in values]
        self.refuse(repeated, column, expected, last)

    def _column(self, column: str) -> Any:
        if column not in self._table.column_names:
            seen = ", ".join(self._table.column_names)
            raise DataError(f"{self.path}: expected a column {column}, seen {seen}")
        return self._table.column(column).combine_chunks()

    def _as_type(self, column: str, dtype: str, what: str) -> Any:
        import pyarrow

        found = self._column(column)
        try:
            return found.cast(dtype).to_numpy(zero_copy_only=False)
        except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError):
            raise DataError(
                f"{self.path}: {column}: expected {what}, seen type {found.type}"
            ) from None


def _rows(rows: Sequence[int]) -> str:
    named = ", ".join(str(row + 1) for row in rows[:_ROWS_NAMED])
    more = len(rows) - _ROWS_NAMED
    return f"row{'s' if len(rows) > 1 else ''} {named}" + (f" and {more} more" if more > 0 else "")


def _plain(value: object) -> str:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    return "nothing" if value is None else repr(value)
