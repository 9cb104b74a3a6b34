"""LambdaLoss: the pairwise loss of learning to rank that bounds a loss of NDCG. A pure function."""

import math
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

MU: Final = 10.0
"""How much the distance of two ranks counts beside the two ranks themselves."""


def lambda_loss(scores: Tensor, gains: Tensor, present: Tensor, *, mu: float = MU) -> Tensor:
    """NDCG-Loss2++: how badly scores order the pairs of items that gained differently.

    With the current order of the scores, in which items have the ranks r_i from 1 on, D(r) =
    log2(1 + r) and d = |r_i - r_j|:

        loss = -sum over gain_i > gain_j of weight_ij log2 sigmoid(score_i - score_j)
        weight_ij = (|1 / D(r_i) - 1 / D(r_j)| + mu |1 / D(d) - 1 / D(d + 1)|) (gain_i - gain_j)

    The weights are taken as given: no gradient goes through the ranks. A pair in the wrong order
    pulls the harder the further it is apart, up to its weight, where NDCG itself would no longer
    change; so a few gains that no score explains can count for many.

    Args:
        scores: [request, item] fused scores, in log odds.
        gains: [request, item] in units of an ideal; linear, as everywhere in this system, where the
            paper takes 2^label - 1.
        present: [request, item] whether there is an item.
        mu: 0 leaves NDCG-Loss2's part out: the loss of LambdaRank's weights.

    Returns:
        scalar: mean over requests, in bits times gains.

    >>> scores = torch.zeros((1, 2), dtype=torch.float64)
    >>> gains = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    >>> there = torch.ones((1, 2), dtype=torch.bool)
    >>> round(float(lambda_loss(scores, gains, there, mu=0.0)), 4)  # 1 - 1 / log2(3), times 1 bit
    0.3691

    Reference: Wang, Li, Golbandi, Bendersky, Najork: The LambdaLoss framework for ranking metric
    optimization, CIKM 2018, section 5 (NDCG-Loss2++, equation 18).
    """
    with torch.no_grad():
        order = torch.argsort(
            scores.masked_fill(~present, -torch.inf), dim=-1, descending=True, stable=True
        )
        ranks = torch.argsort(order, dim=-1).to(scores.dtype) + 1
        counts = 1 / torch.log2(1 + ranks)
        by_rank = (counts[:, :, None] - counts[:, None, :]).abs()
        # An item's distance from itself has no discount; its pair has no weight either.
        apart = (ranks[:, :, None] - ranks[:, None, :]).abs().clamp(min=1)
        by_distance = (1 / torch.log2(1 + apart) - 1 / torch.log2(2 + apart)).abs()
        more = (gains[:, :, None] - gains[:, None, :]).clamp(min=0)
        pairs = present[:, :, None] & present[:, None, :]
        weights = torch.where(pairs, (by_rank + mu * by_distance) * more, 0)
    missed = functional.softplus(scores[:, None, :] - scores[:, :, None]) / math.log(2)
    return (weights * missed).sum(dim=(1, 2)).mean()
