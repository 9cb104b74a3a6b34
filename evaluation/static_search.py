"""The best static weights of some requests by the cross-entropy method, as ranking teams find them.

Logits of weights are drawn from a normal distribution without covariances, the best eighth of them
becomes the next distribution, and so on. It needs nothing but the judged figure itself.

Source: Rubinstein: The cross-entropy method for combinatorial and continuous optimization,
Methodology and Computing in Applied Probability 1 (1999).
"""

from typing import Final

import numpy as np

from evaluation.yardsticks import Lists, ndcg_of_static
from policy.fusion import Floats

ROUNDS: Final = 12
_DRAWN, _ELITE = 64, 8
_FIRST_DEVIATION, _LEAST_DEVIATION = 1.5, 0.05


def best_static(lists: Lists, floors: Floats, seed: int = 0) -> Floats:
    """[objective] fusion weights of the highest mean NDCG that the search met.

    Equal weights are among those that it tries, so it is never worse than they are.

    Args:
        lists: the requests; at least one of them with gain.
        floors: [objective] least weights.
        seed: of the draws.
    """
    gained = lists.at(np.flatnonzero(lists.ideal > 0))
    draw = np.random.default_rng(seed)
    mean, deviation = np.zeros(len(floors)), np.full(len(floors), _FIRST_DEVIATION)
    best, highest = floors + (1 - floors.sum()) / len(floors), -np.inf
    for _ in range(ROUNDS):
        logits = mean + deviation * draw.standard_normal((_DRAWN, len(floors)))
        logits[0] = mean
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        weights = floors + (1 - floors.sum()) * powers / powers.sum(axis=1, keepdims=True)
        value = ndcg_of_static(gained, weights).mean(axis=0)
        order = np.argsort(-value, kind="stable")
        if value[order[0]] > highest:
            best, highest = weights[order[0]], value[order[0]]
        elite = logits[order[:_ELITE]]
        mean, deviation = elite.mean(axis=0), np.maximum(elite.std(axis=0), _LEAST_DEVIATION)
    return np.asarray(best)


def best_single(lists: Lists) -> int:
    """The objective that ranks best alone, by mean NDCG over the requests with gain."""
    gained = lists.at(np.flatnonzero(lists.ideal > 0))
    return int(ndcg_of_static(gained, np.eye(lists.signals.shape[2])).mean(axis=0).argmax())
