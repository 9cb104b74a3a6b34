"""Off-policy evaluation on the simplex: what another policy would have earned, from logs alone.

Every logged decision says the density at which its executed weights were drawn. Its reward,
weighted by the target's density over that one, estimates what the target earns. Static weights are
a point and have no density; `evaluation.target_policy` gives them one.
"""

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
from policy.dirichlet import log_density, weights_to_simplex
from policy.errors import TooLittleData
from policy.fusion import Floats

TUNED_FOR = 10_000.0
"""Requests at which the sequences are narrowest."""
LARGEST_WEIGHT = 100.0
"""At which weights are cut. A density that is wider than the logged one has weights of infinite
variance, of which a sample knows nothing until one occurs."""
LEAST_EFFECTIVE = 400.0
"""Effective sample below which nothing is estimated."""
LEAST_REACHED = 0.9
"""Mean weight below which nothing is estimated: what is missing from 1 is the share of the target
that was never, or hardly ever, served."""
FIRST_LOOK = 1_000
"""Requests before the first look: the sequences are asymptotic."""
LOOKS = 10
ESTIMATORS = ("ips", "snips", "dr")


class LoggedDecisions(NamedTuple):
    """Decisions of the policy arm with what they earned, in the order of time."""

    features: Floats
    """[request, feature]"""
    weights: Floats
    """[request, objective] of the executed member, as shipped."""
    log_densities: Floats
    """[request] of the executed member, as served, in nats."""
    rewards: Floats
    """[request] realised, in gain units."""
    units: npt.NDArray[np.intp]
    """[request] number of the unit, from 0."""
    time_ms: npt.NDArray[np.int64]
    """[request] log time of the impression, milliseconds since 1970 UTC."""

    def rows(self, chosen: npt.NDArray[np.intp]) -> "LoggedDecisions":
        """The decisions of these rows, in this order."""
        return LoggedDecisions(
            self.features[chosen],
            self.weights[chosen],
            self.log_densities[chosen],
            self.rewards[chosen],
            self.units[chosen],
            self.time_ms[chosen],
        )


class Overlap(NamedTuple):
    """How much of the log speaks of the target."""

    effective: float
    """(Σ weight)² / Σ weight²: as many requests, had the target itself been logged, say as much
    (L. Kish, Survey Sampling, 1965)."""
    largest: float
    """The largest weight, before it is cut."""
    cut: int
    """Weights that are cut."""
    mean: float
    """Of the weights, cut; its expectation is the share of the target that the log reaches."""


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


def importance_weights(logged: LoggedDecisions, alpha: Floats, floors: Floats) -> Floats:
    """[request] the executed weights' density under the target over that at which they were drawn.

    Args:
        logged: the decisions.
        alpha: [request, objective] the target's Dirichlets.
        floors: [objective] least weights.
    """
    return np.exp(log_density(logged.weights, alpha, floors) - logged.log_densities)


def overlap(weights: Floats) -> Overlap:
    """How much of the log speaks of the target.

    Args:
        weights: [request] importance weights, not cut; at least one.

    >>> overlap(np.array([1.0, 1.0, 0.0, 2.0])).effective.__round__(2)
    2.67
    """
    capped = cut(weights)
    squares = float((capped**2).sum())
    return Overlap(
        effective=float(capped.sum()) ** 2 / squares if squares > 0 else 0.0,
        largest=float(weights.max()),
        cut=int((weights > LARGEST_WEIGHT).sum()),
        mean=float(capped.mean()),
    )


def cut(weights: Floats) -> Floats:
    """Weights kept at most `LARGEST_WEIGHT`.

    What is lost biases a value of non-negative rewards down, never up.

    Reference: E. Ionides, Truncated importance sampling, J. Comp. Graph. Stat. 17, 2008.
    """
    return np.minimum(weights, LARGEST_WEIGHT)


def require_overlap(found: Overlap, requests: int, least: float = LEAST_EFFECTIVE) -> None:
    """Refuse to estimate from next to nothing.

    Raises:
        TooLittleData: in one sentence, with what to do.
    """
    if found.effective >= least and found.mean >= LEAST_REACHED:
        return
    raise TooLittleData(
        f"expected an effective sample of at least {least:g} requests and a mean weight of at "
        f"least {LEAST_REACHED:g}, seen {found.effective:.1f} of {requests:,} requests and "
        f"{found.mean:.2f} (largest weight {found.largest:.3g}): too little of what was served "
        "resembles the target; log more, give it another --concentration, or evaluate a policy "
        "that is nearer to the served one"
    )


def looks(
    logged: LoggedDecisions,
    alpha: Floats,
    floors: Floats,
    at: npt.NDArray[np.intp] | None = None,
    *,
    level: float = LEVEL,
    tuned_for: float = TUNED_FOR,
) -> list[Look]:
    """Estimate the target's value per request by every estimator, at several looks.

    with w the weights, cut at `LARGEST_WEIGHT`, and r the rewards:
    ips:    mean of w r
    snips:  Σ w r / Σ w
    dr:     mean of q(target) + w (r - q(executed)), q by `evaluation.direct_model`

    Requests of one unit may depend on each other, those of different units may not.

    Args:
        logged: the decisions, at least one.
        alpha: [request, objective] the target's Dirichlets.
        floors: [objective] least weights.
        at: [look] numbers of requests to look after; `looking_at` all of them if left out.
        level: of intervals and sequences.
        tuned_for: requests at which the sequences are narrowest.

    Reference: importance sampling as in D. Horvitz and D. Thompson, JASA 47, 1952; self-normalised:
    A. Swaminathan and T. Joachims, NeurIPS 2015; doubly robust: M. Dudík, J. Langford, L. Li,
    arXiv:1103.4601.
    """
    weights = cut(importance_weights(logged, alpha, floors))
    simplex = weights_to_simplex(logged.weights, floors)
    executed, expected = predictions(logged.features, simplex, logged.rewards, alpha)
    ones = np.ones(len(weights))
    terms = {
        "ips": (weights * logged.rewards, ones),
        "snips": (weights * logged.rewards, weights),
        "dr": (expected + weights * (logged.rewards - executed), ones),
    }
    found = []
    for count in (looking_at(len(weights)) if at is None else at).tolist():
        valued = {}
        for name, (numerator, denominator) in terms.items():
            estimate = ratio_estimate(numerator[:count], denominator[:count], logged.units[:count])
            valued[name] = Valuation(
                estimate,
                fixed_interval(estimate, level),
                sequence_interval(estimate, tuned_for=tuned_for, level=level),
            )
        found.append(Look(count, int(logged.time_ms[count - 1]), valued))
    return found


def looking_at(requests: int, count: int = LOOKS, first: int = FIRST_LOOK) -> npt.NDArray[np.intp]:
    """[look] numbers of requests to look after, evenly spaced, the last all of them.

    >>> looking_at(5_000, 5).tolist()
    [1000, 2000, 3000, 4000, 5000]
    """
    return np.unique(np.linspace(min(first, requests), requests, count).astype(np.intp))
