"""Off-policy evaluation on the simplex: what another policy would have earned, from logs alone."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from evaluation.confidence import (
    LEVEL,
    Estimate,
    Interval,
    fixed_interval,
    ratio_estimate,
    sequence_interval,
)
from evaluation.direct_model import predictions
from evaluation.importance import LEAST_EFFECTIVE, LoggedDecisions, importance
from policy.dirichlet import weights_to_simplex
from policy.fusion import Floats

TUNED_FOR = 10_000.0
"""Requests at which the sequences are narrowest."""
LOOKS = 10
ESTIMATORS = ("ips", "snips", "dr")
_TINY = float(np.finfo(np.float64).tiny)


class Valuation(NamedTuple):
    """What one estimator says at one look."""

    estimate: Estimate
    interval: Interval
    """For one planned look."""
    sequence: Interval
    """For all looks together."""


class Look(NamedTuple):
    """All estimators after some of the requests."""

    requests: int
    time_ms: int
    """Of the last one of them."""
    by_estimator: dict[str, Valuation]


def looks(
    logged: LoggedDecisions,
    alpha: Floats,
    floors: Floats,
    at: npt.NDArray[np.intp] | None = None,
    *,
    level: float = LEVEL,
    tuned_for: float = TUNED_FOR,
    least: float = LEAST_EFFECTIVE,
) -> list[Look]:
    """Estimate the target's value per request by every estimator, at several looks.

    With w the weights, cut, and r the rewards of n requests, and L the share of the target that
    cutting leaves out:

        ips:    Σ w r / (n (1 - L))
        snips:  Σ w r / Σ w
        dr:     Σ (q(target) + w (r - q(executed))) / n,   q by `evaluation.direct_model`

    What is left out is taken to earn as much per request as the rest (in dr: as the model says).
    Intervals and sequences are wider by L times the estimate on either side: they hold if it earns
    between nothing and twice as much. Requests of one unit may depend on each other, those of
    different units may not.

    Args:
        logged: the decisions, at least one.
        alpha: [request, objective] the target's Dirichlets.
        floors: [objective] least weights.
        at: [look] numbers of requests to look after, rising; `looking_at` if left out.
        level: of intervals and sequences.
        tuned_for: requests at which the sequences are narrowest.
        least: effective sample before anything is said: intervals and sequences are asymptotic.
            It depends on the weights alone, so looking from then on is no choice by reward.

    Returns:
        the looks at which the effective sample was large enough.

    Reference: importance sampling: D. Horvitz and D. Thompson, JASA 47, 1952; self-normalised:
    A. Swaminathan and T. Joachims, NeurIPS 2015; doubly robust: M. Dudík, J. Langford, L. Li,
    arXiv:1103.4601.
    """
    weights, lost, _ = importance(logged, alpha, floors)
    simplex = weights_to_simplex(logged.weights, floors)
    executed, expected = predictions(logged.features, simplex, logged.rewards, alpha)
    gained, ones = weights * logged.rewards, np.ones(len(weights))
    corrected = expected + weights * (logged.rewards - executed)
    counts = looking_at(len(weights)) if at is None else at
    effective = np.cumsum(weights) ** 2 / np.maximum(np.cumsum(weights**2), _TINY)
    found = []
    for count in counts[effective[counts - 1] >= least].tolist():
        left_out = float(lost[:count].mean())
        terms = {
            "ips": (gained, ones * (1 - left_out)),
            "snips": (gained, weights),
            "dr": (corrected, ones),
        }
        valued = {}
        for name, (numerator, denominator) in terms.items():
            estimate = ratio_estimate(numerator[:count], denominator[:count], logged.units[:count])
            slack = left_out * abs(estimate.value)
            valued[name] = Valuation(
                estimate,
                fixed_interval(estimate, level).wider(slack),
                sequence_interval(estimate, tuned_for=tuned_for, level=level).wider(slack),
            )
        found.append(Look(count, int(logged.time_ms[count - 1]), valued))
    return found


def looking_at(requests: int, count: int = LOOKS) -> npt.NDArray[np.intp]:
    """[look] numbers of requests to look after, evenly spaced, the last all of them.

    >>> looking_at(5_000, 5).tolist()
    [1000, 2000, 3000, 4000, 5000]
    """
    return np.unique(np.ceil(np.linspace(requests / count, requests, count)).astype(np.intp))
