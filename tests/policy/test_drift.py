import numpy as np

from policy.drift import BEFORE, BUCKET, LEAST_BEFORE, RECENT, DriftDetector


def fed(leads: list[float], noise: float = 0.0, seed: int = 0) -> DriftDetector:
    """A detector that has seen one bucket of each mean lead."""
    draw, detector = np.random.default_rng(seed), DriftDetector(5.0)
    for lead in leads:
        detector.add(lead + noise * draw.standard_normal(BUCKET))
    return detector


def test_the_score_is_the_difference_in_standard_errors() -> None:
    """Before: 16 buckets of ±1 around 2; recent: 8 of ±1 around 1."""
    detector = DriftDetector(5.0)
    around = np.tile([-1.0, 1.0], BUCKET // 2)
    for lead in [2.0] * 16 + [1.0] * 8:
        detector.add(lead + around)
    error = (1 / (16 * BUCKET) + 1 / (8 * BUCKET)) ** 0.5
    np.testing.assert_allclose(detector.score(), 1 / error)
    assert detector.fired()


def test_a_lead_that_rises_never_fires() -> None:
    assert not fed([0.1 * k for k in range(100)], noise=0.1).fired()


def test_a_lead_that_stays_fires_hardly_ever() -> None:
    fired = 0
    for seed in range(10):
        draw, detector = np.random.default_rng(seed), DriftDetector(5.0)
        for _ in range(300):
            detector.add(0.1 + draw.standard_normal(BUCKET))
            fired += detector.fired()
    assert fired == 0


def test_a_fall_is_found_within_the_recent_buckets() -> None:
    assert fed([0.5] * BEFORE + [-0.5] * RECENT, noise=1.0).fired()


def test_nothing_fires_before_both_windows_are_there_nor_after_a_clear() -> None:
    detector = fed([1.0] * (LEAST_BEFORE - 1) + [-1.0] * RECENT, noise=0.1)
    assert detector.score() == 0
    detector = fed([1.0] * LEAST_BEFORE + [-1.0] * RECENT, noise=0.1)
    assert detector.fired()
    detector.clear()
    assert detector.score() == 0


def test_small_slots_are_gathered_into_buckets() -> None:
    one, other = DriftDetector(5.0), DriftDetector(5.0)
    leads = np.random.default_rng(0).standard_normal(64 * BUCKET)
    for each in leads.reshape(64, BUCKET):
        one.add(each)
    for each in leads.reshape(-1, BUCKET // 4):
        other.add(each)
    np.testing.assert_allclose(one.score(), other.score())


def test_a_detector_goes_on_from_its_state() -> None:
    one = fed([0.5] * 20, noise=1.0)
    one.add(np.ones(3))
    other = DriftDetector(5.0)
    other.restore(one.state())
    assert other.state()["buckets"].shape == one.state()["buckets"].shape
    for detector in (one, other):
        for _ in range(RECENT):
            detector.add(np.full(BUCKET, -1.0))
    assert one.score() == other.score() > 0
