"""What the policy brings: realised gain per request, its arm against the permanent holdout.

Units are assigned to the arms at random, by a hash, and keep their arm. So a unit's requests may
depend on each other and are counted as one observation of its unit; units are independent.
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
from policy.errors import TooLittleData
from policy.fusion import Floats

TUNED_FOR = 10_000.0
"""Effective requests at which the sequence is narrowest."""
LEAST_UNITS = 100
"""Units in either arm before anything is said: intervals and sequences are asymptotic."""
LOOKS = 10


class Observed(NamedTuple):
    """Requests of both arms in the order of time."""

    time_ms: npt.NDArray[np.int64]
    """[request] log time of the impression, milliseconds since 1970 UTC."""
    gain: Floats
    """[request] realised, in gain units."""
    holdout: npt.NDArray[np.bool_]
    """[request] whether its unit is held out."""
    unit: npt.NDArray[np.intp]
    """[request] number of the unit, from 0."""

    def first(self, requests: int) -> "Observed":
        """The first requests alone."""
        return Observed(
            self.time_ms[:requests],
            self.gain[:requests],
            self.holdout[:requests],
            self.unit[:requests],
        )


class Difference(NamedTuple):
    """A difference with what is certain of it."""

    value: float
    interval: Interval
    """For one planned look."""
    sequence: Interval
    """For all looks together."""


class Look(NamedTuple):
    """The comparison after some of the requests."""

    time_ms: int
    """Of the last one of them."""
    policy: Estimate
    """Gain per request."""
    holdout: Estimate
    """Gain per request."""
    absolute: Difference
    """Policy less holdout, in gain units per request."""
    relative: Difference | None
    """The same as a share of the holdout's; None while an arm has no gain."""


def looks(
    observed: Observed,
    count: int = LOOKS,
    *,
    level: float = LEVEL,
    tuned_for: float = TUNED_FOR,
    least_units: int = LEAST_UNITS,
) -> list[Look]:
    """Compare the arms at several moments, the last of them the end.

    Args:
        observed: requests of both arms.
        count: of looks, evenly spaced in requests; those with too few units are left out.
        level: of intervals and sequences.
        tuned_for: effective requests, 1 / (1 / policy's + 1 / holdout's), at which the sequences
            are narrowest; to be fixed beforehand.
        least_units: in either arm, before anything is said.

    Raises:
        TooLittleData: there are too few units even at the end.
    """
    units = [len(np.unique(observed.unit[observed.holdout == held])) for held in (False, True)]
    if min(units) < least_units:
        raise TooLittleData(
            f"expected at least {least_units} units in either arm, seen {units[0]:,} in the policy "
            f"arm and {units[1]:,} in the holdout: wait for more, choose a longer stretch of time, "
            "or hold out a larger share (holdout.share in the schema)"
        )
    total = len(observed.gain)
    found = []
    for end in np.unique(np.linspace(total / count, total, count).astype(np.intp)).tolist():
        part = observed.first(end)
        policy, holdout = _arm(part, held=False), _arm(part, held=True)
        if policy is None or holdout is None:
            continue
        if min(policy.clusters, holdout.clusters) >= least_units:
            time_ms = int(part.time_ms[-1])
            found.append(_look(time_ms, policy, holdout, level, tuned_for))
    return found


def _arm(observed: Observed, *, held: bool) -> Estimate | None:
    """Gain per request of one arm, clustered by unit; None if it has no request."""
    rows = np.flatnonzero(observed.holdout == held)
    if not len(rows):
        return None
    return ratio_estimate(observed.gain[rows], np.ones(len(rows)), observed.unit[rows])


def _look(
    time_ms: int, policy: Estimate, holdout: Estimate, level: float, tuned_for: float
) -> Look:
    absolute = _difference(policy, holdout)
    relative = None
    if policy.value > 0 and holdout.value > 0:
        # On the logarithm, where the ratio's error is nearest to normal.
        logarithm = _difference(_logarithm(policy), _logarithm(holdout))
        relative = _bounded(logarithm, level, tuned_for)
        relative = Difference(
            float(np.expm1(relative.value)),
            Interval(*np.expm1(relative.interval).tolist()),
            Interval(*np.expm1(relative.sequence).tolist()),
        )
    return Look(time_ms, policy, holdout, _bounded(absolute, level, tuned_for), relative)


def _bounded(estimate: Estimate, level: float, tuned_for: float) -> Difference:
    return Difference(
        estimate.value,
        fixed_interval(estimate, level),
        sequence_interval(estimate, tuned_for=tuned_for, level=level),
    )


def _difference(first: Estimate, second: Estimate) -> Estimate:
    """The difference of independent estimates; its clock is their harmonic size."""
    variance = first.standard_error**2 + second.standard_error**2
    third = first.skewness * first.standard_error**3 - second.skewness * second.standard_error**3
    return Estimate(
        first.value - second.value,
        float(np.sqrt(variance)),
        1 / (1 / first.size + 1 / second.size),
        first.clusters + second.clusters,
        third / variance**1.5 if variance > 0 else 0.0,
    )


def _logarithm(estimate: Estimate) -> Estimate:
    """The logarithm, its error to first order."""
    relative = estimate.standard_error / estimate.value
    return estimate._replace(value=float(np.log(estimate.value)), standard_error=relative)
