"""Reward groups as padded arrays: what was logged, and what was served and earned. numpy only."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from grade.v1.decision_pb2 import ARM_POLICY
from grade.v1.packed_pb2 import PackedDecision
from grade.v1.reward_group_pb2 import RewardGroup

from policy.dirichlet import weights_to_simplex
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

    def at(self, rows: npt.NDArray[np.intp]) -> "Requests":
        """Some of the requests, by their numbers."""
        return Requests._make(each[rows] for each in self)


class Served(NamedTuple):
    """The groups that were served for those requests, of different sizes, padded."""

    simplex: Floats
    """[request, member, objective] the points of the simplex that the weights stand for."""
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


class Batch(NamedTuple):
    """The policy-arm groups of one slot, in the slot's order."""

    requests: Requests
    served: Served


def collate(schema: Schema, groups: Sequence[RewardGroup]) -> Batch | None:
    """Read the groups that can be learned from.

    Left out are holdout groups, and groups whose context, scores or outcomes are not finite.

    Args:
        schema: the policy's schema.
        groups: reward groups as the join wrote them.

    Returns:
        padded arrays in the order of the groups, or None if no group is left.
    """
    read: list[_Read] = []
    for group in groups:
        if group.HasField("rewards"):
            decision = read_packed(group.impression.decision.payload)
            if decision.arm == ARM_POLICY and decision.log_densities:
                read.append(_Read(group, decision))
    if not read:
        return None
    requests = _requests(schema, read)
    finite = np.isfinite(requests.features).all(axis=1) & np.isfinite(requests.ideal)
    finite &= np.isfinite(requests.signals).all(axis=(1, 2))
    if not finite.all():
        return collate(
            schema, [each.group for each, good in zip(read, finite, strict=True) if good]
        )
    return Batch(requests, _served(schema, read))


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


def _requests(schema: Schema, read: Sequence[_Read]) -> Requests:
    """What the requests of some groups logged, finite or not.

    Requests of equal dimensions are read together: a call for each would cost more than the work.
    """
    alike: dict[tuple[int, int], list[int]] = {}
    for row, (group, _) in enumerate(read):
        impression = group.impression
        dimensions = len(impression.item_ids), len(impression.unshown_scores)
        alike.setdefault(dimensions, []).append(row)
    present = np.zeros((len(read), max(items for items, _ in alike)), dtype=np.bool_)
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
    features = numbers(FLOAT32, [decision.features for _, decision in read]).reshape(len(read), -1)
    return Requests(features, signals, values, predicted, looked_at, present, _ideal(values))


def _earned(schema: Schema, groups: Sequence[RewardGroup], items: int) -> tuple[Floats, Floats]:
    """What groups of as many items earned.

    Returns:
        [group, item] gains corrected for examination, in gain units; [group, item] chance that the
        item's position is looked at, worked out only where something was earned.
    """
    values, looked_at = np.zeros((len(groups), items)), np.ones((len(groups), items))
    for row, group in enumerate(groups):
        if group.conversions:
            impression = group.impression
            conversions = [joined.conversion for joined in group.conversions]
            gain = gains(schema, impression.item_ids, conversions)
            looked_at[row] = examination_at(schema, impression.positions[:])
            values[row] = gain / looked_at[row]
    return values, looked_at


def _served(schema: Schema, read: Sequence[_Read]) -> Served:
    objectives = schema.n_objectives
    decisions = [decision for _, decision in read]
    earned = [group.rewards.posterior[:] for group, _ in read]
    sizes = np.array([len(decision.log_densities) // 8 for decision in decisions])
    there = np.arange(sizes.max()) < sizes[:, None]
    weights = np.full((*there.shape, objectives), 1 / objectives)
    log_densities = np.full(there.shape, math.nan)
    posterior = np.full(there.shape, math.nan)
    weights[there] = numbers(FLOAT32, [each.weights for each in decisions]).reshape(-1, objectives)
    log_densities[there] = numbers(FLOAT64, [each.log_densities for each in decisions])
    posterior[there] = _flat(earned)
    executed = [each[decision.executed] for each, decision in zip(earned, decisions, strict=True)]
    present = np.isfinite(log_densities) & np.isfinite(posterior)
    present &= np.isfinite(weights).all(axis=-1)
    weights[~present] = 1 / objectives
    return Served(
        simplex=weights_to_simplex(weights, schema.floors()),
        weights=weights,
        log_densities=np.where(present, log_densities, 0),
        posterior=np.where(present, posterior, 0),
        present=present,
        executed=np.array(executed),
    )


def _flat(rows: Iterable[Sequence[float]]) -> Floats:
    """All numbers of some repeated fields, one after the other."""
    flat: list[float] = []
    for row in rows:
        flat += row[:]  # a slice is a list, and read at once
    return np.fromiter(flat, np.float64, len(flat))
