import math

import numpy as np
import pytest

from policy.initial import (
    INITIAL_CONCENTRATION,
    LEAST_INITIAL_MEAN,
    MEAN_FLOOR,
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
    ],
)
def test_version_0_serves_the_baseline_for_every_context(schema: Schema) -> None:
    contexts = np.random.default_rng(0).normal(size=(20, schema.n_features)) * 100
    alpha = forward(initial_parameters(schema, seed=3), contexts)
    floors = schema.floors()
    mean = floors + (1 - floors.sum()) * alpha / alpha.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(mean - schema.baseline(), 0, atol=1e-12)
    np.testing.assert_allclose(alpha.sum(axis=-1), INITIAL_CONCENTRATION, rtol=1e-12)


def test_a_baseline_of_0_is_as_near_as_the_mean_floor_allows() -> None:
    schema = make_schema(objectives=4, baseline=[1.0, 0.0, 0.0, 0.0])
    alpha = forward(initial_parameters(schema, seed=0), np.zeros((1, 2)))[0]
    mean = alpha / alpha.sum()
    off = MEAN_FLOOR / 4 + LEAST_INITIAL_MEAN
    assert (mean[1:] < off).all()
    assert mean[0] > 1 - 3 * off


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
