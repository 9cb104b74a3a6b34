"""What is evaluated off-policy: a policy file or static weights, as a Dirichlet for every request.

A policy file has its own Dirichlets. Static weights are a point, and a point has no density that
could be compared with the logged one: they stand for a Dirichlet around them, of a concentration
that is said. So does a policy file's mean, if a concentration is given for it too.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
from grade.v1.parameters_pb2 import ParameterSnapshot
from grade.v1.refused_pb2 import Reason

from policy import policy_file
from policy.dirichlet import simplex_to_weights, weights_to_simplex
from policy.errors import PolicyFileRefused, SchemaError, SettingsError, quoted
from policy.fusion import Floats
from policy.initial import INITIAL_CONCENTRATION, MEAN_FLOOR
from policy.schema import BASELINE_TOLERANCE, Schema
from policy.toml_table import Table, parse_toml, read_text
from serving.serving_policy import ServingPolicy
from serving.snapshot import load_policy

DEFAULT_CONCENTRATION = INITIAL_CONCENTRATION
"""Around static weights: what a policy explores with at its start."""


@dataclass(frozen=True, slots=True)
class StaticTarget:
    """The same weights for every request.

    Attributes:
        weights: [objective] fusion weights.
        alpha_of_all: [objective] the Dirichlet that stands for them.
    """

    weights: Floats
    alpha_of_all: Floats

    def alpha(self, features: Floats) -> Floats:
        """[request, objective] the same for every context [request, feature]."""
        return np.broadcast_to(self.alpha_of_all, (len(features), len(self.alpha_of_all)))


@dataclass(frozen=True, slots=True)
class PolicyTarget:
    """A policy as it would sample, or its mean with a concentration of its own.

    Attributes:
        policy: what would be served.
        floors: [objective] least weights of the schema.
        concentration: around the mean; None: as the policy itself says.
    """

    policy: ServingPolicy
    floors: Floats
    concentration: float | None

    def alpha(self, features: Floats) -> Floats:
        """[request, objective] Dirichlets of contexts [request, feature]."""
        alpha = self.policy.alpha(features.astype(np.float32))
        if self.concentration is None:
            return alpha
        return np.asarray(alpha * (self.concentration / alpha.sum(axis=1, keepdims=True)))


Target = StaticTarget | PolicyTarget


def around(weights: Floats, floors: Floats, concentration: float) -> Floats:
    """[objective] the Dirichlet that stands for static weights.

    Its mean is the weights' point of the simplex but for a share of `MEAN_FLOOR` that is spread
    evenly, as in every policy: an objective of weight 0 must have a density too.

    >>> around(np.array([0.5, 0.5]), np.zeros(2), 20.0).tolist()
    [10.0, 10.0]
    """
    x = weights_to_simplex(weights, floors)
    return np.asarray(concentration * ((1 - MEAN_FLOOR) * x + MEAN_FLOOR / len(x)))


def static_target(
    schema: Schema, named: Mapping[str, float], concentration: float | None, where: str
) -> StaticTarget:
    """Static weights by objective.

    Args:
        schema: the policy's schema.
        named: weight by objective, every one of them; they sum to 1.
        concentration: around them; None: `DEFAULT_CONCENTRATION`.
        where: what to call them in messages.

    Raises:
        SettingsError: a name, a number or the sum is wrong.
    """
    names = [objective.name for objective in schema.objectives]
    if set(named) != set(names):
        raise SettingsError(
            f"{where}: expected a weight for each of {', '.join(names)}, seen "
            f"{quoted(', '.join(named)) if named else 'none'}"
        )
    weights, floors = np.array([named[name] for name in names]), schema.floors()
    total = math.fsum(weights)
    if not abs(total - 1) <= BASELINE_TOLERANCE:
        raise SettingsError(f"{where}: expected weights that sum to 1, seen a sum of {total:g}")
    weights = weights / total
    for name, weight, floor in zip(names, weights.tolist(), floors.tolist(), strict=True):
        if weight < floor - BASELINE_TOLERANCE:
            raise SettingsError(
                f"{where}: {name}: expected at least the schema's floor {floor:g}, seen {weight:g}"
            )
    kappa = DEFAULT_CONCENTRATION if concentration is None else concentration
    return StaticTarget(weights, around(weights, floors, kappa))


def mean_weights(target: Target, features: Floats, schema: Schema) -> Floats:
    """[request, objective] the fusion weights that a target serves in the mean.

    Static weights are what they are: no Dirichlet stands for them where nothing is drawn.

    Args:
        target: as `read_target` gives it.
        features: [request, feature] in the schema's units.
        schema: the policy's schema.
    """
    if isinstance(target, StaticTarget):
        return np.tile(target.weights, (len(features), 1))
    alpha = target.alpha(features)
    return simplex_to_weights(alpha / alpha.sum(axis=1, keepdims=True), schema.floors())


def parse_weights(text: str) -> dict[str, float]:
    """Weights as they are written on a command line.

    Raises:
        SettingsError: naming the part that is none.

    >>> parse_weights("pctr=0.3, price=0.7")
    {'pctr': 0.3, 'price': 0.7}
    """
    named: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = (each.strip() for each in part.partition("="))
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not (name and math.isfinite(value)) or name in named:
            raise SettingsError(
                f"--weights: expected name=weight, separated by commas, each name once, "
                f"seen {quoted(part)}"
            )
        named[name] = value
    return named


def read_target(path: Path, schema: Schema, concentration: float | None) -> Target:
    """Read a target from a file: `grade export`'s, or TOML with a table [weights].

    Args:
        path: the file; TOML if it is called so.
        schema: the policy's schema.
        concentration: see `StaticTarget` and `PolicyTarget`; a TOML file may say its own.

    Raises:
        SchemaError: the TOML is wrong.
        PolicyFileRefused: it is no policy file, or another policy's.
        SettingsError: the weights are wrong.
        SnapshotRefused: the policy may not be served.
    """
    if path.suffix == ".toml":
        return _from_toml(path, schema, concentration)
    source = policy_file.read(path)
    if source.schema.policy != schema.policy:
        raise PolicyFileRefused(
            f"{path}: expected a file of policy {schema.policy!r}, seen one of "
            f"{source.schema.policy!r}",
            Reason.REASON_UNKNOWN_POLICY,
        )
    packed = safetensors.numpy.save({name: source.tensors[name] for name in sorted(source.tensors)})
    snapshot = ParameterSnapshot(
        policy=schema.policy,
        epoch=max(1, source.epoch),
        version=max(1, source.version),
        schema_digest=source.schema.digest,
        parameters=packed,
        parameters_sha256=hashlib.sha256(packed).digest(),
    )
    policy = load_policy(snapshot, schema, {source.schema.digest: source.schema})
    return PolicyTarget(policy, schema.floors(), concentration)


def _from_toml(path: Path, schema: Schema, concentration: float | None) -> StaticTarget:
    content = parse_toml(read_text(path, "a TOML file", SchemaError), str(path), SchemaError)
    top = Table(content, str(path), "")
    own = top.number(
        "concentration", "a number above 0", lambda x: x > 0, concentration or DEFAULT_CONCENTRATION
    )
    weights = top.table("weights")
    named = {
        objective.name: weights.number(objective.name, "a weight in [0, 1]", lambda x: 0 <= x <= 1)
        for objective in schema.objectives
    }
    weights.finish()
    top.finish()
    return static_target(schema, named, concentration or own, str(path))
