"""Intervals and sequences where the truth is set: the holdout's uplift, and shares of requests.

Part of `grade bench off_policy`. Units differ in how much they gain and in how often they come, so
requests of a unit depend on each other. Shares are compared because they are bounded: two kinds of
sequence can be had for them.
"""

from typing import Final, NamedTuple

import numpy as np

from evaluation import uplift
from evaluation.confidence import (
    bounded_sequence,
    ratio_estimate,
    sequence_interval,
)
from evaluation.off_policy import TUNED_FOR, looking_at

UNITS: Final = 3_000
REQUESTS: Final = 12_000
HELD_OUT: Final = 0.1
GAIN: Final = 0.12
"""Mean gain per request of the holdout."""
EFFECT: Final = 0.1
"""By how much the policy raises it."""
SPREAD: Final = 0.8
"""Standard deviation of the units' mean gains, as a share of their mean."""
LOOKS: Final = 25
SHARE: Final = 0.1
"""Of requests with an order, for the comparison of sequences."""


class _Covered(NamedTuple):
    """One trial: whether the interval covered at the end, both kinds at all looks, and widths."""

    interval_coverage: bool
    sequence_coverage: bool
    watched_coverage: bool
    interval_width: float
    sequence_width: float


def observed(generator: np.random.Generator, effect: float = EFFECT) -> uplift.Observed:
    """One history of both arms: Poisson gains, gamma-distributed units.

    Args:
        generator: source of randomness.
        effect: by which share the policy raises every unit's gain.
    """
    shape = 1 / SPREAD**2
    mean_gain = generator.gamma(shape, GAIN / shape, UNITS)
    held = generator.random(UNITS) < HELD_OUT
    activity = generator.standard_exponential(UNITS)
    unit = generator.choice(UNITS, REQUESTS, p=activity / activity.sum())
    rate = mean_gain[unit] * np.where(held[unit], 1, 1 + effect)
    gain = generator.poisson(rate).astype(np.float64)
    return uplift.Observed(np.arange(REQUESTS), gain, held[unit], unit)


def figures(trials: int, seed: int) -> dict[str, float]:
    """Coverage and widths of the uplift, absolute and relative, and of shares.

    Args:
        trials: how many.
        seed: of the trials.
    """
    generator = np.random.default_rng([seed, 5])
    absolute, relative, shares = [], [], []
    for _ in range(trials):
        looks = uplift.looks(observed(generator), LOOKS)
        absolute.append(_covered([look.absolute for look in looks], GAIN * EFFECT))
        found = [look.relative for look in looks if look.relative is not None]
        relative.append(_covered(found, EFFECT))
        shares.append(_shares(generator))
    told = _means("uplift_absolute", absolute) | _means("uplift_relative", relative)
    bounded = np.array(shares).mean(axis=0).tolist()
    names = ("asymptotic_coverage", "bounded_coverage", "asymptotic_width", "bounded_width")
    return told | {f"share_{name}": value for name, value in zip(names, bounded, strict=True)}


def _covered(found: list[uplift.Difference], truth: float) -> _Covered:
    fixed = [each.interval.low <= truth <= each.interval.high for each in found]
    sequence = [each.sequence.low <= truth <= each.sequence.high for each in found]
    last = found[-1]
    return _Covered(fixed[-1], all(sequence), all(fixed), last.interval.width, last.sequence.width)


def _means(name: str, outcomes: list[_Covered]) -> dict[str, float]:
    means = np.array(outcomes, dtype=np.float64).mean(axis=0).tolist()
    return {f"{name}_{field}": value for field, value in zip(_Covered._fields, means, strict=True)}


def _shares(generator: np.random.Generator) -> tuple[bool, bool, float, float]:
    """Whether either sequence covers a share at every look, and their widths at the last."""
    ordered = (generator.random(REQUESTS) < SHARE).astype(np.float64)
    at = looking_at(REQUESTS, LOOKS)
    bounded = bounded_sequence(ordered, 0.0, 1.0)
    numbers, ones = np.arange(REQUESTS), np.ones(REQUESTS)
    sequences = [
        sequence_interval(
            ratio_estimate(ordered[:count], ones[:count], numbers[:count]), tuned_for=TUNED_FOR
        )
        for count in at.tolist()
    ]
    return (
        all(each.low <= SHARE <= each.high for each in sequences),
        bool(((bounded[:, 0] <= SHARE) & (bounded[:, 1] >= SHARE)).all()),
        sequences[-1].width,
        float(bounded[-1, 1] - bounded[-1, 0]),
    )
