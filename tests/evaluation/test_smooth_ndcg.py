"""The smoothed NDCG: its limit, its gradient, and what must not move it."""

import math

import numpy as np
import pytest

from evaluation.smooth_ndcg import Singles, smooth_ndcg
from policy.rewards import discounts


def some_requests(requests: int = 5, items: int = 6) -> tuple[Singles, Singles]:
    draw = np.random.default_rng(0)
    gains = draw.exponential(size=(requests, items))
    gains -= gains.mean(axis=1, keepdims=True)
    return draw.normal(size=(requests, items)).astype(np.float32), gains.astype(np.float32)


def test_sharp_it_is_the_exact_figure() -> None:
    scores, gains = some_requests()
    value, _ = smooth_ndcg(scores, gains, temperature=1e-4)
    in_order = np.take_along_axis(gains, np.argsort(-scores, axis=1), axis=1)
    np.testing.assert_allclose(value, in_order @ discounts(6), atol=1e-5)


def test_the_gradient_is_that_of_small_differences() -> None:
    scores, gains = some_requests()
    _, gradient = smooth_ndcg(scores, gains, temperature=0.5)
    step = 1e-2
    for item in range(scores.shape[1]):
        up, down = scores.copy(), scores.copy()
        up[:, item] += step
        down[:, item] -= step
        slope = smooth_ndcg(up, gains, 0.5)[0] - smooth_ndcg(down, gains, 0.5)[0]
        np.testing.assert_allclose(gradient[:, item], slope / (2 * step), atol=2e-4)


def test_padding_changes_nothing() -> None:
    scores, gains = some_requests()
    value, gradient = smooth_ndcg(scores, gains)
    wide = np.pad(scores, ((0, 0), (0, 3)), constant_values=-1e4), np.pad(gains, ((0, 0), (0, 3)))
    padded_value, padded_gradient = smooth_ndcg(*wide)
    np.testing.assert_allclose(padded_value, value, rtol=1e-5)
    np.testing.assert_allclose(padded_gradient[:, :6], gradient, atol=1e-5)
    assert not padded_gradient[:, 6:].any()


def test_gains_that_follow_nothing_pull_nowhere() -> None:
    """Over all ways to deal the gains out to the items, the gradient cancels."""
    scores = np.array([[2.0, 0.4, 0.1]], np.float32)
    gains = np.array([[1.0, 0.0, 0.0]]) - 1 / 3
    total = sum(
        smooth_ndcg(scores, np.roll(gains, shift, axis=1).astype(np.float32))[1]
        for shift in range(3)
    )
    np.testing.assert_allclose(np.asarray(total), 0, atol=1e-6)


def test_two_items_by_hand() -> None:
    """At equal scores each rank is 1.5."""
    value, gradient = smooth_ndcg(
        np.zeros((1, 2), np.float32), np.array([[-0.5, 0.5]], np.float32), temperature=1.0
    )
    assert value[0] == pytest.approx(0)
    # The rank falls by 1/4 with the own score and rises by 1/4 with the other's; the discount's
    # slope is -ln 2 / ((1 + rank) ln²(1 + rank)).
    slope = -math.log(2) / (2.5 * math.log(2.5) ** 2)
    assert gradient[0, 1] == pytest.approx(2 * 0.5 * slope * -0.25, rel=1e-5)
