import math
import statistics

import numpy as np
import pytest
from grade.v1.decision_pb2 import ARM_HOLDOUT, ARM_POLICY
from hypothesis import given
from hypothesis import strategies as st

from policy.fusion import arm, fuse, rank, transform_scores
from policy.schema import parse_schema
from tests.policy.groups import make_schema

numbers = st.floats(-1e6, 1e6, width=32)


def test_each_transform_does_what_its_name_says() -> None:
    linear = transform_scores(make_schema(transform="linear"), [[-1.5, 0.0, 2.0]])
    assert linear.tolist() == [[-1.5, 0.0, 2.0]]
    log = transform_scores(make_schema(transform="log"), [[-1.0, 0.0, math.e - 1]])
    np.testing.assert_allclose(log, [[0.0, 0.0, 1.0]], rtol=0, atol=1e-15)
    logit = transform_scores(make_schema(transform="logit"), [[0.5, 0.75, 0.2]])
    np.testing.assert_allclose(logit, [[0.0, math.log(3), -math.log(4)]], rtol=0, atol=1e-15)


def test_probabilities_of_0_and_1_stay_finite() -> None:
    signals = transform_scores(make_schema(transform="logit"), [[0.0, 1.0, 1.7]])
    edge = math.log(1e-5 / (1 - 1e-5))
    np.testing.assert_allclose(signals, [[edge, -edge, -edge]], rtol=1e-12)


def test_standardising_uses_the_population_deviation_of_the_request() -> None:
    scores = [[1.0, 5.0, 0.0], [2.0, 5.0, 0.0], [6.0, 5.0, 3.0]]
    signals = transform_scores(make_schema(standardise=True), scores)
    for objective, column in enumerate(zip(*scores, strict=True)):
        spread = statistics.pstdev(column) + 1e-3
        expected = [(score - statistics.fmean(column)) / spread for score in column]
        np.testing.assert_allclose(signals[:, objective], expected, rtol=0, atol=1e-12)
    assert signals[:, 1].tolist() == [0.0, 0.0, 0.0]


def test_only_the_declared_objectives_are_transformed_and_standardised() -> None:
    text = make_schema(objectives=2).toml
    text = text.replace("standardise = false", "standardise = true", 1)
    text = text.replace("transform = 'linear'", "transform = 'log'", 1)
    scores = [[0.0, 10.0], [math.e**2 - 1, 30.0]]
    signals = transform_scores(parse_schema(text), scores)
    assert signals[:, 1].tolist() == [10.0, 30.0]
    np.testing.assert_allclose(signals[:, 0], [-1 / 1.001, 1 / 1.001], rtol=1e-12)


def test_the_scores_that_were_given_are_not_changed() -> None:
    scores = np.array([[0.5, 0.5, 0.5], [0.1, 0.2, 0.3]])
    before = scores.copy()
    transform_scores(make_schema(transform="logit", standardise=True), scores)
    assert (scores == before).all()


@given(
    weights=st.lists(st.lists(numbers, min_size=5, max_size=5), min_size=1, max_size=9),
    signals=st.lists(st.lists(numbers, min_size=5, max_size=5), min_size=1, max_size=20),
)
def test_fusing_is_the_sum_in_the_order_of_the_objectives_in_any_batch(
    weights: list[list[float]], signals: list[list[float]]
) -> None:
    fused = fuse(weights, np.array(signals))
    for g, weight in enumerate(weights):
        for k, signal in enumerate(signals):
            total = weight[0] * signal[0]
            for w, s in zip(weight[1:], signal[1:], strict=True):
                total += w * s
            assert fused[g, k] == total
    assert (fuse(weights[:1], np.array(signals[-1:]))[0, 0] == fused[0, -1]).all()


def test_fusing_takes_leading_axes() -> None:
    generator = np.random.default_rng(0)
    weights, signals = generator.normal(size=(4, 3, 6)), generator.normal(size=(4, 7, 6))
    together = fuse(weights, signals)
    assert together.shape == (4, 3, 7)
    for row in range(4):
        assert (together[row] == fuse(weights[row], signals[row])).all()


def test_items_with_equal_scores_keep_their_order() -> None:
    fused = np.array([[0.0, 2.0, 0.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    assert rank(fused).tolist() == [[1, 3, 4, 0, 2], [0, 1, 2, 3, 4]]
    assert rank(np.array([1.0, np.nan, 3.0])).tolist() == [2, 0, 1]


def test_the_holdout_has_its_share_and_a_larger_one_contains_it() -> None:
    small, large = make_schema(holdout=0.1), make_schema(holdout=0.3)
    units = [f"user-{i}" for i in range(20_000)]
    held = {unit for unit in units if arm(small, unit) == ARM_HOLDOUT}
    more = {unit for unit in units if arm(large, unit) == ARM_HOLDOUT}
    # Five standard deviations of a binomial.
    assert len(held) / len(units) == pytest.approx(0.1, abs=5 * math.sqrt(0.09 / 20_000))
    assert len(more) / len(units) == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / 20_000))
    assert held < more


def test_without_a_holdout_everyone_gets_the_policy() -> None:
    schema = make_schema()
    assert {arm(schema, f"user-{i}") for i in range(100)} == {ARM_POLICY}


def test_units_are_held_out_independently_by_each_policy() -> None:
    one = make_schema(holdout=0.5)
    other = parse_schema(one.toml.replace("policy = 'test'", "policy = 'other'"))
    same = sum(arm(one, f"u{i}") == arm(other, f"u{i}") for i in range(4_000))
    assert same / 4_000 == pytest.approx(0.5, abs=0.05)
