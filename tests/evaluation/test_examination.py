import math

import numpy as np
import pytest

from benchmarks.learning.worlds import SIMULATED, SimulatedWorld
from benchmarks.warm_start import logged
from evaluation.examination import LEAST_OUTCOMES, Examination, estimate_examination
from evaluation.yardsticks import Lists
from policy.errors import DataError


def lists(gains: np.ndarray, signals: np.ndarray, positions: np.ndarray | None = None) -> Lists:
    shown = np.ones(gains.shape, dtype=np.bool_)
    if positions is None:
        positions = np.broadcast_to(np.arange(gains.shape[1]), gains.shape)
    return Lists(signals, gains, shown, positions, gains.max(axis=1))


def estimated(found: Lists, seed: int = 0) -> Examination:
    return estimate_examination(found, [str(row) for row in range(len(found.gains))], seed=seed)


def test_without_signals_the_curve_is_the_ratio_of_the_outcomes() -> None:
    """90 outcomes at the top, 60 below, items all alike: 1 and 2/3, log odds with the error
    sqrt(1/90 + 1/60) = 1/6, so 2/3 exp(± 1.96 / 6).
    """
    gains = np.zeros((150, 2))
    gains[:90, 0] = gains[90:, 1] = 1.0
    found = estimated(lists(gains, np.zeros((150, 2, 1))))
    assert found.outcomes == [90, 60]
    value, low, high = found.curve[1]
    assert found.curve[0] == (1, 1, 1)
    assert value == pytest.approx(2 / 3, abs=1e-6)
    assert low == pytest.approx(2 / 3 * math.exp(-1.96 / 6), rel=0.06)
    assert high == pytest.approx(2 / 3 * math.exp(1.96 / 6), rel=0.06)
    assert found.relevance == [0.0]


def test_a_signal_that_explains_the_positions_is_not_taken_for_examination() -> None:
    """Two kinds of items, 3 to 1 in relevance, each on top half of the time, looked at 1 to 1/2.

    Chances of the top: 3 / (3 + .5) = 6/7 and 1 / (1 + 1.5) = 2/5.
    """
    count = 350
    signals = np.zeros((2 * count, 2, 1))
    signals[:count, 0] = signals[count:, 1] = 1.0
    gains = np.zeros((2 * count, 2))
    gains[:300, 0] = gains[300:count, 1] = 1.0
    gains[count : count + 140, 0] = gains[count + 140 :, 1] = 1.0
    found = estimated(lists(gains, signals))
    assert found.curve[1].value == pytest.approx(0.5, abs=1e-6)
    assert math.exp(found.relevance[0]) == pytest.approx(3, abs=1e-5)


@pytest.mark.parametrize("seed", [100, 101])
def test_the_marketplaces_curve_is_found(seed: int) -> None:
    """.87 per position, by 6,000 requests that sampled weights have served."""
    world = SimulatedWorld(SIMULATED["base"], seed)
    log = logged(world, seed, requests=6_000)
    found = estimated(lists(log.values * log.examination, log.signals))
    truth = [0.87**position for position in range(10)]
    assert [each.value for each in found.curve] == pytest.approx(truth, abs=0.09)
    covered = [e.low <= t <= e.high for e, t in zip(found.curve, truth, strict=True)]
    assert sum(covered) >= 8
    uncorrected = np.array(found.outcomes) / found.outcomes[0]
    values = np.array([each.value for each in found.curve])
    errors = [np.abs(curve - truth).mean() for curve in (values, uncorrected)]
    assert errors[0] < errors[1]


def test_deep_positions_without_outcomes_are_one_with_the_last_that_has() -> None:
    gains = np.zeros((100, 4))
    gains[:50, 0] = gains[50:80, 1] = gains[80:95, 2] = gains[95:, 3] = 1.0
    found = estimated(lists(gains, np.zeros((100, 4, 1))))
    assert found.outcomes == [50, 50]
    # Three positions for 50 outcomes: a third of the top's each.
    assert found.curve[1].value == pytest.approx(1 / 3, abs=1e-6)


def test_requests_without_outcome_and_users_order_change_nothing() -> None:
    draw = np.random.default_rng(0)
    gains = np.eye(3)[draw.integers(0, 3, 200)]
    signals = draw.normal(size=(200, 3, 2))
    silent = lists(
        np.concatenate([gains, np.zeros((50, 3))]),
        np.concatenate([signals, draw.normal(size=(50, 3, 2))]),
    )
    one, other = estimated(lists(gains, signals)), estimated(silent)
    assert one == other
    assert estimated(lists(gains, signals), seed=1).curve != one.curve


def test_too_few_outcomes_are_refused() -> None:
    gains = np.zeros((40, 2))
    gains[: LEAST_OUTCOMES + 1, 0] = gains[LEAST_OUTCOMES + 1 :, 1] = 1.0
    with pytest.raises(DataError, match=r"expected 20 items .* positions 0 and 1 .* seen 21, 19"):
        estimated(lists(gains, np.zeros((40, 2, 1))))
    with pytest.raises(DataError, match="seen none"):
        estimated(lists(np.zeros((40, 2)), np.zeros((40, 2, 1))))
