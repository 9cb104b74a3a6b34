"""What changed between two versions of a policy: figures, tensors, and what they answer."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from grade.v1.parameters_pb2 import ParameterSnapshot, Version
from grade.v1.refused_pb2 import Reason

from policy.dirichlet import simplex_to_weights
from policy.errors import SnapshotRefused
from policy.schema import Schema
from serving.serving_policy import ServingPolicy
from serving.snapshot import load_policy

Floats = npt.NDArray[np.float64]

FIGURES = (
    "reward",
    "kl",
    "concentration",
    "gate",
    "clip_fraction",
    "gradient_norm",
    "groups",
    "informative_groups",
)
"""Figures of a version that are compared, by their names in the contract."""

MOST_PROBES = 5
"""Contexts that are shown: the middle one, and those where the two versions differ most."""


class Change(NamedTuple):
    """One figure before and after; None where one of the versions has none."""

    name: str
    before: float | None
    after: float | None


class TensorChange(NamedTuple):
    """How far one tensor moved."""

    name: str
    largest: float
    """Largest change of a number in it."""
    relative: float
    """Norm of the change, divided by the norm before; infinite from nothing."""
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    """Before and after; if they differ nothing else is said (NaN)."""


class Probe(NamedTuple):
    """What both versions would answer for one context."""

    context: str
    before: Floats
    """[objective] mean fusion weights."""
    after: Floats
    """[objective] mean fusion weights."""


class Loaded(NamedTuple):
    """A snapshot whose parameters were checked."""

    schema: Schema
    tensors: dict[str, Floats]
    policy: ServingPolicy


def load(snapshot: ParameterSnapshot, schema: Schema) -> Loaded:
    """Check a snapshot as a server does, and take it apart.

    Args:
        snapshot: as published.
        schema: of its generation.

    Raises:
        SnapshotRefused: naming the first check that failed.
    """
    policy = load_policy(snapshot, schema)
    return Loaded(schema, safetensors.numpy.load(snapshot.parameters), policy)


def figure_changes(before: Version, after: Version) -> list[Change]:
    """The figures of `FIGURES` side by side, named in words."""
    return [
        Change(name.replace("_", " "), getattr(before, name), getattr(after, name))
        for name in FIGURES
    ]


def weight_changes(before: Mapping[str, float], after: Mapping[str, float]) -> list[Change]:
    """Mean fusion weights side by side, named after their objectives.

    Args:
        before: by name of the objective.
        after: by name of the objective; objectives may have come or gone.
    """
    names = list(dict.fromkeys([*before, *after]))
    return [Change(f"weight of {name}", before.get(name), after.get(name)) for name in names]


def mean_weights(version: Version, schema: Schema | None) -> dict[str, float]:
    """Mean fusion weights of a version's slot by objective, by number where names aren't known.

    Args:
        version: its lineage; a version that was taken over has none.
        schema: of its generation, if known.
    """
    weights: Sequence[float] = version.mean_weights
    if schema is not None and schema.n_objectives == len(weights):
        names = [objective.name for objective in schema.objectives]
    else:
        names = [f"objective {number}" for number in range(len(weights))]
    return dict(zip(names, weights, strict=True))


def tensor_changes(before: Mapping[str, Floats], after: Mapping[str, Floats]) -> list[TensorChange]:
    """How far every tensor moved, by relative change, the farthest first."""
    found = []
    for name in sorted(before.keys() & after.keys()):
        shapes = before[name].shape, after[name].shape
        if shapes[0] != shapes[1]:
            found.append(TensorChange(name, np.nan, np.inf, shapes))
            continue
        change, norm = after[name] - before[name], float(np.linalg.norm(before[name]))
        moved = float(np.linalg.norm(change))
        relative = moved / norm if norm else (np.inf if moved else 0.0)
        found.append(TensorChange(name, float(np.abs(change).max()), relative, shapes))
    return sorted(found, key=lambda each: (-each.relative, each.name))


def probe_changes(before: Loaded, after: Loaded) -> list[Probe]:
    """What two versions answer in the middle of the contexts, and where they differ most.

    The contexts are the mean that the later version has measured, and each feature one standard
    deviation off it.

    Args:
        before: the earlier version.
        after: the later version; same features in the same order.

    Raises:
        SnapshotRefused: the versions have other features or objectives.
    """
    for kind in ("features", "objectives"):
        wanted, seen = (
            ", ".join(each.name for each in getattr(of.schema, kind)) for of in (before, after)
        )
        if wanted != seen:
            raise SnapshotRefused("schema", f"{kind} {wanted}", seen, Reason.REASON_UNKNOWN_SCHEMA)
    middle, scale = after.tensors["feature_mean"], after.tensors["feature_scale"]
    names, contexts = ["the mean context"], [middle]
    for at, feature in enumerate(after.schema.features):
        for sign, word in ((1, "+"), (-1, "-")):
            context = middle.copy()
            context[at] += sign * scale[at]
            names.append(f"{feature.name} {word} 1 deviation")
            contexts.append(context)
    batch = np.array(contexts).astype(np.float32)
    first, second = (_mean_weights(each, batch) for each in (before, after))
    probes = [Probe(*each) for each in zip(names, first, second, strict=True)]
    apart = sorted(probes[1:], key=lambda each: -float(np.abs(each.after - each.before).sum()))
    return [probes[0], *apart[: MOST_PROBES - 1]]


def _mean_weights(version: Loaded, contexts: npt.NDArray[np.float32]) -> Floats:
    """[context, objective] mean fusion weights of the Dirichlets, floors included."""
    alpha = version.policy.alpha(contexts)
    mean = alpha / alpha.sum(axis=-1, keepdims=True)
    return np.asarray(simplex_to_weights(mean, version.schema.floors()))
