"""The cores of server, join and learner, together, get better because of what users did."""

from benchmarks.marketplace_in_memory import play


def test_a_short_run_recovers_more_than_it_began_with() -> None:
    truth, loop = play(4_500, seed=2)
    assert (
        truth.over(0, 5, static=False).recovered < 0.05
    )  # nothing was learned before W had passed
    late = truth.over(10, 15, static=False)
    assert late.recovered > 0.25
    versions = [version.version for version in loop.versions]
    assert versions == list(range(1, len(versions) + 1))
    assert len(versions) >= 30
    # What came after its window was told, not dropped.
    assert sum(loop.refused.values()) > 0
