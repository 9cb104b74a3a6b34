"""The policy function in numpy: equal to torch's, whatever the parameters and the batch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.network import PolicyNetwork
from policy.schema import Schema
from serving.serving_policy import ServingPolicy
from serving.snapshot import LARGEST_LOGIT, LARGEST_MAGNITUDE, load_policy
from tests.serving.parameters import (
    EXAMPLE,
    Tensors,
    made_schema,
    made_snapshot,
    made_tensors,
)

LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


@st.composite
def anything_allowed(draw: st.DrawFn, floors: float = 0.0) -> tuple[Schema, Tensors]:
    """Parameters of any size and magnitude that a server accepts; `floors` is the schema's sum."""
    schema = made_schema(draw(st.integers(1, 6)), draw(st.integers(2, 7)), floors)
    spread = 10.0 ** draw(st.floats(-4, 3))
    tensors = made_tensors(
        schema, draw(st.integers(0, 2**32)), hidden=draw(st.integers(1, 70)), spread=spread
    )
    for name, tensor in tensors.items():
        if name not in ("feature_scale", "gate"):
            np.clip(tensor, -LARGEST_MAGNITUDE, LARGEST_MAGNITUDE, out=tensor)
    tensors["gate"][0] = draw(st.floats(0, 1))
    tensors["feature_scale"] *= 10.0 ** draw(st.integers(-20, 20))
    _limit_reach(tensors)
    return schema, tensors


def _limit_reach(tensors: Tensors) -> None:
    """Scale the hidden layers down until no context can cause a forbidden logit."""
    while True:
        bound = np.full(tensors["feature_mean"].shape, 4.0)
        for layer in ("hidden0", "hidden1"):
            bound = np.abs(tensors[f"{layer}_weight"]) @ bound + np.abs(tensors[f"{layer}_bias"])
        reach = max(
            (np.abs(tensors[f"{head}_weight"]) @ bound + np.abs(tensors[f"{head}_bias"])).max()
            for head in ("mean", "concentration")
        )
        if reach <= LARGEST_LOGIT:
            return
        for name in ("hidden0_weight", "hidden0_bias", "hidden1_weight", "hidden1_bias"):
            tensors[name] /= 4
        # Mean and concentration biases alone stay far below the limit.


@given(
    anything_allowed(),
    st.lists(
        st.one_of(
            st.floats(-10, 10, width=32),
            st.floats(-LARGEST_FLOAT32, LARGEST_FLOAT32, width=32),
        ),
        min_size=6,
        max_size=6,
    ),
)
@settings(max_examples=100, deadline=None)
def test_numpy_forward_equals_torch_forward(
    allowed: tuple[Schema, Tensors], numbers: list[float]
) -> None:
    schema, tensors = allowed
    policy = load_policy(made_snapshot(1, schema=schema, tensors=tensors), schema)
    near = tensors["feature_mean"] + np.linspace(-5, 5, 7)[:, None] * tensors["feature_scale"]
    contexts = np.vstack([near, numbers[: schema.n_features]]).astype(np.float32)
    with torch.no_grad():
        expected = PolicyNetwork(tensors)(torch.tensor(contexts.astype(np.float64))).numpy()
    np.testing.assert_allclose(policy.alpha(contexts), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("features", [1, 3, 16, 33, 150])
def test_a_row_does_not_depend_on_the_batch(features: int) -> None:
    schema = made_schema(features, 5)
    tensors = made_tensors(schema, 3, hidden=64)
    policy = ServingPolicy.from_tensors(tensors, epoch=1, version=1)
    contexts = np.random.default_rng(1).normal(size=(67, features)).astype(np.float32)
    whole = policy.alpha(contexts)
    for batch in (1, 2, 7, 64):
        for start in range(0, 67 - batch, 13):
            part = policy.alpha(contexts[start : start + batch])
            assert part.tobytes() == whole[start : start + batch].tobytes()


def test_baseline_serves_the_declared_weights_for_every_context() -> None:
    policy = ServingPolicy.baseline(EXAMPLE)
    contexts = np.array([[0, 0, 0], [1e9, -5, 0.1]], dtype=np.float32)
    alpha = policy.alpha(contexts)
    np.testing.assert_allclose(alpha.sum(axis=-1), 20.0, rtol=1e-12)
    np.testing.assert_allclose(alpha / 20.0, [[0.5, 0.3, 0.2]] * 2, rtol=1e-12)
    assert policy.order == (0, 0)


def test_one_hand_computed_alpha() -> None:
    """One feature 3 away from its mean in units of its scale, one hidden unit, two objectives.

    z = 3; h1 = relu(2·3 - 1) = 5; h2 = relu(-1·5 + 6) = 1; contextual logits (ln 9, 0);
    the gate is open, so m = (.9, .1); sigmoid(0·1 + 0) = 1/2, so kappa = sqrt(4·200);
    alpha = kappa (.98 m + .01) = kappa (.892, .108).
    """
    schema = made_schema(1, 2)
    policy = load_policy(
        made_snapshot(
            1,
            schema=schema,
            tensors={
                "feature_mean": np.array([10.0]),
                "feature_scale": np.array([2.0]),
                "static_logits": np.array([7.0, -7.0]),
                "hidden0_weight": np.array([[2.0]]),
                "hidden0_bias": np.array([-1.0]),
                "hidden1_weight": np.array([[-1.0]]),
                "hidden1_bias": np.array([6.0]),
                "mean_weight": np.array([[np.log(9.0)], [0.0]]),
                "mean_bias": np.array([0.0, 0.0]),
                "concentration_weight": np.array([0.0]),
                "concentration_bias": np.array([0.0]),
                "gate": np.array([1.0]),
                "mean_floor": np.array([0.01, 0.01]),
            },
        ),
        schema,
    )
    kappa = 800**0.5
    alpha = policy.alpha(np.array([[16.0]], dtype=np.float32))
    np.testing.assert_allclose(alpha, [[kappa * 0.892, kappa * 0.108]], rtol=1e-12)


def test_a_policy_cannot_be_changed() -> None:
    tensors = made_tensors(EXAMPLE, 1)
    policy = ServingPolicy.from_tensors(tensors, epoch=1, version=1)
    before = policy.alpha(np.zeros((1, 3), dtype=np.float32))
    for tensor in tensors.values():
        tensor += 1
    assert policy.alpha(np.zeros((1, 3), dtype=np.float32)).tobytes() == before.tobytes()
    for array in (policy.feature_mean, policy.hidden1_weight, policy.heads_weight):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
