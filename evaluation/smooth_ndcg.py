"""NDCG made differentiable, so that weights can be fitted to it directly.

An item's rank is replaced by 1 plus the soft number of items above it, and gains are taken less
their mean over the request's items:

    rank_i = 1 + Σ_{j≠i} σ((s_j − s_i) / temperature)
    value  = Σ_i (gain_i − mean gain) / log2(1 + rank_i)

The mean changes nothing in the exact NDCG, where the discounts add up to the same in any order.
Here it takes out a bias: the discount is convex, so sure ranks add up to more than middling ones,
and gains that follow nothing at all would put all weight on whichever objective spreads the items
most. Bounded like NDCG itself, unlike pairwise losses. In single precision: it is a fit, and the
figures that are reported are those of the exact NDCG.

Source: ApproxNDCG; Qin, Liu, Li: A general approximation framework for direct optimization of
information retrieval measures, Information Retrieval 13 (2010). Centring is ours.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

Singles = npt.NDArray[np.float32]

TEMPERATURE: Final = 0.1
"""Difference of fused scores that counts as an item above with chance .73."""


def smooth_ndcg(
    scores: Singles, gains: Singles, temperature: float = TEMPERATURE
) -> tuple[Singles, Singles]:
    """Smoothed NDCG of requests and how it changes with the fused scores.

    Args:
        scores: [request, item] fused scores; padding far below every item.
        gains: [request, item] less their mean, divided by the request's ideal; 0 for padding.
        temperature: in units of the scores.

    Returns:
        [request] the value, [request, item] its gradient with respect to the scores.

    >>> scores, gains = np.array([[9.0, 0.0]], np.float32), np.array([[-0.5, 0.5]], np.float32)
    >>> value, _ = smooth_ndcg(scores, gains)
    >>> round(float(value[0]), 4)  # (1 / log2(3) − 1) / 2
    -0.1845
    """
    half = np.float32(0.5)
    above = np.tanh((scores[:, None, :] - scores[:, :, None]) * np.float32(0.5 / temperature))
    above *= half
    above += half  # [request, item, other]: whether the other is above
    ranks = above.sum(axis=2) + half  # the item itself counts a half
    logs = np.log1p(ranks)
    value = np.float32(np.log(2)) * gains / logs
    by_rank = -value / (logs * (1 + ranks))
    above *= 1 - above
    above *= by_rank[:, :, None] / np.float32(temperature)
    return value.sum(axis=1), above.sum(axis=1) - above.sum(axis=2)
