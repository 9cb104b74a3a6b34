"""Intervals by resampling units: a user's requests come and go together.

Each draw gives every unit a Poisson(1) count, which is the multinomial bootstrap without its fixed
total; figures are ratios of sums, to which the total does not matter. Every call uses the same
counts, so that the draws of two figures are paired and may be subtracted.

Source: Chamandy, Muralidharan, Najmi, Naidu: Estimating uncertainty for massive data streams,
Google 2012.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from policy.fusion import Floats

DRAWS: Final = 2000
_COUNTS_AT_ONCE = 2_000_000


class Interval(NamedTuple):
    """A figure and how exactly it is known."""

    value: float
    low: float
    high: float


class Figures(NamedTuple):
    """Some figures of the same requests."""

    value: Floats
    """[figure] NaN if it is not defined."""
    draws: Floats
    """[draw, figure]"""

    def less(self, other: "Figures") -> "Figures":
        """Paired differences."""
        return Figures(self.value - other.value, self.draws - other.draws)

    def pick(self, figure: int) -> "Figures":
        """One figure as [1] and [draw, 1]."""
        return Figures(self.value[[figure]], self.draws[:, [figure]])

    def quantile(self, share: float) -> Floats:
        """[figure] quantile over the draws that are defined; NaN if none is."""
        defined = ~np.isnan(self.draws)
        return np.array(
            [
                np.quantile(column[known], share) if known.any() else np.nan
                for column, known in zip(self.draws.T, defined.T, strict=True)
            ]
        )

    def interval(self, figure: int = 0, level: float = 0.95) -> Interval:
        """A figure with its two-sided percentile interval."""
        one = self.pick(figure)
        low, high = one.quantile((1 - level) / 2)[0], one.quantile((1 + level) / 2)[0]
        return Interval(float(one.value[0]), float(low), float(high))

    def standard_error(self, figure: int = 0) -> float:
        """Standard deviation over the draws that are defined."""
        column = self.draws[:, figure]
        known = column[~np.isnan(column)]
        return float(known.std()) if known.size else float("nan")


class UnitBootstrap:
    """Resamples the units of some requests.

    Args:
        unit_ids: [request] the unit of each request.
        draws: how many resamples.
        seed: of the resamples.
    """

    def __init__(self, unit_ids: Sequence[str], *, draws: int = DRAWS, seed: int = 0) -> None:
        names, self._unit = np.unique(np.asarray(unit_ids, dtype=object), return_inverse=True)
        self._units, self._draws, self._seed = len(names), draws, seed

    def ratios(self, numerators: Floats, denominators: Floats) -> Figures:
        """Figures that are a sum over requests divided by another.

        Args:
            numerators: [request, figure]
            denominators: [request, figure]; a figure whose sum is 0 is not defined.

        >>> UnitBootstrap(["a", "b"]).ratios(np.array([[1.0], [0.0]]), np.ones((2, 1))).value
        array([0.5])
        """
        tops, bottoms = self._by_unit(numerators), self._by_unit(denominators)
        draw = np.random.default_rng(self._seed)
        at_once = max(1, _COUNTS_AT_ONCE // max(1, self._units))
        parts = []
        for first in range(0, self._draws, at_once):
            size = min(at_once, self._draws - first), self._units
            counts = draw.poisson(1.0, size).astype(np.float64)
            parts.append(_ratio(counts @ tops, counts @ bottoms))
        return Figures(_ratio(tops.sum(axis=0), bottoms.sum(axis=0)), np.concatenate(parts))

    def means(self, values: Floats) -> Figures:
        """Means over the requests where a value is not NaN.

        Args:
            values: [request, figure]
        """
        known = ~np.isnan(values)
        return self.ratios(np.where(known, values, 0.0), known.astype(np.float64))

    def _by_unit(self, values: Floats) -> Floats:
        columns = [np.bincount(self._unit, column, self._units) for column in values.T]
        return np.stack(columns, axis=1)


def _ratio(top: Floats, bottom: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(bottom != 0, top / bottom, np.nan)
