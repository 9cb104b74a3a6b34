import math

import numpy as np
import pytest
import torch

from evaluation.smooth_ndcg import smooth_ndcg
from policy.fusion import rank
from policy.rewards import discounted
from policy.smooth_ndcg_loss import smooth_ndcg_loss


def tensor(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_two_items_by_hand() -> None:
    """Scores log 3 temperatures apart: chances 3/4 and 1/4 to be above; ranks 1.25 and 1.75.

    Gains 0 and 4 less their mean 2: -(-2 / log2(2.25) + 2 / log2(2.75)) = -(-1.7095 + 1.3704).
    """
    loss = smooth_ndcg_loss(
        tensor([[0.5 * math.log(3), 0.0]]),
        tensor([[0.0, 4.0]]),
        torch.ones((1, 2), dtype=torch.bool),
        temperature=0.5,
    )
    assert float(loss) == pytest.approx(1.7095 - 1.3704, abs=1e-4)


def test_it_agrees_with_what_was_written_in_numpy_and_its_own_derivative() -> None:
    draw = np.random.default_rng(3)
    scores, gains = draw.normal(size=(5, 6)), draw.integers(0, 3, (5, 6)).astype(float)
    present = np.arange(6) < np.array([1, 2, 4, 6, 6])[:, None]
    free = torch.from_numpy(scores).requires_grad_()
    loss = smooth_ndcg_loss(free, torch.from_numpy(gains), torch.from_numpy(present))
    loss.backward()  # type: ignore[no-untyped-call]  # torch
    mean = np.where(present, gains, 0).sum(axis=1, keepdims=True) / present.sum(axis=1)[:, None]
    value, gradient = smooth_ndcg(
        np.where(present, scores, -1e4).astype(np.float32),
        np.where(present, gains - mean, 0).astype(np.float32),
    )
    assert float(loss.detach()) == pytest.approx(-value.mean(), abs=1e-5)
    assert free.grad is not None
    assert free.grad.numpy() == pytest.approx(-gradient / 5, abs=1e-4)


def test_a_low_temperature_is_the_exact_figure() -> None:
    draw = np.random.default_rng(4)
    scores, gains = draw.permutation(24).reshape(4, 6) / 10, draw.random((4, 6))
    loss = smooth_ndcg_loss(
        torch.from_numpy(scores),
        torch.from_numpy(gains),
        torch.ones((4, 6), dtype=torch.bool),
        temperature=1e-4,
    )
    centred = gains - gains.mean(axis=1, keepdims=True)
    assert float(loss) == pytest.approx(-discounted(centred, rank(scores)).mean())


def gradient(scores: torch.Tensor, gains: torch.Tensor) -> torch.Tensor:
    free = scores.clone().requires_grad_()
    there = torch.ones(scores.shape, dtype=torch.bool)
    smooth_ndcg_loss(free, gains, there).backward()  # type: ignore[no-untyped-call]  # torch
    assert free.grad is not None
    return free.grad


def test_the_gradient_is_bounded_and_a_hopeless_pair_lets_go() -> None:
    """One unit of gain, one request, temperature .1: the discount's slope is at most .73 per rank,
    and a score moves each of the ranks by at most 1/4 per temperature.

    A gain far below an item without, which no small change can bring up, pulls at nothing.
    """
    draw = np.random.default_rng(5)
    for spread in (0.01, 0.1, 1.0, 10.0, 1000.0):
        scores = torch.from_numpy(draw.normal(size=(1, 6)) * spread)
        gains = torch.eye(6, dtype=torch.float64)[:1]
        # |centred gains| sum to less than 2, and an item has a part in the ranks of 6.
        assert float(gradient(scores, gains).abs().max()) <= 2 * 0.73 * 6 * 0.25 / 0.1
    assert float(gradient(tensor([[50.0, 0.0]]), tensor([[0.0, 1.0]])).abs().max()) < 1e-12
    assert float(gradient(tensor([[0.1, 0.0]]), tensor([[0.0, 1.0]])).abs().max()) > 0.1
