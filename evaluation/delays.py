"""How long outcomes take, and the attribution window that they suggest."""

import math
from typing import Final, NamedTuple

import numpy as np

from evaluation.data_folder import DataFolder
from policy.schema import Schema

QUANTILES: Final = (0.5, 0.9, 0.95, 0.99, 1.0)
COVERED: Final = 0.99
"""Share of each outcome type that a suggested window must hold."""


class Delay(NamedTuple):
    """How long after its request one type of outcome comes."""

    outcome: str
    number: int
    quantiles_s: dict[str, float]
    """By share, in seconds; empty if there is no such outcome."""
    outside: float
    """Share that the schema's window and early allowance leave out; NaN if there is none."""


class Delays(NamedTuple):
    """Of all outcome types."""

    by_outcome: list[Delay]
    window_s: float | None
    """Shortest window that holds `COVERED` of every type with a gain, in two digits; None without
    outcomes. What came later than twice the late horizon was left out when the folder was read."""
    declared_s: float
    """The schema's window."""


def delays_of(folder: DataFolder, schema: Schema) -> Delays:
    """Delays from request to outcome.

    Args:
        folder: the requests.
        schema: its outcome types and window.
    """
    found, needed = [], []
    for outcome in schema.outcomes:
        ms = np.array(
            [
                c.time_ms - int(folder.times_ms[c.request])
                for c in folder.conversions
                if c.outcome == outcome.name
            ],
            dtype=np.float64,
        )
        if not ms.size:
            found.append(Delay(outcome.name, 0, {}, math.nan))
            continue
        quantiles = {f"{q:g}": float(np.quantile(ms, q)) / 1000 for q in QUANTILES}
        outside = (ms > schema.window_ms) | (ms <= -schema.early_ms)
        found.append(Delay(outcome.name, len(ms), quantiles, float(outside.mean())))
        if outcome.gain > 0:
            needed.append(float(np.quantile(ms, COVERED)) / 1000)
    window = _two_digits_up(max(needed)) if needed and max(needed) > 0 else None
    return Delays(found, window, schema.window_ms / 1000)


def _two_digits_up(seconds: float) -> float:
    """The next number of two digits.

    >>> _two_digits_up(221.5), _two_digits_up(0.123), _two_digits_up(230.0)
    (230.0, 0.13, 230.0)
    """
    unit = 10.0 ** (math.floor(math.log10(seconds)) - 1)
    return float(f"{math.ceil(seconds / unit - 1e-9) * unit:.2g}")
