import math
from typing import Any

import numpy as np
import pytest
from grade.v1.decision_pb2 import Decision
from grade.v1.reward_group_pb2 import RewardGroup

from policy import dirichlet
from policy.checkpoint import digest
from policy.errors import CheckpointRefused
from policy.initial import initial_parameters, parameter_shapes
from policy.schema import Schema
from policy.trainer import StepReport, Trainer
from policy.trainer_settings import TrainerSettings
from serving.snapshot import load_policy
from tests.policy.forward import forward_batch
from tests.policy.groups import click, make_group, make_impression, make_schema, order
from tests.policy.world import World
from tests.serving.parameters import made_snapshot

SETTINGS = TrainerSettings(seed=3)


def slots_of(schema: Schema, count: int, requests: int = 6) -> list[list[RewardGroup]]:
    """Slots served by version 0."""
    world = World(schema, [[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]], seed=1)
    first = Trainer(schema, SETTINGS)
    return [world.slot(first, requests) for _ in range(count)]


def learn(trainer: Trainer, slots: list[list[RewardGroup]], start: int = 0) -> list[StepReport]:
    return [trainer.step(groups, slot=start + k) for k, groups in enumerate(slots)]


def test_before_the_first_step_the_baseline_is_served() -> None:
    schema = make_schema(baseline=[0.5, 0.3, 0.2])
    served = Trainer(schema, SETTINGS).serving_parameters()
    first = initial_parameters(schema, SETTINGS.seed)
    assert {name: tensor.tobytes() for name, tensor in served.items()} == {
        name: tensor.tobytes() for name, tensor in first.items()
    }


def test_the_same_slots_make_the_same_bits() -> None:
    schema = make_schema()
    slots = slots_of(schema, 4)
    one, other = Trainer(schema, SETTINGS), Trainer(schema, SETTINGS)
    assert learn(one, slots) == learn(other, slots)
    assert digest(one.state()) == digest(other.state())
    assert digest(one.serving_parameters()) == digest(other.serving_parameters())


@pytest.mark.parametrize(
    ("settings", "epoch", "start"),
    [
        (TrainerSettings(seed=4), 1, 0),
        (SETTINGS, 2, 0),
        (SETTINGS, 1, 7),
    ],
)
def test_draws_are_keyed_by_seed_epoch_and_slot(
    settings: TrainerSettings, epoch: int, start: int
) -> None:
    schema = make_schema()
    slots = slots_of(schema, 1)
    one, other = Trainer(schema, SETTINGS), Trainer(schema, settings, epoch=epoch)
    learn(one, slots)
    learn(other, slots, start)
    assert digest(one.serving_parameters()) != digest(other.serving_parameters())


@pytest.mark.parametrize("normalise", ["running_mean", "request"])
def test_a_restored_trainer_goes_on_as_if_nothing_had_happened(normalise: Any) -> None:
    schema = make_schema(normalise=normalise)
    slots = slots_of(schema, 6)
    through = Trainer(schema, SETTINGS)
    expected = learn(through, slots)
    first = Trainer(schema, SETTINGS)
    assert learn(first, slots[:3]) == expected[:3]
    state = first.state()
    learn(first, slots[3:], 3)  # What was taken out does not change with the trainer.
    restored = Trainer.restore(schema, SETTINGS, state)
    assert digest(restored.state()) == digest(state)
    assert learn(restored, slots[3:], 3) == expected[3:]
    assert digest(restored.state()) == digest(through.state())
    assert digest(restored.serving_parameters()) == digest(through.serving_parameters())


def test_a_fresh_trainer_can_be_restored_too_and_keeps_its_epoch() -> None:
    schema = make_schema()
    slots = slots_of(schema, 2)
    fresh = Trainer(schema, SETTINGS, epoch=5)
    restored = Trainer.restore(schema, SETTINGS, fresh.state())
    assert learn(fresh, slots) == learn(restored, slots)
    assert digest(fresh.state()) == digest(restored.state())


@pytest.mark.parametrize("name", ["served.mean_weight", "static_adam.0.first", "gate.sums"])
def test_a_state_that_does_not_fit_is_refused(name: str) -> None:
    schema = make_schema()
    state = Trainer(schema, SETTINGS).state()
    missing = {key: tensor for key, tensor in state.items() if key != name}
    with pytest.raises(CheckpointRefused, match=f"{name}: expected shape .*, seen nothing"):
        Trainer.restore(schema, SETTINGS, missing)
    with pytest.raises(CheckpointRefused, match=r"expected shape .*, seen \(9, 9\)"):
        Trainer.restore(schema, SETTINGS, state | {name: np.zeros((9, 9))})


def test_what_is_served_has_the_declared_tensors_and_is_finite() -> None:
    schema = make_schema(features=4)
    trainer = Trainer(schema, SETTINGS)
    learn(trainer, slots_of(schema, 3))
    served = trainer.serving_parameters()
    assert {name: tensor.shape for name, tensor in served.items()} == parameter_shapes(schema)
    assert all(np.isfinite(tensor).all() for tensor in served.values())
    assert {tensor.dtype for tensor in served.values()} == {np.dtype(np.float64)}
    served["gate"][0] = 9.0
    assert trainer.serving_parameters()["gate"][0] != 9.0


def test_an_empty_slot_and_the_holdout_change_nothing() -> None:
    schema = make_schema()
    trainer = Trainer(schema, SETTINGS)
    learn(trainer, slots_of(schema, 2))
    before = digest(trainer.state())
    held = make_group(
        schema,
        make_impression(np.eye(3)),
        [click(0)],
        features=[1e6, 1e6],
        alpha=np.ones(3),
        generator=np.random.default_rng(0),
        holdout=True,
    )
    for groups in ([], [held, held]):
        report = trainer.step(groups, slot=2)
        assert (report.groups, report.informative_groups, report.kl) == (0, 0, 0.0)
        assert digest(trainer.state()) == before


def test_the_holdout_is_never_learned_from() -> None:
    schema = make_schema()
    slot = slots_of(schema, 1)[0]
    held = make_group(
        schema,
        make_impression(np.eye(3)),
        [click(0)],
        features=[1e6, 1e6],
        alpha=np.ones(3),
        generator=np.random.default_rng(0),
        holdout=True,
    )
    one, other = Trainer(schema, SETTINGS), Trainer(schema, SETTINGS)
    assert one.step(slot, slot=0) == other.step([held, *slot, held], slot=0)
    assert digest(one.state()) == digest(other.state())


def without_clicks(schema: Schema, count: int) -> list[RewardGroup]:
    generator = np.random.default_rng(0)
    return [
        make_group(
            schema,
            make_impression(generator.normal(size=(5, 3))),
            [],
            features=generator.normal(size=2),
            alpha=np.ones(3),
            generator=generator,
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("kl_weight", [0.0, 10.0])
def test_groups_without_outcome_teach_nothing(kl_weight: float) -> None:
    """Neither a gradient nor a drag to the reference; only the context's scale is measured."""
    schema = make_schema()
    trainer = Trainer(schema, TrainerSettings(kl_weight=kl_weight, replay_steps=0, average=1.0))
    learn(trainer, slots_of(schema, 3))
    before = trainer.serving_parameters()
    report = trainer.step(without_clicks(schema, 10), slot=3)
    after = trainer.serving_parameters()
    assert (report.groups, report.informative_groups, report.gradient_norm) == (10, 0, 0.0)
    for name in before.keys() - {"feature_mean", "feature_scale"}:
        assert before[name].tobytes() == after[name].tobytes(), name


def test_a_nan_reward_neither_spreads_nor_stops_the_slot() -> None:
    schema = make_schema()
    slots = slots_of(schema, 3)
    for group in slots[1]:
        group.rewards.posterior[2] = math.nan
    decision = Decision.FromString(slots[2][0].impression.decision.payload)
    decision.log_densities[0] = math.inf
    slots[2][0].impression.decision.payload = decision.SerializeToString()
    trainer = Trainer(schema, SETTINGS)
    reports = learn(trainer, slots)
    assert all(np.isfinite(tensor).all() for tensor in trainer.state().values())
    assert all(
        math.isfinite(number)
        for report in reports
        for number in report._replace(mean_weights=[])
        if isinstance(number, float)
    )
    assert reports[1].informative_groups > 0


def test_the_report_says_what_happened() -> None:
    schema = make_schema(floor=0.1)
    groups = [*slots_of(schema, 1, requests=10)[0], *without_clicks(schema, 4)]
    trainer = Trainer(schema, SETTINGS)
    before = trainer.serving_parameters()
    report = trainer.step(groups, slot=0)
    after = trainer.serving_parameters()
    assert report.groups == 14
    spread = [max(group.rewards.posterior) > min(group.rewards.posterior) for group in groups]
    assert report.informative_groups == sum(spread)
    executed = [
        group.rewards.posterior[Decision.FromString(group.impression.decision.payload).executed]
        for group in groups
    ]
    assert report.reward == pytest.approx(np.mean(executed))
    contexts = np.array(
        [Decision.FromString(group.impression.decision.payload).features for group in groups]
    )
    new, old = forward_batch(after, contexts), forward_batch(before, contexts)
    assert report.kl == pytest.approx(dirichlet.kl(new, old).mean(), rel=1e-6)
    assert report.kl > 0
    assert report.concentration == pytest.approx(new.sum(axis=-1).mean())
    mean = 0.1 + 0.7 * new / new.sum(axis=-1, keepdims=True)
    assert report.mean_weights == pytest.approx(mean.mean(axis=0).tolist())
    assert report.gate == after["gate"][0]
    assert 0 <= report.clip_fraction <= 1
    assert report.gradient_norm > 0


def test_contexts_are_standardised_by_what_was_seen() -> None:
    schema = make_schema()
    slots = slots_of(schema, 3)
    trainer = Trainer(schema, SETTINGS)
    learn(trainer, slots)
    seen = np.array(
        [
            Decision.FromString(group.impression.decision.payload).features
            for slot in slots
            for group in slot
        ],
        dtype=np.float64,
    )
    served = trainer.serving_parameters()
    np.testing.assert_allclose(served["feature_mean"], seen.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(served["feature_scale"], seen.std(axis=0), rtol=1e-9)


def test_one_extreme_request_among_many_hardly_changes_what_is_served() -> None:
    schema = make_schema()
    world = World(schema, [[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]], seed=1)
    trainer = Trainer(schema, SETTINGS)
    world.live(trainer, 12)
    before, ideal = trainer.serving_parameters(), trainer.state()["ideal.sums"]
    extreme = make_group(
        schema,
        make_impression(np.eye(3)),
        [order(1, 1e15)],
        features=np.array([3e38, -3e38]),
        alpha=np.full(3, 5.0),
        generator=np.random.default_rng(0),
    )
    trainer.step([extreme, *world.slot(trainer)], slot=12)
    after, sums = trainer.serving_parameters(), trainer.state()
    np.testing.assert_allclose(after["feature_scale"], before["feature_scale"], rtol=0.2)
    np.testing.assert_allclose(
        after["feature_mean"], before["feature_mean"], atol=0.2 * before["feature_scale"].max()
    )
    assert sums["ideal.sums"][0] < ideal[0] * 2
    # Its rewards are at most the 100 running means that its ideal counts as.
    assert np.abs(sums["gate.sums"][0]).max() < 110
    load_policy(made_snapshot(1, schema=schema, tensors=after), schema)


def test_the_best_static_weights_are_found() -> None:
    schema = make_schema(features=3, objectives=4)
    likes = np.array([0.6, 0.3, 0.1, 0.0])
    trainer = Trainer(schema, TrainerSettings())
    report = World(schema, [likes], seed=7).live(trainer, 30)
    np.testing.assert_allclose(report.mean_weights, likes, rtol=0, atol=0.12)


def test_two_types_of_users_open_the_gate_and_get_weights_of_their_own() -> None:
    schema = make_schema(features=3)
    world = World(schema, [[0.8, 0.2, 0.0], [0.0, 0.2, 0.8]], seed=7)
    trainer = Trainer(schema, TrainerSettings())
    report = world.live(trainer, 36)
    assert report.gate > 0
    served = trainer.serving_parameters()
    closed = served | {"gate": np.zeros(1)}
    for kind in (0, 1):
        contextual, static = world.agreement(served, kind), world.agreement(closed, kind)
        assert contextual > 0.85
        assert contextual > static + 0.05


def test_context_that_does_not_pay_does_no_harm() -> None:
    schema = make_schema(features=3)
    world = World(schema, [[0.5, 0.3, 0.2]], seed=5)
    trainer = Trainer(schema, TrainerSettings())
    world.live(trainer, 25)
    served = trainer.serving_parameters()
    assert world.agreement(served, 0) > 0.85


def test_floors_hold_for_every_served_weight() -> None:
    schema = make_schema(floor=0.25)
    world = World(schema, [[1.0, 0.0, 0.0]], seed=2)
    trainer = Trainer(schema, TrainerSettings())
    report = world.live(trainer, 15)
    assert min(report.mean_weights) >= 0.25
    assert report.mean_weights[0] > 0.4


def test_soft_rules_are_learned_without_any_outcome() -> None:
    rule = "[[soft_rules]]\nobjective = 'o1'\nmax_weight = 0.1\n"
    schema = make_schema(soft_rules=rule)
    trainer = Trainer(schema, TrainerSettings())
    for slot in range(15):
        report = trainer.step(without_clicks(schema, 8), slot=slot)
    assert report.informative_groups > 0
    assert report.mean_weights[1] < 0.2


def test_the_kl_term_keeps_the_policy_nearer_to_the_baseline() -> None:
    schema = make_schema()
    mean = []
    for kl_weight in (0.0, 1.0):
        trainer = Trainer(schema, TrainerSettings(kl_weight=kl_weight))
        mean.append(World(schema, [[1.0, 0.0, 0.0]], seed=2).live(trainer, 12).mean_weights[0])
    assert mean[1] < mean[0] - 0.1


def test_the_state_is_small() -> None:
    schema = make_schema(features=16, objectives=5)
    world = World(schema, np.full((2, 5), 0.2), seed=2)
    trainer = Trainer(schema, TrainerSettings(served_epochs=0, fresh_steps=0, replay_steps=0))
    slot = world.slot(trainer, requests=150)
    for number in range(25):
        trainer.step(slot, slot=number)
    assert sum(tensor.nbytes for tensor in trainer.state().values()) < 2_000_000
