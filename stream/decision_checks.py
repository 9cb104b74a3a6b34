"""Checks of a decision's group: weights, Dirichlet and densities that belong together."""

from functools import lru_cache

import numpy as np
from grade.v1.decision_pb2 import ARM_HOLDOUT, ARM_POLICY, Decision
from grade.v1.refused_pb2 import Reason

from policy.dirichlet import Floats, log_density
from policy.schema import Schema
from stream.checks import MOST_MEMBERS, Invalid, check_finite, check_length, rows_of, shown

LARGEST_ALPHA = 1e6
"""A sum of alpha beyond it is no exploration; log gamma loses its digits there."""

SIMPLEX_TOLERANCE = 1e-3
"""How far the sum of a member's weights may be from 1."""

FLOAT32_TOLERANCE = 1e-5
"""How far a weight may be below its floor, or from the baseline, by its rounding."""

DENSITY_TOLERANCE = 1e-5
"""Of log densities, as a share where they are above 1: what is guaranteed of the server's."""


def check_group(decision: Decision, schema: Schema) -> int:
    """Check a decision's group.

    Args:
        decision: a decision that was made under the schema.
        schema: the policy's schema.

    Returns:
        how many members it has.

    Raises:
        Invalid: with the reason.
    """
    objectives = schema.n_objectives
    weights = decision.weights[:]  # a slice is a list, and read at once
    members = rows_of("decision.weights", len(weights), objectives)
    if not members:
        raise Invalid(Reason.REASON_EMPTY_GROUP, "decision.weights", "at least one member", "none")
    if members > MOST_MEMBERS:
        raise Invalid(
            Reason.REASON_TOO_LARGE, "decision.weights", f"at most {MOST_MEMBERS} members", members
        )
    alpha, densities = decision.alpha[:], decision.log_densities[:]
    if decision.arm == ARM_POLICY:
        check_length("decision.alpha", len(alpha), objectives)
        check_length("decision.log_densities", len(densities), members)
    elif decision.arm == ARM_HOLDOUT:
        check_length("decision.alpha in the holdout arm", len(alpha), 0)
        check_length("decision.log_densities in the holdout arm", len(densities), 0)
        check_length("decision.weights in the holdout arm", len(weights), objectives)
    else:
        raise Invalid(
            Reason.REASON_OUT_OF_RANGE, "decision.arm", "policy or holdout", int(decision.arm)
        )
    check_finite("decision.weights", weights)
    check_finite("decision.alpha", alpha)
    check_finite("decision.log_densities", densities)
    if decision.executed >= members:
        raise Invalid(
            Reason.REASON_OUT_OF_RANGE,
            "decision.executed",
            f"one of the {members} members, counted from 0",
            decision.executed,
        )
    _check_weights(weights, schema)
    if decision.arm == ARM_POLICY:
        _check_densities(weights, alpha, densities, schema)
    else:
        _check_baseline(weights, schema)
    return members


def _check_weights(weights: list[float], schema: Schema) -> None:
    objectives = schema.n_objectives
    if min(weights) < 0:
        raise Invalid(Reason.REASON_OUT_OF_RANGE, "decision.weights", "at least 0", min(weights))
    for member, total in enumerate(map(sum, zip(*[iter(weights)] * objectives, strict=True))):
        if abs(total - 1) > SIMPLEX_TOLERANCE:
            raise Invalid(
                Reason.REASON_OUT_OF_RANGE,
                f"decision.weights of member {member}",
                "a sum of 1",
                f"{total:.6g}",
            )
    for index, objective in enumerate(schema.objectives):
        if objective.floor and min(weights[index::objectives]) < (
            objective.floor - FLOAT32_TOLERANCE
        ):
            raise Invalid(
                Reason.REASON_OUT_OF_RANGE,
                f"decision.weights of {shown(objective.name)}",
                f"at least its floor {objective.floor:g}",
                f"{min(weights[index::objectives]):.6g}",
            )


def _check_densities(
    weights: list[float], alpha: list[float], densities: list[float], schema: Schema
) -> None:
    """The densities that learning divides by must be those of the weights under alpha."""
    if min(alpha) <= 0:
        raise Invalid(Reason.REASON_OUT_OF_RANGE, "decision.alpha", "above 0", min(alpha))
    if max(alpha) > LARGEST_ALPHA:
        raise Invalid(
            Reason.REASON_OUT_OF_RANGE,
            "decision.alpha",
            f"at most {LARGEST_ALPHA:g}",
            f"{max(alpha):g}",
        )
    group = np.array(weights).reshape(-1, schema.n_objectives)
    right: list[float] = log_density(group, np.array(alpha), _floors(schema)).tolist()
    for member, (expected, seen) in enumerate(zip(right, densities, strict=True)):
        if not abs(seen - expected) <= DENSITY_TOLERANCE * max(1.0, abs(expected)):
            raise Invalid(
                Reason.REASON_INCONSISTENT,
                f"decision.log_densities[{member}]",
                f"{expected:.6g}, the weights' density under alpha",
                f"{seen:.6g}",
            )


def _check_baseline(weights: list[float], schema: Schema) -> None:
    """What the holdout was served, the one figure of what the policy is worth rests on."""
    baseline: list[float] = _baseline(schema).tolist()
    if any(abs(a - b) > FLOAT32_TOLERANCE for a, b in zip(weights, baseline, strict=True)):
        raise Invalid(
            Reason.REASON_INCONSISTENT,
            "decision.weights in the holdout arm",
            "the schema's baseline " + ", ".join(f"{weight:.6g}" for weight in baseline)[:200],
            ", ".join(f"{weight:.6g}" for weight in weights)[:200],
        )


@lru_cache(maxsize=64)
def _floors(schema: Schema) -> Floats:
    return schema.floors()


@lru_cache(maxsize=64)
def _baseline(schema: Schema) -> Floats:
    return schema.baseline()
