import math

import numpy as np
import pytest
import torch

from policy.listwise import listwise_loss


def test_the_loss_is_the_gain_weighted_cross_entropy_of_examined_shares() -> None:
    """Three items, the last is padding; looked at with 1 and 1/2; fused 0 and log 4.

    Shares 1 × 1 : 1/2 × 4 = 1 : 2; gains 3 and 6: -(3 log 1/3 + 6 log 2/3).
    """
    signals = torch.tensor([[[0.0], [math.log(4.0)], [9.0]]], dtype=torch.float64)
    loss = listwise_loss(
        torch.ones((1, 1), dtype=torch.float64),
        signals,
        torch.tensor([[True, True, False]]),
        torch.tensor([[3.0, 6.0, 0.0]], dtype=torch.float64),
        torch.tensor([[1.0, 0.5, 1.0]], dtype=torch.float64),
        torch.ones(1, dtype=torch.float64),
    )
    assert float(loss) == pytest.approx(-(3 * math.log(1 / 3) + 6 * math.log(2 / 3)))


def test_requests_without_gain_say_nothing_and_padding_has_no_gradient() -> None:
    weights = torch.full((2, 2), 0.5, dtype=torch.float64, requires_grad=True)
    signals = torch.randn((2, 3, 2), dtype=torch.float64, requires_grad=True)
    gains = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    present = torch.tensor([[True, True, True], [True, True, False]])
    one = torch.ones(1, dtype=torch.float64)
    listwise_loss(weights, signals, present, gains, torch.ones_like(gains), one).backward()  # type: ignore[no-untyped-call]  # torch
    assert weights.grad is not None
    assert signals.grad is not None
    assert not weights.grad[0].any()
    assert weights.grad[1].any()
    assert not signals.grad[1, 2].any()
    assert signals.grad.isfinite().all()


def test_the_weights_by_which_users_choose_are_the_best() -> None:
    """Choices by softmax of 3 × (.7, .3) · signals, seen where a position is looked at."""
    draw = np.random.default_rng(0)
    signals = draw.standard_normal((20_000, 5, 2))
    looked_at = np.array([1.0, 0.6, 0.4, 0.3, 0.2])
    appeal = looked_at * np.exp(3 * signals @ [0.7, 0.3])
    chosen = (
        appeal.cumsum(axis=1) > draw.random((20_000, 1)) * appeal.sum(axis=1)[:, None]
    ).argmax(axis=1)
    gains = torch.from_numpy(np.eye(5)[chosen])
    loss = {
        first: float(
            listwise_loss(
                torch.tensor([[first, 1 - first]], dtype=torch.float64).expand(20_000, -1),
                torch.from_numpy(signals),
                torch.ones((20_000, 5), dtype=torch.bool),
                gains,
                torch.from_numpy(looked_at).expand(20_000, -1),
                torch.full((1,), 3.0, dtype=torch.float64),
            )
        )
        for first in (0.5, 0.6, 0.7, 0.8, 0.9)
    }
    assert min(loss, key=loss.__getitem__) == 0.7
