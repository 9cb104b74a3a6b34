"""Learning to rank by NDCG itself, made smooth. A pure function."""

from typing import Final

import torch
from torch import Tensor

TEMPERATURE: Final = 0.1
"""Difference of fused scores that counts as an item above with chance .73."""


def smooth_ndcg_loss(
    scores: Tensor, gains: Tensor, present: Tensor, *, temperature: float = TEMPERATURE
) -> Tensor:
    """Minus the discounted gain, with the rank of an item replaced by 1 + the soft number above it.

        rank_i = 1 + sum over j ≠ i of sigmoid((score_j - score_i) / temperature)
        loss   = -sum over i of (gain_i - mean gain) / log2(1 + rank_i)

    Bounded as NDCG is, and so is its gradient: where items are far apart, in whichever order,
    nothing pulls at them any more. The mean gain changes nothing in the exact figure; in the smooth
    one it takes out a bias for whatever spreads items most (`evaluation/smooth_ndcg.py` computes
    the same in numpy, and says why).

    Args:
        scores: [request, item] fused scores.
        gains: [request, item] in units of an ideal.
        present: [request, item] whether there is an item.
        temperature: in units of the scores, > 0.

    Returns:
        scalar: mean over requests, in units of an ideal.

    >>> scores = torch.tensor([[9.0, 0.0]], dtype=torch.float64)
    >>> gains, there = torch.tensor([[0.0, 1.0]]).double(), torch.ones((1, 2), dtype=torch.bool)
    >>> round(float(smooth_ndcg_loss(scores, gains, there)), 4)  # (1 - 1 / log2(3)) / 2
    0.1845

    Reference: ApproxNDCG; Qin, Liu, Li: A general approximation framework for direct optimization
    of information retrieval measures, Information Retrieval 13 (2010). Centring is ours.
    """
    items = present.sum(dim=-1, keepdim=True).clamp(min=1)
    mean = torch.where(present, gains, 0).sum(dim=-1, keepdim=True) / items
    centred = torch.where(present, gains - mean, 0)
    others = (present[:, None, :] & present[:, :, None]) & ~torch.eye(
        scores.shape[-1], dtype=torch.bool
    )
    above = torch.sigmoid((scores[:, None, :] - scores[:, :, None]) / temperature)
    ranks = 1 + torch.where(others, above, 0).sum(dim=-1)
    return -(centred / torch.log2(1 + ranks)).sum(dim=-1).mean()
