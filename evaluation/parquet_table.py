"""One parquet file, read column by column; every complaint names file, column and rows."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from grade.v1.refused_pb2 import Reason

from policy.errors import DataError, cut, quoted
from policy.names import has_control_character
from stream.validation import LONGEST_REQUEST_ID

ROWS_NAMED = 5
"""Rows that a message names."""


class ParquetTable:
    """A parquet file that is wholly in memory; row 1 is its first.

    Args:
        path: the file.

    Raises:
        DataError: from every method: what was expected, what was seen, and why.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise DataError(
                f"{path}: reading parquet needs pyarrow: pip install 'grade-stream[monitor]'",
                Reason.REASON_UNAVAILABLE,
            ) from None
        try:
            # Not read_table, which takes a folder for a table in many files.
            with path.open("rb") as file:
                found = pyarrow.parquet.ParquetFile(file)
                self._refuse_columns_twice(found.schema_arrow.names)
                self._table: Any = found.read()
        except FileNotFoundError:
            raise DataError(
                f"{path}: expected a parquet file, seen none", Reason.REASON_UNAVAILABLE
            ) from None
        except IsADirectoryError:
            raise DataError(
                f"{path}: expected a parquet file, seen a folder", Reason.REASON_UNAVAILABLE
            ) from None
        except PermissionError:
            raise DataError(
                f"{path}: expected a parquet file, seen one that may not be read",
                Reason.REASON_UNAVAILABLE,
            ) from None
        # pyarrow raises OSError too for bytes that are no parquet.
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(
                f"{path}: expected a parquet file, seen: {error}", Reason.REASON_UNDECODABLE
            ) from None

    def _refuse_columns_twice(self, names: list[str]) -> None:
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(
                f"{self.path}: expected every column once, seen {quoted(twice)} twice",
                Reason.REASON_REPEATED_NAME,
            )

    def refuse(
        self,
        wrong: npt.NDArray[np.bool_],
        column: str,
        expected: str,
        seen: "Sequence[object] | npt.NDArray[Any]",
        reason: "Reason.ValueType" = Reason.REASON_OUT_OF_RANGE,
    ) -> None:
        """Raise if any row is wrong."""
        rows = np.flatnonzero(wrong).tolist()
        if rows:
            raise DataError(
                f"{self.path}: {column}: expected {expected}, seen {_plain(seen[rows[0]])} "
                f"in {rows_named(rows)}",
                reason,
            )

    def texts(self, column: str, longest: int) -> list[str]:
        """A column of names of at most so many bytes; whole numbers are taken as text."""
        found, expected = self._column(column), "a text or a whole number"
        try:
            values = found.to_pylist()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.path}: {column}: expected UTF-8, seen: {error}", Reason.REASON_UNDECODABLE
            ) from None
        self._refuse_where(
            lambda v: v is None or v == "", values, column, expected, Reason.REASON_MISSING_FIELD
        )
        self._refuse_where(
            lambda v: isinstance(v, bool) or not isinstance(v, str | int),
            values,
            column,
            expected,
            Reason.REASON_WRONG_TYPE,
        )
        names = [str(v) for v in values]
        self._refuse_where(
            lambda v: len(v) > longest // 4 and len(v.encode()) > longest,
            names,
            column,
            f"at most {longest} bytes",
            Reason.REASON_OUT_OF_RANGE,
        )
        self._refuse_where(
            has_control_character, names, column, "no control characters", Reason.REASON_BAD_NAME
        )
        return names

    def _refuse_where(
        self,
        wrong: Callable[[Any], bool],
        values: Sequence[object],
        column: str,
        expected: str,
        reason: "Reason.ValueType",
    ) -> None:
        rows = np.array([wrong(value) for value in values], dtype=bool)
        self.refuse(rows, column, expected, values, reason)

    def numbers(self, column: str) -> npt.NDArray[np.float64]:
        """A column of numbers; what is missing is NaN."""
        return np.asarray(self._as_type(column, "float64", "numbers"), dtype=np.float64)

    def integers(self, column: str) -> npt.NDArray[np.int64]:
        """A column of whole numbers, none missing."""
        found = self._column(column)
        missing = found.is_null().to_numpy(zero_copy_only=False)
        self.refuse(
            missing,
            column,
            "a whole number",
            [None] * len(missing),
            Reason.REASON_MISSING_FIELD,
        )
        return np.asarray(self._as_type(column, "int64", "whole numbers"), dtype=np.int64)

    def milliseconds(self, column: str) -> npt.NDArray[np.int64]:
        """A column of times, none missing; parquet's own timestamps may count in another unit."""
        import pyarrow

        kind = self._column(column).type
        if not (pyarrow.types.is_integer(kind) or pyarrow.types.is_null(kind)):
            raise DataError(
                f"{self.path}: {column}: expected integer milliseconds, seen type {kind}",
                Reason.REASON_WRONG_TYPE,
            )
        return self.integers(column)

    def rising_times(self, column: str, latest: float = math.inf) -> npt.NDArray[np.int64]:
        """Milliseconds since 1970 UTC that never go back and are at most `latest`."""
        times = self.milliseconds(column)
        back = np.concatenate(([False], np.diff(times) < 0))
        self.refuse(
            back, column, "times that rise from row to row", times, Reason.REASON_INCONSISTENT
        )
        self.refuse(
            (times < 0) | (times > latest),
            column,
            "milliseconds since 1970" + (f", at most {latest:g}" if latest < math.inf else ""),
            times,
        )
        return times

    def matrix(
        self,
        prefix: str,
        names: Sequence[str],
        what: str,
        unknown_name: "Reason.ValueType",
        largest: float = math.inf,
    ) -> npt.NDArray[np.float32]:
        """[row, name] the columns prefix + name, finite and at most so large."""
        here = [c.removeprefix(prefix) for c in self._table.column_names if c.startswith(prefix)]
        unknown = sorted(set(here) - set(names))
        if unknown:
            raise DataError(
                f"{self.path}: expected the columns {prefix}* to be the schema's {what}, seen "
                f"{cut(', '.join(prefix + name for name in unknown))} besides",
                unknown_name,
            )
        columns = []
        for name in names:
            values = self.numbers(prefix + name)
            with np.errstate(over="ignore"):
                narrow = values.astype(np.float32)
            self.refuse(
                ~np.isfinite(narrow),
                prefix + name,
                "a finite number",
                values,
                Reason.REASON_NOT_FINITE,
            )
            self.refuse(
                np.abs(narrow) > largest, prefix + name, f"at most {largest:g} in size", values
            )
            columns.append(narrow)
        return np.ascontiguousarray(np.stack(columns, axis=1))

    def owners(self, row_of: dict[str, int]) -> npt.NDArray[np.int64]:
        """[row] index of the request that the row belongs to."""
        request_ids = self.texts("request_id", LONGEST_REQUEST_ID)
        owners = np.array([row_of.get(r, -1) for r in request_ids], dtype=np.int64)
        self.refuse(
            owners < 0,
            "request_id",
            "a request of requests.parquet",
            request_ids,
            Reason.REASON_UNKNOWN_REQUEST,
        )
        return owners

    def refuse_repeats(
        self,
        column: str,
        values: Sequence[object],
        expected: str = "each name once",
        reason: "Reason.ValueType" = Reason.REASON_REPEATED_NAME,
    ) -> None:
        """Raise if a value occurs twice."""
        seen: set[object] = set()
        repeated = np.zeros(len(values), dtype=bool)
        for row, value in enumerate(values):
            repeated[row] = value in seen
            seen.add(value)
        last = [v[-1] if isinstance(v, tuple) else v for v in values]
        self.refuse(repeated, column, expected, last, reason)

    def _column(self, column: str) -> Any:
        if column not in self._table.column_names:
            seen = cut(", ".join(self._table.column_names))
            raise DataError(
                f"{self.path}: expected a column {column}, seen {seen}",
                Reason.REASON_MISSING_FIELD,
            )
        return self._table.column(column).combine_chunks()

    def _as_type(self, column: str, dtype: str, what: str) -> Any:
        import pyarrow

        found = self._column(column)
        try:
            return found.cast(dtype).to_numpy(zero_copy_only=False)
        except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError):
            raise DataError(
                f"{self.path}: {column}: expected {what}, seen type {found.type}",
                Reason.REASON_WRONG_TYPE,
            ) from None


def rows_named(rows: Sequence[int]) -> str:
    """The first of some rows, as a message names them."""
    named = ", ".join(str(row + 1) for row in rows[:ROWS_NAMED])
    more = len(rows) - ROWS_NAMED
    return f"row{'s' if len(rows) > 1 else ''} {named}" + (f" and {more} more" if more > 0 else "")


def _plain(value: object) -> str:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    return "nothing" if value is None else quoted(value)
