"""How widely to explore at the start: as a declared share of the value allows. numpy only."""

import math
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from policy.batch import Requests, posteriors
from policy.dirichlet import draw_simplex, keyed_generator, simplex_to_weights
from policy.fusion import Floats
from policy.initial import CONCENTRATION_BOUNDS
from policy.rewards import discounts

MOST_REQUESTS: Final = 2_000
"""Requests that a cost is measured on, evenly spread over those there are."""
DRAWS: Final = 32
"""Weights that are drawn for each of them."""
SHARES: Final = (0.01, 0.99)
"""Least and greatest sigmoid of the concentration bias: at the bounds themselves nothing could be
learned of it any more."""
_HALVINGS = 12


class Exploration(NamedTuple):
    """A concentration and what sampling by it costs."""

    bias: float
    """The tensor `concentration_bias`; see `policy.initial`."""
    concentration: float
    """Sum of alpha."""
    cost: float
    """Share of value that is lost, see `cost_of_sampling`; below 0 if sampling is worth more."""


def evenly(count: int, most: int) -> npt.NDArray[np.intp]:
    """All numbers below a count, or so many at most, evenly spread.

    >>> evenly(3, 5).tolist(), evenly(9, 3).tolist()
    ([0, 1, 2], [0, 4, 8])
    """
    return np.linspace(0, count - 1, min(count, most)).astype(np.intp)


def cost_of_sampling(
    requests: Requests, mean: Floats, floors: Floats, concentration: float, seed: int
) -> float:
    """Share of value that is lost by serving draws rather than their mean.

    Value is the discounted gain of the logged items as weights rank them anew, beyond what a random
    order of the same items earns. Without that the items that a good log has shown would earn most
    of it in any order, and exploration would look cheap: in the simulated marketplace, where the
    share of orders that is lost is known to be .024 at a concentration of 20, this one is .036 and
    the share of the whole gain .009.

    Args:
        requests: with outcomes.
        mean: [request, objective] means of the Dirichlets.
        floors: [objective] least weights.
        concentration: sum of alpha, the same for all.
        seed: of the draws; they are the same stream for every concentration.

    Returns:
        1 - value of draws / value of means; 1 if the means are worth no more than a random order.
    """
    generator = keyed_generator("exploration", str(seed))
    drawn = draw_simplex(generator, concentration * mean, DRAWS)
    sampled = posteriors(requests, simplex_to_weights(drawn, floors)).mean()
    served = posteriors(requests, simplex_to_weights(mean[:, None, :], floors)).mean()
    shuffled = _of_random_order(requests).mean()
    return float((served - sampled) / (served - shuffled)) if served > shuffled else 1.0


def _of_random_order(requests: Requests) -> Floats:
    """[request] discounted gain of a random order of the logged items, in expectation."""
    sizes = requests.present.sum(axis=1)
    table = np.add.accumulate(discounts(requests.present.shape[1]))
    return np.asarray(requests.values.sum(axis=1) * table[sizes - 1] / sizes)


def fit_concentration(
    requests: Requests, mean: Floats, floors: Floats, *, budget: float, seed: int
) -> Exploration:
    """The least concentration whose cost of sampling is within a budget, by bisection.

    Args:
        requests: some with an outcome; these tell the cost, `MOST_REQUESTS` of them at most.
        mean: [request, objective] means of the Dirichlets.
        floors: [objective] least weights.
        budget: greatest share of value that may be lost.
        seed: of the draws.

    Returns:
        what was found; at the greatest concentration that can be learned from, the cost may still
        exceed the budget.
    """
    rows = np.flatnonzero(requests.values.any(axis=1))
    rows = rows[evenly(len(rows), MOST_REQUESTS)]
    spoken, means = requests.of(rows), mean[rows]

    def at(share: float) -> Exploration:
        low, high = map(math.log, CONCENTRATION_BOUNDS)
        concentration = math.exp(low + (high - low) * share)
        cost = cost_of_sampling(spoken, means, floors, concentration, seed)
        return Exploration(math.log(share / (1 - share)), concentration, cost)

    widest, narrowest = SHARES
    if at(widest).cost <= budget:
        return at(widest)
    found = at(narrowest)
    if found.cost > budget:
        return found
    for _ in range(_HALVINGS):
        middle = (widest + narrowest) / 2
        tried = at(middle)
        if tried.cost <= budget:
            narrowest, found = middle, tried
        else:
            widest = middle
    return found
