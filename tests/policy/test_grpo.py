import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Dirichlet

from policy import composite, grpo

F64 = torch.float64


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=F64)


def everyone(rewards: Tensor) -> Tensor:
    return torch.ones_like(rewards, dtype=torch.bool)


def group_advantages(rewards: Tensor, present: Tensor) -> Tensor:
    return torch.from_numpy(composite.centred(rewards.numpy(), present.numpy()))


def loss_of(alpha: Tensor, simplex: Tensor, served: Tensor, advantages: Tensor) -> Tensor:
    return grpo.grpo_loss(
        alpha,
        simplex,
        served,
        advantages,
        None,
        epsilon=0.2,
        epsilon_high=0.2,
        ratio_cap=10.0,
        kl_weight=0.0,
    )


def some_groups(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = np.random.default_rng(seed)
    alpha = torch.from_numpy(np.exp(generator.normal(size=(3, 4))))
    simplex = torch.from_numpy(generator.dirichlet(np.ones(4) * 3, size=(3, 5)))
    return alpha, simplex


def test_advantages_are_measured_from_the_groups_own_mean() -> None:
    rewards = tensor([[1.0, 2.0, 6.0], [0.5, 0.5, 0.5]])
    advantages = group_advantages(rewards, everyone(rewards))
    torch.testing.assert_close(advantages, tensor([[-2.0, -1.0, 3.0], [0.0, 0.0, 0.0]]))
    assert grpo.informative(advantages).tolist() == [True, False]


def test_a_nan_reward_leaves_the_rest_of_its_group_alone() -> None:
    rewards = tensor([[1.0, math.nan, 3.0, math.inf]])
    advantages = group_advantages(rewards, rewards.isfinite())
    torch.testing.assert_close(advantages, tensor([[-1.0, 0.0, 1.0, 0.0]]))


def test_a_group_with_no_member_left_is_zero() -> None:
    rewards = tensor([[math.nan, math.nan]])
    assert group_advantages(rewards, rewards.isfinite()).tolist() == [[0.0, 0.0]]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=16), st.floats(-1e3, 1e3))
def test_a_constant_added_to_all_rewards_changes_nothing(
    rewards: list[float], constant: float
) -> None:
    one = group_advantages(tensor([rewards]), everyone(tensor([rewards])))
    moved = tensor([[reward + constant for reward in rewards]])
    other = group_advantages(moved, everyone(moved))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-9)
    assert float(one.sum()) == pytest.approx(0, abs=1e-9)


def test_density_equals_torchs_row_by_row_even_for_one_row() -> None:
    alpha, simplex = some_groups()
    rows = zip(alpha, simplex, strict=True)
    expected = torch.stack([Dirichlet(row).log_prob(points) for row, points in rows])  # type: ignore[no-untyped-call]  # torch
    torch.testing.assert_close(grpo.log_density(alpha, simplex), expected)
    torch.testing.assert_close(grpo.log_density(alpha[:1], simplex[:1]), expected[:1])


def test_the_gradient_of_the_density_is_finite_at_the_least_component() -> None:
    alpha = tensor([[0.01, 0.01, 4.0]]).requires_grad_()
    simplex = tensor([[[1e-6, 1e-6, 1 - 2e-6], [0.3, 0.3, 0.4]]])
    grpo.log_density(alpha, simplex).sum().backward()  # type: ignore[no-untyped-call]  # torch
    assert alpha.grad is not None
    assert alpha.grad.isfinite().all()


def test_the_ratio_is_against_the_served_density() -> None:
    now, served = tensor([[0.0, 1.0, 50.0]]), tensor([[0.0, 0.5, 0.0]])
    ratio = grpo.importance_ratio(now, served, cap=10.0)
    torch.testing.assert_close(ratio, tensor([[1.0, math.exp(0.5), 10.0]]))


def test_the_surrogate_stops_paying_beyond_the_clip() -> None:
    ratio = tensor([[0.5, 1.1, 1.5, 0.5, 1.1, 1.5]])
    advantages = tensor([[1.0, 1.0, 1.0, -1.0, -1.0, -1.0]])
    surrogate = grpo.clipped_surrogate(ratio, advantages, 0.2, 0.2)
    torch.testing.assert_close(surrogate, tensor([[0.5, 1.1, 1.2, -0.8, -1.1, -1.5]]))
    assert float(grpo.clip_fraction(ratio, advantages, 0.2, 0.2)) == pytest.approx(2 / 6)


def test_the_clip_fraction_counts_members_that_say_something() -> None:
    ratio, advantages = tensor([[2.0, 2.0, 2.0]]), tensor([[1.0, -1.0, 0.0]])
    assert float(grpo.clip_fraction(ratio, advantages, 0.2, 0.2)) == 0.5
    assert float(grpo.clip_fraction(ratio, advantages * 0, 0.2, 0.2)) == 0.0


def test_at_the_served_policy_the_gradient_is_that_of_reinforce() -> None:
    alpha, simplex = some_groups()
    advantages = group_advantages(simplex[..., 0], everyone(simplex[..., 0]))
    served = grpo.log_density(alpha, simplex)
    left, right = alpha.clone().requires_grad_(), alpha.clone().requires_grad_()
    loss_of(left, simplex, served, advantages).backward()  # type: ignore[no-untyped-call]  # torch
    reinforce = -(advantages * grpo.log_density(right, simplex)).mean()
    reinforce.backward()  # type: ignore[no-untyped-call]  # torch
    assert left.grad is not None
    assert right.grad is not None
    torch.testing.assert_close(left.grad, right.grad)


def test_a_step_down_the_loss_makes_the_better_members_likelier() -> None:
    alpha, simplex = some_groups()
    advantages = group_advantages(simplex[..., 1], everyone(simplex[..., 1]))
    served = grpo.log_density(alpha, simplex)
    alpha.requires_grad_()
    loss_of(alpha, simplex, served, advantages).backward()  # type: ignore[no-untyped-call]  # torch
    assert alpha.grad is not None
    moved = (alpha - 1e-3 * alpha.grad).detach()
    assert float((advantages * (grpo.log_density(moved, simplex) - served)).sum()) > 0


@pytest.mark.parametrize("kl_weight", [0.0, 1.0])
def test_groups_with_equal_rewards_have_no_gradient_and_no_kl_drag(kl_weight: float) -> None:
    alpha, simplex = some_groups()
    rewards = torch.full((3, 5), 0.7, dtype=F64)
    advantages = group_advantages(rewards, everyone(rewards))
    served = grpo.log_density(alpha, simplex) + 0.3
    alpha.requires_grad_()
    loss = grpo.grpo_loss(
        alpha,
        simplex,
        served,
        advantages,
        torch.ones_like(alpha),
        epsilon=0.2,
        epsilon_high=0.2,
        ratio_cap=10.0,
        kl_weight=kl_weight,
    )
    loss.backward()  # type: ignore[no-untyped-call]  # torch
    assert loss.item() == 0.0
    assert alpha.grad is not None
    assert not alpha.grad.any()


def test_the_kl_term_pulls_informative_groups_to_the_reference() -> None:
    alpha, simplex = some_groups()
    reference = torch.ones_like(alpha)
    advantages = tensor([[1e-6, -1e-6, 0.0, 0.0, 0.0]]).expand(3, -1)
    served = grpo.log_density(alpha, simplex)
    moving = alpha.clone().requires_grad_()
    loss = grpo.grpo_loss(
        moving,
        simplex,
        served,
        advantages,
        reference,
        epsilon=0.2,
        epsilon_high=0.2,
        ratio_cap=10.0,
        kl_weight=2.0,
    )
    assert loss.item() == pytest.approx(2 * float(grpo.kl(alpha, reference).mean()), abs=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]  # torch
    assert moving.grad is not None
    nearer = (moving - 1e-3 * moving.grad).detach()
    assert float(grpo.kl(nearer, reference).sum()) < float(grpo.kl(alpha, reference).sum())


def test_a_batch_is_the_mean_of_its_groups() -> None:
    alpha, simplex = some_groups()
    served = grpo.log_density(alpha, simplex) - 0.1
    advantages = group_advantages(simplex[..., 0], everyone(simplex[..., 0]))
    alone = [
        loss_of(alpha[i : i + 1], simplex[i : i + 1], served[i : i + 1], advantages[i : i + 1])
        for i in range(3)
    ]
    together = loss_of(alpha, simplex, served, advantages)
    torch.testing.assert_close(together, torch.stack(alone).mean())
