"""The holdout's comparison: by hand, its coverage where units differ, and what it refuses."""

import math

import numpy as np
import pytest

from benchmarks.watching import EFFECT, GAIN, observed
from evaluation.uplift import Observed, looks
from policy.errors import TooLittleData


def small(gains: list[float], held: list[bool], units: list[int]) -> Observed:
    return Observed(np.arange(len(gains)) * 1000, np.array(gains), np.array(held), np.array(units))


def test_the_difference_by_hand() -> None:
    history = small(
        [3.0, 1.0, 1.0, 0.0, 2.0, 2.0],
        [False, False, True, True, False, True],
        [0, 1, 2, 3, 0, 2],
    )
    (look,) = looks(history, 1, least_units=2)
    # Policy: 6 of 3 requests of 2 units; holdout: 3 of 3 requests of 2 units.
    assert (look.policy.value, look.holdout.value) == (2, 1)
    assert (look.policy.clusters, look.holdout.clusters) == (2, 2)
    assert look.absolute.value == 1
    assert look.relative is not None
    assert look.relative.value == pytest.approx(1)
    # Scores: unit 0 (5 - 2·2)/3, unit 1 (1 - 2)/3; unit 2 (3 - 2)/3, unit 3 (0 - 1)/3.
    error = math.sqrt(2 * (2 / 9) * 2 / 1)
    assert look.absolute.interval.width == pytest.approx(2 * 1.959964 * error, rel=1e-6)
    assert look.time_ms == 5000


def test_looks_come_in_the_order_of_time_and_each_sees_what_was_before_it() -> None:
    history = observed(np.random.default_rng(31))
    found = looks(history, 6)
    assert [look.policy.size + look.holdout.size for look in found] == [
        2000, 4000, 6000, 8000, 10_000, 12_000,
    ]  # fmt: skip
    assert looks(history.first(8000), 4)[-1] == found[3]


def test_intervals_cover_and_sequences_cover_at_all_looks_though_units_differ() -> None:
    """100 trials of 12,000 requests from 3,000 units: at most 16 misses, five standard errors."""
    generator = np.random.default_rng(32)
    at_the_end = ever = relative = watched = 0
    for _ in range(100):
        found = looks(observed(generator), 12)
        fixed = [look.absolute.interval for look in found]
        sequences = [look.absolute.sequence for look in found]
        truth = GAIN * EFFECT
        at_the_end += not fixed[-1].low <= truth <= fixed[-1].high
        watched += not all(each.low <= truth <= each.high for each in fixed)
        ever += not all(each.low <= truth <= each.high for each in sequences)
        last = found[-1].relative
        assert last is not None
        relative += not last.interval.low <= EFFECT <= last.interval.high
    assert at_the_end <= 16
    assert relative <= 16
    assert ever <= 16
    assert watched > ever


def test_requests_of_a_unit_taken_as_independent_would_claim_too_much() -> None:
    history = observed(np.random.default_rng(33))
    clustered = looks(history, 1)[-1].absolute.interval.width
    alone = history._replace(unit=np.arange(len(history.gain)))
    assert looks(alone, 1)[-1].absolute.interval.width < 0.9 * clustered


def test_without_any_gain_there_is_no_relative_difference() -> None:
    history = observed(np.random.default_rng(34))
    look = looks(history._replace(gain=np.zeros(len(history.gain))), 1)[-1]
    assert look.relative is None
    assert look.absolute.value == 0


def test_too_few_units_are_refused_with_what_to_do() -> None:
    history = observed(np.random.default_rng(35)).first(150)
    with pytest.raises(TooLittleData, match=r"at least 100 units in either arm, seen .* holdout"):
        looks(history)
