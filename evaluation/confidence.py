"""Confidence intervals, for a sample size fixed beforehand, and sequences, which may be watched.

An *interval* covers with its level at one look that was planned. Who looks again and again, and
stops when the figure pleases, needs a *sequence*: with its level it covers at all looks together.

Two kinds of sequence, for two kinds of variable. `sequence_interval` is asymptotic, needs nothing
but a mean and its standard error, and so serves importance-weighted and clustered means; it is the
one that the verbs report. `bounded_sequence` holds for every sample size, wants bounds, independent
observations, and is wider (docs/evaluation.md has the figures).
"""

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from policy.fusion import Floats

LEVEL = 0.95
"""Level at which everything is reported where nothing else is said."""


class Estimate(NamedTuple):
    """A mean or a ratio of means."""

    value: float
    standard_error: float
    size: float
    """Observations that it rests on: the sequence's clock."""
    clusters: int
    """Independent units that these came from."""
    skewness: float = 0.0
    """Of the estimate's own distribution: that of the clusters' scores over the root of their
    number."""


class Interval(NamedTuple):
    """What a confidence statement covers, in the unit of the estimate."""

    low: float
    high: float

    @property
    def width(self) -> float:
        """From low to high."""
        return self.high - self.low

    def wider(self, slack: float) -> "Interval":
        """The same with more room on either side."""
        return Interval(self.low - slack, self.high + slack)


def ratio_estimate(
    numerator: Floats, denominator: Floats, cluster: npt.NDArray[np.intp]
) -> Estimate:
    """A ratio of sums over clusters that are independent of each other; inside they need not be.

    Linearised: the ratio's error is, to first order, the mean of the scores
    (numerator - ratio · denominator) / mean denominator, which are added up inside each cluster.
    With a denominator of ones it is the mean, its error exact.

    Args:
        numerator: [observation]
        denominator: [observation] of a positive sum.
        cluster: [observation] number of the cluster, from 0.

    Returns:
        The ratio; its standard error is NaN from fewer than two clusters.

    >>> ratio_estimate(np.array([1.0, 0.0, 2.0]), np.ones(3), np.array([0, 1, 2])).value
    1.0

    Reference: W. Cochran, Sampling Techniques, 3rd ed., 1977, chapters 6 and 9A.
    """
    total = float(denominator.sum())
    value = float(numerator.sum()) / total
    scores = np.bincount(cluster, numerator - value * denominator) / total
    clusters = int(np.count_nonzero(np.bincount(cluster)))
    if clusters < 2:
        return Estimate(value, math.nan, len(numerator), clusters)
    squares = float((scores**2).sum())
    skewness = float((scores**3).sum()) / squares**1.5 if squares > 0 else 0.0
    standard_error = math.sqrt(squares * clusters / (clusters - 1))
    return Estimate(value, standard_error, len(numerator), clusters, skewness)


def fixed_interval(estimate: Estimate, level: float = LEVEL) -> Interval:
    """The interval for one look at a sample whose size was fixed beforehand.

    Normal, with P. Hall's correction of the skewness: the estimate's standardised error t is close
    to normal after g(t) = t + s t² / 3 + s² t³ / 27 + s / 6, and the bounds are the t at which g is
    the normal's quantiles. Rewards that are rare and weights that are large make a sample's error
    and its standard error small together; without the correction the high side misses too often.

    >>> fixed_interval(Estimate(1.0, 0.5, 100, 100)).high.__round__(2)
    1.98
    >>> [round(bound, 2) for bound in fixed_interval(Estimate(1.0, 0.5, 100, 100, skewness=0.2))]
    [0.14, 2.17]

    Reference: P. Hall, J. R. Statist. Soc. B 54, 1992, pp. 221-228, the cubic transformation.
    """
    z = NormalDist().inv_cdf(0.5 + level / 2)
    high, low = (_undo_skewness(each, estimate.skewness) for each in (-z, z))
    value, error = estimate.value, estimate.standard_error
    return Interval(value - error * low, value - error * high)


def _undo_skewness(quantile: float, skewness: float) -> float:
    """The t of which Hall's g is the quantile."""
    if abs(skewness) < 1e-6:
        return quantile
    return 3 / skewness * (math.cbrt(1 + skewness * (quantile - skewness / 6)) - 1)


def sequence_interval(estimate: Estimate, *, tuned_for: float, level: float = LEVEL) -> Interval:
    """The asymptotic confidence sequence at one of any number of looks.

    The half width in standard errors is sqrt((1 + 1/k) (log(1 + k) - 2 log(1 - level))), where k is
    the size in units of the mixture's prior, chosen so that the sequence is narrowest at
    `tuned_for` observations. Where the mean itself drifts it is its running average that is
    covered. Clusters whose observations are spread over time are covered too as long as those of
    one cluster do not tend against each other: positive correlation makes the running estimate move
    less between two looks than the bound allows for (Slepian's inequality).

    Args:
        estimate: at this look.
        tuned_for: observations at which the sequence is to be narrowest; to be fixed before the
            first look. A factor of ten off costs up to a quarter of the width.
        level: of all looks together.

    >>> estimate = Estimate(0.0, 1.0, 1000, 1000)
    >>> [round(sequence_interval(estimate, tuned_for=n).high, 2) for n in (100, 1000, 10_000)]
    [3.24, 3.04, 3.86]

    Reference: Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas, arXiv:2103.06476, theorem 2.2 and
    the appendix on the prior; the mixture is H. Robbins', Ann. Math. Stat. 41, 1970.
    """
    spent = -2 * math.log(1 - level)
    k = estimate.size / tuned_for * (spent + math.log(1 + spent))
    half = estimate.standard_error * math.sqrt((1 + 1 / k) * (math.log1p(k) + spent))
    return Interval(estimate.value - half, estimate.value + half)


def bounded_sequence(values: Floats, low: float, high: float, level: float = LEVEL) -> Floats:
    """The predictable empirical-Bernstein sequence for independent observations in [low, high].

    Args:
        values: [observation] in their order.
        low: least possible value.
        high: greatest possible value.
        level: of all looks together.

    Returns:
        [observation, 2] least and greatest mean that is covered after each observation.

    Raises:
        ValueError: an observation lies outside of its bounds.

    Reference: Waudby-Smith and Ramdas, arXiv:2010.09686, theorem 2.
    """
    if len(values) and not (low <= values.min() and values.max() <= high):
        raise ValueError(
            f"expected observations in [{low:g}, {high:g}], seen {values.min():g} to "
            f"{values.max():g}"
        )
    x = (values - low) / (high - low)
    count = np.arange(1, len(x) + 1)
    mean = (0.5 + np.cumsum(x)) / (count + 1)
    variance = (0.25 + np.cumsum((x - mean) ** 2)) / (count + 1)
    mean_before = np.concatenate([[0.5], mean[:-1]])
    variance_before = np.concatenate([[0.25], variance[:-1]])
    spent = math.log(2 / (1 - level))
    bet = np.minimum(0.5, np.sqrt(2 * spent / (variance_before * count * np.log1p(count))))
    price = (x - mean_before) ** 2 * (-np.log1p(-bet) - bet)
    staked = np.cumsum(bet)
    centre = np.cumsum(bet * x) / staked
    half = (spent + np.cumsum(price)) / staked
    bounds = np.stack([np.maximum(centre - half, 0), np.minimum(centre + half, 1)], axis=-1)
    return np.asarray(low + (high - low) * bounds)
