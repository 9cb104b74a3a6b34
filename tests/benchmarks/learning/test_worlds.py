"""The simulated worlds' truth: brute force on a few requests, and users who do as they should."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.learning.worlds import BASE, CHUNK, SIMULATED, SimulatedWorld, WorldSettings

SMALL = WorldSettings(objectives=3, candidates=5, shown=2)


def test_blocks_of_any_size_hold_the_same_requests() -> None:
    world = SimulatedWorld(SMALL, seed=100)
    whole = world.block(0, CHUNK)
    cut = world.block(64, 32)
    for all_of_it, part in zip(whole, cut, strict=True):
        np.testing.assert_array_equal(all_of_it[64:96], part)
    with pytest.raises(ValueError, match="expected a block within 256 requests, seen 64"):
        world.block(CHUNK - 32, 64)


def test_the_same_seed_is_the_same_world_and_another_is_not() -> None:
    one, same, other = (SimulatedWorld(SMALL, seed).block(0, 8) for seed in (100, 100, 101))
    np.testing.assert_array_equal(one.signals, same.signals)
    assert not np.array_equal(one.features, other.features)


def test_the_oracle_is_the_best_of_all_lists_of_a_few_candidates() -> None:
    world = SimulatedWorld(SMALL, seed=100)
    probes = world.probes(0)
    best = []
    for clicked, ordered in zip(probes.clicked, probes.ordered, strict=True):
        lists = itertools.permutations((clicked * ordered).tolist(), 2)
        best.append(max(0.95 * first + 0.95 * 0.87 * second for first, second in lists))
    assert world.worth(0).oracle == pytest.approx(np.mean(best))


def test_nobody_beats_the_oracle_and_the_true_tastes_come_close() -> None:
    world = SimulatedWorld(BASE, seed=100)
    worth = world.worth(0)
    probes = world.probes(0)
    drawn = np.random.default_rng(0).dirichlet(np.ones(5), len(probes.features))
    assert world.value(probes, drawn).mean() < worth.informed < worth.oracle
    assert worth.share(worth.informed) > 0.99
    static = world.best_static(0, 1_000)
    value = world.value(probes, np.tile(static, (len(probes.features), 1))).mean()
    assert 0.3 < worth.share(float(value)) < 0.7


def test_features_that_say_nothing_leave_the_mean_tastes() -> None:
    world = SimulatedWorld(SIMULATED["useless"], seed=100)
    weights = world.informed(world.probes(0))
    tastes = np.array([world.informed(world.probes(0))[0]])
    np.testing.assert_allclose(weights, np.broadcast_to(tastes, weights.shape))
    assert world.worth(0).share(world.worth(0).informed) < 0.7


def test_users_click_and_order_as_often_as_the_chances_say() -> None:
    world = SimulatedWorld(replace(BASE, order_logit=-1.0), seed=100)
    equal = np.full((CHUNK, 5), 0.2)
    clicks = np.zeros(10)
    expected_clicks = np.zeros(10)
    orders = expected_orders = 0.0
    for chunk in range(20):
        block = world.block(chunk * CHUNK, CHUNK)
        logged = world.show(block, equal)
        gains = logged.values * world.examination  # 0, 1 for a click, 6 for one with an order
        clicks += (gains > 0.5).sum(axis=0)
        orders += (gains > 5.5).sum()
        top = np.argsort(-block.signals.sum(axis=2), axis=1)[:, :10]
        chance = np.take_along_axis(block.clicked, top, axis=1)
        expected_clicks += (chance * world.examination).sum(axis=0)
        expected_orders += world.value(block, equal).sum()
    # Both are sums of independent events: their variance is at most their mean.
    assert np.all(np.abs(clicks - expected_clicks) < 4 * np.sqrt(expected_clicks))
    assert abs(orders - expected_orders) < 4 * np.sqrt(expected_orders)


def test_only_shown_items_are_logged_and_their_gains_are_corrected() -> None:
    world = SimulatedWorld(SMALL, seed=100)
    block = world.block(0, CHUNK)
    weights = np.tile([1.0, 0.0, 0.0], (CHUNK, 1))
    logged = world.show(block, weights)
    best_two = -np.sort(-block.signals[..., 0], axis=1)[:, :2]
    np.testing.assert_array_equal(logged.signals[..., 0], best_two)
    seen = set(np.round(logged.values[:, 1] * 0.95 * 0.87, 9).tolist())
    assert {0.0, 1.0} <= seen <= {0.0, 1.0, 6.0}


def test_tastes_change_at_once_or_bit_by_bit() -> None:
    at = np.array([99, 100, 105, 110])
    abrupt = SimulatedWorld(replace(SMALL, drift_at=100), seed=100)
    gradual = SimulatedWorld(replace(SMALL, drift_at=100, drift_requests=10), seed=100)
    before = abrupt.informed(abrupt.probes(0))
    after = abrupt.informed(abrupt.probes(100))
    np.testing.assert_array_equal(abrupt.informed(abrupt.probes(99)), before)
    assert np.abs(after - before).max() > 0.1
    for number, share in zip(at.tolist(), (0.0, 0.1, 0.6, 1.0), strict=True):
        now = gradual.informed(gradual.probes(number))
        np.testing.assert_allclose(now, (1 - share) * before + share * after)


@pytest.mark.parametrize(
    ("prior", "least", "most"),
    [
        ("right", 0.999, 1.0),
        ("noisy", 0.1, 0.6),
        ("static", 0.3, 0.6),
        ("wrong", -1.0, 0.0),
        ("upside_down", -2.0, -1.0),
    ],
)
def test_priors_are_as_good_or_bad_as_their_names_say(
    prior: str, least: float, most: float
) -> None:
    world = SimulatedWorld(replace(BASE, prior=prior), seed=100)  # type: ignore[arg-type]  # one of the names
    probes, worth = world.probes(0), world.worth(0)
    order = np.argsort(-probes.predicted, axis=1)[:, :10]
    chances = np.take_along_axis(probes.clicked * probes.ordered, order, axis=1)
    assert least <= worth.share(float((chances @ world.examination).mean())) <= most + 1e-9


def test_orders_are_as_sparse_as_they_are_said_to_be() -> None:
    world = SimulatedWorld(SIMULATED["sparse"], seed=100)
    assert world.worth(0).uniform / 10 == pytest.approx(0.003, rel=0.1)
