"""The benchmark of the warm-up, in a small form."""

import math

import pytest

from benchmarks import warm_start
from benchmarks.learning.worlds import SIMULATED, SimulatedWorld
from benchmarks.warm_start import Asked, figures_of, in_the_marketplace, logged
from policy.logged_fit import WarmStartSettings


def test_the_log_is_of_requests_that_are_not_played() -> None:
    world = SimulatedWorld(SIMULATED["base"], 100)
    log = logged(world, 100, requests=100)
    assert log.features.shape == (100, 16)
    assert not set(log.features[:, 0]) & set(world.block(0, 64).features[:, 0])
    assert log.values.any()
    again = logged(world, 100, requests=100)
    assert log.values.tobytes() == again.values.tobytes()


def test_a_warm_start_begins_above_uniform_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_start, "LIVE", (64,))
    monkeypatch.setattr(
        warm_start, "_settings",
        lambda asked: WarmStartSettings(objective="likelihood", steps=60, seed=asked.seed),
    )  # fmt: skip
    warm = in_the_marketplace(Asked("base", "likelihood", 100))
    cold = in_the_marketplace(Asked("base", "cold", 100))
    assert cold["at_0"] == pytest.approx(0, abs=1e-9)  # the baseline is uniform
    assert warm["at_0"] > 0.3
    assert warm["static_alone"] > 0.2
    assert 0 < warm["true_cost"] < 0.1
    assert math.isfinite(warm["at_64"])


def test_figures_are_means_with_intervals_over_seeds() -> None:
    figures = figures_of(
        [
            (Asked("base", "best", 100), {"at_0": 0.8}),
            (Asked("base", "best", 101), {"at_0": 0.9}),
            (Asked("kuairand", "direct", 100), {"ndcg": 0.75}),
        ]
    )
    assert figures == {
        "base_best_at_0": pytest.approx(0.85),
        "base_best_at_0_ci": pytest.approx(12.706 * 0.05),
        "kuairand_direct_ndcg": 0.75,
    }
