"""What can be evaluated, and how it is said: weights, TOML, policy files."""

from pathlib import Path

import numpy as np
import pytest

from evaluation.target_policy import (
    around,
    parse_weights,
    read_target,
    static_target,
)
from policy import policy_file
from policy.errors import PolicyFileRefused, SchemaError, SettingsError
from policy.initial import initial_parameters
from policy.policy_file import PolicyFile
from policy.schema import parse_schema
from serving.serving_policy import ServingPolicy
from tests.stream.learner_world import SCHEMA

NAMES = [objective.name for objective in SCHEMA.objectives]
WEIGHTS = dict(zip(NAMES, (0.5, 0.2, 0.3), strict=True))


def test_the_dirichlet_around_weights_by_hand() -> None:
    # x = (0, 1) of weights (.2, .8) with a floor of .2; 98 % of it and 1 % evenly, times 50.
    alpha = around(np.array([0.2, 0.8]), np.array([0.2, 0.0]), 50.0)
    np.testing.assert_allclose(alpha, [0.5, 49.5], rtol=1e-4)


def test_static_weights_are_the_same_for_every_context() -> None:
    target = static_target(SCHEMA, WEIGHTS, None, "--weights")
    alpha = target.alpha(np.zeros((3, SCHEMA.n_features)))
    assert alpha.shape == (3, 3)
    assert (alpha == alpha[0]).all()
    assert alpha[0].sum() == pytest.approx(20)
    assert static_target(SCHEMA, WEIGHTS, 70.0, "").alpha_of_all.sum() == pytest.approx(70)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({NAMES[0]: 0.9}, "--weights: expected weights that sum to 1, seen a sum of 1.4"),
        ({"margin": 0.0}, "--weights: expected a weight for each of "),
        ({NAMES[0]: -0.1, NAMES[1]: 0.8}, "expected at least the schema's floor"),
        ({NAMES[0]: float("nan")}, "expected weights that sum to 1, seen a sum of nan"),
    ],
)
def test_wrong_weights_are_refused(changed: dict[str, float], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        static_target(SCHEMA, WEIGHTS | changed, None, "--weights")


@pytest.mark.parametrize("text", ["", "pctr", "pctr=a", "pctr=0.5,pctr=0.5", "=1", "a=inf"])
def test_weights_that_are_not_written_so_are_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"--weights: expected name=weight"):
        parse_weights(text)


def test_a_toml_file_says_weights_and_concentration(tmp_path: Path) -> None:
    path = tmp_path / "hand.toml"
    lines = "\n".join(f"{name} = {weight}" for name, weight in WEIGHTS.items())
    path.write_text(f"concentration = 40.0\n[weights]\n{lines}\n", "utf-8")
    features = np.zeros((1, SCHEMA.n_features))
    expected = static_target(SCHEMA, WEIGHTS, 40.0, "").alpha(features)
    np.testing.assert_array_equal(read_target(path, SCHEMA, None).alpha(features), expected)
    assert read_target(path, SCHEMA, 9.0).alpha(features).sum() == pytest.approx(9)
    path.write_text(f"[weights]\n{lines}\nmargin = 0.1\n", "utf-8")
    with pytest.raises(SchemaError, match=r"weights.margin: expected only keys"):
        read_target(path, SCHEMA, None)


def test_a_policy_file_samples_as_the_server_would(tmp_path: Path) -> None:
    tensors = initial_parameters(SCHEMA, seed=3)
    tensors["gate"] = np.ones(1)
    tensors["mean_weight"] += 0.05 * np.arange(tensors["mean_weight"].size).reshape(3, -1) % 0.1
    path = tmp_path / "exported"
    policy_file.write(path, PolicyFile(SCHEMA, tensors, epoch=1, version=4, generation=1))
    features = np.random.default_rng(1).standard_normal((5, SCHEMA.n_features)).astype(np.float32)
    served = ServingPolicy.from_tensors(tensors, epoch=1, version=4).alpha(features)
    assert served.std(axis=0).max() > 0
    found = read_target(path, SCHEMA, None).alpha(features.astype(np.float64))
    np.testing.assert_array_equal(found, served)
    sharper = read_target(path, SCHEMA, 90.0).alpha(features.astype(np.float64))
    np.testing.assert_allclose(sharper.sum(axis=1), 90)
    mean = served / served.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(sharper / 90, mean, rtol=1e-12)


def test_another_policys_file_is_refused(tmp_path: Path) -> None:
    tensors = initial_parameters(SCHEMA, seed=3)
    path = tmp_path / "exported"
    policy_file.write(path, PolicyFile(SCHEMA, tensors, epoch=1, version=4, generation=1))
    other = parse_schema(SCHEMA.toml.replace('policy = "example"', 'policy = "another"'))
    with pytest.raises(PolicyFileRefused, match="expected a file of policy 'another'"):
        read_target(path, other, None)
