"""The benchmark of off-policy intervals: what it holds for true is what happens."""

import math

import numpy as np

from benchmarks import off_policy, watching
from evaluation.off_policy import ESTIMATORS


def test_the_truth_is_what_logging_by_the_target_earns() -> None:
    pool = off_policy.pool(seed=5, units=120, requests=600)
    generator = np.random.default_rng(6)
    for alpha in pool.targets.values():
        truth = off_policy.true_value(pool, alpha, seed=5, draws=20)
        served = pool._replace(alpha=alpha)
        means = [off_policy.logged(served, generator)[0].rewards.mean() for _ in range(30)]
        assert abs(np.mean(means) - truth) < 5 * np.std(means) / math.sqrt(len(means))


def test_a_small_form_tells_every_figure() -> None:
    figures = off_policy.figures(3, seed=5, units=150, requests=1_000)
    for target in ("policy", "static", "wide"):
        assert 0 < figures[f"{target}_true_orders"] < 1
        assert 0 <= figures[f"{target}_lost"] < 0.2
        assert figures[f"{target}_effective_sample"] > 1
        if figures[f"{target}_refused"] < 1:
            for name in ESTIMATORS:
                assert 0 <= figures[f"{target}_{name}_sequence_coverage"] <= 1
                assert (
                    0
                    < figures[f"{target}_{name}_interval_width"]
                    < figures[f"{target}_{name}_sequence_width"]
                )
    assert min(figures[f"{target}_refused"] for target in ("policy", "static", "wide")) < 1


def test_watching_tells_the_uplift_and_shares() -> None:
    figures = watching.figures(2, seed=5)
    for name in ("uplift_absolute", "uplift_relative"):
        assert figures[f"{name}_interval_width"] < figures[f"{name}_sequence_width"]
    assert figures["share_asymptotic_width"] < figures["share_bounded_width"]
