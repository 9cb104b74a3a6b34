"""What an offline auction is judged by: logged items are ranked anew, the first k are the winners.

docs/offline.md has the definitions. Every figure is a sum over requests divided by another, or a
weighted mean of such figures, so that units can be resampled.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from evaluation.bootstrap import Figures, UnitBootstrap
from evaluation.data_folder import DataFolder
from evaluation.yardsticks import Lists, discounted_rows, examined, lists_of
from policy.fusion import Floats, fuse, rank
from policy.rewards import examination
from policy.schema import Schema

METRICS: Final = ("ndcg", "gauc", "ctr", "cvr", "opm", "gpm")
_PAIRS_AT_ONCE: Final = 1 << 20
_RATIOS: Final = 5
"""Figures before the outcomes' AUCs: ndcg, ctr, cvr, opm, gpm."""


class Roles(NamedTuple):
    """Which outcomes count as what."""

    click: str
    order: str

    @classmethod
    def of(cls, schema: Schema, click: str | None = None, order: str | None = None) -> Self:
        """The named outcomes; by default the first and the last of the largest gain.

        Raises:
            ValueError: the schema has no such outcome.
        """
        names = [o.name for o in schema.outcomes]
        for name in (click, order):
            if name is not None and name not in names:
                raise ValueError(f"expected one of {', '.join(names)}, seen {name!r}")
        largest = max(o.gain for o in schema.outcomes)
        last = next(o.name for o in reversed(schema.outcomes) if o.gain == largest)
        return cls(click or names[0], order or last)


class Auctions(NamedTuple):
    """Requests whose items can be auctioned anew; padded as `Lists` are."""

    lists: Lists
    """With gains corrected for examination."""
    happened: npt.NDArray[np.bool_]
    """[outcome, request, item]"""
    correction: Floats
    """[request, item] 1 / the chance that the item was looked at."""
    money: Floats
    """[request, item] corrected: value of the outcomes whose gain their value weights; all gains,
    if the schema has no such outcome."""
    auc_weights: Floats
    """[outcome] share in MTF-GAUC: of all gain, what the outcome earned; they sum to 1."""

    def at(self, rows: npt.NDArray[np.intp] | slice) -> "Auctions":
        """Some of the requests."""
        return Auctions(
            self.lists.at(rows),
            self.happened[:, rows],
            self.correction[rows],
            self.money[rows],
            self.auc_weights,
        )


def auctions_of(folder: DataFolder, schema: Schema) -> Auctions:
    """Every request of a folder."""
    lists = examined(lists_of(folder, schema), schema)
    index = {o.name: at for at, o in enumerate(schema.outcomes)}
    happened = np.zeros((len(index), *lists.shown.shape), dtype=bool)
    value = np.zeros((len(index), *lists.shown.shape))
    for conversion in folder.conversions:
        outcome = index[conversion.outcome]
        place = conversion.request, conversion.item - int(folder.first_item[conversion.request])
        happened[(outcome, *place)] = True
        value[(outcome, *place)] += conversion.value
    table = examination(schema, lists.shown.shape[1] + 1)
    correction = np.where(lists.shown, 1 / table[lists.positions], 0.0)
    weighted_by_value = np.array([o.value_weighted for o in schema.outcomes])
    money = lists.gains
    if weighted_by_value.any():
        money = value[weighted_by_value].sum(axis=0) * correction
    amount = np.where(weighted_by_value[:, None, None], value, happened) * correction
    earned = np.array([o.gain for o in schema.outcomes]) * amount.sum(axis=(1, 2))
    shares = earned / earned.sum() if earned.sum() > 0 else np.full(len(earned), 1 / len(earned))
    return Auctions(lists, happened, correction, money, shares)


def judge(
    auctions: Auctions,
    weights: Floats,
    k: int,
    clicks: int,
    orders: int,
    sample: UnitBootstrap,
) -> Figures:
    """Rank anew by some weights and judge the first k of each request.

    Args:
        auctions: the requests.
        weights: [request, objective] fusion weights.
        k: how many items win.
        clicks: index of the outcome that counts as a click.
        orders: index of the outcome that counts as an order.
        sample: resamples the requests' units; the same one makes paired figures.

    Returns:
        [metric] in the order of `METRICS`; a CVR whose clicks are orders is not defined.
    """
    lists = auctions.lists
    fused = np.where(lists.shown, fuse(weights[:, None, :], lists.signals)[:, 0, :], -np.inf)
    order = rank(fused)

    def won(values: Floats) -> Floats:
        return np.asarray(np.take_along_axis(values, order, axis=1)[:, :k].sum(axis=1))

    winners = won(lists.shown.astype(np.float64))
    clicked = won(auctions.happened[clicks] * auctions.correction)
    ordered = won(auctions.happened[orders] * auctions.correction)
    gained = (lists.ideal > 0).astype(np.float64)
    none = np.zeros_like(gained)
    numerators = [_ndcg(lists, order, k), clicked, ordered, 1000 * ordered]
    denominators = [gained, winners, none if clicks == orders else clicked, winners]
    numerators.append(1000 * won(auctions.money))
    denominators.append(winners)
    areas, valid = aucs(fused, lists.shown, auctions.happened, auctions.correction)
    items = lists.shown.sum(axis=1)
    numerators += list(areas * items)
    denominators += list(valid * items)
    ratios = sample.ratios(np.stack(numerators, axis=1), np.stack(denominators, axis=1))
    return Figures(
        _in_order(ratios.value[None], auctions.auc_weights)[0],
        _in_order(ratios.draws, auctions.auc_weights),
    )


def aucs(
    fused: Floats,
    shown: npt.NDArray[np.bool_],
    happened: npt.NDArray[np.bool_],
    correction: Floats,
) -> tuple[Floats, Floats]:
    """Within each request, the chance that an item with an outcome is ranked above one without.

    Args:
        fused: [request, item]
        shown: [request, item] false for padding.
        happened: [outcome, request, item]
        correction: [request, item] weight of an item with the outcome.

    Returns:
        [outcome, request] the AUC, equal scores counting a half, 0 where it is not defined;
        [outcome, request] 1 where it is defined: some items have the outcome and some do not.
    """
    count, items = fused.shape
    above = np.zeros(happened.shape[:2])
    at_once = max(1, _PAIRS_AT_ONCE // (items * items))
    without = ~happened & shown
    for first in range(0, count, at_once):
        rows = slice(first, first + at_once)
        one, other = fused[rows, :, None], fused[rows, None, :]
        pairs = (one > other) + 0.5 * (one == other)
        of_items = np.einsum("nij,onj->oni", pairs, without[:, rows].astype(np.float64))
        above[:, rows] = (of_items * happened[:, rows] * correction[rows]).sum(axis=2)
    most = (happened * correction).sum(axis=2) * without.sum(axis=2)
    return np.divide(above, most, out=np.zeros_like(above), where=most > 0), (most > 0) * 1.0


def _ndcg(lists: Lists, order: npt.NDArray[np.intp], k: int) -> Floats:
    ideal = discounted_rows(lists.gains, rank(lists.gains)[:, :k])
    found = discounted_rows(lists.gains, order[:, :k])
    return np.divide(found, ideal, out=np.zeros_like(found), where=ideal > 0)


def _in_order(ratios: Floats, auc_weights: Floats) -> Floats:
    """[..., metric] from [..., ratio]; outcomes without an AUC leave their share to the others."""
    areas = ratios[..., _RATIOS:]
    share = np.where(np.isnan(areas), 0.0, auc_weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        gauc = (np.where(np.isnan(areas), 0.0, areas) * share).sum(axis=-1) / share.sum(axis=-1)
    ndcg, *others = np.moveaxis(ratios[..., :_RATIOS], -1, 0)
    return np.stack([ndcg, gauc, *others], axis=-1)


def names_at(k: int, roles: Roles, money: bool) -> dict[str, str]:
    """What to call the metrics for people.

    Args:
        k: how many items win.
        roles: what counts as click and order.
        money: whether outcomes are weighted by their value.
    """
    return {
        "ndcg": f"NDCG@{k}",
        "gauc": "MTF-GAUC",
        "ctr": f"CTR@{k} ({roles.click})",
        "cvr": f"CVR@{k} ({roles.order} / {roles.click})",
        "opm": f"OPM ({roles.order} per 1,000 winners)",
        "gpm": f"GPM ({'value' if money else 'gain'} per 1,000 winners)",
    }


def outcome_index(schema: Schema, names: Sequence[str]) -> list[int]:
    """Indices of outcome types."""
    known = [o.name for o in schema.outcomes]
    return [known.index(name) for name in names]
