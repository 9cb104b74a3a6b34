"""Reward groups as padded arrays: what was logged, and what was served and earned. numpy only."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from grade.v1.decision_pb2 import ARM_POLICY
from grade.v1.packed_pb2 import PackedDecision
from grade.v1.reward_group_pb2 import RewardGroup

from policy.fusion import Floats, fuse, rank, transform_scores
from policy.packed import FLOAT32, FLOAT64, numbers, read_packed
from policy.rewards import (
    candidate_scores,
    discounts,
    examination_at,
    expected_values,
    gains,
)
from policy.schema import Schema

Flags = npt.NDArray[np.bool_]
Versions = npt.NDArray[np.uint64]


class Requests(NamedTuple):
    """Requests of different lengths, padded."""

    features: Floats
    """[request, feature]"""
    signals: Floats
    """[request, item, objective]; zero where there is no item."""
    values: Floats
    """[request, item] in gain units; zero where there is no item."""
    predicted: Floats
    """[request, item] in gain units, as predicted; zero where there is no item."""
    examination: Floats
    """[request, item] chance that the item's position is looked at; 1 where there is no item, and
    where the request earned nothing."""
    present: Flags
    """[request, item] whether there is an item."""
    ideal: Floats
    """[request] largest discounted cumulative gain of any order, in gain units."""

    def earned(self) -> "Requests":
        """Those with an outcome, in their order."""
        return self.of(np.flatnonzero(self.values.any(axis=1)))

    def of(self, rows: npt.NDArray[np.intp]) -> "Requests":
        """Some of them, by number."""
        return Requests(**{name: array[rows] for name, array in self._asdict().items()})


class Served(NamedTuple):
    """The groups that were served for those requests, of different sizes, padded."""

    weights: Floats
    """[request, member, objective] the fusion weights as shipped."""
    log_densities: Floats
    """[request, member] as served, in nats."""
    posterior: Floats
    """[request, member] as the join computed it, in gain units."""
    present: Flags
    """[request, member] whether there is a member and all its numbers are finite."""
    executed: Floats
    """[request] posterior of the member that ranked the request, in gain units; may be NaN."""
    versions: Versions
    """[request, (epoch, version)] that decided."""


class Batch(NamedTuple):
    """The policy-arm groups of one slot, in the slot's order."""

    requests: Requests
    served: Served


def collate(
    schema: Schema, groups: Sequence[RewardGroup], *, outcomes_only: bool = False
) -> Batch | None:
    """Read the groups that can be learned from.

    Left out are holdout groups, and groups whose context, scores or outcomes are not finite.

    Args:
        schema: the policy's schema.
        groups: reward groups as the join wrote them.
        outcomes_only: whether items are read only where there is an outcome. Most groups have none;
            they are then requests without an item, whose members all earned nothing.

    Returns:
        padded arrays in the order of the groups, or None if no group is left.
    """
    read: list[_Read] = []
    for group in groups:
        if group.HasField("rewards"):
            decision = read_packed(group.impression.decision.payload)
            log_densities = decision.log_densities
            if decision.arm == ARM_POLICY and log_densities:
                read.append(_Read(group, decision, log_densities))
    if not read:
        return None
    with_items = [
        row for row, each in enumerate(read) if each.group.conversions or not outcomes_only
    ]
    requests = _requests(schema, read, with_items)
    finite = np.isfinite(requests.features).all(axis=1) & np.isfinite(requests.ideal)
    finite[with_items] &= np.isfinite(requests.signals[with_items]).all(axis=(1, 2))
    if not finite.all():
        good = [each.group for each, whole in zip(read, finite, strict=True) if whole]
        return collate(schema, good, outcomes_only=outcomes_only)
    return Batch(requests, _served(schema, read, with_items))


def padded(
    features: Floats,
    present: Flags,
    signals: Floats,
    values: Floats,
    predicted: Floats,
    examination: Floats,
) -> Requests:
    """Lay requests of different lengths out in rows.

    Args:
        features: [request, feature]
        present: [request, item] whether there is an item.
        signals: [present item, objective] of all requests, one after the other.
        values: [present item] in gain units.
        predicted: [present item] in gain units.
        examination: [present item] chance that its position is looked at.
    """
    rows = np.zeros((*present.shape, signals.shape[1]))
    rows[present] = signals
    gain, promise, looked_at = np.zeros((3, *present.shape))
    gain[present], promise[present] = values, predicted
    looked_at[...] = 1
    looked_at[present] = examination
    return Requests(features, rows, gain, promise, looked_at, present, _ideal(gain))


def posteriors(requests: Requests, weights: Floats) -> Floats:
    """Score any fusion weights on what was logged.

    Args:
        requests: the padded requests.
        weights: [request, member, objective] fusion weights.

    Returns:
        [request, member] discounted cumulative gain of the induced ranking, in gain units: the
        number that the join computes for the served members.
    """
    result = np.zeros(weights.shape[:2])
    # Most requests have no outcome, and whatever their ranking, it earned nothing.
    earned = np.flatnonzero(requests.values.any(axis=1))
    result[earned] = _scored(requests, earned, weights, requests.values)
    return result


def priors(requests: Requests, rows: npt.NDArray[np.intp], weights: Floats) -> Floats:
    """Score any fusion weights by what the scores promise of the logged items.

    Over the shown items alone, as the posterior is, so that the two compare the same rankings; the
    join's own prior is over the unshown candidates as well.

    Args:
        requests: the padded requests.
        rows: those to score.
        weights: [request, member, objective] fusion weights.

    Returns:
        [row, member] discounted cumulative predicted gain of the induced ranking, in gain units.
    """
    return _scored(requests, rows, weights, requests.predicted)


def best_promise(requests: Requests) -> Floats:
    """[request] the largest discounted cumulative predicted gain of any order, in gain units.

    A promise below 0 ranks before what is no item.
    """
    order = rank(np.where(requests.present, requests.predicted, -np.inf))
    return _discounted(np.take_along_axis(requests.predicted, order, axis=-1))


def _scored(
    requests: Requests, rows: npt.NDArray[np.intp], weights: Floats, values: Floats
) -> Floats:
    """[row, member] discounted values of the rankings that weights induce on some requests."""
    fused = fuse(weights[rows], requests.signals[rows])
    order = rank(np.where(requests.present[rows, None, :], fused, -np.inf))
    return _discounted(np.take_along_axis(values[rows, None, :], order, axis=-1))


def _ideal(values: Floats) -> Floats:
    return _discounted(-np.sort(-values, axis=-1))


def _discounted(ordered: Floats) -> Floats:
    terms = ordered * discounts(ordered.shape[-1])
    return np.asarray(np.add.accumulate(terms, axis=-1)[..., -1])


class _Read(NamedTuple):
    group: RewardGroup
    decision: PackedDecision
    log_densities: bytes


def _requests(schema: Schema, read: Sequence[_Read], with_items: Sequence[int]) -> Requests:
    """What the requests of some groups logged, finite or not; items only of some rows.

    Requests of equal dimensions are read together: a call for each would cost more than the work.
    """
    alike: dict[tuple[int, int], list[int]] = {}
    for row in with_items:
        impression = read[row].group.impression
        dimensions = len(impression.item_ids), len(impression.unshown_scores)
        alike.setdefault(dimensions, []).append(row)
    longest = max((items for items, _ in alike), default=1)
    present = np.zeros((len(read), longest), dtype=np.bool_)
    signals = np.zeros((*present.shape, schema.n_objectives))
    values, predicted = np.zeros(present.shape), np.zeros(present.shape)
    looked_at = np.ones(present.shape)
    for (items, _), rows in alike.items():
        groups = [read[row].group for row in rows]
        scores = candidate_scores(schema, [group.impression for group in groups])
        present[rows, :items] = True
        signals[rows, :items] = transform_scores(schema, scores)[:, :items]
        values[rows, :items], looked_at[rows, :items] = _earned(schema, groups, items)
        predicted[rows, :items] = expected_values(schema, scores[:, :items])
    features = numbers(FLOAT32, [each.decision.features for each in read]).reshape(len(read), -1)
    best = np.zeros(len(read))
    best[with_items] = _ideal(values[with_items])
    return Requests(features, signals, values, predicted, looked_at, present, best)


def _earned(schema: Schema, groups: Sequence[RewardGroup], items: int) -> tuple[Floats, Floats]:
    """What groups of as many items earned.

    Returns:
        [group, item] gains corrected for examination, in gain units; [group, item] chance that the
        item's position is looked at, worked out only where something was earned.
    """
    values, looked_at = np.zeros((len(groups), items)), np.ones((len(groups), items))
    earned = [row for row, group in enumerate(groups) if group.conversions]
    positions: list[int] = []
    for row in earned:
        impression = groups[row].impression
        conversions = [joined.conversion for joined in groups[row].conversions]
        values[row] = gains(schema, impression.item_ids, conversions)
        positions += impression.positions[:]
    looked_at[earned] = examination_at(schema, positions).reshape(-1, items)
    return values / looked_at, looked_at


def _served(schema: Schema, read: Sequence[_Read], with_items: Sequence[int]) -> Served:
    """What was served, finite or not; rewards are read of some rows and 0 of the others."""
    decisions = [each.decision for each in read]
    sizes = np.array([len(each.log_densities) for each in read]) // FLOAT64.itemsize
    there = np.arange(sizes.max()) < sizes[:, None]
    weights = numbers(FLOAT32, [each.weights for each in decisions])
    weights = _rows(there, weights.reshape(-1, schema.n_objectives), 1 / schema.n_objectives)
    log_densities = numbers(FLOAT64, [each.log_densities for each in read])
    log_densities = _rows(there, log_densities, math.nan)
    earned = [read[row].group.rewards.posterior[:] for row in with_items]
    posterior, executed = np.zeros(there.shape), np.zeros(len(read))
    posterior[with_items] = _rows(there[with_items], _flat(earned), math.nan)
    executed[with_items] = [
        each[decisions[row].executed] for each, row in zip(earned, with_items, strict=True)
    ]
    present = np.isfinite(log_densities) & np.isfinite(posterior)
    present &= np.isfinite(weights).all(axis=-1)
    if not present.all():
        weights[~present] = 1 / schema.n_objectives
        log_densities[~present], posterior[~present] = 0, 0
    versions = [[each.epoch for each in decisions], [each.version for each in decisions]]
    return Served(
        weights=weights,
        log_densities=log_densities,
        posterior=posterior,
        present=present,
        executed=executed,
        versions=np.array(versions, dtype=np.uint64).T,
    )


def _rows(there: Flags, flat: Floats, filling: float) -> Floats:
    """Lay numbers [thing, ...] out where things are in rows; the filling is where there are none.

    Args:
        there: [row, column] where a thing is; things fill it row by row.
        flat: [thing, ...].
        filling: for the others.

    Returns:
        [row, column, ...].
    """
    if there.all():
        return flat.reshape(*there.shape, *flat.shape[1:])
    rows = np.full((*there.shape, *flat.shape[1:]), filling)
    rows[there] = flat
    return rows


def _flat(rows: Iterable[Sequence[float]]) -> Floats:
    """All numbers of some repeated fields, one after the other."""
    flat: list[float] = []
    for row in rows:
        flat += row[:]  # a slice is a list, and read at once
    return np.fromiter(flat, np.float64, len(flat))
