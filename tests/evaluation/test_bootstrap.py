"""Intervals by units: against the error that theory gives, and pairing."""

import math

import numpy as np
import pytest

from evaluation.bootstrap import UnitBootstrap


def test_requests_of_a_unit_count_as_one_observation() -> None:
    """200 units of 5 equal requests: the error is that of 200 observations, not of 1,000."""
    of_unit = np.random.default_rng(0).normal(size=200)
    values = np.repeat(of_unit, 5)[:, None]
    units = [str(i) for i in np.repeat(np.arange(200), 5)]
    figures = UnitBootstrap(units).means(values)
    assert figures.value[0] == pytest.approx(of_unit.mean())
    assert figures.standard_error() == pytest.approx(of_unit.std() / math.sqrt(200), rel=0.1)
    interval = figures.interval()
    half = 1.96 * of_unit.std() / math.sqrt(200)
    assert interval.high - interval.low == pytest.approx(2 * half, rel=0.15)


def test_a_ratio_of_sums_by_hand() -> None:
    sample = UnitBootstrap(["a", "b", "a"])
    figures = sample.ratios(np.array([[1.0], [3.0], [2.0]]), np.array([[2.0], [4.0], [2.0]]))
    assert figures.value[0] == 6 / 8
    # A resample holds a alone (3/4), b alone (3/4) or both, so it is always the same.
    assert figures.interval() == (0.75, 0.75, 0.75)


def test_figures_of_two_calls_are_paired() -> None:
    values = np.random.default_rng(1).normal(size=(300, 1))
    sample = UnitBootstrap([str(i) for i in range(300)])
    shifted = sample.means(values + 0.25).less(sample.means(values))
    assert shifted.interval() == pytest.approx((0.25, 0.25, 0.25))


def test_requests_without_a_value_are_left_out_and_none_is_nan() -> None:
    values = np.array([[1.0, math.nan], [math.nan, math.nan], [3.0, math.nan]])
    figures = UnitBootstrap(["a", "b", "c"]).means(values)
    assert figures.value[0] == 2
    assert all(math.isnan(x) for x in figures.interval(1))
    assert math.isnan(figures.standard_error(1))


def test_many_units_are_drawn_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).normal(size=(50, 1))
    units = [str(i) for i in range(50)]
    whole = UnitBootstrap(units, draws=40).means(values).draws
    monkeypatch.setattr("evaluation.bootstrap._COUNTS_AT_ONCE", 150)
    np.testing.assert_allclose(UnitBootstrap(units, draws=40).means(values).draws, whole)
