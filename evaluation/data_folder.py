"""Reads a folder of real requests; docs/data-folder.md describes the format.

What would make a replay meaningless is refused (`DataError`). Conversions of a request or an item
that the folder does not have, or far from their request's time, as a real log may well hold them,
are left out and counted. Either way the rows are named; row 1 is a table's first.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from grade.v1.refused_pb2 import Reason

from evaluation.parquet_table import ROWS_NAMED, ParquetTable, rows_named
from policy.errors import DataError
from policy.initial import LARGEST_FEATURE
from policy.schema import Schema
from stream.checks import LATEST_MS
from stream.validation import (
    LARGEST_VALUE,
    LONGEST_CONVERSION_ID,
    LONGEST_ITEM_ID,
    LONGEST_REQUEST_ID,
    MOST_SHOWN,
)

CONTEXT_PREFIX, SCORE_PREFIX = "ctx_", "score_"


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
        seen = "a file" if path.exists() else "none"
        raise DataError(
            f"{path}: expected a folder of requests, seen {seen}", Reason.REASON_UNAVAILABLE
        )
    requests = ParquetTable(path / "requests.parquet")
    impressions = ParquetTable(path / "impressions.parquet")
    conversions = ParquetTable(path / "conversions.parquet")
    remarks: list[str] = []

    request_ids = requests.texts("request_id", LONGEST_REQUEST_ID)
    requests.refuse_repeats("request_id", request_ids)
    times = requests.rising_times("time_ms", LATEST_MS)
    if not request_ids:
        raise DataError(
            f"{requests.path}: expected at least 1 request, seen none", Reason.REASON_MISSING_FIELD
        )
    features = requests.matrix(
        CONTEXT_PREFIX,
        [f.name for f in schema.features],
        "features",
        Reason.REASON_UNKNOWN_FEATURE,
        LARGEST_FEATURE,
    )

    row_of = {request_id: row for row, request_id in enumerate(request_ids)}
    owners = impressions.owners(row_of)
    item_ids = impressions.texts("item_id", LONGEST_ITEM_ID)
    positions = impressions.integers("position")
    scores = impressions.matrix(
        SCORE_PREFIX,
        [o.name for o in schema.objectives],
        "objectives",
        Reason.REASON_UNKNOWN_OBJECTIVE,
    )
    shown_at = impressions.milliseconds("time_ms")
    impressions.refuse(
        shown_at != times[owners],
        "time_ms",
        "the time of the request",
        shown_at,
        Reason.REASON_INCONSISTENT,
    )

    order = np.argsort(owners, kind="stable")
    first_item = np.searchsorted(owners[order], np.arange(len(request_ids) + 1))
    impressions.refuse_repeats(
        "item_id",
        list(zip(owners.tolist(), item_ids, strict=True)),
        "each item once per request",
        Reason.REASON_REPEATED_ITEM,
    )
    _check_positions(impressions, owners, positions, first_item)
    empty = np.flatnonzero(np.diff(first_item) == 0)
    if empty.size:
        raise DataError(
            f"{impressions.path}: expected at least 1 item for every request, seen none for "
            f"{len(empty)}: {', '.join(request_ids[r] for r in empty[:ROWS_NAMED])}",
            Reason.REASON_NO_ITEMS,
        )
    _check_counts(impressions, request_ids, np.diff(first_item))
    item_of = {(int(owners[row]), item_ids[row]): place for place, row in enumerate(order.tolist())}
    return DataFolder(
        request_ids=request_ids,
        unit_ids=requests.texts("user_id", LONGEST_REQUEST_ID),
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
    table: ParquetTable,
    schema: Schema,
    request_times: npt.NDArray[np.int64],
    row_of: dict[str, int],
    item_of: dict[tuple[int, str], int],
    remarks: list[str],
) -> list[LoggedConversion]:
    times = table.rising_times("time_ms")
    values = table.numbers("value")
    table.refuse(
        ~np.isfinite(values), "value", "a finite number >= 0", values, Reason.REASON_NOT_FINITE
    )
    table.refuse(values < 0, "value", "a finite number >= 0", values)
    table.refuse(values > LARGEST_VALUE, "value", f"at most {LARGEST_VALUE:g}", values)
    outcomes = table.texts("type", LONGEST_ITEM_ID)
    known = {o.name for o in schema.outcomes}
    table.refuse(
        np.array([outcome not in known for outcome in outcomes], dtype=bool),
        "type",
        "an outcome type of the schema (" + ", ".join(o.name for o in schema.outcomes) + ")",
        outcomes,
        Reason.REASON_UNKNOWN_OUTCOME,
    )
    request_ids = table.texts("request_id", LONGEST_REQUEST_ID)
    item_ids = table.texts("item_id", LONGEST_ITEM_ID)
    conversion_ids = table.texts("conversion_id", LONGEST_CONVERSION_ID)
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
            f"{rows_named(rows)}"
        )
    return found


def _check_positions(
    table: ParquetTable,
    owners: npt.NDArray[np.int64],
    positions: npt.NDArray[np.int64],
    first_item: npt.NDArray[np.int64],
) -> None:
    """Positions of a request must be 0, 1, 2 ... each once."""
    by_position = np.lexsort((positions, owners))
    expected = np.arange(len(positions)) - first_item[owners[by_position]]
    wrong = np.zeros(len(positions), dtype=bool)
    wrong[by_position] = positions[by_position] != expected
    table.refuse(
        wrong,
        "position",
        "0, 1, 2 ... each once per request",
        positions,
        Reason.REASON_INCONSISTENT,
    )


def _check_counts(
    table: ParquetTable, request_ids: list[str], counts: npt.NDArray[np.int64]
) -> None:
    """A list that is longer than the join takes would be a dead letter."""
    most = int(counts.argmax())
    if counts[most] > MOST_SHOWN:
        raise DataError(
            f"{table.path}: expected at most {MOST_SHOWN} items per request, seen {counts[most]} "
            f"for {request_ids[most]}",
            Reason.REASON_TOO_LARGE,
        )
