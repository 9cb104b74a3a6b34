"""Learning to rank directly from outcomes: which of the shown items earned what. Pure functions."""

import torch
from torch import Tensor


def listwise_loss(
    weights: Tensor,
    signals: Tensor,
    present: Tensor,
    gains: Tensor,
    examination: Tensor,
    sharpness: Tensor,
) -> Tensor:
    """How badly fused scores predict where the gains of a list fell.

    An item is taken to earn in proportion to examination × exp(sharpness × fused score). Unlike a
    discounted gain, which moves only where two items change places, every item's score counts; and
    the bias of positions is part of the model, where dividing gains by small chances would make a
    few of them count for all. So a request says more about the weights.

    Args:
        weights: [request, objective] fusion weights.
        signals: [request, item, objective] as `policy.fusion.transform_scores` returns them.
        present: [request, item] whether there is an item.
        gains: [request, item] as they were earned, in units of an ideal.
        examination: [request, item] chance that the item's position is looked at, in (0, 1].
        sharpness: [1] or [request, 1] how much a difference of fused scores says, > 0; it is
            learned along.

    Returns:
        scalar: mean over requests of the cross-entropy, weighted by the gains; in nats times gains.

    >>> import math
    >>> signals = torch.tensor([[[1.0], [0.0]]], dtype=torch.float64)
    >>> one = torch.ones((1, 1), dtype=torch.float64)
    >>> there, gains = torch.tensor([[True, True]]), torch.tensor([[1.0, 0.0]]).double()
    >>> sharpness = torch.tensor([math.log(3.0)]).double()
    >>> loss = listwise_loss(one, signals, there, gains, torch.ones(1, 2), sharpness)
    >>> round(math.exp(-float(loss)), 6)  # a chance of 3 to 1
    0.75

    Reference: Cao et al., "Learning to rank: from pairwise approach to listwise approach", ICML
    2007, with the top-one probabilities of section 4; examination as an offset as in the
    position-based click model, Richardson, Dominowska, Ragno, WWW 2007.
    """
    fused = sharpness * torch.einsum("rm,rim->ri", weights, signals) + examination.log()
    log_shares = torch.log_softmax(fused.masked_fill(~present, -torch.inf), dim=-1)
    return -(gains * log_shares.masked_fill(~present, 0)).sum(dim=-1).mean()
