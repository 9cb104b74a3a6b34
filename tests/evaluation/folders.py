"""Small data folders for the tests."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from policy.schema import Schema, parse_schema

HOUR_MS = 3_600_000
REQUESTS = 240

SCHEMA_TOML = """
policy = "tiny"
features = ["age", "hour"]

[[objectives]]
name = "p"
transform = "logit"
standardise = true
baseline = 0.5
predicts = "click"

[[objectives]]
name = "q"
transform = "linear"
standardise = true
baseline = 0.5

[[outcomes]]
name = "click"
gain = 1.0

[[outcomes]]
name = "buy"
gain = 3.0
value_weighted = true

[attribution]
window_s = 600.0
early_s = 1.0

[reward]
normalise = "request"
"""


def tiny_schema() -> Schema:
    """Two features, two objectives, two outcome types."""
    return parse_schema(SCHEMA_TOML)


def tiny_tables() -> dict[str, dict[str, list[Any]]]:
    """Two requests of two items each; the first has a click and a purchase of its second item."""
    return {
        "requests": {
            "request_id": ["a", "b"],
            "user_id": [7, 8],
            "time_ms": [1_000, 2_000],
            "ctx_hour": [10.0, 11.0],
            "ctx_age": [30.0, 40.0],
        },
        "impressions": {
            "request_id": ["a", "a", "b", "b"],
            "item_id": [1, 2, 1, 3],
            "position": [0, 1, 0, 1],
            "time_ms": [1_000, 1_000, 2_000, 2_000],
            "score_q": [1.0, 2.0, 3.0, 4.0],
            "score_p": [0.5, 0.25, 0.1, 0.2],
        },
        "conversions": {
            "conversion_id": ["a/2/click", "a/2/buy"],
            "request_id": ["a", "a"],
            "item_id": [2, 2],
            "type": ["click", "buy"],
            "value": [1.0, 2.0],
            "time_ms": [1_500, 9_000],
        },
    }


def learnable_tables() -> dict[str, dict[str, list[Any]]]:
    """`REQUESTS` requests over 12 hours, of 4 items each, whose clicks follow objective q alone."""
    draw = np.random.default_rng(0)
    times = np.sort(draw.integers(0, 12 * HOUR_MS, REQUESTS))
    tables: dict[str, dict[str, list[Any]]] = {
        name: {column: [] for column in columns} for name, columns in tiny_tables().items()
    }
    clicks = []
    for number, time_ms in enumerate(times.tolist()):
        request = tables["requests"]
        request["request_id"].append(f"r{number}")
        request["user_id"].append(number % 30)
        request["time_ms"].append(time_ms)
        request["ctx_age"].append(float(draw.normal(40, 10)))
        request["ctx_hour"].append(float(time_ms // HOUR_MS))
        scores = draw.normal(size=(4, 2))
        for item in range(4):
            shown = tables["impressions"]
            shown["request_id"].append(f"r{number}")
            shown["item_id"].append(item)
            shown["position"].append(item)
            shown["time_ms"].append(time_ms)
            shown["score_p"].append(float(1 / (1 + np.exp(-scores[item, 0]))))
            shown["score_q"].append(float(scores[item, 1]))
        clicks.append(
            (time_ms + int(draw.integers(1, 600_000)), number, int(scores[:, 1].argmax()))
        )
    for time_ms, number, item in sorted(clicks):
        row = (f"{number}/{item}", f"r{number}", item, "click", 1.0, time_ms)
        for column, value in zip(tables["conversions"], row, strict=True):
            tables["conversions"][column].append(value)
    return tables


def write(folder: Path, tables: dict[str, dict[str, list[Any]]]) -> Path:
    """Write the tables as parquet files; returns the folder."""
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return folder
