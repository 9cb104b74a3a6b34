import math
import timeit
from collections.abc import Sequence
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest
from grade.v1.conversion_pb2 import Conversion
from grade.v1.impression_pb2 import Impression
from hypothesis import given, settings
from hypothesis import strategies as st

import policy.rewards
from policy.fusion import rank
from policy.rewards import (
    closed_group,
    discounted,
    discounts,
    examined_gains,
    expected_values,
    format_rewards,
    gains,
    group_rewards,
    ideal,
    rewards_of,
)
from policy.schema import Schema, parse_schema
from tests.policy.groups import click, make_impression, make_schema, order

SECOND, THIRD = 1 / math.log2(3), 1 / 2

UNIT: npt.NDArray[np.float32] = np.eye(3, dtype=np.float32)
"""Members that each rank by one objective alone."""


def test_discounts_are_one_over_log2_of_position_plus_2() -> None:
    expected = [1, 1 / math.log2(3), 1 / 2, 1 / math.log2(5)]
    np.testing.assert_allclose(discounts(4), expected, rtol=1e-15)


def test_gains_add_up_and_are_weighted_by_value_where_declared() -> None:
    conversions = [click(0), order(2, 0.5), click(2), click(2)]
    assert gains(make_schema(), ["i0", "i1", "i2"], conversions).tolist() == [1.0, 0.0, 4.5]


@pytest.mark.parametrize("conversion", [click(7), Conversion(item_id="i0", outcome="return")])
def test_a_conversion_that_does_not_belong_is_an_error(conversion: Conversion) -> None:
    with pytest.raises(ValueError, match="expected an item that was shown and an outcome of the"):
        gains(make_schema(), ["i0"], [conversion])


def test_examination_repeats_its_last_position() -> None:
    schema = make_schema(examination=(1.0, 0.5))
    values = examined_gains(schema, np.array([1.0, 1.0, 0.0, 1.0]), [0, 1, 2, 9])
    assert values.tolist() == [1.0, 2.0, 0.0, 2.0]
    unbiased = examined_gains(make_schema(), np.array([1.0, 3.0]), [5, 0])
    assert unbiased.tolist() == [1.0, 3.0]


def test_a_group_worked_out_by_hand() -> None:
    # Ranked by o0: i0 i1 i2; by o1: i2 i1 i0; by o2 (all equal): as shown.
    impression = make_impression([[3, 1, 0], [2, 2, 0], [1, 3, 0]])
    impression.positions[:] = [2, 0, 1]
    schema = make_schema(examination=(1.0, 0.8, 0.5))
    # i0 at position 2: 1 / 0.5; i2 at position 1: 5 × 2 / 0.8.
    rewards = group_rewards(schema, impression, UNIT, [click(0), order(2, 2.0)])
    by_o0, by_o1 = 2 + 12.5 * THIRD, 12.5 + 2 * THIRD
    np.testing.assert_allclose(rewards.posterior, [by_o0, by_o1, by_o0], rtol=1e-14)
    assert rewards.ideal == pytest.approx(12.5 + 2 * SECOND, rel=1e-14)
    assert rewards.realised == 11.0
    assert list(rewards.prior) == [0.0, 0.0, 0.0]
    assert list(rewards.format) == [0.0, 0.0, 0.0]


def test_a_group_without_conversions_earns_nothing() -> None:
    rewards = group_rewards(make_schema(), make_impression(np.eye(3)), UNIT, [])
    assert list(rewards.posterior) == [0.0, 0.0, 0.0]
    assert (rewards.ideal, rewards.realised) == (0.0, 0.0)


def test_the_prior_covers_candidates_that_were_not_shown() -> None:
    schema = make_schema(predicts=True)
    # Expected value: o0 (click, gain 1) + 5 × o1 (order).
    impression = make_impression([[0.5, 0.0, 1.0]], unshown=[[0.25, 0.25, 2.0], [1.0, 0.5, 0.0]])
    values = [0.5, 0.25 + 1.25, 1.0 + 2.5]
    rewards = group_rewards(schema, impression, UNIT, [])
    by_o0 = values[2] + values[0] * SECOND + values[1] * THIRD
    by_o1 = values[2] + values[1] * SECOND + values[0] * THIRD
    by_o2 = values[1] + values[0] * SECOND + values[2] * THIRD
    np.testing.assert_allclose(rewards.prior, [by_o0, by_o1, by_o2], rtol=1e-7)


def test_probabilities_count_within_0_and_1_only() -> None:
    schema = make_schema(predicts=True, transform="logit")
    values = expected_values(schema, np.array([[-0.5, 1.5, 0.0], [0.5, 0.5, 9.0]]))
    assert values.tolist() == [5.0, 3.0]


def test_shown_items_are_standardised_with_the_unshown_ones() -> None:
    # Among the shown, both objectives spread alike and the weights decide for i0. Among all
    # candidates o1 spreads ten times as far, so a step of it counts a tenth.
    schema = make_schema(objectives=2, standardise=True)
    shown, unshown = [[0.0, 1.0], [1.0, 0.0]], [[0.0, 10.0], [1.0, -9.0]]
    weights = np.array([[0.4, 0.6]], dtype=np.float32)
    alone = group_rewards(schema, make_impression(shown), weights, [click(0)])
    assert list(alone.posterior) == [1.0]
    together = group_rewards(schema, make_impression(shown, unshown), weights, [click(0)])
    assert together.posterior[0] == pytest.approx(SECOND)


def test_soft_rules_cost_the_distance_from_their_range() -> None:
    schema = make_schema(
        soft_rules="[[soft_rules]]\nobjective = 'o0'\nmax_weight = 0.5\n"
        "[[soft_rules]]\nobjective = 'o2'\nmin_weight = 0.25\n"
    )
    weights = [[0.5, 0.25, 0.25], [0.75, 0.25, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    assert format_rewards(schema, weights).tolist() == [0.0, -0.5, -0.25, -0.75]
    assert math.copysign(1, format_rewards(schema, weights)[0]) == 1
    steep = make_schema(soft_rules="[[soft_rules]]\nobjective = 'o0'\nmin_weight = 1\n")
    assert format_rewards(steep, [[0.0, 0.5, 0.5]]).tolist() == [-1.0]


def test_the_summed_violation_is_at_most_1() -> None:
    schema = make_schema(
        soft_rules="[[soft_rules]]\nobjective = 'o0'\nmin_weight = 0.9\n"
        "[[soft_rules]]\nobjective = 'o1'\nmax_weight = 0.1\n"
    )
    assert format_rewards(schema, [[0.0, 1.0, 0.0]]).tolist() == [-1.0]


def slow_posterior(
    schema: Schema,
    impression: Impression,
    weights: Sequence[float],
    conversions: Sequence[Conversion],
) -> tuple[float, float]:
    """Posterior and ideal of one member as the contract words them, in plain Python.

    For schemas with linear objectives that are not standardised.
    """
    size = schema.n_objectives
    rows = [impression.scores[k * size : (k + 1) * size] for k in range(len(impression.item_ids))]
    fused = [sum(w * s for w, s in zip(weights, row, strict=True)) for row in rows]
    value = []
    for item, position in zip(impression.item_ids, impression.positions, strict=True):
        gain = sum(
            {"click": 1.0, "order": 5.0 * c.value}[c.outcome]
            for c in conversions
            if c.item_id == item
        )
        value.append(gain / schema.examination[min(position, len(schema.examination) - 1)])
    ranking = sorted(range(len(fused)), key=lambda k: (-fused[k], k))

    def dcg(ordered: Sequence[float]) -> float:
        return math.fsum(v / math.log2(place + 2) for place, v in enumerate(ordered))

    return dcg([value[k] for k in ranking]), dcg(sorted(value, reverse=True))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_posterior_and_ideal_equal_a_slow_reading_of_the_contract(data: st.DataObject) -> None:
    objectives = data.draw(st.integers(2, 6))
    items = data.draw(st.integers(1, 12))
    schema = make_schema(objectives=objectives, examination=(0.9, 0.6, 0.3))
    # Quarters, so that ties are common and sums exact.
    quarter = st.integers(-8, 8).map(lambda x: x / 4)
    rows = data.draw(
        st.lists(
            st.lists(quarter, min_size=objectives, max_size=objectives),
            min_size=items,
            max_size=items,
        )
    )
    impression = make_impression(rows)
    impression.positions[:] = data.draw(st.permutations(range(items)))
    weights = np.array(
        data.draw(
            st.lists(
                st.lists(quarter, min_size=objectives, max_size=objectives), min_size=1, max_size=8
            )
        ),
        dtype=np.float32,
    )
    shown = st.integers(0, items - 1)
    conversions = data.draw(
        st.lists(
            st.one_of(shown.map(click), st.builds(order, shown, st.floats(0, 100))), max_size=6
        )
    )
    rewards = group_rewards(schema, impression, weights, conversions)
    for member, row in enumerate(weights.tolist()):
        posterior, best = slow_posterior(schema, impression, row, conversions)
        assert rewards.posterior[member] == pytest.approx(posterior, rel=1e-12)
        assert rewards.ideal == pytest.approx(best, rel=1e-12)
        assert rewards.posterior[member] <= rewards.ideal * (1 + 1e-12)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32), items=st.integers(1, 40), members=st.integers(2, 20))
def test_no_member_changes_a_bit_of_another(seed: int, items: int, members: int) -> None:
    generator = np.random.default_rng(seed)
    schema = make_schema(
        objectives=5,
        transform="logit",
        standardise=True,
        predicts=True,
        examination=(1.0, 0.7),
        soft_rules="[[soft_rules]]\nobjective = 'o3'\nmax_weight = 0.1\n",
    )
    unshown = generator.random((int(generator.integers(3)), 5))
    impression = make_impression(generator.random((items, 5)), unshown)
    weights = generator.dirichlet(np.ones(5), members).astype(np.float32)
    conversions = [click(int(k)) for k in generator.integers(items, size=3)]
    together = group_rewards(schema, impression, weights, conversions)
    again = group_rewards(schema, impression, weights.copy(), conversions)
    assert together.SerializeToString(deterministic=True) == again.SerializeToString(
        deterministic=True
    )
    for member in range(members):
        alone = group_rewards(schema, impression, weights[member : member + 1], conversions)
        assert alone.posterior[0] == together.posterior[member]
        assert alone.prior[0] == together.prior[member]
        assert alone.format[0] == together.format[member]
        assert (alone.ideal, alone.realised) == (together.ideal, together.realised)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32), transform=st.sampled_from(["linear", "log", "logit"]))
def test_no_group_changes_a_bit_of_another(seed: int, transform: str) -> None:
    generator = np.random.default_rng(seed)
    schema = make_schema(
        objectives=4,
        transform=transform,
        standardise=True,
        predicts=True,
        examination=(1.0, 0.7),
        soft_rules="[[soft_rules]]\nobjective = 'o3'\nmax_weight = 0.1\n",
    )
    groups = []
    for _ in range(int(generator.integers(1, 30))):
        # Few dimensions, so that many groups are alike and some are not.
        items, unshown, members = (int(generator.integers(1, most)) for most in (5, 3, 4))
        weights = generator.dirichlet(np.ones(4), members).astype(np.float32)
        groups.append(
            closed_group(
                make_impression(generator.random((items, 4)), generator.random((unshown - 1, 4))),
                weights,
                [click(int(k)) for k in generator.integers(items, size=generator.integers(3))],
            )
        )
    alone = [rewards_of(schema, [group])[0] for group in groups]
    assert rewards_of(schema, groups) == alone
    assert rewards_of(schema, groups[::-1]) == alone[::-1]
    with mock.patch.object(policy.rewards, "NUMBERS_TOGETHER", 50):
        assert rewards_of(schema, groups) == alone


def test_the_ideal_is_the_best_of_all_orders() -> None:
    values = np.array([0.0, 3.0, 1.0, 2.0])
    best = 3 + 2 * SECOND + 1 * THIRD
    assert ideal(values) == pytest.approx(best)
    assert discounted(values, rank(values)) == pytest.approx(best)


def test_value_weighting_and_examination_come_from_the_schema() -> None:
    text = make_schema().toml.replace("value_weighted = true", "value_weighted = false")
    schema = parse_schema(text)
    rewards = group_rewards(schema, make_impression(np.eye(3)), UNIT, [order(1, 99.0)])
    assert (rewards.realised, rewards.ideal) == (5.0, 5.0)


def test_one_group_is_cheap_enough_for_the_join() -> None:
    schema = make_schema(
        objectives=5, transform="logit", standardise=True, predicts=True, examination=(1.0, 0.7)
    )
    generator = np.random.default_rng(0)
    impression = make_impression(generator.random((10, 5)))
    weights = generator.dirichlet(np.ones(5), 8).astype(np.float32)
    conversions = [click(1), order(3, 1.0)]
    seconds = min(
        timeit.repeat(
            lambda: group_rewards(schema, impression, weights, conversions), number=50, repeat=20
        )
    )
    # Measured: 70 microseconds. The bound leaves room for a loaded machine.
    assert seconds / 50 < 1e-3
