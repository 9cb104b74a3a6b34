"""Reward components of a group (design: posterior, prior, format), as the join emits them.

Groups of equal dimensions are worked out together, element by element, and every sum goes over its
terms in order, so the bits of a group depend on nothing else in the batch.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from grade.v1.conversion_pb2 import Conversion
from grade.v1.impression_pb2 import Impression
from grade.v1.reward_group_pb2 import Rewards

from policy.fusion import Floats, fuse, rank, transform_scores
from policy.packed import FLOAT32, numbers
from policy.schema import Schema

COMPUTATION: int = 1
"""Version of the computation; raised whenever a reward can change by a single bit."""


NUMBERS_TOGETHER = 50_000
"""Terms [member, candidate, objective] that are worked out in one go: more fit no cache, and groups
may be so large that many of them fit no memory."""


class _Tables(NamedTuple):
    gains: dict[str, tuple[float, bool]]
    """By outcome type: gain, and whether the conversion's value multiplies it."""
    predicting: tuple[tuple[int, float, bool], ...]
    """Objectives that predict an outcome: index, gain of the outcome, whether a probability."""
    rules: Floats | None
    """[2, objective] least and greatest weight that costs nothing."""


@lru_cache(maxsize=64)
def _tables(schema: Schema) -> _Tables:
    gains = {o.name: (o.gain, o.value_weighted) for o in schema.outcomes}
    predicting = tuple(
        (m, gains[o.predicts][0], o.transform == "logit")
        for m, o in enumerate(schema.objectives)
        if o.predicts is not None
    )
    if not schema.soft_rules:
        return _Tables(gains, predicting, None)
    rules = np.array([[0.0] * schema.n_objectives, [1.0] * schema.n_objectives])
    index = {o.name: m for m, o in enumerate(schema.objectives)}
    for rule in schema.soft_rules:
        rules[:, index[rule.objective]] = rule.min_weight, rule.max_weight
    return _Tables(gains, predicting, rules)


@lru_cache(maxsize=1024)
def discounts(items: int) -> Floats:
    """[position] 1 / log2(position + 2), what a gain at a position counts; read-only.

    >>> discounts(3).round(4).tolist()
    [1.0, 0.6309, 0.5]
    """
    table = np.array([1 / np.log2(position + 2) for position in range(items)])
    table.flags.writeable = False
    return table


@lru_cache(maxsize=1024)
def examination(schema: Schema, items: int) -> Floats:
    """[position] probability that a position is looked at, in (0, 1]; read-only."""
    known = schema.examination or (1.0,)
    table = np.array([known[min(position, len(known) - 1)] for position in range(items)])
    table.flags.writeable = False
    return table


def gains(schema: Schema, item_ids: Sequence[str], conversions: Sequence[Conversion]) -> Floats:
    """What the user did with each item.

    Args:
        schema: the policy's schema.
        item_ids: [item] the items shown.
        conversions: the group's conversions, in the order of their offsets.

    Returns:
        [item] sum of the outcomes' gains, times their value where the schema says so, in gain
        units.

    Raises:
        ValueError: a conversion's item was not shown or its outcome type is not the schema's.
    """
    total = dict.fromkeys(item_ids, 0.0)
    table = _tables(schema).gains
    for conversion in conversions:
        item, outcome = conversion.item_id, conversion.outcome
        if item not in total or outcome not in table:
            raise ValueError(
                f"conversion {conversion.conversion_id!r}: expected an item that was shown and an "
                f"outcome of the schema, seen item {item!r} and outcome {outcome!r}"
            )
        gain, value_weighted = table[outcome]
        total[item] += gain * conversion.value if value_weighted else gain
    return np.array([total[item] for item in item_ids])


def examined_gains(schema: Schema, gain: Floats, positions: npt.ArrayLike) -> Floats:
    """Correct gains for position bias: divided by the chance that the item was looked at.

    Args:
        schema: the policy's schema.
        gain: [..., item] in gain units.
        positions: [..., item] where each item was shown, 0 is the top.

    Returns:
        [..., item] in gain units.
    """
    return np.asarray(gain / examination_at(schema, positions))


def examination_at(schema: Schema, positions: npt.ArrayLike) -> Floats:
    """[..., item] probability that positions [..., item] are looked at, in (0, 1]."""
    position = np.asarray(positions, dtype=np.intp)
    return examination(schema, int(position.max(initial=0)) + 1)[position]


def discounted(values: Floats, order: npt.NDArray[np.intp]) -> Floats:
    """Discounted cumulative gain of rankings.

    Args:
        values: [..., item] in gain units.
        order: [..., item] indices of the items, best first; with the leading axes of `values`, or
            with further ones that `values` is broadcast to.

    Returns:
        [...] in gain units.

    >>> discounted(np.array([0.0, 1.0]), np.array([[0, 1], [1, 0]])).round(4).tolist()
    [0.6309, 1.0]
    """
    ordered = values[order] if values.ndim == 1 else np.take_along_axis(values, order, axis=-1)
    terms = ordered * discounts(order.shape[-1])
    return np.asarray(np.add.accumulate(terms, axis=-1)[..., -1])


def ideal(values: Floats) -> Floats:
    """[...] the largest discounted cumulative gain of any order of [..., item], in gain units."""
    return discounted(values, rank(values))


def expected_values(schema: Schema, scores: Floats) -> Floats:
    """What the predicted signals promise per candidate.

    Args:
        schema: the policy's schema.
        scores: [..., candidate, objective] raw scores.

    Returns:
        [..., candidate] sum over the objectives that predict an outcome of gain × score, in gain
        units; scores of `logit` objectives are probabilities and kept in [0, 1], all others are
        expected counts, or expected values of a `value_weighted` outcome.
    """
    value = np.zeros(scores.shape[:-1])
    for objective, gain, probability in _tables(schema).predicting:
        score = scores[..., objective]
        if probability:
            score = np.minimum(np.maximum(score, 0), 1)
        value += gain * score
    return value


def format_rewards(schema: Schema, weights: npt.ArrayLike) -> Floats:
    """Reward of keeping the schema's soft rules.

    Args:
        schema: the policy's schema.
        weights: [..., objective] fusion weights.

    Returns:
        [...] minus the summed distance of the weights from their ranges, in [-1, 0].
    """
    weight = np.asarray(weights, dtype=np.float64)
    rules = _tables(schema).rules
    if rules is None:
        return np.zeros(weight.shape[:-1])
    outside = np.maximum(rules[0] - weight, 0) + np.maximum(weight - rules[1], 0)
    violation = np.add.accumulate(outside, axis=-1)[..., -1]
    return np.asarray(0.0 - np.minimum(violation, 1))


class ClosedGroup(NamedTuple):
    """What the rewards of one group are worked out from."""

    scores: bytes
    """[candidate, objective] float32, little-endian: of the items shown, then of the unshown."""
    weights: bytes
    """[member, objective] float32, little-endian: the fusion weights as they were shipped."""
    item_ids: Sequence[str] = ()
    """[item] the items shown; needed only if there are conversions."""
    positions: Sequence[int] = ()
    """[item] where each was shown, 0 is the top; likewise."""
    conversions: Sequence[Conversion] = ()
    """In the order of their offsets."""


def candidate_scores(schema: Schema, impressions: Sequence[Impression]) -> Floats:
    """[impression, candidate, objective] raw scores: shown items, then a sample of the unshown.

    Signals are standardised over both. Shown items were selected by their fused score, so their own
    spread is not that of the candidates the weights were applied to; standardising over them alone
    makes the learned weights wrong.

    Args:
        schema: the policy's schema.
        impressions: they have the same number of candidates.
    """
    flat: list[float] = []
    for impression in impressions:
        flat += impression.scores[:]
        flat += impression.unshown_scores[:]
    scores = np.fromiter(flat, np.float64, len(flat))
    return scores.reshape(len(impressions), -1, schema.n_objectives)


def rewards_of(schema: Schema, groups: Sequence[ClosedGroup]) -> list[Rewards]:
    """Every reward component of the members of some groups.

    Args:
        schema: the policy's schema.
        groups: any number, of any dimensions.

    Returns:
        [group] the components, each [member] or one number per group, as the contract describes
        them.

    Raises:
        ValueError: see `gains`.
    """
    alike: dict[tuple[int, int], list[int]] = {}
    for index, group in enumerate(groups):
        alike.setdefault((len(group.scores), len(group.weights)), []).append(index)
    found: dict[int, Rewards] = {}
    row = FLOAT32.itemsize * schema.n_objectives
    for (scores, weights), indices in alike.items():
        terms = (weights // row) * (scores // row) * schema.n_objectives
        portion = max(1, NUMBERS_TOGETHER // max(1, terms))
        for first in range(0, len(indices), portion):
            at_once = indices[first : first + portion]
            same = _rewards_of_alike(schema, [groups[index] for index in at_once])
            found.update(zip(at_once, same, strict=True))
    return [found[index] for index in range(len(groups))]


Computation = Callable[[Schema, Sequence[ClosedGroup]], list[Rewards]]

COMPUTATIONS: Mapping[int, Computation] = {COMPUTATION: rewards_of}
"""Every version of the computation that this build has; a generation names the one it goes by."""


def group_rewards(
    schema: Schema,
    impression: Impression,
    weights: npt.NDArray[np.float32],
    conversions: Sequence[Conversion],
) -> Rewards:
    """Every reward component of one group's members; see `rewards_of`.

    Args:
        schema: the policy's schema.
        impression: a valid impression.
        weights: [member, objective] the fusion weights as they were shipped.
        conversions: the group's conversions, in the order of their offsets.
    """
    return rewards_of(schema, [closed_group(impression, weights, conversions)])[0]


def closed_group(
    impression: Impression, weights: npt.NDArray[np.float32], conversions: Sequence[Conversion]
) -> ClosedGroup:
    """A group by its messages; arguments as in `group_rewards`."""
    scores = np.array([*impression.scores, *impression.unshown_scores], FLOAT32).tobytes()
    shown = impression.item_ids, impression.positions
    return ClosedGroup(scores, weights.astype(FLOAT32).tobytes(), *shown, conversions)


def _rewards_of_alike(schema: Schema, groups: Sequence[ClosedGroup]) -> list[Rewards]:
    """Rewards of groups with the same numbers of candidates and members."""
    shape = len(groups), -1, schema.n_objectives
    weights = numbers(FLOAT32, [group.weights for group in groups]).reshape(shape)
    scores = numbers(FLOAT32, [group.scores for group in groups]).reshape(shape)
    fused = fuse(weights, transform_scores(schema, scores))
    if _tables(schema).predicting:
        prior = discounted(expected_values(schema, scores)[:, None, :], rank(fused))
    else:
        prior = np.zeros(fused.shape[:2])
    components = zip(prior.tolist(), format_rewards(schema, weights).tolist(), strict=True)
    nothing = [0.0] * fused.shape[1]
    rewards = [Rewards(posterior=nothing, prior=p, format=f) for p, f in components]
    _add_outcomes(schema, groups, fused, rewards)
    return rewards


def _add_outcomes(
    schema: Schema, groups: Sequence[ClosedGroup], fused: Floats, rewards: Sequence[Rewards]
) -> None:
    """Set what follows from the conversions, in the groups that have any.

    Args:
        schema: the policy's schema.
        groups: with the same number of candidates.
        fused: [group, member, candidate].
        rewards: to be completed.
    """
    alike: dict[int, list[int]] = {}
    for row, group in enumerate(groups):
        if group.conversions:
            alike.setdefault(len(group.item_ids), []).append(row)
    for rows in alike.values():
        _add_outcomes_of_alike(schema, [groups[row] for row in rows], rows, fused, rewards)


def _add_outcomes_of_alike(
    schema: Schema,
    chosen: Sequence[ClosedGroup],
    rows: Sequence[int],
    fused: Floats,
    rewards: Sequence[Rewards],
) -> None:
    """The same for groups with the same number of items, which are these rows of the others."""
    gain = np.array([gains(schema, each.item_ids, each.conversions) for each in chosen])
    values = examined_gains(schema, gain, [each.positions for each in chosen])
    shown = fused[rows, :, : gain.shape[-1]]
    posterior = discounted(values[:, None, :], rank(shown)).tolist()
    best = ideal(values).tolist()
    realised = np.add.accumulate(gain, axis=-1)[:, -1].tolist()
    for at, row in enumerate(rows):
        reward = rewards[row]
        reward.posterior[:] = posterior[at]
        reward.ideal, reward.realised = best[at], realised[at]
