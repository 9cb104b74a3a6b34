"""Group relative policy optimisation over Dirichlets: pure functions, no state.

Shapes: rewards, advantages and densities are [request, member]; alpha is [request, objective].
"""

import math

import torch
from torch import Tensor


def group_advantages(rewards: Tensor, present: Tensor) -> Tensor:
    """Score each member against the other members of its own group.

    The mean is taken away; nothing is divided by the standard deviation, which would blow up groups
    that hardly differ (see docs/papers.md).

    Args:
        rewards: [request, member] in reward units; may be NaN where not present.
        present: [request, member] whether the member counts.

    Returns:
        [request, member] in reward units; every row sums to zero, absent members are zero.

    >>> group_advantages(torch.tensor([[1.0, 3.0, torch.nan]]), torch.tensor([[True, True, False]]))
    tensor([[-1.,  1.,  0.]])

    Reference: group baseline of DeepSeekMath, arXiv:2402.03300, section 4.1.2; without the standard
    deviation as in Dr. GRPO, arXiv:2503.20783.
    """
    counted = torch.where(present, rewards, 0)
    count = present.sum(dim=-1, keepdim=True).clamp(min=1)
    mean = counted.sum(dim=-1, keepdim=True) / count
    return torch.where(present, counted - mean, 0)


def informative(advantages: Tensor, threshold: float = 1e-9) -> Tensor:
    """[request] whether the members of a group earned different rewards."""
    return advantages.abs().amax(dim=-1) > threshold


def log_density(alpha: Tensor, simplex: Tensor) -> Tensor:
    """Log density of points under Dirichlets: the twin of `policy.dirichlet.log_density`.

    Args:
        alpha: [request, objective] concentration parameters, > 0.
        simplex: [request, member, objective] from `policy.dirichlet.weights_to_simplex`, hence
            away from the boundary.

    Returns:
        [request, member] in nats.
    """
    terms = ((alpha[:, None, :] - 1) * simplex.log()).sum(dim=-1)
    return terms + log_normaliser(alpha)[:, None]


def log_normaliser(alpha: Tensor) -> Tensor:
    """[...] log of the Dirichlet's normalising constant, from alpha [..., objective]."""
    return torch.lgamma(alpha.sum(dim=-1)) - torch.lgamma(alpha).sum(dim=-1)


def kl(alpha: Tensor, beta: Tensor) -> Tensor:
    """[...] KL(Dirichlet(alpha) || Dirichlet(beta)) in nats; twin of `policy.dirichlet.kl`."""
    total = torch.digamma(alpha.sum(dim=-1, keepdim=True))
    inner = ((alpha - beta) * (torch.digamma(alpha) - total)).sum(dim=-1)
    return log_normaliser(alpha) - log_normaliser(beta) + inner


def importance_ratio(log_density: Tensor, served_log_density: Tensor, cap: float) -> Tensor:
    """How much likelier a member is under the current policy than under the one that served it.

    Args:
        log_density: [request, member] under the current policy, in nats.
        served_log_density: [request, member] as logged with the decision, in nats. Never
            recomputed from the current policy: that would make every ratio 1.
        cap: greatest ratio; beyond it the ratio is constant (truncated importance weights), which
            bounds what a stale group can do.

    Returns:
        [request, member] in (0, cap].
    """
    return torch.exp((log_density - served_log_density).clamp(max=math.log(cap)))


def clipped_surrogate(ratio: Tensor, advantages: Tensor, epsilon: float) -> Tensor:
    """What is gained to first order, with no reward for moving further than epsilon.

    Args:
        ratio: [request, member] see `importance_ratio`.
        advantages: [request, member] in reward units.
        epsilon: ratios count only within [1 - epsilon, 1 + epsilon].

    Returns:
        [request, member] in reward units.

    Reference: PPO, arXiv:1707.06347, equation 7.
    """
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
    return torch.minimum(ratio * advantages, clipped * advantages)


def clip_fraction(ratio: Tensor, advantages: Tensor, epsilon: float) -> Tensor:
    """Share of the members with an advantage whose gradient the clip has cut off, in [0, 1]."""
    up = (ratio > 1 + epsilon) & (advantages > 0)
    down = (ratio < 1 - epsilon) & (advantages < 0)
    return (up | down).sum() / (advantages != 0).sum().clamp(min=1)


def grpo_loss(
    alpha: Tensor,
    simplex: Tensor,
    served_log_density: Tensor,
    advantages: Tensor,
    reference: Tensor | None,
    *,
    epsilon: float,
    ratio_cap: float,
    kl_weight: float = 0.0,
) -> Tensor:
    """The loss of one batch of groups.

    Groups whose members earned the same say nothing, neither by surrogate nor by KL: otherwise most
    groups, which have no outcome, would drag the policy to the reference.

    Args:
        alpha: [request, objective] of the current policy.
        simplex: [request, member, objective] the members.
        served_log_density: [request, member] as logged.
        advantages: [request, member] see `group_advantages`.
        reference: [request, objective] alpha of the reference policy; None leaves the KL out.
        epsilon: see `clipped_surrogate`.
        ratio_cap: see `importance_ratio`.
        kl_weight: reward units per nat.

    Returns:
        scalar, in reward units: mean over all members of all requests, so that a batch counts by
        what it knows.
    """
    ratio = importance_ratio(log_density(alpha, simplex), served_log_density, ratio_cap)
    surrogate = clipped_surrogate(ratio, advantages, epsilon).mean(dim=-1)
    loss = -surrogate if reference is None else kl_weight * kl(alpha, reference) - surrogate
    return torch.where(informative(advantages), loss, 0).mean()
