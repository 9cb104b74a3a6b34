"""The simulated world is seeded, hides its truth, and is worth learning."""

import numpy as np
import pytest

from simulator.marketplace import (
    CHUNK,
    CLICK,
    FEATURES,
    OBJECTIVES,
    ORDER,
    Marketplace,
    MarketplaceSettings,
    Request,
)


@pytest.fixture(scope="module")
def world() -> Marketplace:
    return Marketplace(MarketplaceSettings(seed=3))


def top(request: Request) -> np.ndarray:
    """[position] the ten candidates with the highest predicted order rate."""
    return np.argsort(-request.scores[:, 1], kind="stable")[:10]


def test_a_request_depends_on_seed_and_number_alone(world: Marketplace) -> None:
    again = Marketplace(MarketplaceSettings(seed=3))
    for number in (5 * CHUNK + 7, 3, CHUNK, 3):  # in any order, however often
        one, other = world.request(number), again.request(number)
        assert one.unit_id == other.unit_id
        np.testing.assert_array_equal(one.features, other.features)
        np.testing.assert_array_equal(one.scores, other.scores)
    other_seed = Marketplace(MarketplaceSettings(seed=4)).request(3)
    assert not np.array_equal(other_seed.scores, world.request(3).scores)


def test_feedback_depends_on_the_list_and_the_drift_alone(world: Marketplace) -> None:
    again = Marketplace(MarketplaceSettings(seed=3))
    shown = top(world.request(11))
    assert world.feedback(11, shown, drifted=False) == again.feedback(11, shown, drifted=False)


def test_a_request_shows_features_and_scores_only(world: Marketplace) -> None:
    assert Request._fields == ("number", "unit_id", "features", "scores")
    request = world.request(0)
    assert request.features.shape == (len(FEATURES),) == (16,)
    assert request.scores.shape == (60, len(OBJECTIVES)) == (60, 5)
    probabilities = request.scores[:, :3]
    assert ((probabilities > 0) & (probabilities < 1)).all()
    assert (request.scores[:, 3] > 0).all()


def test_no_feature_names_the_type_by_itself(world: Marketplace) -> None:
    """No single feature orders the users of one type almost entirely before all others."""
    requests = [world.request(number) for number in range(2 * CHUNK)]
    features = np.stack([request.features for request in requests])
    tastes = np.stack([world.true_weights(r.number, drifted=False) for r in requests]).argmax(
        axis=1
    )
    for column in features.T:
        ranks = np.argsort(np.argsort(column))
        for kind in np.unique(tastes):
            inside = tastes == kind
            area = (ranks[inside].mean() - (inside.sum() - 1) / 2) / (~inside).sum()
            assert 0.03 < area < 0.97


def test_an_order_follows_a_click_on_a_shown_candidate(world: Marketplace) -> None:
    orders = 0
    for number in range(500):
        shown = top(world.request(number))
        outcomes = world.feedback(number, shown, drifted=False)
        clicked = {o.candidate: o.delay_s for o in outcomes if o.kind == CLICK}
        assert set(clicked) <= set(shown.tolist())
        for outcome in outcomes:
            if outcome.kind == ORDER:
                orders += 1
                assert outcome.delay_s > clicked[outcome.candidate]
    assert orders > 10


def test_orders_are_sparse_and_some_feedback_is_late(world: Marketplace) -> None:
    outcomes = [
        outcome
        for number in range(3000)
        for outcome in world.feedback(number, top(world.request(number)), drifted=False)
    ]
    orders = sum(outcome.kind == ORDER for outcome in outcomes)
    assert 0.01 < orders / (3000 * 10) < 0.03
    delays = np.array([outcome.delay_s for outcome in outcomes])
    assert 0.03 < (delays > 5).mean() < 0.12
    assert np.median(delays) < 2


def test_clicks_come_as_often_as_the_examination_allows(world: Marketplace) -> None:
    """Over many requests the top position is clicked more than the last, as the truth has it."""
    clicks = np.zeros(10)
    for number in range(3000):
        request = world.request(number)
        shown = np.random.default_rng(number).permutation(60)[:10]
        for outcome in world.feedback(request.number, shown, drifted=False):
            if outcome.kind == CLICK:
                clicks[list(shown).index(outcome.candidate)] += 1
    expected = world.examination / world.examination.sum()
    error = np.sqrt(expected * (1 - expected) / clicks.sum())
    assert (np.abs(clicks / clicks.sum() - expected) < 4 * error).all()


def test_a_drift_gives_everyone_another_taste_and_leaves_features_alone() -> None:
    world = Marketplace(MarketplaceSettings(seed=5))
    for number in range(50):
        before = world.true_weights(number, drifted=False)
        after = world.true_weights(number, drifted=True)
        assert before.argmax() != after.argmax() or not np.array_equal(before, after)
        assert before.sum() == pytest.approx(1)
        assert after.sum() == pytest.approx(1)


def test_tastes_conflict(world: Marketplace) -> None:
    """What one type likes best is, on average, worth little to another."""
    chances = [world.order_chances(number, drifted=False) for number in range(200)]
    drifted = [world.order_chances(number, drifted=True) for number in range(200)]
    correlation = np.mean(
        [np.corrcoef(np.log(a), np.log(b))[0, 1] for a, b in zip(chances, drifted, strict=True)]
    )
    assert correlation < 0.7
