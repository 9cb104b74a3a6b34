"""What a replay is compared with: NDCG of fixed orders and fixed weights on the logged items.

The rule (examples/kuairand/README.md): NDCG over the logged items as they are ranked by the fused
score; mean over the requests with any gain; gains and transforms are the schema's, linear gain,
discount 1 / log2(position + 2), ideal from the same items. Requests in file order; the second half
is the second half by count.
"""

import math
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from evaluation.data_folder import DataFolder
from policy.fusion import Floats, fuse, rank, transform_scores
from policy.rewards import discounted, discounts, examined_gains
from policy.schema import Schema

STATIC_WEIGHTS: Final = 800
"""How many weights the best static ones are searched among."""
_BLOCK = 64


class Lists(NamedTuple):
    """Requests' items, padded to the longest list; padding has no gain and ranks last."""

    signals: Floats
    """[request, item, objective]"""
    gains: Floats
    """[request, item] in gain units."""
    shown: npt.NDArray[np.bool_]
    """[request, item] false for padding."""
    positions: npt.NDArray[np.int64]
    """[request, item] where the item was shown."""
    ideal: Floats
    """[request] largest discounted gain that any order has."""

    def at(self, rows: npt.NDArray[np.intp] | slice) -> "Lists":
        """Some of the requests."""
        return Lists(
            self.signals[rows],
            self.gains[rows],
            self.shown[rows],
            self.positions[rows],
            self.ideal[rows],
        )


class Yardsticks(NamedTuple):
    """Mean NDCG over the second half."""

    random: float
    """Of a random order, in expectation."""
    logged: float
    """Of the order that was shown."""
    uniform: float
    """Of equal weights."""
    static_first_half: float
    """Of the weights that were best on the first half."""
    static_hindsight: float
    """Of the weights that are best on the second half itself: optimistic."""


def lists_of(folder: DataFolder, schema: Schema) -> Lists:
    """Every request's items as they are ranked and judged."""
    count = len(folder.request_ids)
    longest = int(np.diff(folder.first_item).max())
    signals = np.zeros((count, longest, schema.n_objectives))
    gains = np.zeros((count, longest))
    shown = np.zeros((count, longest), dtype=bool)
    positions = np.full((count, longest), longest, dtype=np.int64)
    by_item = gains_of(folder, schema)
    for request in range(count):
        items = folder.items(request)
        size = items.stop - items.start
        signals[request, :size] = transform_scores(schema, folder.scores[items])
        gains[request, :size] = by_item[items]
        shown[request, :size] = True
        positions[request, :size] = folder.positions[items]
    ideal = discounted_rows(gains, rank(gains))
    return Lists(signals, gains, shown, positions, ideal)


def examined(lists: Lists, schema: Schema) -> Lists:
    """The lists with gains corrected for position bias, if the schema has an examination curve."""
    gains = np.where(lists.shown, examined_gains(schema, lists.gains, lists.positions), 0.0)
    return lists._replace(gains=gains, ideal=discounted_rows(gains, rank(gains)))


def gains_of(folder: DataFolder, schema: Schema) -> Floats:
    """[item] what users did with each logged item, in gain units."""
    table = {o.name: (o.gain, o.value_weighted) for o in schema.outcomes}
    gains = np.zeros(len(folder.item_ids))
    for conversion in folder.conversions:
        gain, value_weighted = table[conversion.outcome]
        gains[conversion.item] += gain * conversion.value if value_weighted else gain
    return gains


def discounted_rows(gains: Floats, order: npt.NDArray[np.intp]) -> Floats:
    """[request] discounted gain of one order per request.

    >>> discounted_rows(np.array([[0.0, 1.0]]), np.array([[0, 1]])).round(4).tolist()
    [0.6309]
    """
    terms = np.take_along_axis(gains, order, axis=1) * discounts(order.shape[1])
    return np.asarray(terms.sum(axis=1))


def ndcg_of_weights(lists: Lists, weights: npt.ArrayLike) -> Floats:
    """NDCG of every request under weights of its own.

    Args:
        lists: the requests.
        weights: [request, objective].

    Returns:
        [request] NaN where nothing was gained.
    """
    each = np.asarray(weights, dtype=np.float64)
    fused = fuse(each[:, None, :], lists.signals)[:, 0, :]
    order = rank(np.where(lists.shown, fused, -np.inf))
    return _normalised(discounted_rows(lists.gains, order), lists.ideal)


def ndcg_of_static(lists: Lists, weights: Floats) -> Floats:
    """NDCG of every request under each of some fixed weights.

    Args:
        lists: the requests.
        weights: [choice, objective].

    Returns:
        [request, choice] NaN where nothing was gained.
    """
    parts = []
    for start in range(0, len(lists.gains), _BLOCK):
        block = slice(start, start + _BLOCK)
        fused = fuse(weights, lists.signals[block])
        order = rank(np.where(lists.shown[block, None, :], fused, -np.inf))
        values = [
            discounted(gains, orders)
            for gains, orders in zip(lists.gains[block], order, strict=True)
        ]
        parts.append(_normalised(np.stack(values), lists.ideal[block, None]))
    return np.concatenate(parts)


def yardsticks(lists: Lists, seed: int = 0) -> Yardsticks:
    """The figures that a served policy is measured against.

    Args:
        lists: the requests in file order.
        seed: of the static weights that are tried: `STATIC_WEIGHTS` draws, uniform on the simplex.
    """
    count, _, objectives = lists.signals.shape
    first, second = slice(0, count // 2), slice(count // 2, count)
    tried = np.random.default_rng(seed).dirichlet(np.ones(objectives), STATIC_WEIGHTS)
    static = ndcg_of_static(lists, tried)
    before, after = _means(static[first]), _means(static[second])
    sizes = lists.shown.sum(axis=1)
    table = discounts(lists.shown.shape[1])
    spread = np.array([table[:size].sum() / size for size in sizes])
    random = _normalised(lists.gains.sum(axis=1) * spread, lists.ideal)
    logged = _normalised(
        discounted_rows(lists.gains, np.argsort(lists.positions, axis=1)), lists.ideal
    )
    uniform = ndcg_of_weights(lists, np.full((count, objectives), 1 / objectives))
    return Yardsticks(
        random=mean_gained(random[second]),
        logged=mean_gained(logged[second]),
        uniform=mean_gained(uniform[second]),
        static_first_half=float(after[int(np.argmax(before))]) if count > 1 else math.nan,
        static_hindsight=float(after.max()),
    )


def mean_gained(ndcg: Floats) -> float:
    """Mean over the requests with any gain; NaN if there is none."""
    gained = ndcg[~np.isnan(ndcg)]
    return float(gained.mean()) if gained.size else math.nan


def _means(ndcg: Floats) -> Floats:
    """[choice] mean over the requests with any gain; 0 if there is none."""
    gained = ndcg[~np.isnan(ndcg[:, 0])]
    return np.asarray(gained.mean(axis=0)) if len(gained) else np.zeros(ndcg.shape[1])


def _normalised(value: Floats, ideal: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(ideal > 0, value / ideal, np.nan)
