"""From a published snapshot to a policy that may be served: every check, in order."""

import hashlib
from collections.abc import Mapping, Set
from typing import Final

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from grade.v1.parameters_pb2 import ParameterSnapshot
from grade.v1.refused_pb2 import Reason

from policy.adoption import adopt_parameters
from policy.dirichlet import draw_simplex, keyed_generator, log_density, simplex_to_weights
from policy.errors import SnapshotRefused, cut, quoted
from policy.initial import (
    CONCENTRATION_BOUNDS,
    CONTEXT_CLIP,
    LEAST_MEAN_FLOOR,
    LEAST_SCALE,
    MEAN_FLOOR,
    parameter_shapes,
)
from policy.schema import Schema
from serving.serving_policy import ServingPolicy

Floats = npt.NDArray[np.float64]

LARGEST_EPOCH: Final = 10**8 - 1
LARGEST_VERSION: Final = 10**12 - 1
"""As many digits as the name of a checkpoint has for them."""
LONGEST_SLOT_MS: Final = 86_400_000
LARGEST_HIDDEN: Final = 4096
"""Most hidden units; more would make every request slow."""
LARGEST_MAGNITUDE: Final = 1e3
"""Of weights and biases: far beyond anything that is learned."""
LARGEST_LOGIT: Final = 1e5
"""That any context could cause. Beyond it float64 no longer holds the mean to nine digits, so that
server and learner would disagree about what was served."""
LARGEST_MEASURED: Final = 1e30
"""Of feature means and scales; the learner's stay within `policy.initial.LARGEST_FEATURE`."""
CONCENTRATION_SLACK: Final = 0.01
"""How far rounding may carry a sum of alpha beyond its bounds, as a share."""
SIMPLEX_SLACK: Final = 1e-5
"""How far float32 may carry a sum of weights from 1, or a weight below its floor."""

_RANDOM_PROBES = 16
_PROBE_MEMBERS = 4


def load_policy(
    snapshot: ParameterSnapshot, schema: Schema, others: Mapping[bytes, Schema] | None = None
) -> ServingPolicy:
    """Check a snapshot and build the policy that it describes.

    Args:
        snapshot: as published.
        schema: the schema that is served.
        others: schemas of other generations by their digests; what was learned under one of them
            is carried over to the served one.

    Raises:
        SnapshotRefused: naming the first check that failed: `policy`, `version`, `checksum`,
            `schema`, `tensors`, `finite`, `bounds` or `self_test`.
    """
    _expect(
        "policy",
        snapshot.policy == schema.policy,
        repr(schema.policy),
        quoted(snapshot.policy),
        Reason.REASON_UNKNOWN_POLICY,
    )
    _check_version(snapshot)
    digest = hashlib.sha256(snapshot.parameters).digest()
    _expect(
        "checksum",
        digest == snapshot.parameters_sha256,
        f"sha256 {_short(snapshot.parameters_sha256)} of the parameters",
        f"{_short(digest)} over {len(snapshot.parameters)} bytes",
        Reason.REASON_CHECKSUM,
    )
    learned_under = {**(others or {}), schema.digest: schema}.get(snapshot.schema_digest)
    if learned_under is None:
        known = " or one of another generation" if others else ""
        raise SnapshotRefused(
            "schema",
            f"schema digest {_short(schema.digest)}{known}",
            _short(snapshot.schema_digest),
            Reason.REASON_UNKNOWN_SCHEMA,
        )
    tensors = _tensors(snapshot.parameters, learned_under)
    _check_finite(tensors)
    _check_bounds(tensors)
    if learned_under != schema:
        tensors = adopt_parameters(tensors, learned_under, schema)
        _check_finite(tensors)
        _check_bounds(tensors)
    policy = ServingPolicy.from_tensors(
        tensors,
        epoch=snapshot.epoch,
        version=snapshot.version,
        slot=snapshot.slot,
        slot_ms=snapshot.slot_ms,
    )
    _self_test(policy, schema)
    return policy


def _check_version(snapshot: ParameterSnapshot) -> None:
    """A version so large that no learner follows it would be served for ever."""
    _expect(
        "version",
        1 <= snapshot.epoch <= LARGEST_EPOCH and 1 <= snapshot.version <= LARGEST_VERSION,
        f"epoch and version of at least 1 and at most {LARGEST_EPOCH} and {LARGEST_VERSION}",
        f"epoch {snapshot.epoch}, version {snapshot.version}",
    )
    _expect(
        "version",
        snapshot.slot >= -1 and 0 <= snapshot.slot_ms <= LONGEST_SLOT_MS,
        f"a slot of at least -1, of at most {LONGEST_SLOT_MS} ms",
        f"slot {snapshot.slot} of {snapshot.slot_ms} ms",
    )


def _tensors(file: bytes, schema: Schema) -> dict[str, Floats]:
    try:
        tensors = safetensors.numpy.load(file)
    # The bytes come from outside, and what safetensors raises for bad ones is not documented.
    except Exception as error:
        raise SnapshotRefused(
            "tensors",
            "a safetensors file",
            f"{len(file)} bytes: {type(error).__name__}: {cut(str(error))}",
            Reason.REASON_UNDECODABLE,
        ) from None
    first = tensors.get("hidden0_weight")
    hidden = first.shape[0] if first is not None and first.ndim else 0
    _expect(
        "tensors",
        first is None or 1 <= hidden <= LARGEST_HIDDEN,
        f"1 to {LARGEST_HIDDEN} hidden units",
        str(hidden),
    )
    shapes = parameter_shapes(schema, hidden)
    missing = shapes.keys() - tensors.keys()
    _expect(
        "tensors",
        tensors.keys() == shapes.keys(),
        "the tensors " + ", ".join(sorted(shapes)),
        _difference(shapes.keys(), tensors.keys()),
        Reason.REASON_MISSING_FIELD if missing else Reason.REASON_UNKNOWN_FIELD,
    )
    for name, shape in shapes.items():
        expected = f"{name} of float64{list(shape)}"
        seen = f"{tensors[name].dtype}{list(tensors[name].shape)}"
        same_type, same_shape = tensors[name].dtype == np.float64, tensors[name].shape == shape
        _expect("tensors", same_type, expected, seen, Reason.REASON_WRONG_TYPE)
        _expect("tensors", same_shape, expected, seen, Reason.REASON_WRONG_DIMENSION)
    return tensors


def _difference(wanted: Set[str], seen: Set[str]) -> str:
    missing, further = sorted(wanted - seen), sorted(seen - wanted)
    parts = []
    if missing:
        parts.append("none named " + ", ".join(missing))
    if further:
        parts.append("further ones named " + ", ".join(further))
    return cut("; ".join(parts))


def _check_finite(tensors: Mapping[str, Floats]) -> None:
    for name, tensor in tensors.items():
        wrong = np.argwhere(~np.isfinite(tensor))
        if len(wrong):
            place = tuple(int(i) for i in wrong[0])
            raise SnapshotRefused(
                "finite",
                f"finite numbers in {name}",
                f"{tensor[place]} at {list(place)}",
                Reason.REASON_NOT_FINITE,
            )


def _check_bounds(tensors: Mapping[str, Floats]) -> None:
    for name, tensor in tensors.items():
        low, high = _bounds(name)
        if tensor.min() < low or tensor.max() > high:
            raise SnapshotRefused(
                "bounds",
                f"{name} in [{low:g}, {high:g}]",
                f"[{tensor.min():g}, {tensor.max():g}]",
                Reason.REASON_OUT_OF_RANGE,
            )
    reach = _reach(tensors)
    _expect("bounds", reach <= LARGEST_LOGIT, f"logits up to {LARGEST_LOGIT:g}", f"{reach:g}")


def _reach(tensors: Mapping[str, Floats]) -> float:
    """The largest logit that any context could cause, by the triangle inequality."""
    hidden = np.full(tensors["feature_mean"].shape, CONTEXT_CLIP)
    for layer in ("hidden0", "hidden1"):
        hidden = np.abs(tensors[f"{layer}_weight"]) @ hidden + np.abs(tensors[f"{layer}_bias"])
    return max(
        float((np.abs(tensors[f"{head}_weight"]) @ hidden + np.abs(tensors[f"{head}_bias"])).max())
        for head in ("mean", "concentration")
    )


def _bounds(name: str) -> tuple[float, float]:
    if name == "gate":
        return 0.0, 1.0
    if name == "mean_floor":
        return LEAST_MEAN_FLOOR, MEAN_FLOOR
    if name == "feature_scale":
        return LEAST_SCALE, LARGEST_MEASURED
    if name == "feature_mean":
        return -LARGEST_MEASURED, LARGEST_MEASURED
    return -LARGEST_MAGNITUDE, LARGEST_MAGNITUDE


def _self_test(policy: ServingPolicy, schema: Schema) -> None:
    """Ask the policy what the server would ask it, for contexts from the middle to the extreme."""
    probes = _probes(policy)
    floors = schema.floors()
    alpha = policy.alpha(probes)
    _expect(
        "self_test",
        bool(np.isfinite(alpha).all() and (alpha > 0).all()),
        "alpha above 0 and finite for every probe context",
        f"{alpha.min()} to {alpha.max()}",
    )
    total = alpha.sum(axis=-1)
    low, high = CONCENTRATION_BOUNDS
    _expect(
        "self_test",
        bool(
            total.min() >= low * (1 - CONCENTRATION_SLACK)
            and total.max() <= high * (1 + CONCENTRATION_SLACK)
        ),
        f"sums of alpha in [{low:g}, {high:g}]",
        f"[{total.min():g}, {total.max():g}]",
    )
    mean = simplex_to_weights(alpha / total[:, None], floors)
    _check_weights(mean, floors, "mean weights")
    drawn = draw_simplex(keyed_generator("self-test"), alpha, _PROBE_MEMBERS)
    weights = simplex_to_weights(drawn, floors).astype(np.float32)
    _check_weights(weights.astype(np.float64), floors, "drawn weights")
    density = log_density(weights, alpha[:, None, :], floors)
    _expect(
        "self_test",
        bool(np.isfinite(density).all()),
        "finite log densities of drawn weights",
        f"{density.min()} to {density.max()}",
    )


def _check_weights(weights: Floats, floors: Floats, what: str) -> None:
    """[..., objective] weights must lie on the simplex, at or above their floors."""
    sums = weights.sum(axis=-1)
    _expect(
        "self_test",
        bool(np.abs(sums - 1).max() <= SIMPLEX_SLACK),
        f"{what} that sum to 1",
        f"sums from {sums.min():.9g} to {sums.max():.9g}",
    )
    above = (weights - floors).reshape(-1, len(floors)).min(axis=0)
    _expect(
        "self_test",
        bool(above.min() >= -SIMPLEX_SLACK),
        f"{what} at or above the floors {floors.tolist()}",
        f"one {-above.min():.3g} below",
    )


def _probes(policy: ServingPolicy) -> npt.NDArray[np.float32]:
    """[probe, feature] the mean context, all features far out, and some in between."""
    mean, scale = policy.feature_mean, policy.feature_scale
    largest = float(np.finfo(np.float32).max)
    random = keyed_generator("probes").uniform(-1, 1, (_RANDOM_PROBES, len(mean)))
    contexts = np.vstack(
        [
            mean,
            mean + CONTEXT_CLIP * scale,
            mean - CONTEXT_CLIP * scale,
            mean + CONTEXT_CLIP * random * scale,
            np.zeros_like(mean),
            np.full_like(mean, largest),
            np.full_like(mean, -largest),
        ]
    )
    return np.clip(contexts, -largest, largest).astype(np.float32)


def _expect(
    check: str,
    holds: bool,
    expected: str,
    seen: str,
    reason: "Reason.ValueType" = Reason.REASON_OUT_OF_RANGE,
) -> None:
    if not holds:
        raise SnapshotRefused(check, expected, seen, reason)


def _short(digest: bytes) -> str:
    return f"{digest.hex()[:16]}…" if digest else "none"
