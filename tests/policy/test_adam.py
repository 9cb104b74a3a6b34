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


@pytest.mark.parametrize("limit", [math.inf, 1.0])
def test_steps_equal_torchs_own(limit: float) -> None:
    ours, theirs = started(), started()
    adam = Adam(ours, 0.05, second_decay=0.99, gradient_limit=limit)
    reference = torch.optim.Adam(theirs, 0.05, betas=(0.9, 0.99))
    for _ in range(50):
        adam.zero_grad()
        quadratic(ours).backward()  # type: ignore[no-untyped-call]
        reference.zero_grad()
        quadratic(theirs).backward()  # type: ignore[no-untyped-call]
        expected = torch.nn.utils.clip_grad_norm_(theirs, limit)
        assert adam.step() == pytest.approx(expected.item(), rel=1e-6)
        reference.step()
        for one, other in zip(ours, theirs, strict=True):
            # torch adds 1e-6 to the norm before it divides.
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_a_parameter_without_a_gradient_stays() -> None:
    one, other = started()
    adam = Adam([one, other], 0.1, second_decay=0.99)
    one.sum().backward()  # type: ignore[no-untyped-call]
    adam.step()
    torch.testing.assert_close(other, started()[1])
    torch.testing.assert_close(one, started()[0] - 0.1)


def test_copied_moments_go_on_to_the_same_bits() -> None:
    first, second = started(), started()
    left, right = (Adam(p, 0.05, second_decay=0.99) for p in (first, second))

    def step(adam: Adam, parameters: list[torch.Tensor]) -> None:
        adam.zero_grad()
        quadratic(parameters).backward()  # type: ignore[no-untyped-call]
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
