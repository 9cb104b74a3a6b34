"""What weights are worth in the simulated world."""

from pathlib import Path

import numpy as np
import pytest
from grade.v1.decision_pb2 import ARM_HOLDOUT, ARM_POLICY, Decision

import simulator
from policy.schema import Schema, load_schema
from simulator.marketplace import Marketplace, MarketplaceSettings
from simulator.truth import Truth, best_static, expected_orders


@pytest.fixture(scope="module")
def schema() -> Schema:
    return load_schema(Path(str(simulator.__file__)).with_name("marketplace.toml"))


@pytest.fixture(scope="module")
def world() -> Marketplace:
    return Marketplace(MarketplaceSettings(seed=1))


def decision(weights: np.ndarray, executed: np.ndarray | None = None) -> Decision:
    """One whose mean is `weights` and whose only member is `executed`."""
    member = weights if executed is None else executed
    return Decision(arm=ARM_POLICY, alpha=20 * weights, weights=member, executed=0)


UNIFORM = np.full(5, 0.2)


def test_expected_orders_by_hand() -> None:
    # Shown are candidates 2 and 0: 1 × 0.3 + 0.5 × 0.1.
    orders = expected_orders(
        np.array([1.0, 0.5]), np.array([0.1, 0.2, 0.3]), np.array([[2.0, 1.0, 3.0]])
    )
    assert orders == pytest.approx([0.35])


def test_the_schema_does_not_know_how_users_look(world: Marketplace, schema: Schema) -> None:
    assert len(schema.examination) == world.settings.shown
    assert np.abs(world.examination - schema.examination).max() > 0.1


def test_oracle_static_uniform_in_that_order(world: Marketplace, schema: Schema) -> None:
    truth = Truth(world, schema)
    for number in range(200):
        truth.value(world.request(number), decision(UNIFORM), number / 100, drifted=False)
    value = truth.over(0, 2)
    assert value.requests == 200
    assert value.uniform < value.static < value.oracle
    assert 0.3 < value.share(value.static) < 0.7
    assert value.served == value.executed == value.uniform
    assert value.recovered == 0


def test_true_weights_recover_nearly_all(world: Marketplace, schema: Schema) -> None:
    truth = Truth(world, schema)
    for number in range(100):
        weights = world.true_weights(number, drifted=False)
        answer = decision(weights, executed=UNIFORM)
        truth.value(world.request(number), answer, 0.0, drifted=False)
    value = truth.over(0, 1)
    assert value.recovered > 0.97
    assert value.executed == value.uniform


def test_weights_of_before_the_drift_are_worth_little_after_it(
    world: Marketplace, schema: Schema
) -> None:
    truth = Truth(world, schema)
    for number in range(100):
        weights = world.true_weights(number, drifted=False)
        truth.value(world.request(number), decision(weights), 0.0, drifted=True)
    assert truth.over(0, 1, static=False).recovered < 0.5


def test_the_holdout_is_not_valued(world: Marketplace, schema: Schema) -> None:
    truth = Truth(world, schema)
    truth.value(world.request(0), Decision(arm=ARM_HOLDOUT, weights=UNIFORM), 0.0, drifted=False)
    value = truth.over(0, 1)
    assert value.requests == 0
    assert value.as_json()["recovered"] is None


def test_a_point_of_the_curve_covers_its_bucket_and_the_two_before(
    world: Marketplace, schema: Schema
) -> None:
    truth = Truth(world, schema, bucket_s=2.0)
    for number, at_s in enumerate((0.0, 1.9, 4.5, 8.1)):
        truth.value(world.request(number), decision(UNIFORM), at_s, drifted=False)
    points = truth.curve()
    assert [(point["at_s"], point["requests"]) for point in points] == [
        (0.0, 2),
        (4.0, 3),
        (8.0, 2),
    ]
    assert [point["recovered"] for point in points] == [0.0, 0.0, 0.0]


def test_the_search_finds_weights_that_are_best_for_all() -> None:
    """Only the second objective pays, so the best weights are nearly all on it."""
    draw = np.random.default_rng(0)
    signals = [draw.standard_normal((20, 3)) for _ in range(40)]
    chances = [1 / (1 + np.exp(-2 * signal[:, 1])) for signal in signals]
    weights = best_static(signals, chances, np.ones(5))
    assert weights.sum() == pytest.approx(1)
    assert weights[1] > 0.9
