"""Reward components of one group (design: posterior, prior, format), as the join emits them.

Everything here concerns one group alone and sums in order, so its bits depend on nothing else.
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
from policy.schema import Schema

COMPUTATION: int = 1
"""Version of the computation; raised whenever a reward can change by a single bit."""


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
        gain: [item] in gain units.
        positions: [item] where each item was shown, 0 is the top.

    Returns:
        [item] in gain units.
    """
    position = np.asarray(positions, dtype=np.intp)
    table = examination(schema, int(position.max(initial=0)) + 1)
    return np.asarray(gain / table[position])


def discounted(values: Floats, order: npt.NDArray[np.intp]) -> Floats:
    """Discounted cumulative gain of rankings.

    Args:
        values: [item] in gain units.
        order: [..., item] indices of the items, best first.

    Returns:
        [...] in gain units.

    >>> discounted(np.array([0.0, 1.0]), np.array([[0, 1], [1, 0]])).round(4).tolist()
    [0.6309, 1.0]
    """
    terms = values[order] * discounts(order.shape[-1])
    return np.asarray(np.add.accumulate(terms, axis=-1)[..., -1])


def ideal(values: Floats) -> float:
    """The largest discounted cumulative gain that any order of the items has, in gain units."""
    return float(discounted(values, rank(values)))


def expected_values(schema: Schema, scores: Floats) -> Floats:
    """What the predicted signals promise per candidate.

    Args:
        schema: the policy's schema.
        scores: [candidate, objective] raw scores.

    Returns:
        [candidate] sum over the objectives that predict an outcome of gain × score, in gain units;
        scores of `logit` objectives are probabilities and kept in [0, 1], all others are expected
        counts, or expected values of a `value_weighted` outcome.
    """
    value = np.zeros(len(scores))
    for objective, gain, probability in _tables(schema).predicting:
        score = scores[:, objective]
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


def candidate_scores(schema: Schema, impression: Impression) -> Floats:
    """[candidate, objective] raw scores: the shown items, then the sample of unshown candidates.

    Signals are standardised over both. Shown items were selected by their fused score, so their own
    spread is not that of the candidates the weights were applied to; standardising over them alone
    makes the learned weights wrong.
    """
    scores = np.array(impression.scores, dtype=np.float64)
    if impression.unshown_scores:
        scores = np.concatenate((scores, np.array(impression.unshown_scores, dtype=np.float64)))
    return scores.reshape(-1, schema.n_objectives)


def group_rewards(
    schema: Schema,
    impression: Impression,
    weights: npt.NDArray[np.float32],
    conversions: Sequence[Conversion],
) -> Rewards:
    """Every reward component of one group's members.

    Args:
        schema: the policy's schema.
        impression: a valid impression: dimensions, positions and scores have been checked.
        weights: [member, objective] the fusion weights as they were shipped.
        conversions: the group's conversions, in the order of their offsets.

    Returns:
        the components, each [member] or one number per group, as the contract describes them.

    Raises:
        ValueError: see `gains`.
    """
    wide = np.asarray(weights, dtype=np.float64)
    shown = len(impression.item_ids)
    scores = candidate_scores(schema, impression)
    fused = fuse(wide, transform_scores(schema, scores))

    gain = gains(schema, impression.item_ids, conversions)
    if conversions:
        values = examined_gains(schema, gain, impression.positions)
        posterior, best = discounted(values, rank(fused[:, :shown])), ideal(values)
        realised = float(np.add.accumulate(gain)[-1])
    else:
        posterior, best, realised = np.zeros(len(wide)), 0.0, 0.0
    if _tables(schema).predicting:
        prior = discounted(expected_values(schema, scores), rank(fused))
    else:
        prior = np.zeros(len(wide))
    return Rewards(
        posterior=posterior.tolist(),
        ideal=best,
        prior=prior.tolist(),
        format=format_rewards(schema, wide).tolist(),
        realised=realised,
    )


Computation = Callable[[Schema, Impression, npt.NDArray[np.float32], Sequence[Conversion]], Rewards]

COMPUTATIONS: Mapping[int, Computation] = {COMPUTATION: group_rewards}
"""Every version of the computation that this build has; a generation names the one it goes by."""
