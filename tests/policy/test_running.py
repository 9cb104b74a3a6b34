import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.initial import LARGEST_FEATURE, LEAST_SCALE
from policy.running import ContextScale, Gate, RunningIdeal


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32), batches=st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_mean_and_scale_are_those_of_everything_seen(seed: int, batches: list[int]) -> None:
    generator = np.random.default_rng(seed)
    seen = [generator.normal(size=(count, 3)) * [1, 1e-4, 1e4] + 1e3 for count in batches]
    scale = ContextScale(3)
    for features in seen:
        scale.add(features)
    mean, deviation = scale.mean_and_scale()
    everything = np.concatenate(seen)
    np.testing.assert_allclose(mean, everything.mean(axis=0), rtol=1e-12)
    if len(everything) > 1:
        np.testing.assert_allclose(deviation, everything.std(axis=0), rtol=1e-6)


def test_a_feature_that_never_varies_is_not_divided_by_zero() -> None:
    scale = ContextScale(2)
    for _ in range(100):
        scale.add(np.array([[0.1, 0.0], [0.1, 2.0]]))
    mean, deviation = scale.mean_and_scale()
    np.testing.assert_allclose(mean, [0.1, 1.0])
    np.testing.assert_allclose(deviation, [1.0, 1.0])


def test_before_anything_was_seen_features_pass_unchanged() -> None:
    mean, deviation = ContextScale(2).mean_and_scale()
    assert mean.tolist() == [0, 0]
    assert deviation.tolist() == [1, 1]


@pytest.mark.parametrize("outlier", [3e38, -3e38, 1e12, 1e9])
def test_one_outlier_hardly_moves_mean_and_scale(outlier: float) -> None:
    generator = np.random.default_rng(0)
    scale = ContextScale(1)
    scale.add(generator.normal(5.0, 2.0, (1_000, 1)))
    (mean,), (deviation,) = scale.mean_and_scale()
    scale.add(np.array([[outlier]]))
    (after,), (wider,) = scale.mean_and_scale()
    # It counts as 10 scales: by 10/1001 the mean moves, by 100/1001 the variance grows.
    assert after == pytest.approx(mean + math.copysign(10 / 1001, outlier) * deviation, rel=1e-9)
    assert wider == pytest.approx(deviation * math.sqrt(1.1), rel=0.01)


@pytest.mark.parametrize("value", [3e38, -3e38, 1e-45, 1e-31])
def test_mean_and_scale_can_always_be_served(value: float) -> None:
    scale = ContextScale(2)
    scale.add(np.array([[value, 0.0], [0.0, value]]))
    restored = ContextScale(1)
    restored.restore({"count": np.ones(1), "mean": np.full(1, value), "squares": np.full(1, 1e77)})
    for part in (scale, restored):
        mean, deviation = part.mean_and_scale()
        assert (np.abs(mean) <= LARGEST_FEATURE).all()
        assert ((deviation >= LEAST_SCALE) & (deviation <= LARGEST_FEATURE)).all()


def test_the_running_ideal_counts_requests_with_an_outcome() -> None:
    ideal = RunningIdeal(half_life=1e12)
    assert ideal.mean() == 1.0
    ideal.add(np.array([0.0, 2.0, 0.0]))
    ideal.add(np.array([0.0, 0.0]))
    ideal.add(np.array([4.0, 6.0]))
    assert ideal.mean() == pytest.approx(4.0)


def test_the_running_ideal_forgets() -> None:
    ideal = RunningIdeal(half_life=1.0)
    ideal.add(np.array([8.0]))
    ideal.add(np.array([2.0]))
    assert ideal.mean() == pytest.approx((8 / 2 + 2) / (1 / 2 + 1))


def test_one_value_hardly_moves_the_running_ideal() -> None:
    ideal = RunningIdeal(half_life=1e12)
    ideal.add(np.full(1_000, 2.0))
    ideal.add(np.array([1e15]))
    # It counts as 100 means.
    assert ideal.mean() == pytest.approx((1_000 * 2 + 100 * 2) / 1_001)


def openings(*leads: float) -> list[float]:
    """Rewards of the four openings, as leads over the closed gate."""
    return [0.5 + lead for lead in (0.0, *leads)]


def test_the_gate_opens_as_far_as_it_has_earned() -> None:
    gate = Gate(half_life=2_000)
    assert gate.opening() == 0.0
    gate.add(np.array([openings(0.1, 0.2, 0.1)]))
    # A single request proves nothing: the lead is one standard deviation.
    assert gate.opening() == 0.0
    gate.add(np.array([openings(0.1, 0.2, 0.1)] * 3))
    assert gate.opening() == 0.5


def test_the_gate_stays_shut_where_context_does_not_pay() -> None:
    generator = np.random.default_rng(0)
    gate = Gate(half_life=500)
    opened = 0
    for _ in range(400):
        noise = generator.normal(-0.02, 0.1, (25, 3))
        gate.add(np.concatenate([np.full((25, 1), 0.5), 0.5 + noise], axis=1))
        opened += gate.opening() > 0
    assert opened < 20


def test_the_gate_shuts_again_when_context_stops_paying() -> None:
    gate = Gate(half_life=100)
    gate.add(np.array([openings(0.1, 0.2, 0.3)] * 500))
    assert gate.opening() == 1.0
    gate.add(np.array([openings(-0.1, -0.2, -0.3)] * 500))
    assert gate.opening() == 0.0


def test_requests_that_tell_nothing_do_not_age_the_gate() -> None:
    gate = Gate(half_life=10)
    gate.add(np.array([openings(0.1, 0.2, 0.3)] * 20))
    before = gate.state()["sums"].copy()
    gate.add(np.full((1_000, 4), 0.5))
    assert (gate.state()["sums"] == before).all()


def test_what_is_assumed_of_contexts_counts_as_so_many_seen() -> None:
    """100 contexts of mean 10 and deviation 2, then 100 of 20: mean 15, variance 4/2 + 25."""
    scale = ContextScale(2)
    scale.assume(np.array([10.0, -1.0]), np.array([2.0, 3.0]))
    mean, deviation = scale.mean_and_scale()
    np.testing.assert_allclose(mean, [10, -1])
    np.testing.assert_allclose(deviation, [2, 3])
    scale.add(np.tile([20.0, -1.0], (100, 1)))
    mean, deviation = scale.mean_and_scale()
    np.testing.assert_allclose(mean, [15, -1])
    np.testing.assert_allclose(deviation, [27**0.5, 4.5**0.5])


def test_features_count_for_themselves() -> None:
    """A feature that has come later tells its own mean from its first context on."""
    scale = ContextScale(2)
    state = {"count": [50.0, 0.0], "mean": [4.0, 0.0], "squares": [0.0, 0.0]}
    scale.restore({name: np.array(values) for name, values in state.items()})
    scale.add(np.full((50, 2), 8.0))
    mean, deviation = scale.mean_and_scale()
    np.testing.assert_allclose(mean, [6, 8])
    np.testing.assert_allclose(deviation, [2, 1])


@pytest.mark.parametrize(("opening", "nearest"), [(0.0, 0.0), (0.1, 0.0), (0.3, 0.25), (1.0, 1.0)])
def test_an_assumed_opening_holds_until_the_rewards_say_otherwise(
    opening: float, nearest: float
) -> None:
    gate = Gate(half_life=2000)
    gate.assume(opening)
    assert gate.opening() == nearest
    gate.add(np.zeros((10, 4)))
    assert gate.opening() == nearest
    better = np.tile([1.0, 0.9, 0.8, 0.7], (400, 1))
    gate.add(better)
    assert gate.opening() == 0
