"""Importance weights on the simplex: how much each logged decision says of another policy.

Every logged decision says the density at which its executed weights were drawn; the importance
weight is the target's density at the same point over that one. Both are Dirichlets that are known
exactly. So it is known, too, what cutting large weights leaves out, and nothing is cut in silence.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from policy.dirichlet import draw_simplex, keyed_generator, log_density, simplex_to_weights
from policy.errors import TooLittleData
from policy.fusion import Floats

LARGEST_WEIGHT = 20.0
"""At which weights are cut. Where the target's density is wider than the logged one weights have no
finite variance, and a sample knows nothing of the largest until one occurs."""
LEAST_EFFECTIVE = 300.0
"""Effective sample below which nothing is estimated."""
MOST_LOST = 0.1
"""Share of the target that cutting may leave out."""
DRAWS = 8
"""From the target, per request, for what cutting leaves out: far less noise than in any reward."""


class LoggedDecisions(NamedTuple):
    """Decisions of the policy arm with what they earned, in the order of time."""

    features: Floats
    """[request, feature]"""
    alpha: Floats
    """[request, objective] of the Dirichlet that the weights were drawn from."""
    weights: Floats
    """[request, objective] of the executed member, as shipped."""
    log_densities: Floats
    """[request] of the executed member, as served, in nats."""
    rewards: Floats
    """[request] realised, in gain units, at least 0."""
    units: npt.NDArray[np.intp]
    """[request] number of the unit, from 0."""
    time_ms: npt.NDArray[np.int64]
    """[request] log time of the impression, milliseconds since 1970 UTC."""

    def rows(self, chosen: npt.NDArray[np.intp]) -> "LoggedDecisions":
        """The decisions of these rows, in this order."""
        return LoggedDecisions(
            self.features[chosen],
            self.alpha[chosen],
            self.weights[chosen],
            self.log_densities[chosen],
            self.rewards[chosen],
            self.units[chosen],
            self.time_ms[chosen],
        )


class Importance(NamedTuple):
    """What logged decisions say of a target."""

    weights: Floats
    """[request] cut at `LARGEST_WEIGHT`."""
    lost: Floats
    """[request] share of the target that cutting leaves out."""
    largest: float
    """The largest weight before cutting."""


class Overlap(NamedTuple):
    """How much of a log speaks of a target."""

    effective: float
    """(Σ weight)² / Σ weight²: so many requests of the target itself would say as much (L. Kish,
    Survey Sampling, 1965)."""
    largest: float
    """The largest weight before cutting."""
    lost: float
    """Share of the target that cutting leaves out."""
    mean: float
    """Of the weights; 1 - lost in expectation."""


def importance(logged: LoggedDecisions, alpha: Floats, floors: Floats) -> Importance:
    """Weigh logged decisions by a target.

    A weight that is cut at c stands for the density min(p, c q), p the target's and q the logged
    one. What is missing to a share of 1 is the target's mean of max(0, 1 - c q / p), which is
    estimated by draws from the target, the same at every call.

    Args:
        logged: the decisions, at least one.
        alpha: [request, objective] the target's Dirichlets.
        floors: [objective] least weights.

    Reference: E. Ionides, Truncated importance sampling, J. Comp. Graph. Stat. 17, 2008.
    """
    weights = np.exp(log_density(logged.weights, alpha, floors) - logged.log_densities)
    drawn = draw_simplex(keyed_generator("importance"), np.ascontiguousarray(alpha), DRAWS)
    points = simplex_to_weights(drawn, floors)
    logged_over_target = log_density(points, logged.alpha[:, None, :], floors) - log_density(
        points, alpha[:, None, :], floors
    )
    beyond = 1 - np.exp(np.minimum(np.log(LARGEST_WEIGHT) + logged_over_target, 0))
    largest = float(weights.max())
    return Importance(np.minimum(weights, LARGEST_WEIGHT), beyond.mean(axis=1), largest)


def overlap(found: Importance) -> Overlap:
    """How much of the log speaks of the target.

    >>> overlap(Importance(np.array([1.0, 1.0, 0.0, 2.0]), np.zeros(4), 2.0)).effective.__round__(2)
    2.67
    """
    squares = float((found.weights**2).sum())
    return Overlap(
        effective=float(found.weights.sum()) ** 2 / squares if squares > 0 else 0.0,
        largest=found.largest,
        lost=float(found.lost.mean()),
        mean=float(found.weights.mean()),
    )


def require_overlap(found: Overlap, requests: int, least: float = LEAST_EFFECTIVE) -> None:
    """Refuse to estimate from next to nothing.

    Raises:
        TooLittleData: in one sentence, with what to do.
    """
    if found.effective >= least and found.lost <= MOST_LOST:
        return
    raise TooLittleData(
        f"expected an effective sample of at least {least:g} requests, and at most "
        f"{MOST_LOST:.0%} of the target where it is more than {LARGEST_WEIGHT:g} times as dense as "
        f"what was served, seen {found.effective:.1f} of {requests:,} requests and "
        f"{found.lost:.1%} (largest weight {found.largest:.3g}): log more, give the target another "
        "--concentration, or evaluate one that is nearer to what was served"
    )
