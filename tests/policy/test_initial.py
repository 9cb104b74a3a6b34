import math

import numpy as np
import pytest

from policy.initial import (
    INITIAL_CONCENTRATION,
    LEAST_INITIAL_MEAN,
    MEAN_FLOOR,
    initial_mean,
    initial_parameters,
    parameter_shapes,
)
from policy.schema import Schema
from tests.policy.forward import forward
from tests.policy.groups import make_schema


@pytest.mark.parametrize(
    "schema",
    [
        make_schema(features=1, objectives=2, baseline=[0.7, 0.3]),
        make_schema(features=16, objectives=5, baseline=[0.4, 0.3, 0.15, 0.1, 0.05]),
        make_schema(objectives=3, baseline=[0.6, 0.2, 0.2], floor=0.1),
        make_schema(objectives=3, baseline=[0.999, 0.0005, 0.0005]),
        make_schema(objectives=4, baseline=[0.5, 0.5 - 1e-6 - 1e-50, 1e-6, 1e-50]),
        make_schema(objectives=40, baseline=[0.961, *[0.001] * 39]),
    ],
)
def test_version_0_serves_the_baseline_for_every_context(schema: Schema) -> None:
    contexts = np.random.default_rng(0).normal(size=(20, schema.n_features)) * 100
    alpha = forward(initial_parameters(schema, seed=3), contexts)
    floors = schema.floors()
    mean = floors + (1 - floors.sum()) * alpha / alpha.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(mean - schema.baseline(), 0, atol=1e-12)
    np.testing.assert_allclose(alpha.sum(axis=-1), INITIAL_CONCENTRATION, rtol=1e-12)


def test_objectives_that_the_baseline_gives_nothing_start_a_little_above_it() -> None:
    """Two of them take .001 each; the others share the remaining .998 as they share 1."""
    schema = make_schema(objectives=4, baseline=[0.75, 0.0, 0.25, 0.0])
    alpha = forward(initial_parameters(schema, seed=0), np.zeros((1, 2)))[0]
    np.testing.assert_allclose(
        alpha / alpha.sum(), [0.75 * 0.998, 0.001, 0.25 * 0.998, 0.001], atol=1e-12
    )
    assert LEAST_INITIAL_MEAN == 0.001


def test_a_baseline_at_the_hard_floor_starts_a_little_above_it() -> None:
    schema = make_schema(objectives=3, baseline=[0.7, 0.1, 0.2], floor=0.1)
    np.testing.assert_allclose(
        initial_mean(schema), [0.6 / 0.7 * 0.999, 0.001, 0.1 / 0.7 * 0.999], atol=1e-12
    )


def test_floors_of_the_mean_are_equal_but_for_weights_near_them() -> None:
    schema = make_schema(objectives=4, baseline=[0.6, 0.388, 0.01, 0.002])
    floors = initial_parameters(schema, seed=0)["mean_floor"]
    np.testing.assert_allclose(floors, [0.005, 0.005, 0.005, 0.001], rtol=1e-12)
    assert MEAN_FLOOR == 0.02


def test_the_tensors_have_the_declared_names_and_shapes() -> None:
    schema = make_schema(features=7, objectives=4)
    parameters = initial_parameters(schema, seed=0)
    assert {name: tensor.shape for name, tensor in parameters.items()} == parameter_shapes(schema)
    assert {tensor.dtype for tensor in parameters.values()} == {np.dtype(np.float64)}


def test_hidden_layers_depend_on_the_seed_alone() -> None:
    schema = make_schema(features=7)
    one, same, other = (initial_parameters(schema, seed) for seed in (1, 1, 2))
    for name, tensor in one.items():
        assert tensor.tobytes() == same[name].tobytes()
    assert not np.array_equal(one["hidden0_weight"], other["hidden0_weight"])
    spread = one["hidden1_weight"].std()
    assert spread == pytest.approx(math.sqrt(2 / 64), rel=0.05)
