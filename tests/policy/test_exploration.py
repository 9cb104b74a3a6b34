import numpy as np
import pytest

from policy.batch import Requests, padded
from policy.exploration import SHARES, cost_of_sampling, fit_concentration
from policy.initial import CONCENTRATION_BOUNDS

FLOORS = np.zeros(2)


def two_items(gain: float = 1.0) -> Requests:
    """200 times: the first item gains, and ranks first where the first weight is the greater."""
    count = 200
    present = np.ones((count, 2), dtype=np.bool_)
    signals = np.tile(np.eye(2), (count, 1))
    gains = np.tile([gain, 0.0], count)
    return padded(np.zeros((count, 1)), present, signals, gains, gains, np.ones(2 * count))


def mean(first: float) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    return np.tile([first, 1 - first], (200, 1))


def test_the_cost_is_of_what_the_order_earns_beyond_a_random_one() -> None:
    """A symmetric Beta(1, 1) around .5 + 1e-9: half of its draws rank as badly as can be.

    The mean earns 1, a random order (1 + 1 / log2(3)) / 2, so do the draws: all of it is lost.
    """
    assert cost_of_sampling(two_items(), mean(0.5 + 1e-9), FLOORS, 2.0, seed=0) == pytest.approx(
        1, abs=0.05
    )


def test_the_cost_is_the_chance_of_the_wrong_order_twice() -> None:
    """Beta(2, 1) has density 2x: below 1/2 with chance 1/4; a wrong order loses twice the lead."""
    cost = cost_of_sampling(two_items(), mean(2 / 3), FLOORS, 3.0, seed=0)
    assert cost == pytest.approx(0.5, abs=0.02)


def test_gains_by_another_unit_cost_the_same() -> None:
    one = cost_of_sampling(two_items(), mean(0.7), FLOORS, 10.0, seed=1)
    assert cost_of_sampling(two_items(5.0), mean(0.7), FLOORS, 10.0, seed=1) == pytest.approx(one)


def test_the_least_concentration_within_the_budget_is_found() -> None:
    requests, means = two_items(), mean(0.65)
    found = fit_concentration(requests, means, FLOORS, budget=0.05, seed=0)
    low, high = CONCENTRATION_BOUNDS
    assert low < found.concentration < high
    assert found.cost <= 0.05
    # A little wider, and it costs more than that.
    assert cost_of_sampling(requests, means, FLOORS, 0.9 * found.concentration, seed=0) > 0.05
    level = 1 / (1 + np.exp(-found.bias))
    assert found.concentration == pytest.approx(low * (high / low) ** level)


def test_a_wide_budget_ends_at_the_least_and_a_narrow_one_at_the_greatest() -> None:
    low, high = CONCENTRATION_BOUNDS
    widest = fit_concentration(two_items(), mean(0.9), FLOORS, budget=0.9, seed=0)
    assert widest.concentration == pytest.approx(low * (high / low) ** SHARES[0])
    over = fit_concentration(two_items(), mean(0.51), FLOORS, budget=1e-4, seed=0)
    assert over.concentration == pytest.approx(low * (high / low) ** SHARES[1])
    assert over.cost > 1e-4


def test_means_that_are_worth_nothing_cost_everything() -> None:
    assert cost_of_sampling(two_items(), mean(0.3), FLOORS, 10.0, seed=0) == 1.0
