import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.initial import CONCENTRATION_BOUNDS, MEAN_FLOOR, initial_parameters
from policy.network import FIXED, PolicyNetwork, configure_torch, dropout, mixed_mean
from serving.serving_policy import ServingPolicy
from tests.policy.forward import forward
from tests.policy.groups import make_schema

Floats = npt.NDArray[np.float64]


def wild_parameters(seed: int, features: int, objectives: int, spread: float) -> dict[str, Floats]:
    """Parameters far from the initial ones, every tensor random."""
    generator = np.random.default_rng(seed)
    first = initial_parameters(make_schema(features=features, objectives=objectives), seed=0)
    wild = {
        name: generator.normal(size=tensor.shape) * spread / math.sqrt(tensor.shape[-1])
        for name, tensor in first.items()
    }
    wild["feature_scale"] = np.exp(generator.normal(size=features) * 3)
    floors = generator.choice([1e-200, 1e-9, 1e-3, MEAN_FLOOR / objectives], size=objectives)
    wild["mean_floor"] = floors
    wild["gate"] = np.array([generator.choice([0.0, 0.25, 0.5, 1.0])])
    return wild


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32),
    features=st.integers(1, 40),
    objectives=st.integers(2, 12),
    spread=st.sampled_from([0.1, 1.0, 4.0]),
)
def test_torch_numpy_and_the_formula_agree(
    seed: int, features: int, objectives: int, spread: float
) -> None:
    parameters = wild_parameters(seed, features, objectives, spread)
    contexts = np.random.default_rng(seed + 1).normal(size=(3, features)).astype(np.float32) * 10
    slow = forward(parameters, contexts)
    with torch.no_grad():
        learner = PolicyNetwork(parameters)(torch.from_numpy(contexts.astype(np.float64))).numpy()
    server = ServingPolicy.from_tensors(parameters, epoch=1, version=1).alpha(contexts)
    np.testing.assert_allclose(learner, slow, rtol=1e-11)
    np.testing.assert_allclose(server, slow, rtol=1e-11)
    total = slow.sum(axis=-1)
    assert (total > CONCENTRATION_BOUNDS[0] * (1 - 1e-12)).all()
    assert (total < CONCENTRATION_BOUNDS[1] * (1 + 1e-12)).all()
    assert (slow >= parameters["mean_floor"] * total[:, None] * (1 - 1e-12)).all()


def test_tensors_go_in_and_come_out_unchanged() -> None:
    parameters = wild_parameters(0, 5, 3, 1.0)
    network = PolicyNetwork(parameters)
    out = network.tensors()
    assert out.keys() == parameters.keys()
    for name, tensor in parameters.items():
        assert out[name].tobytes() == tensor.tobytes()
    out["gate"][0] = 7
    assert network.get_buffer("gate")[0] == parameters["gate"][0]


def test_what_is_measured_has_no_gradient() -> None:
    network = PolicyNetwork(wild_parameters(0, 5, 3, 1.0))
    names = {name for name, _ in network.named_parameters()}
    assert names.isdisjoint(FIXED)
    network(torch.ones(2, 5, dtype=torch.float64)).log().sum().backward()
    # Outside the mean's own loss every learned tensor takes part, if the gate is partly open.
    network.get_buffer("gate").fill_(0.5)
    network.zero_grad()
    network(torch.ones(2, 5, dtype=torch.float64)).log().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("gate", [0.0, 0.25, 1.0])
def test_the_gate_mixes_logits(gate: float) -> None:
    network = PolicyNetwork(wild_parameters(1, 4, 3, 1.0))
    heads = network.heads(torch.zeros(2, 4, dtype=torch.float64))
    logits = (1 - gate) * heads.static_logits + gate * heads.contextual_logits
    expected = logits.exp() / logits.exp().sum(dim=-1, keepdim=True)
    torch.testing.assert_close(mixed_mean(heads, gate), expected)


def test_a_context_far_out_is_clipped() -> None:
    parameters = wild_parameters(2, 3, 3, 1.0)
    mean, scale = parameters["feature_mean"], parameters["feature_scale"]
    network = PolicyNetwork(parameters)
    far, edge = (torch.from_numpy(mean + factor * scale)[None] for factor in (1e6, 4.0))
    torch.testing.assert_close(network(far), network(edge))


def test_torch_is_configured_to_repeat() -> None:
    configure_torch()
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()


def test_dropout_leaves_units_out_and_keeps_what_is_expected() -> None:
    kept = dropout(np.random.default_rng(0), requests=400, hidden=64, share=0.6)
    assert kept is not None
    for layer in kept:
        values, counts = np.unique(layer.numpy(), return_counts=True)
        assert values.tolist() == [0.0, 1 / (1 - 0.6)]
        # Four standard deviations of a mean of 25,600 units.
        assert abs(counts[0] / layer.numel() - 0.6) < 4 * math.sqrt(0.6 * 0.4 / layer.numel())
    assert (kept[0] != kept[1]).any()
    assert dropout(np.random.default_rng(0), requests=4, hidden=64, share=0.0) is None


def test_a_hidden_unit_that_is_left_out_says_nothing() -> None:
    network = PolicyNetwork(wild_parameters(1, features=3, objectives=3, spread=1.0))
    features = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3)))
    nothing = torch.zeros((2, 64), dtype=torch.float64)
    heads = network.heads(features, (nothing + 1, nothing))
    bias = network.get_parameter("mean_bias").detach()
    assert torch.equal(heads.contextual_logits, bias.expand(2, -1))
    assert torch.equal(
        network.heads(features, (nothing + 1, nothing + 1)).contextual_logits,
        network.heads(features).contextual_logits,
    )
