import math

import pytest
import torch

from policy.adam import Adam


def quadratic(parameters: list[torch.Tensor]) -> torch.Tensor:
    """A bowl whose walls are of very different steepness."""
    one, other = parameters
    return (one - 3).square().sum() * 100 + (other + 1).pow(4).sum() * 0.01


def started() -> list[torch.Tensor]:
    return [
        torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True),
        torch.tensor([[0.5, 4.0]], dtype=torch.float64, requires_grad=True),
    ]


class Slow:
    """Algorithm 1 of the paper for one number, its gradient given."""

    def __init__(self, value: float) -> None:
        self.value, self.m, self.v, self.t = value, 0.0, 0.0, 0

    def step(self, gradient: float) -> None:
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * gradient
        self.v = 0.99 * self.v + 0.01 * gradient**2
        unbiased_m, unbiased_v = self.m / (1 - 0.9**self.t), self.v / (1 - 0.99**self.t)
        self.value -= 0.05 * unbiased_m / (math.sqrt(unbiased_v) + 1e-8)


@pytest.mark.parametrize("limit", [math.inf, 1.0])
def test_steps_are_those_of_the_paper(limit: float) -> None:
    parameters = started()
    slow = [Slow(value) for parameter in parameters for value in parameter.flatten().tolist()]
    adam = Adam(parameters, 0.05, second_decay=0.99, gradient_limit=limit)
    for _ in range(50):
        one, other = [s.value for s in slow[:2]], [s.value for s in slow[2:]]
        gradients = [200 * (x - 3) for x in one] + [0.04 * (x + 1) ** 3 for x in other]
        norm = math.hypot(*gradients)
        for number, gradient in zip(slow, gradients, strict=True):
            number.step(gradient * min(1, limit / norm))
        adam.zero_grad()
        quadratic(parameters).backward()  # type: ignore[no-untyped-call]  # torch
        assert adam.step() == pytest.approx(norm, rel=1e-9)
        ours = [value for parameter in parameters for value in parameter.flatten().tolist()]
        assert ours == pytest.approx([number.value for number in slow], rel=1e-9)


def test_a_parameter_without_a_gradient_stays() -> None:
    one, other = started()
    adam = Adam([one, other], 0.1, second_decay=0.99)
    one.sum().backward()  # type: ignore[no-untyped-call]  # torch
    adam.step()
    torch.testing.assert_close(other, started()[1])
    torch.testing.assert_close(one, started()[0] - 0.1)


def test_copied_moments_go_on_to_the_same_bits() -> None:
    first, second = started(), started()
    left, right = (Adam(p, 0.05, second_decay=0.99) for p in (first, second))

    def step(adam: Adam, parameters: list[torch.Tensor]) -> None:
        adam.zero_grad()
        quadratic(parameters).backward()  # type: ignore[no-untyped-call]  # torch
        adam.step()

    for _ in range(5):
        step(left, first)
    with torch.no_grad():
        for one, other in zip(first, second, strict=True):
            other.copy_(one)
        for name, tensor in right.tensors().items():
            tensor.copy_(left.tensors()[name])
    for _ in range(5):
        step(left, first)
        step(right, second)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
