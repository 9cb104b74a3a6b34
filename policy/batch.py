"""Reward groups as padded arrays: what was logged, and what was served and earned. numpy only."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from grade.v1.decision_pb2 import ARM_POLICY, Decision
from grade.v1.reward_group_pb2 import RewardGroup

from policy.dirichlet import weights_to_simplex
from policy.fusion import Floats, fuse, rank, transform_scores
from policy.rewards import candidate_scores, discounts, examined_gains, gains
from policy.schema import Schema

Flags = npt.NDArray[np.bool_]


class Request(NamedTuple):
    """What one request logged: enough to score any fusion weights on it again."""

    features: Floats
    """[feature] the context."""
    signals: Floats
    """[item, objective] see `policy.fusion.transform_scores`."""
    values: Floats
    """[item] gains corrected for examination, in gain units."""


class Requests(NamedTuple):
    """Requests of different lengths, padded."""

    features: Floats
    """[request, feature]"""
    signals: Floats
    """[request, item, objective]; zero where there is no item."""
    values: Floats
    """[request, item] in gain units; zero where there is no item."""
    present: Flags
    """[request, item] whether there is an item."""
    ideal: Floats
    """[request] largest discounted cumulative gain of any order, in gain units."""


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
    logged: list[Request]


def collate(schema: Schema, groups: Sequence[RewardGroup]) -> Batch | None:
    """Read the groups that can be learned from.

    Left out are holdout groups, and groups whose context, scores or outcomes are not finite.

    Args:
        schema: the policy's schema.
        groups: reward groups as the join wrote them.

    Returns:
        padded arrays in the order of the groups, or None if no group is left.
    """
    logged: list[Request] = []
    decisions: list[Decision] = []
    rewards: list[Sequence[float]] = []
    for group in groups:
        if not group.HasField("rewards"):
            continue
        decision = Decision.FromString(group.impression.decision.payload)
        if decision.arm != ARM_POLICY or not decision.log_densities:
            continue
        request = _request(schema, group, decision)
        if all(np.isfinite(array).all() for array in request):
            logged.append(request)
            decisions.append(decision)
            rewards.append(group.rewards.posterior)
    if not logged:
        return None
    return Batch(pad(logged), _served(schema, decisions, rewards), logged)


def pad(logged: Sequence[Request]) -> Requests:
    """Pad at least one request to the length of the longest."""
    lengths = np.array([len(request.values) for request in logged])
    present = np.arange(lengths.max()) < lengths[:, None]
    signals = np.zeros((*present.shape, logged[0].signals.shape[1]))
    signals[present] = np.concatenate([request.signals for request in logged])
    values = np.zeros(present.shape)
    values[present] = np.concatenate([request.values for request in logged])
    features = np.array([request.features for request in logged], dtype=np.float64)
    best = -np.sort(-values, axis=-1)
    return Requests(features, signals, values, present, _discounted(best))


def posteriors(requests: Requests, weights: Floats) -> Floats:
    """Score any fusion weights on what was logged.

    Args:
        requests: the padded requests.
        weights: [request, member, objective] fusion weights.

    Returns:
        [request, member] discounted cumulative gain of the induced ranking, in gain units: the
        number that the join computes for the served members.
    """
    fused = fuse(weights, requests.signals)
    order = rank(np.where(requests.present[:, None, :], fused, -np.inf))
    return _discounted(np.take_along_axis(requests.values[:, None, :], order, axis=-1))


def _discounted(ordered: Floats) -> Floats:
    terms = ordered * discounts(ordered.shape[-1])
    return np.asarray(np.add.accumulate(terms, axis=-1)[..., -1])


def _request(schema: Schema, group: RewardGroup, decision: Decision) -> Request:
    impression = group.impression
    signals = transform_scores(schema, candidate_scores(schema, impression))
    conversions = [joined.conversion for joined in group.conversions]
    gain = gains(schema, impression.item_ids, conversions)
    return Request(
        features=np.array(decision.features, dtype=np.float64),
        signals=signals[: len(impression.item_ids)],
        values=examined_gains(schema, gain, impression.positions),
    )


def _served(
    schema: Schema, decisions: Sequence[Decision], rewards: Sequence[Sequence[float]]
) -> Served:
    objectives = schema.n_objectives
    members = max(len(decision.log_densities) for decision in decisions)
    shape = (len(decisions), members)
    weights = np.full((*shape, objectives), 1 / objectives)
    log_densities = np.full(shape, math.nan)
    posterior = np.full(shape, math.nan)
    executed = np.full(len(decisions), math.nan)
    for row, (decision, earned) in enumerate(zip(decisions, rewards, strict=True)):
        count = len(decision.log_densities)
        weights[row, :count] = np.array(decision.weights).reshape(count, objectives)
        log_densities[row, :count] = decision.log_densities
        posterior[row, :count] = earned
        executed[row] = earned[decision.executed]
    present = np.isfinite(log_densities) & np.isfinite(posterior)
    present &= np.isfinite(weights).all(axis=-1)
    weights[~present] = 1 / objectives
    return Served(
        simplex=weights_to_simplex(weights, schema.floors()),
        weights=weights,
        log_densities=np.where(present, log_densities, 0),
        posterior=np.where(present, posterior, 0),
        present=present,
        executed=executed,
    )
