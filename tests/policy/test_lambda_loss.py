import math

import numpy as np
import pytest
import torch

from policy.fusion import Floats
from policy.lambda_loss import lambda_loss


def tensor(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def by_pairs(scores: list[float], gains: list[float], mu: float) -> float:
    """Equation 18 of the paper for one request without padding, pair by pair."""
    place = {item: at + 1 for at, item in enumerate(sorted(range(len(scores)), key=lambda i: -scores[i]))}  # fmt: skip  # noqa: E501
    total = 0.0
    for i, gain_i in enumerate(gains):
        for j, gain_j in enumerate(gains):
            if gain_i <= gain_j:
                continue
            d = abs(place[i] - place[j])
            rho = abs(1 / math.log2(1 + place[i]) - 1 / math.log2(1 + place[j]))
            delta = abs(1 / math.log2(1 + d) - 1 / math.log2(2 + d))
            right = 1 / (1 + math.exp(scores[j] - scores[i]))
            total -= (rho + mu * delta) * (gain_i - gain_j) * math.log2(right)
    return total


def test_a_list_of_three_by_hand() -> None:
    """Ranks 1, 2, 3; the second item alone gained 2. Its pairs are (2, 1) and (2, 3), both at
    distance 1, so delta = 1 - 1/log2(3) = .36907; rho = .36907 and 1/log2(3) - 1/2 = .13093.

    The first is wrong by log 3 (chance 1/4, 2 bits), the second right by log 3 (3/4, .41504 bits).
    """
    apart = math.log(3)
    loss = lambda_loss(
        tensor([[2 * apart, apart, 0.0]]),
        tensor([[0.0, 2.0, 0.0]]),
        torch.ones((1, 3), dtype=torch.bool),
        mu=2.0,
    )
    first = (0.36907 + 2 * 0.36907) * 2 * 2
    second = (0.13093 + 2 * 0.36907) * 2 * 0.41504
    assert float(loss) == pytest.approx(first + second, abs=1e-4)


def test_it_agrees_with_a_loop_over_pairs_whatever_the_padding() -> None:
    draw = np.random.default_rng(7)
    sizes = [1, 2, 5, 8]
    scores, gains = draw.normal(size=(4, 8)), draw.integers(0, 3, (4, 8)).astype(float)
    present = np.arange(8) < np.array(sizes)[:, None]
    loss = lambda_loss(
        torch.from_numpy(scores), torch.from_numpy(gains), torch.from_numpy(present), mu=10.0
    )
    expected = [
        by_pairs(scores[row, :size].tolist(), gains[row, :size].tolist(), 10.0)
        for row, size in enumerate(sizes)
    ]
    assert float(loss) == pytest.approx(np.mean(expected))


def test_padding_and_ranks_have_no_gradient() -> None:
    """The gradient is that of the logistic terms with the weights held."""
    scores = tensor([[0.5, -0.5, 9.0]]).requires_grad_()
    present = torch.tensor([[True, True, False]])
    lambda_loss(scores, tensor([[0.0, 1.0, 5.0]]), present, mu=0.0).backward()  # type: ignore[no-untyped-call]  # torch
    weight = 1 - 1 / math.log2(3)
    missed = weight / (1 + math.exp(-1.0)) / math.log(2)
    assert scores.grad is not None
    assert scores.grad[0].tolist() == pytest.approx([missed, -missed, 0.0])


def pull(apart: float) -> float:
    """How hard a gain pulls that lies so far below an item without."""
    scores = tensor([[apart, 0.0]]).requires_grad_()
    there = torch.ones((1, 2), dtype=torch.bool)
    lambda_loss(scores, tensor([[0.0, 1.0]]), there).backward()  # type: ignore[no-untyped-call]  # torch
    assert scores.grad is not None
    return float(scores.grad[0, 0])


def test_a_hopeless_pair_goes_on_pulling() -> None:
    """What the direct objective does not do; at most the pair's weight, in bits."""
    weight = (1 + 10) * (1 - 1 / math.log2(3)) / math.log(2)
    assert pull(0.0) == pytest.approx(weight / 2)
    assert pull(50.0) == pytest.approx(weight)


def test_requests_without_gain_say_nothing() -> None:
    gains: Floats = np.zeros((2, 3))
    there = torch.ones((2, 3), dtype=torch.bool)
    assert float(lambda_loss(torch.randn(2, 3).double(), torch.from_numpy(gains), there)) == 0
