import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy import composite
from policy.composite import Calibration, Components
from policy.fusion import Floats


def components(posterior: object, prior: object, rules: object = 0.0) -> Components:
    earned = np.array(posterior, dtype=np.float64)
    return Components(
        earned,
        np.array(prior, dtype=np.float64) + np.zeros_like(earned),
        np.array(rules, dtype=np.float64) + np.zeros_like(earned),
        np.isfinite(earned),
    )


SAID = components([[0.0, 1.0], [0.3, 0.3]], [[4.0, 0.0], [0.0, 2.0]])


def test_a_weighted_sum_goes_by_the_weights_alone() -> None:
    # Row 0: 0 + .5 × 4 = 2 against 1; row 1: .3 against .3 + .5 × 2 = 1.3.
    assert composite.weighted_sum(SAID, 0.5, 1.0).tolist() == [[0.5, -0.5], [-0.5, 0.5]]


def test_gated_hears_the_prior_where_the_posterior_is_silent() -> None:
    assert composite.gated(SAID, 0.5, 1.0).tolist() == [[-0.5, 0.5], [-0.5, 0.5]]


def test_gdpo_counts_every_component_alike() -> None:
    # Each row that differs becomes ±1 but for the floor: -1 + .5 × 1, and 0 - .5.
    found = composite.gdpo(SAID, 0.5, 1.0)
    np.testing.assert_allclose(found, [[-0.5, 0.5], [-0.5, 0.5]], atol=3e-4)


def test_calibrated_hears_the_prior_as_far_as_it_agrees() -> None:
    assert composite.calibrated(SAID, 0.5, 1.0, 0.0).tolist() == [[-0.5, 0.5], [0.0, 0.0]]
    # Upside down: row 0 is -.5 - .5 × 2 and row 1 0 + .5 × 1.
    assert composite.calibrated(SAID, 0.5, 1.0, -1.0).tolist() == [[-1.5, 1.5], [0.5, -0.5]]


def test_rules_count_in_every_way() -> None:
    ruled = components([[0.0, 0.0]], 0.0, [[-1.0, 0.0]])
    for found in (
        composite.weighted_sum(ruled, 1.0, 2.0),
        composite.gated(ruled, 1.0, 2.0),
        composite.calibrated(ruled, 1.0, 2.0, 1.0),
    ):
        assert found.tolist() == [[-1.0, 1.0]]


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32), absent=st.booleans())
def test_rows_sum_to_zero_and_the_absent_say_nothing(seed: int, absent: bool) -> None:
    draw = np.random.default_rng(seed)
    posterior, prior, rules = draw.normal(size=(3, 4, 6))
    if absent:
        posterior[:, 2] = np.nan
    said = components(posterior, prior, rules)
    for found in (
        composite.weighted_sum(said, 0.7, 1.0),
        composite.gdpo(said, 0.7, 1.0),
        composite.gated(said, 0.7, 1.0),
        composite.calibrated(said, 0.7, 1.0, 0.4),
    ):
        np.testing.assert_allclose(found.sum(axis=1), 0, atol=1e-9)
        assert not (absent and found[:, 2].any())


def batches(slope: float, noise: float, count: int = 60) -> Calibration:
    """A prior of which the posterior is `slope` times, and noise."""
    draw, calibration = np.random.default_rng(3), Calibration(half_life=1e9)
    for _ in range(count):
        prior: Floats = draw.normal(size=(20, 8))
        posterior = slope * prior + noise * draw.normal(size=prior.shape)
        calibration.add(components(posterior, prior))
    return calibration


@pytest.mark.parametrize("slope", [0.5, -0.5])
def test_the_scale_is_the_slope_of_a_prior_that_agrees_or_is_upside_down(slope: float) -> None:
    assert batches(slope, noise=1.0).scale() == pytest.approx(slope, abs=0.05)


def test_a_prior_without_relation_to_outcomes_counts_next_to_nothing() -> None:
    assert abs(batches(0.0, noise=1.0).scale()) < 0.03


def test_nothing_is_heard_before_anything_is_known_and_after_a_clear() -> None:
    assert Calibration(100).scale() == 0
    calibration = batches(0.5, noise=0.1)
    calibration.clear()
    assert calibration.scale() == 0


def test_groups_without_outcome_do_not_calibrate() -> None:
    calibration = Calibration(100)
    calibration.add(components(np.zeros((5, 3)), np.arange(15).reshape(5, 3)))
    assert not calibration.state()["sums"].any()


def test_a_calibration_goes_on_from_its_state() -> None:
    one, other = batches(0.5, noise=1.0), Calibration(half_life=1e9)
    other.restore(one.state())
    assert other.scale() == one.scale()
