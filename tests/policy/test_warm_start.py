from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

from policy.batch import Requests, padded
from policy.errors import DataError
from policy.initial import CONCENTRATION_BOUNDS, initial_mean, parameter_shapes
from policy.logged_fit import OBJECTIVES, Objective, WarmStartSettings
from policy.rewards import ideal
from policy.schema import Schema, parse_schema
from policy.trainer import Trainer
from policy.trainer_settings import TrainerSettings
from policy.warm_start import WarmStart, dirichlet_mean, measured, usual_gain, warm_start

QUICK = WarmStartSettings(objective="likelihood", steps=160, check_every=40, dropout=0.3)


def schema(normalise: str = "request") -> Schema:
    return parse_schema(
        'policy = "p"\nfeatures = ["f", "g"]\n'
        '[[objectives]]\nname = "a"\nbaseline = 0.5\n[[objectives]]\nname = "b"\nbaseline = 0.5\n'
        '[[outcomes]]\nname = "click"\ngain = 1.0\n[attribution]\nwindow_s = 5.0\n'
        f'[reward]\nnormalise = "{normalise}"\n'
    )


def log(by_context: bool, requests: int = 600) -> tuple[Requests, np.ndarray]:
    """Lists of 5; users choose by 3 × (.8, .2) · signals, or the other way round as f says."""
    draw = np.random.default_rng(0)
    features = draw.normal(size=(requests, 2)) * [10.0, 1.0] + [50.0, 0.0]
    signals = draw.normal(size=(requests, 5, 2))
    turned = (features[:, :1] > 50) & by_context
    appeal = np.exp(3 * np.einsum("rim,rm->ri", signals, np.where(turned, [0.2, 0.8], [0.8, 0.2])))
    passed = appeal.cumsum(axis=1) > draw.random((requests, 1)) * appeal.sum(axis=1)[:, None]
    gains = np.eye(5)[passed.argmax(axis=1)]
    ones = np.ones(5 * requests)
    present = np.ones((requests, 5), dtype=np.bool_)
    return (
        padded(features, present, signals.reshape(-1, 2), gains.ravel(), ones, ones),
        np.arange(requests) % 2,
    )


@lru_cache
def learned(objective: Objective, by_context: bool) -> WarmStart:
    return warm_start(schema(), *log(by_context), replace(QUICK, objective=objective))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_weights_by_the_context_are_found_and_let_in(objective: Objective) -> None:
    found = learned(objective, True)
    assert found.gate > 0
    means = dirichlet_mean(found.tensors, np.array([[30.0, 0.0], [70.0, 0.0]]))
    assert means[0, 0] > 0.55
    assert means[1, 1] > 0.55
    assert found.held_out[found.gate] > found.held_out[0.0] + 0.02


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_context_that_tells_nothing_stays_out(objective: Objective) -> None:
    found = learned(objective, False)
    assert found.gate == 0
    assert found.static.steps > 0
    means = dirichlet_mean(found.tensors, np.array([[30.0, 0.0], [70.0, 0.0]]))
    assert means[:, 0] == pytest.approx([means[0, 0]] * 2)
    assert means[0, 0] > 0.555


def test_the_best_is_what_ranks_held_out_requests_best() -> None:
    """As each objective alone says of them."""
    requests, folds = log(False)
    quick = replace(QUICK, steps=80, objective="best")
    found = warm_start(schema(), requests, folds, quick)
    alone = {
        each: warm_start(schema(), requests, folds, replace(quick, objective=each))
        for each in OBJECTIVES
    }
    best = max(OBJECTIVES, key=lambda each: alone[each].held_out[0.0])
    assert found.held_out[0.0] == alone[best].held_out[0.0]
    assert found.static == alone[best].static
    assert (
        found.tensors["static_logits"].tobytes() == alone[best].tensors["static_logits"].tobytes()
    )
    best = max(OBJECTIVES, key=lambda each: alone[each].held_out[1.0])
    assert found.contextual == alone[best].contextual
    assert found.tensors["mean_weight"].tobytes() == alone[best].tensors["mean_weight"].tobytes()


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    first = learned("likelihood", True).tensors
    again = warm_start(schema(), *log(True), QUICK).tensors
    assert {name: each.tobytes() for name, each in first.items()} == {
        name: each.tobytes() for name, each in again.items()
    }
    other = warm_start(schema(), *log(True), replace(QUICK, seed=1, steps=40)).tensors
    assert other["hidden0_weight"].tobytes() != first["hidden0_weight"].tobytes()


def test_the_tensors_are_those_that_stage_2_starts_from() -> None:
    found = learned("likelihood", True)
    assert {name: each.shape for name, each in found.tensors.items()} == parameter_shapes(schema())
    trainer = Trainer(schema(), TrainerSettings(), start=found.tensors)
    served = trainer.serving_parameters()
    assert trainer.opening() == found.gate > 0
    for name, each in found.tensors.items():
        assert served[name].tobytes() == each.tobytes()


def test_features_are_measured_and_the_concentration_keeps_the_budget() -> None:
    found, requests = learned("direct", True), log(True)[0]
    assert found.tensors["feature_mean"] == pytest.approx(requests.features.mean(axis=0), rel=0.05)
    assert found.tensors["feature_scale"] == pytest.approx(requests.features.std(axis=0), rel=0.05)
    assert found.exploration.cost <= QUICK.exploration_budget
    low, high = CONCENTRATION_BOUNDS
    assert low < found.exploration.concentration < high
    assert not found.tensors["concentration_weight"].any()


def test_held_out_requests_that_say_the_opposite_leave_the_baseline() -> None:
    """Each part contradicts the other: no step helps on what is held out."""
    requests, _ = log(False, 200)
    half = np.arange(200) % 2
    signals = requests.signals.copy()
    signals[half == 1, :, 0] *= -1
    opposed = requests._replace(signals=signals)
    found = warm_start(schema(), opposed, half, QUICK)
    assert found.static.steps == 0
    assert found.gate == 0
    mean = dirichlet_mean(found.tensors, requests.features[:1])[0]
    assert mean == pytest.approx(initial_mean(schema()))


def test_gains_are_shares_of_the_own_ideal_or_of_the_mean_one() -> None:
    """Ideals 2 and 6 (the first of two items gained all); one request earned nothing."""
    values = np.array([[2.0, 0.0], [6.0, 0.0], [0.0, 0.0]])
    requests = Requests(
        np.zeros((3, 2)), np.zeros((3, 2, 2)), values, values,
        np.ones((3, 2)), np.ones((3, 2), dtype=np.bool_), ideal(values),
    )  # fmt: skip
    assert usual_gain(schema(), requests)[:, 0].tolist() == [2, 6, 1]
    assert usual_gain(schema("running_mean"), requests)[:, 0].tolist() == [4, 4, 4]


def test_one_wild_context_late_in_a_log_is_not_believed() -> None:
    features = np.tile([[0.0, 1.0], [2.0, 3.0]], (256, 1))
    features[-1] = 1e9
    mean, scale = measured(features)
    assert mean == pytest.approx([1.0, 2.0], abs=0.1)
    assert scale == pytest.approx([1.0, 1.0], abs=0.2)


def test_too_little_is_refused() -> None:
    requests, folds = log(False, 8)
    with pytest.raises(
        DataError, match=r"expected requests with an outcome .* seen 8 such .* in 1"
    ):
        warm_start(schema(), requests, np.zeros_like(folds), QUICK)
    silent = requests._replace(values=np.zeros_like(requests.values))
    with pytest.raises(DataError, match="seen 0 such requests in 0"):
        warm_start(schema(), silent, folds, QUICK)
