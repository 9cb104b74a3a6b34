"""Off-policy estimates: weights and refusals by hand, unbiasedness and coverage by simulation."""

import math

import numpy as np
import pytest

from evaluation.direct_model import FIRST_FIT, DirectModel, predictions
from evaluation.importance import (
    LARGEST_WEIGHT,
    Importance,
    LoggedDecisions,
    Overlap,
    importance,
    overlap,
    require_overlap,
)
from evaluation.off_policy import ESTIMATORS, looks
from policy.dirichlet import draw_simplex, log_density, simplex_to_weights
from policy.errors import TooLittleData
from policy.fusion import Floats

FLOORS = np.array([0.1, 0.0, 0.2])


def decisions(
    generator: np.random.Generator, requests: int, alpha: Floats, floors: Floats = FLOORS
) -> LoggedDecisions:
    """Requests whose reward is a count with mean x_1 + 0.2 · the first feature's sign + 0.3."""
    features = generator.standard_normal((requests, 2))
    alphas = np.broadcast_to(alpha, (requests, len(alpha)))
    x = draw_simplex(generator, np.array(alphas), 1)[:, 0]
    weights = simplex_to_weights(x, floors).astype(np.float32).astype(np.float64)
    mean = x[:, 0] + 0.2 * np.sign(features[:, 0]) + 0.3
    return LoggedDecisions(
        features,
        alphas,
        weights,
        log_density(weights, alphas, floors),
        generator.poisson(mean).astype(np.float64),
        np.arange(requests),
        np.arange(requests) * 10,
    )


def of_all(alpha: list[float], requests: int) -> Floats:
    return np.broadcast_to(np.array(alpha), (requests, len(alpha)))


def test_weights_are_the_ratio_of_the_densities_of_x() -> None:
    logged = decisions(np.random.default_rng(1), 500, np.array([1.0, 1.0, 1.0]))
    weights, lost, largest = importance(logged, of_all([2.0, 1.0, 1.0], 500), FLOORS)
    # Dirichlet(2, 1, 1) has density 6 x_1, Dirichlet(1, 1, 1) has 2.
    x = (logged.weights[:, 0] - 0.1) / 0.7
    np.testing.assert_allclose(weights, 3 * x, rtol=1e-4, atol=1e-5)
    assert largest == weights.max() <= 3
    assert not lost.any()


def test_the_target_itself_weighs_one() -> None:
    logged = decisions(np.random.default_rng(2), 50, np.array([3.0, 2.0, 4.0]))
    found = importance(logged, logged.alpha, FLOORS)
    np.testing.assert_allclose(found.weights, 1, rtol=1e-9)
    assert overlap(found).effective == pytest.approx(50)


def test_what_cutting_leaves_out_is_what_is_missing_from_the_mean_weight() -> None:
    """Of two objectives, against the integral of the density beyond the cut."""
    floors, requests = np.zeros(2), 4_000
    logged = decisions(np.random.default_rng(3), requests, np.array([6.0, 6.0]), floors)
    found = importance(logged, of_all([1.0, 1.0], requests), floors)
    x = (np.arange(100_000) + 0.5) / 100_000
    logged_density = x**5 * (1 - x) ** 5 * math.gamma(12) / math.gamma(6) ** 2
    expected = np.maximum(1 - LARGEST_WEIGHT * logged_density, 0).mean()
    assert expected > 0.05
    assert found.lost.mean() == pytest.approx(expected, abs=0.01)
    assert found.weights.max() == LARGEST_WEIGHT < found.largest
    assert found.weights.mean() == pytest.approx(1 - expected, abs=0.1)


def test_overlap_by_hand() -> None:
    found = overlap(Importance(np.array([2.0, 0.0, 1.0, 1.0]), np.array([0.0, 0.1, 0, 0.1]), 2.0))
    assert found == Overlap(effective=16 / 6, largest=2.0, lost=0.05, mean=1.0)
    assert overlap(Importance(np.zeros(3), np.ones(3), 0.0)).effective == 0


def test_too_little_overlap_is_refused_with_the_numbers_and_what_to_do() -> None:
    require_overlap(Overlap(300, 20, 0.1, 0.9), 5_000)
    with pytest.raises(TooLittleData, match=r"at least 300 .* seen 12.3 of 5,000.*concentration"):
        require_overlap(Overlap(12.34, 900, 0.01, 1.0), 5_000)
    with pytest.raises(TooLittleData, match=r"at most 10% of the target .* and 35.0%"):
        require_overlap(Overlap(2_000, 900, 0.35, 0.65), 5_000)


def test_estimates_of_constant_rewards_by_hand() -> None:
    logged = decisions(np.random.default_rng(4), 2_000, np.array([2.0, 2.0, 2.0]))
    logged = logged._replace(rewards=np.full(2_000, 5.0))
    alpha = of_all([2.5, 2.0, 2.0], 2_000)
    (look,) = looks(logged, alpha, FLOORS, np.array([2_000]))
    weights = importance(logged, alpha, FLOORS).weights
    by = look.by_estimator
    assert by["ips"].estimate.value == pytest.approx(5 * weights.mean())
    assert by["snips"].estimate.value == pytest.approx(5)
    assert by["snips"].estimate.standard_error == pytest.approx(0, abs=1e-9)
    # Once a model knows the constant, the correction is 0 whatever the weights.
    tail = 5 * weights[:FIRST_FIT].sum() + 5 * (2_000 - FIRST_FIT)
    assert by["dr"].estimate.value == pytest.approx(tail / 2_000, rel=1e-6)


def test_estimators_are_right_and_cover() -> None:
    """120 logs of 1,500: at most 18 misses are five standard errors; sequences at five looks."""
    generator = np.random.default_rng(5)
    target = np.array([4.0, 2.0, 2.0])
    truth = 0.5 + 0.3  # the mean of x_1 under the target, and the rest
    misses = dict.fromkeys(ESTIMATORS, 0)
    ever = dict.fromkeys(ESTIMATORS, 0)
    errors: dict[str, list[float]] = {name: [] for name in ESTIMATORS}
    for _ in range(120):
        logged = decisions(generator, 1_500, np.array([3.0, 3.0, 3.0]))
        found = looks(logged, of_all(target.tolist(), 1_500), FLOORS, np.arange(500, 1_501, 250))
        for name in ESTIMATORS:
            valued = [look.by_estimator[name] for look in found]
            last = valued[-1].interval
            misses[name] += not last.low <= truth <= last.high
            ever[name] += not all(v.sequence.low <= truth <= v.sequence.high for v in valued)
            errors[name].append(valued[-1].estimate.value - truth)
    for name in ESTIMATORS:
        assert misses[name] <= 18, name
        assert ever[name] <= 18, name
        bias, spread = np.mean(errors[name]), np.std(errors[name])
        assert abs(bias) < 4 * spread / math.sqrt(120), name
    assert np.std(errors["dr"]) < np.std(errors["ips"])


def test_nothing_is_said_before_the_effective_sample_is_large_enough() -> None:
    logged = decisions(np.random.default_rng(6), 1_000, np.array([3.0, 3.0, 3.0]))
    found = looks(logged, logged.alpha, FLOORS, np.array([100, 299, 301, 1_000]), least=300)
    assert [look.requests for look in found] == [301, 1_000]


def test_a_prediction_depends_on_earlier_rewards_alone() -> None:
    logged = decisions(np.random.default_rng(7), 600, np.array([3.0, 3.0, 3.0]))
    x = draw_simplex(np.random.default_rng(8), np.array(logged.alpha), 1)[:, 0]
    before = predictions(logged.features, x, logged.rewards, logged.alpha)
    assert not np.concatenate(before).reshape(2, -1)[:, :FIRST_FIT].any()
    changed = logged.rewards.copy()
    changed[500:] += 100
    after = predictions(logged.features, x, changed, logged.alpha)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one[:501], other[:501])


def test_the_model_over_a_dirichlet_is_the_mean_of_its_predictions_over_draws() -> None:
    generator = np.random.default_rng(9)
    logged = decisions(generator, 800, np.array([3.0, 3.0, 3.0]))
    x = (logged.weights - FLOORS) / 0.7
    model = DirectModel.fitted(logged.features, x, logged.rewards)
    alpha, draws = np.array([[2.0, 5.0, 1.0]]), 40_000
    drawn = draw_simplex(generator, alpha, draws)[0]
    predicted = model.at(np.broadcast_to(logged.features[:1], (draws, 2)), drawn)
    exact = float(model.over(logged.features[:1], alpha)[0])
    assert predicted.std() > 0.01
    assert exact == pytest.approx(predicted.mean(), abs=5 * predicted.std() / math.sqrt(draws))
