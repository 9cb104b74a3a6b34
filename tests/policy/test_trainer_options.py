"""Every option of the trainer, through a step that was worked out by hand."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from policy.batch import Batch
from policy.checkpoint import digest
from policy.initial import initial_parameters
from policy.network import FIXED, Heads, Kept, PolicyNetwork
from policy.trainer import Trainer
from policy.trainer_settings import TrainerSettings
from tests.policy.groups import make_schema
from tests.policy.pairs import new_trainer, pair_schema, pairs, slope, static_gradient
from tests.policy.world import World

# Advantages of member 0 are .5, -.2, -.2 and 0; the last group says nothing, but counts.
THREE_SPEAK = [[1.0, 0.0], [0.0, 0.4], [0.0, 0.4], [0.3, 0.3]]


@pytest.mark.parametrize(
    ("by", "summed"),
    [
        ("off", 0.5 - 0.2 - 0.2),
        # Every group counts alike, so the two outvote the one.
        ("group", 0.5 / 0.5001 - 2 * 0.2 / 0.2001),
        ("batch", 0.1 / (math.sqrt((0.25 + 0.04 + 0.04) / 3) + 1e-4)),
    ],
)
def test_advantages_are_scaled_as_set(by: str, summed: float) -> None:
    trainer = new_trainer(advantage_scale=by)
    expected = -slope(trainer) * summed / 4
    trainer.learn(pairs(THREE_SPEAK), slot=0)
    assert static_gradient(trainer).tolist() == pytest.approx([expected, -expected])


@pytest.mark.parametrize(
    ("ratio", "epsilon", "epsilon_high", "cut_off", "counted"),
    [
        (1.0, 0.2, 0.2, 0.0, 1.0),
        # Likelier by .4: beyond .2 the good member earns nothing more, the bad one still pays.
        (1.4, 0.2, 0.2, 0.5, 1.4 / 2),
        (1.4, 0.2, 0.5, 0.0, 1.4),
        # Less likely by .3: the bad member has paid enough.
        (0.7, 0.2, 0.5, 0.5, 0.7 / 2),
        (0.7, 0.4, 0.2, 0.0, 0.7),
    ],
)
def test_the_clip_has_a_bound_of_its_own_on_either_side(
    ratio: float, epsilon: float, epsilon_high: float, cut_off: float, counted: float
) -> None:
    trainer = new_trainer(epsilon=epsilon, epsilon_high=epsilon_high)
    expected = -slope(trainer) * 0.5 * counted
    report = trainer.learn(pairs([[1.0, 0.0]], ratio=ratio), slot=0)
    assert report.clip_fraction == cut_off
    assert static_gradient(trainer)[0] == pytest.approx(expected)


@pytest.mark.parametrize(("moved", "sign"), [("learned", 1), ("reference", -1)])
def test_the_kl_term_pulls_to_the_reference(moved: str, sign: int) -> None:
    settings = TrainerSettings(
        fresh_steps=0, replay_steps=0, served_epochs=1, prior_weight=0, kl_weight=1.0
    )
    state = new_trainer().state()
    state[f"{moved}.static_logits"] = state[f"{moved}.static_logits"] + np.array([0.5, -0.5])
    trainer = Trainer.restore(pair_schema(), settings, state)
    trainer.learn(pairs([[1e-6, 0.0]]), slot=0)
    assert sign * float(static_gradient(trainer)[0]) > 0.1
    before = state["learned.static_logits"].astype(np.float64)[0]
    after = trainer.state()["learned.static_logits"].astype(np.float64)[0]
    assert sign * (after - before) < 0


@pytest.mark.parametrize(
    ("reference", "shares"),
    [("start", [0, 0, 0, 0]), ("average", [1 / 3] * 4), ("refresh", [0, 0, 1, 0])],
)
def test_the_reference_moves_as_it_says(reference: str, shares: list[float]) -> None:
    trainer = new_trainer(reference=reference, reference_slots=3, kl_weight=0.01)
    expected = trainer.state()["reference.static_logits"].astype(np.float64)
    for slot, share in enumerate(shares):
        trainer.learn(pairs([[1.0, 0.0]]), slot=slot)
        state = trainer.state()
        learned = state["learned.static_logits"].astype(np.float64)
        expected = expected + share * (learned - expected)
        np.testing.assert_allclose(
            state["reference.static_logits"].astype(float), expected, rtol=1e-12
        )
        assert abs(learned[0] - expected[0]) > 1e-4 or share == 1


def test_a_prior_without_weight_is_left_out() -> None:
    one, other = (new_trainer(fresh_steps=1, combine="weighted_sum") for _ in range(2))
    for slot in range(3):
        one.learn(pairs(THREE_SPEAK, predicted=0.0), slot=slot)
        report = other.learn(pairs(THREE_SPEAK, predicted=9.0), slot=slot)
    assert digest(one.serving_parameters()) == digest(other.serving_parameters())
    assert report.prior_scale == 0
    assert not other.state()["promise.sums"].any()
    assert not other.state()["calibration.sums"].any()


def test_groups_that_say_nothing_neither_pull_nor_are_pulled() -> None:
    """Were the KL of the silent group counted, it would be as large as that of the other."""
    state = new_trainer().state()
    state["learned.static_logits"] = np.array([0.5, -0.5])
    settings = TrainerSettings(
        fresh_steps=0, replay_steps=0, served_epochs=1, prior_weight=0, kl_weight=1.0
    )
    gradients = []
    for posterior in ([[1.0, 0.0]], [[1.0, 0.0], [0.4, 0.4]]):
        trainer = Trainer.restore(pair_schema(), settings, state)
        trainer.learn(pairs(posterior), slot=0)
        gradients.append(static_gradient(trainer))
    np.testing.assert_allclose(gradients[1], gradients[0] / 2, rtol=1e-12)


def test_a_member_without_a_number_leaves_the_others_of_its_group_as_they_are() -> None:
    trainer = new_trainer()
    expected = -slope(trainer) * 0.5 * 2 / 3  # the mean is over three members
    weights = [[0.7, 0.3], [0.3, 0.7], [0.5, 0.5]]
    trainer.learn(pairs([[1.0, 0.0, math.nan]], weights=weights), slot=0)
    assert static_gradient(trainer)[0] == pytest.approx(expected)


# Of the last version 9 two are 2 behind at most; the others are older or of another epoch.
VERSIONS = [(1, 9), (1, 7), (1, 6), (0, 9), (2**64 - 1, 2**64 - 1)]


@pytest.mark.parametrize(("cap", "counted"), [(None, 5), (2, 2), (0, 1), (9, 3)])
def test_stale_groups_are_counted_and_left_to_others_to_learn_from(
    cap: int | None, counted: int
) -> None:
    trainer = new_trainer(staleness_cap=cap)
    expected = -slope(trainer) * 0.5 * counted / 5
    report = trainer.learn(pairs([[1.0, 0.0]] * 5, versions=VERSIONS), slot=0, version=9)
    assert static_gradient(trainer)[0] == pytest.approx(expected)
    assert (report.groups, report.informative_groups, report.stale_groups) == (5, 5, 5 - counted)
    assert len(trainer.state()["past.lengths"]) == 5


def test_a_slot_of_stale_groups_only_still_serves_fresh_groups_and_replay() -> None:
    schema = make_schema()
    slots = [World(schema, [[0.7, 0.2, 0.1]], seed=1).slot(Trainer(schema, TrainerSettings()))]
    first = Trainer(schema, TrainerSettings()).serving_parameters()
    for settings, learns in (
        (TrainerSettings(staleness_cap=0, fresh_steps=0, replay_steps=0), False),
        (TrainerSettings(staleness_cap=0, fresh_steps=1, replay_steps=0), True),
        (TrainerSettings(staleness_cap=0, fresh_steps=0, replay_steps=1), True),
    ):
        trainer = Trainer(schema, settings)
        report = trainer.step(slots[0], slot=0)  # they are of epoch 0
        assert report.stale_groups == report.informative_groups > 0
        served = trainer.serving_parameters()
        assert (served["static_logits"] != first["static_logits"]).any() == learns


def test_past_requests_are_replayed_for_so_many_slots() -> None:
    trainer = new_trainer(replay_slots=2)
    seen = []
    for slot in range(4):
        trainer.learn(pairs([[1.0, 0.0]] * (slot + 1)), slot=100 * slot)
        seen.append(trainer.state()["past.slots"].tolist())
    assert seen == [[0], [0, 1, 1], [1, 1, 2, 2, 2], [2, 2, 2, 3, 3, 3, 3]]


def firing(state: dict[str, Any]) -> dict[str, Any]:
    """A state whose lead has just fallen from 1 to 0, with a variance of .01."""
    buckets = np.array([[32.0, 32.0, 32.32]] * 64 + [[32.0, 0.0, 0.32]] * 8)
    return state | {"drift.buckets": buckets}


def test_after_a_change_of_the_world_learning_begins_anew() -> None:
    schema = make_schema()
    settings = TrainerSettings(seed=3)
    world = World(schema, [[0.7, 0.2, 0.1]], seed=1)
    before = Trainer(schema, settings)
    world.live(before, 4)
    before_state = before.state() | {"sharpness": np.array([0.5]), "gate.sums": np.ones((2, 4))}
    # No steps: what is left is what beginning anew has left.
    still = replace(settings, served_epochs=0, fresh_steps=0, replay_steps=0)
    trainer = Trainer.restore(schema, still, firing(before_state))
    slot = world.slot(before)
    report = trainer.step(slot, slot=4)
    assert report.began_anew
    assert report.drift_score > settings.drift_threshold
    state, first = trainer.state(), initial_parameters(schema, settings.seed)
    for part in ("learned", "served", "reference"):
        for name in first.keys() - set(FIXED):
            assert state[f"{part}.{name}"].tobytes() == first[name].tobytes(), name
    for name, tensor in state.items():
        if name.startswith(("static_adam", "contextual_adam", "gate", "drift", "calibration")):
            assert not tensor.any(), name
    assert state["sharpness"].tolist() == [0.0]
    assert report.gate == 0
    assert state["slots"].tolist() == [1]
    assert len(state["past.lengths"]) == sum(bool(group.conversions) for group in slot)
    seen = before_state["scale.count"].astype(np.float64) + len(slot)
    assert state["scale.count"].tolist() == seen.tolist()
    assert not trainer.step(world.slot(before), slot=5).began_anew


EVERYTHING: dict[str, Any] = {
    "combine": "gdpo",
    "prior_weight": 0.5,
    "advantage_scale": "batch",
    "epsilon_high": 0.5,
    "kl_weight": 0.1,
    "reference_slots": 2,
    "staleness_cap": 1,
    "replay_slots": 2,
    "replay_items": 200,
    "dropout": 0.3,
}


@pytest.mark.parametrize(
    "more",
    [
        {"reference": "average", "replay_by": "groups"},
        {"reference": "refresh", "gate": False, "combine": "gated"},
        {"reference": "start", "learn_concentration": False, "combine": "weighted_sum"},
        {"combine": "calibrated", "advantage_scale": "group"},
    ],
)
def test_with_everything_switched_on_a_restart_is_no_restart(more: dict[str, Any]) -> None:
    schema = make_schema(predicts=True, floor=0.05, soft_rules=SOFT_RULE)
    settings = TrainerSettings(**{**EVERYTHING, **more})
    world = World(schema, [[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]], seed=1)
    through = Trainer(schema, settings)
    for slot in range(3):
        through.step(world.slot(through, 12), slot=slot, version=slot)
    state = firing(through.state())
    through, other = (Trainer.restore(schema, settings, state) for _ in range(2))
    anew = []
    for slot in range(3, 7):
        groups = world.slot(through, 12)
        other = Trainer.restore(schema, settings, other.state())
        report = through.step(groups, slot=slot, version=slot)
        assert other.step(groups, slot=slot, version=slot) == report
        assert digest(through.state()) == digest(other.state())
        anew.append(report.began_anew)
    assert anew[0]


SOFT_RULE = "[[soft_rules]]\nobjective = 'o1'\nmax_weight = 0.3\n"


@hypothesis_settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 2**32), items=st.integers(1, 7))
def test_longer_padding_changes_not_a_bit(seed: int, items: int) -> None:
    schema = make_schema(predicts=True, soft_rules=SOFT_RULE)
    settings = TrainerSettings(**EVERYTHING)
    world, plain, wide = (
        World(schema, [[0.6, 0.3, 0.1]], seed),
        *(Trainer(schema, settings) for _ in range(2)),
    )
    for slot in range(2):
        batch = world.batch(plain, 10)
        one = plain.learn(batch, slot=slot)
        assert wide.learn(with_more_items(batch, items), slot=slot) == one
    assert digest(plain.state()) == digest(wide.state())


def with_more_items(batch: Batch, more: int) -> Batch:
    """The same with so many further places where there is no item."""
    requests = batch.requests
    count, filled = len(requests.present), {"examination": 1.0, "present": False}
    wider = {}
    for name in ("signals", "values", "predicted", "examination", "present"):
        array = getattr(requests, name)
        room = np.full((count, more, *array.shape[2:]), filled.get(name, 0.0), dtype=array.dtype)
        wider[name] = np.concatenate([array, room], axis=1)
    return batch._replace(requests=requests._replace(**wider))


def test_groups_without_outcome_are_learned_from_the_same_read_or_not() -> None:
    """Where the prior does not count: what they earned is nothing, whatever their items are."""
    schema = make_schema(soft_rules=SOFT_RULE)
    settings = TrainerSettings(prior_weight=0.0)
    world = World(schema, [[0.6, 0.3, 0.1]], seed=3)
    reading, not_reading = (Trainer(schema, settings) for _ in range(2))
    for slot in range(3):
        groups = world.slot(reading, 12)
        for group in groups[::2]:
            del group.conversions[:]
            group.rewards.posterior[:] = [0.0] * len(group.rewards.posterior)
        report = not_reading.step(groups, slot=slot)
        assert reading.learn(world.collated(groups), slot=slot) == report
        assert report.informative_groups > sum(bool(group.conversions) for group in groups)
    assert digest(reading.state()) == digest(not_reading.state())


@pytest.mark.parametrize("noise", [0.0, 0.6])
def test_a_past_request_is_blurred_whenever_it_is_replayed(
    noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = new_trainer(feature_noise=noise, replay_steps=4, fresh_steps=0, served_epochs=0)
    asked: list[np.ndarray[Any, np.dtype[np.float64]]] = []
    heads = PolicyNetwork.heads

    def seen(network: PolicyNetwork, features: Tensor, kept: Kept = None) -> Heads:
        asked.append(features.numpy().copy())
        return heads(network, features, kept)

    monkeypatch.setattr(PolicyNetwork, "heads", seen)
    batch = pairs([[1.0, 0.0]] * 64)
    trainer.learn(batch, slot=0)
    replayed = [features for features in asked if len(features) == 128]
    assert len(replayed) > 1
    # All requests have the same features, so whatever differs is noise; its scale is 1 where
    # features do not vary.
    moved = np.stack(replayed) - batch.requests.features[0]
    assert moved.std() == pytest.approx(noise, rel=0.1)
    assert abs(moved.mean()) <= 0.1 * noise


@given(st.integers(1, 40), st.integers(1, 40))
def test_a_request_is_replayed_as_often_in_short_slots_as_in_long_ones(
    short: int, slots: int
) -> None:
    settings = TrainerSettings(replay_steps=10_000)
    together = settings.replay_steps_of(0, short * slots)
    apart = slots * settings.replay_steps_of(0, short)
    assert together <= apart < together + slots  # every slot rounds up


def test_steps_on_past_requests_become_fewer_down_to_a_limit() -> None:
    settings = TrainerSettings(replay_steps=5, replay_first=3.0)
    steps = [settings.replay_steps_of(slots, 10_000) for slots in (0, 50, 100, 200, 100_000)]
    assert steps == [15, 10, 8, 5, 5]
    assert TrainerSettings(replay_steps=0).replay_steps_of(0, 100) == 0
