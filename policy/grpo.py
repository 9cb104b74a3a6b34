"""Group relative policy optimisation over Dirichlets: pure functions, no state.

Shapes: rewards, advantages and densities are [request, member]; alpha is [request, objective].
"""

import math
from typing import Literal

import torch
from torch import Tensor

DEVIATION_FLOOR = 1e-4
"""Added to a deviation that is divided by, so that equal rewards stay 0."""


def scaled(advantages: Tensor, by: Literal["off", "group", "batch"]) -> Tensor:
    """Divide advantages by a deviation, or leave them as they are.

    By default nothing is divided: a group that hardly differs would count like one that differs
    much, and sparse outcomes would drown.

    Args:
        advantages: [request, member] in reward units; rows sum to zero.
        by: `off`; `group`, each row by its own deviation (GRPO); `batch`, all by that of the rows
            that say something.

    Returns:
        [request, member]; rows still sum to zero.

    >>> scaled(torch.tensor([[-2.0, 2.0], [0.0, 0.0]]), "group").round(decimals=3)
    tensor([[-1.,  1.],
            [ 0.,  0.]])

    Reference: DeepSeekMath, arXiv:2402.03300, section 4.1.2 (`group`); Dr. GRPO, arXiv:2503.20783
    (`off`).
    """
    if by == "off":
        return advantages
    if by == "group":
        deviation = advantages.square().mean(dim=-1, keepdim=True).sqrt()
    else:
        spoken = advantages[informative(advantages)]
        deviation = spoken.square().mean().sqrt() if len(spoken) else torch.ones(())
    return advantages / (deviation + DEVIATION_FLOOR)


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


def clipped_surrogate(
    ratio: Tensor, advantages: Tensor, epsilon: float, epsilon_high: float
) -> Tensor:
    """What is gained to first order, with no reward for moving further than epsilon.

    Args:
        ratio: [request, member] see `importance_ratio`.
        advantages: [request, member] in reward units.
        epsilon: ratios count only down to 1 - epsilon,
        epsilon_high: and up to 1 + epsilon_high; the greater, the more a rare good member may gain.

    Returns:
        [request, member] in reward units.

    Reference: PPO, arXiv:1707.06347, equation 7; two bounds as in DAPO, arXiv:2503.14476.
    """
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon_high)
    return torch.minimum(ratio * advantages, clipped * advantages)


def clip_fraction(ratio: Tensor, advantages: Tensor, epsilon: float, epsilon_high: float) -> Tensor:
    """Share of the members with an advantage whose gradient the clip has cut off, in [0, 1]."""
    up = (ratio > 1 + epsilon_high) & (advantages > 0)
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
    epsilon_high: float,
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
        advantages: [request, member] see `policy.composite`.
        reference: [request, objective] alpha of the reference policy; None leaves the KL out.
        epsilon: see `clipped_surrogate`.
        epsilon_high: see `clipped_surrogate`.
        ratio_cap: see `importance_ratio`.
        kl_weight: reward units per nat.

    Returns:
        scalar, in reward units: mean over all members of all requests, so that a batch counts by
        what it knows.
    """
    ratio = importance_ratio(log_density(alpha, simplex), served_log_density, ratio_cap)
    surrogate = clipped_surrogate(ratio, advantages, epsilon, epsilon_high).mean(dim=-1)
    loss = -surrogate if reference is None else kl_weight * kl(alpha, reference) - surrogate
    return torch.where(informative(advantages), loss, 0).mean()
