"""Intervals and sequences: by hand, against simulation, and when somebody stops as it pleases."""

import math

import numpy as np
import pytest

from evaluation.confidence import (
    Estimate,
    bounded_sequence,
    fixed_interval,
    ratio_estimate,
    sequence_interval,
)


def test_a_mean_of_independent_observations_by_hand() -> None:
    found = ratio_estimate(np.array([1.0, 2.0, 6.0]), np.ones(3), np.arange(3))
    # Mean 3; squared deviations 4, 1, 9; variance of the mean 14 / 2 / 3.
    assert found.value == 3
    assert found.standard_error == pytest.approx(math.sqrt(14 / 2 / 3))
    assert (found.size, found.clusters) == (3, 3)
    # Cubed deviations -8, -1, 27 over the sum of squares to the power of 3/2.
    assert found.skewness == pytest.approx(18 / 14**1.5)


def test_a_ratio_by_hand() -> None:
    found = ratio_estimate(np.array([2.0, 0.0]), np.array([3.0, 1.0]), np.arange(2))
    # Ratio 1/2; scores (2 - 3/2) / 4 and (0 - 1/2) / 4; their squares sum to 1/32, times 2 / 1.
    assert found.value == 0.5
    assert found.standard_error == pytest.approx(0.25)


def test_observations_of_one_cluster_count_once() -> None:
    values = np.array([1.0, 2.0, 6.0])
    once = ratio_estimate(values, np.ones(3), np.arange(3))
    thrice = ratio_estimate(np.repeat(values, 3), np.ones(9), np.repeat(np.arange(3), 3))
    assert thrice.value == once.value
    assert thrice.standard_error == pytest.approx(once.standard_error)
    assert thrice.clusters == 3
    taken_as_independent = ratio_estimate(np.repeat(values, 3), np.ones(9), np.arange(9))
    assert taken_as_independent.standard_error < 0.6 * once.standard_error


def test_one_cluster_tells_no_error() -> None:
    found = ratio_estimate(np.array([1.0, 2.0]), np.ones(2), np.zeros(2, dtype=np.intp))
    assert math.isnan(found.standard_error)


@pytest.mark.parametrize("skewness", [-0.3, 0.05, 0.3])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_skewed_bounds_are_where_halls_transformation_is_normal(
    skewness: float, level: float
) -> None:
    quantiles = {0.8: 1.2815515655, 0.95: 1.9599639845}
    low, high = fixed_interval(Estimate(2.0, 0.5, 9, 9, skewness), level)
    for bound, expected in ((low, quantiles[level]), (high, -quantiles[level])):
        t = (2.0 - bound) / 0.5
        transformed = t + skewness * t**2 / 3 + skewness**2 * t**3 / 27 + skewness / 6
        assert transformed == pytest.approx(expected, abs=1e-8)


def test_skewness_makes_the_side_longer_on_which_the_tail_is() -> None:
    low, high = fixed_interval(Estimate(0.0, 1.0, 9, 9, 0.3))
    assert high > 2 > -low
    mirrored = fixed_interval(Estimate(0.0, 1.0, 9, 9, -0.3))
    assert (mirrored.low, mirrored.high) == pytest.approx((-high, -low))


def test_the_sequence_is_narrowest_where_it_is_tuned() -> None:
    def half(tuned_for: float) -> float:
        return sequence_interval(Estimate(0.0, 1.0, 1000, 1000), tuned_for=tuned_for).high

    at = half(1000)
    assert all(half(1000 * off) > at for off in (0.5, 0.8, 1.3, 2.0))
    assert at == pytest.approx(3.03, abs=0.01)


def test_the_sequence_is_wider_than_the_interval_and_grows_with_the_level() -> None:
    estimate = Estimate(1.0, 0.1, 500, 500)
    sequences = [sequence_interval(estimate, tuned_for=500, level=x) for x in (0.8, 0.95, 0.99)]
    assert fixed_interval(estimate, 0.8).width < sequences[0].width
    assert sequences[0].width < sequences[1].width < sequences[2].width


def test_who_stops_as_it_pleases_is_misled_by_intervals_and_not_by_sequences() -> None:
    """Looks after every observation from 200 to 2,000, and stops when 0 is excluded.

    The mean is 0. 400 trials: five standard errors above a nominal 5 % are 10.4 %.
    """
    generator = np.random.default_rng(21)
    trials, size = 400, 2_000
    values = generator.standard_exponential((trials, size)) - 1
    count = np.arange(200, size + 1)
    mean = np.cumsum(values, axis=1)[:, 199:] / count
    error = np.sqrt((np.cumsum(values**2, axis=1)[:, 199:] / count - mean**2) / count)
    # Both bounds are a number of standard errors, which depends on the size alone.
    units = [
        sequence_interval(Estimate(0.0, 1.0, n, n), tuned_for=1_000).high for n in count.tolist()
    ]
    z = np.abs(mean / error)
    misled_by_intervals = (z > fixed_interval(Estimate(0.0, 1.0, 9, 9)).high).any(axis=1).mean()
    misled_by_sequences = (z > np.array(units)).any(axis=1).mean()
    assert misled_by_intervals > 0.2
    assert misled_by_sequences < 0.104


def test_a_bounded_sequence_covers_however_often_one_looks() -> None:
    generator = np.random.default_rng(22)
    misses = 0
    for _ in range(300):
        values = 10 + 20 * generator.beta(0.5, 2.0, 1_000)  # mean 10 + 20 / 5
        bounds = bounded_sequence(values, 10, 30)
        misses += bool(((bounds[:, 0] > 14) | (bounds[:, 1] < 14)).any())
    assert misses <= 300 * 0.05 + 5 * math.sqrt(300 * 0.05 * 0.95)


def test_a_bounded_sequence_closes_in_and_stays_in_its_bounds() -> None:
    bounds = bounded_sequence(np.tile([0.0, 1.0, 0.0, 0.0], 2_000), 0, 1)
    assert bounds.min() >= 0
    assert bounds.max() <= 1
    assert bounds[-1, 0] < 0.25 < bounds[-1, 1]
    assert bounds[-1, 1] - bounds[-1, 0] < 0.05


def test_the_first_bounds_of_a_bounded_sequence_by_hand() -> None:
    (low, high), *_ = bounded_sequence(np.array([1.0, 0.0]), 0, 1)
    # The first bet is sqrt(2 log 40 / (0.25 log 2)) > 1/2, so 1/2; the half width then exceeds 1.
    half = (math.log(40) + 0.25 * (math.log(2) - 0.5)) / 0.5
    assert half > 1
    assert (low, high) == (0, 1)


def test_an_observation_out_of_bounds_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected observations in \[0, 1\], seen 0.5 to 2"):
        bounded_sequence(np.array([0.5, 2.0]), 0, 1)
