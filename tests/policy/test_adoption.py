"""What a policy keeps of what it has learned when features and objectives come and go."""

import copy
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.adoption import adopt_parameters, adopt_state
from policy.initial import (
    MEAN_FLOOR,
    initial_mean,
    initial_parameters,
    parameter_shapes,
)
from policy.schema import Schema, parse_schema
from policy.trainer import Trainer
from policy.trainer_settings import TrainerSettings
from serving.serving_policy import ServingPolicy
from tests.policy.forward import forward
from tests.policy.world import World

Floats = npt.NDArray[np.float64]


def schema_of(
    features: Sequence[str], baseline: dict[str, float], *, gain: float = 1, window_s: int = 5
) -> Schema:
    """A schema with these features, and objectives by name with their baseline weight."""
    lines = ["policy = 'test'", f"features = {list(features)}"]
    for name, weight in baseline.items():
        lines += ["[[objectives]]", f"name = '{name}'", f"baseline = {weight!r}"]
        lines += ["standardise = false"]
    lines += ["[[outcomes]]", "name = 'click'", f"gain = {gain}"]
    return parse_schema("\n".join([*lines, f"[attribution]\nwindow_s = {window_s}"]))


OLD = schema_of(["age", "hour", "depth"], {"click": 0.5, "order": 0.3, "like": 0.2})


def learned(schema: Schema, seed: int, gate: float) -> dict[str, Floats]:
    """Parameters that have moved away from the start in everything that is learned."""
    generator = np.random.default_rng(seed)
    tensors = initial_parameters(schema, seed=0)
    for name, tensor in tensors.items():
        if name not in ("mean_floor", "feature_scale", "feature_mean"):
            tensor += generator.normal(size=tensor.shape) * 0.5
    tensors["feature_mean"] = generator.normal(size=schema.n_features) * 10
    tensors["feature_scale"] = np.exp(generator.normal(size=schema.n_features))
    tensors["gate"] = np.array([gate])
    return tensors


def means(tensors: dict[str, Floats], features: npt.ArrayLike) -> Floats:
    """[request, objective] mean of the Dirichlet, floors included."""
    alpha = forward(tensors, features)
    return np.asarray(alpha / alpha.sum(axis=-1, keepdims=True))


def proportions(mean: Floats, at: list[int]) -> Floats:
    return np.asarray(mean[:, at] / mean[:, at].sum(axis=-1, keepdims=True))


names = st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=6, unique=True)
seeds = st.integers(0, 2**32)


@st.composite
def baselines(draw: st.DrawFn) -> dict[str, float]:
    """Objectives with baseline weights, some very small."""
    chosen = draw(names)
    shares = [draw(st.sampled_from([1.0, 0.5, 0.3, 1e-2, 1e-5])) for _ in chosen]
    total = math.fsum(shares)
    return {name: share / total for name, share in zip(chosen, shares, strict=True)}


@given(baselines(), baselines(), seeds)
@settings(deadline=None)
def test_with_a_closed_gate_shared_objectives_keep_their_proportions(
    before: dict[str, float], after: dict[str, float], seed: int
) -> None:
    old, new = schema_of(["x"], before), schema_of(["x"], after)
    tensors = learned(old, seed, gate=0.0)
    adopted = adopt_parameters(tensors, old, new)
    was, now = means(tensors, [[0.0]]), means(adopted, [[0.0]])
    shared = [name for name in after if name in before]
    np.testing.assert_allclose(
        proportions(now, [list(after).index(name) for name in shared]),
        proportions(was, [list(before).index(name) for name in shared]),
        rtol=1e-9,
    )
    if shared and set(after) != set(before):
        fresh = [at for at, name in enumerate(after) if name not in before]
        np.testing.assert_allclose(now[0, fresh], initial_mean(new)[fresh], atol=1e-12)
    assert {name: each.shape for name, each in adopted.items()} == parameter_shapes(new)
    assert (adopted["mean_floor"] > 0).all()
    assert (adopted["mean_floor"] <= MEAN_FLOOR).all()


@given(seeds, st.sampled_from([0.0, 0.25, 1.0]), st.booleans())
@settings(deadline=None)
def test_features_that_come_and_go_change_no_answer(seed: int, gate: float, shuffle: bool) -> None:
    """The one that goes stands at its mean; the ones that come may stand anywhere."""
    tensors = learned(OLD, seed, gate)
    kept = ["hour", "age"] if shuffle else ["age", "hour"]
    new = schema_of(["first", *kept, "last"], {"click": 0.5, "order": 0.3, "like": 0.2})
    generator = np.random.default_rng(seed)
    old_context = generator.normal(size=3) * 20
    old_context[2] = tensors["feature_mean"][2]
    by_name = {"age": old_context[0], "hour": old_context[1]}
    new_context = [generator.normal() * 1e6, *(by_name[name] for name in kept), generator.normal()]
    np.testing.assert_allclose(
        forward(adopt_parameters(tensors, OLD, new), [new_context]),
        forward(tensors, [old_context]),
        rtol=1e-12,
    )


@pytest.mark.parametrize(("gate", "tolerance"), [(0.25, MEAN_FLOOR), (1.0, 1e-9)])
def test_with_an_open_gate_shared_objectives_keep_their_proportions_above_the_floors(
    gate: float, tolerance: float
) -> None:
    new = schema_of(
        ["age", "hour", "depth"], {"like": 0.2, "share": 0.1, "click": 0.4, "save": 0.3}
    )
    tensors = learned(OLD, 3, gate)
    adopted = adopt_parameters(tensors, OLD, new)
    contexts = tensors["feature_mean"] + np.random.default_rng(0).normal(size=(50, 3))
    was = proportions(means(tensors, contexts) - tensors["mean_floor"], [0, 2])
    now = proportions(means(adopted, contexts) - adopted["mean_floor"], [2, 0])
    np.testing.assert_allclose(now, was, atol=tolerance)
    assert np.ptp(was[:, 0]) > 0.1, "the contexts are answered differently"


def test_new_objectives_have_their_baseline_in_the_mean_context_whatever_the_gate_is() -> None:
    new = schema_of(["age", "hour", "depth"], {"click": 0.5, "order": 0.3, "like": 0.1, "b": 0.1})
    for gate in (0.0, 1.0):
        tensors = learned(OLD, 4, gate)
        mean = means(adopt_parameters(tensors, OLD, new), [tensors["feature_mean"]])[0]
        assert mean[3] == pytest.approx(0.1, abs=1e-12)


@given(seeds, st.sampled_from([0.0, 0.5, 1.0]))
def test_where_the_schemas_agree_nothing_changes(seed: int, gate: float) -> None:
    tensors = learned(OLD, seed, gate)
    same_names = schema_of(
        ["age", "hour", "depth"], {"click": 0.2, "order": 0.2, "like": 0.6}, window_s=60
    )
    for new in (OLD, same_names):
        adopted = adopt_parameters(tensors, OLD, new)
        assert {name: each.tobytes() for name, each in adopted.items()} == {
            name: each.tobytes() for name, each in tensors.items()
        }
    assert not any(np.shares_memory(adopted[name], tensors[name]) for name in tensors)


def test_objectives_in_another_order_answer_the_same() -> None:
    new = schema_of(["age", "hour", "depth"], {"like": 0.2, "click": 0.5, "order": 0.3})
    tensors = learned(OLD, 1, 0.5)
    contexts = np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_allclose(
        forward(adopt_parameters(tensors, OLD, new), contexts),
        forward(tensors, contexts)[:, [2, 0, 1]],
        rtol=1e-12,
    )


def test_with_nothing_in_common_learning_begins_at_the_baseline() -> None:
    new = schema_of(["new"], {"a": 0.9, "b": 0.1})
    adopted = adopt_parameters(learned(OLD, 1, 0.0), OLD, new)
    np.testing.assert_allclose(means(adopted, [[3.0]]), [[0.9, 0.1]], atol=1e-12)


def test_a_crowd_of_objectives_may_leave() -> None:
    """What is left had been learned down to its floor: it keeps its proportions all the same."""
    crowd = {f"o{at}": 0.05 for at in range(20)}
    old, new = schema_of(["x"], crowd), schema_of(["x"], {"o0": 0.6, "o1": 0.4})
    tensors = learned(old, 0, 0.0)
    tensors["static_logits"][[0, 1]] = [-40, -300]
    was = means(tensors, [[0.0]])[0]
    now = means(adopt_parameters(tensors, old, new), [[0.0]])[0]
    assert now[0] / now[1] == pytest.approx(was[0] / was[1], rel=1e-9)


def test_the_server_takes_adopted_parameters() -> None:
    new = schema_of(["hour", "week"], {"order": 0.3, "share": 0.2, "click": 0.5})
    adopted = adopt_parameters(learned(OLD, 1, 0.5), OLD, new)
    contexts = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    policy = ServingPolicy.from_tensors(adopted, epoch=2, version=1)
    np.testing.assert_allclose(policy.alpha(contexts), forward(adopted, contexts), rtol=1e-11)


# --- the trainer's state ----------------------------------------------------------------------

SETTINGS = TrainerSettings(seed=5)


@pytest.fixture(scope="module")
def trained() -> Trainer:
    trainer = Trainer(OLD, SETTINGS)
    World(OLD, [[0.2, 0.6, 0.2], [0.8, 0.1, 0.1]], seed=1).live(trainer, 8)
    return trainer


def crossed(trained: Trainer, new: Schema, settings: TrainerSettings = SETTINGS) -> Trainer:
    fresh = Trainer(new, settings, epoch=2)
    return Trainer.restore(new, settings, adopt_state(trained.state(), fresh.state(), OLD, new))


def test_with_other_settings_or_windows_alone_the_whole_state_is_kept(trained: Trainer) -> None:
    longer = schema_of(
        ["age", "hour", "depth"], {"click": 0.5, "order": 0.3, "like": 0.2}, window_s=60
    )
    before = trained.state()
    for new, how in ((longer, SETTINGS), (OLD, TrainerSettings(seed=9, static_rate=0.5))):
        after = crossed(trained, new, how).state()
        assert after.keys() == before.keys()
        assert {name for name in after if after[name].tobytes() != before[name].tobytes()} == {
            "epoch"
        }
        assert after["epoch"].tolist() == [2]


def test_statistics_go_by_name_and_the_rest_begins_anew(trained: Trainer) -> None:
    new = schema_of(["new", "depth", "age"], {"order": 0.4, "share": 0.2, "click": 0.4})
    before, after = trained.state(), crossed(trained, new).state()
    for name in ("scale.count", "scale.mean", "scale.squares"):
        assert after[name].tolist() == [0, before[name][2], before[name][0]]
    for name in ("slots", "gate.sums", "ideal.sums"):
        assert after[name].tobytes() == before[name].tobytes()
    moments = [name for name in after if "_adam." in name]
    assert moments
    assert not any(after[name].any() for name in moments)
    assert "past.values" in before
    assert "past.values" not in after
    learnt = crossed(trained, new).serving_parameters()
    expected = adopt_parameters(trained.serving_parameters(), OLD, new)
    assert {n: t.tobytes() for n, t in learnt.items()} == {
        n: t.tobytes() for n, t in expected.items()
    }


def test_past_requests_go_when_outcomes_earn_something_else(trained: Trainer) -> None:
    new = schema_of(["age", "hour", "depth"], {"click": 0.5, "order": 0.3, "like": 0.2}, gain=7)
    after = crossed(trained, new).state()
    assert "past.values" not in after
    before = trained.state()
    moments = [name for name in after if "_adam." in name]
    assert all(after[name].tobytes() == before[name].tobytes() for name in moments)


def test_learning_goes_on_after_features_and_objectives_have_changed(trained: Trainer) -> None:
    new = schema_of(["new", "depth", "age"], {"order": 0.4, "share": 0.2, "click": 0.4})
    trainer = crossed(trained, new)
    started = copy.deepcopy(trainer.serving_parameters())
    report = World(new, [[0.1, 0.8, 0.1]], seed=2).live(trainer, 30)
    assert report.groups == 32
    now = trainer.serving_parameters()
    at = [[0.0, 0.0, 0.0]]
    assert means(now, at)[0, 1] > means(started, at)[0, 1] + 0.1
    assert np.isfinite(np.concatenate([each.ravel() for each in now.values()])).all()
