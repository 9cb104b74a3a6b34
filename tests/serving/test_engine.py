"""Decisions: what is in them, that they repeat, and what is refused."""

import threading

import numpy as np
import numpy.typing as npt
import pytest
import torch
from grade.v1.context_pb2 import Context
from grade.v1.decision_pb2 import ARM_HOLDOUT, ARM_POLICY, Decision
from grade.v1.policy_service_pb2 import SampleResponse
from hypothesis import given, settings
from hypothesis import strategies as st

from policy import grpo
from policy.dirichlet import draw_generator, log_density, sample_weights, weights_to_simplex
from policy.errors import InvalidContext, SnapshotRefused
from policy.initial import LARGEST_FEATURE, parameter_shapes
from policy.network import PolicyNetwork
from policy.schema import Schema, parse_schema
from serving.engine import Engine
from stream.codec import encode
from tests.serving.parameters import (
    EXAMPLE,
    HOLDOUT_UNIT,
    POLICY_UNIT,
    Tensors,
    made_context,
    made_snapshot,
    made_tensors,
)
from tests.serving.test_serving_policy import anything_allowed

MEMBERS = 8


def _engine(schema: Schema = EXAMPLE, *, version: int = 3, seed: int = 5) -> Engine:
    engine = Engine(schema, seed=seed, members=MEMBERS)
    assert engine.swap(engine.load(made_snapshot(version, schema=schema)))
    return engine


def _decision(response: SampleResponse) -> Decision:
    return Decision.FromString(response.decision.payload)


def _weights(decision: Decision, schema: Schema = EXAMPLE) -> npt.NDArray[np.float32]:
    return np.array(decision.weights, dtype=np.float32).reshape(-1, schema.n_objectives)


def test_a_decision_says_all_that_learning_needs() -> None:
    context = made_context(1)
    response = _engine().sample(context)
    decision = _decision(response)
    assert (response.policy, response.epoch, response.version) == ("example", 1, 3)
    assert (decision.policy, decision.epoch, decision.version) == ("example", 1, 3)
    assert (decision.request_id, decision.unit_id) == (context.request_id, context.unit_id)
    assert decision.schema_digest == EXAMPLE.digest
    assert response.arm == decision.arm == ARM_POLICY
    assert list(decision.features) == list(context.features)
    weights = _weights(decision)
    assert weights.shape == (MEMBERS, 3)
    assert list(response.weights) == weights[decision.executed].tolist()
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-6)
    assert len({row.tobytes() for row in weights}) == MEMBERS
    assert (response.decision.key_id, response.decision.mac) == ("", b"")


def test_a_decision_can_be_recomputed_from_what_it_says() -> None:
    decision = _decision(_engine(seed=5).sample(made_context(1)))
    features = np.array(decision.features, dtype=np.float32)
    generator = draw_generator(
        5, decision.policy, decision.epoch, decision.version, decision.request_id, features
    )
    alpha = np.array(decision.alpha)
    expected = sample_weights(generator, alpha, EXAMPLE.floors(), MEMBERS)
    assert _weights(decision).tobytes() == expected.tobytes()
    densities = log_density(expected, alpha, EXAMPLE.floors())
    assert list(decision.log_densities) == densities.tolist()


@given(
    allowed=st.sampled_from([0.0, 0.3, 0.9]).flatmap(anything_allowed),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_served_density_is_the_learners_density(allowed: tuple[Schema, Tensors], seed: int) -> None:
    schema, tensors = allowed
    engine = Engine(schema, seed=seed, members=MEMBERS)
    engine.swap(engine.load(made_snapshot(1, schema=schema, tensors=tensors)))
    contexts = [made_context(seed + i, unit_id="u", schema=schema) for i in range(5)]
    for response in engine.sample_batch(contexts):
        decision = _decision(response)
        features = torch.tensor([list(decision.features)], dtype=torch.float64)
        simplex = torch.tensor(weights_to_simplex(_weights(decision, schema), schema.floors()))
        with torch.no_grad():
            alpha = PolicyNetwork(tensors)(features)
            learned = grpo.log_density(alpha, simplex[None])[0].numpy()
        served = np.array(decision.log_densities)
        assert (np.abs(served - learned) <= 1e-5 * np.maximum(1, np.abs(learned))).all()
        assert (_weights(decision, schema) >= schema.floors() - 1e-6).all()


def test_the_same_request_gets_the_same_bytes() -> None:
    first, second = _engine(), _engine()
    for number in range(20):
        answer = encode(first.sample(made_context(number)))
        assert encode(first.sample(made_context(number))) == answer
        assert encode(second.sample(made_context(number))) == answer


@pytest.mark.parametrize("change", ["seed", "version", "request_id", "features"])
def test_the_draw_depends_on(change: str) -> None:
    context = made_context(1)
    before = _weights(_decision(_engine().sample(context)))
    engine = _engine()
    if change == "seed":
        engine = _engine(seed=6)
    elif change == "version":
        # The same parameters under another number: only the draw can differ.
        engine = Engine(EXAMPLE, seed=5, members=MEMBERS)
        engine.swap(engine.load(made_snapshot(4, tensors=made_tensors(EXAMPLE, 3))))
    elif change == "request_id":
        context.request_id += "x"
    else:
        context.features[0] = np.nextafter(np.float32(context.features[0]), np.float32(9))
    assert _weights(_decision(engine.sample(context))).tobytes() != before.tobytes()


def test_a_batch_is_its_singles_byte_for_byte() -> None:
    engine = _engine()
    units = [f"user-{i}" for i in range(60)]
    contexts = [made_context(i, unit_id=unit) for i, unit in enumerate(units)]
    singles = [encode(engine.sample(context)) for context in contexts]
    for size in (1, 2, 3, 60):
        batch = engine.sample_batch(contexts[:size])
        assert [encode(response) for response in batch] == singles[:size]
    assert engine.sample_batch([]) == []
    arms = {_decision(SampleResponse.FromString(single)).arm for single in singles}
    assert arms == {ARM_POLICY, ARM_HOLDOUT}


def test_threads_do_not_disturb_each_other() -> None:
    engine = _engine()
    contexts = [made_context(i) for i in range(50)]
    expected = [encode(engine.sample(context)) for context in contexts]
    seen: list[list[bytes]] = []

    def ask() -> None:
        seen.append([encode(engine.sample(context)) for context in contexts])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [expected] * 4


def test_holdout_gets_the_baseline_and_nothing_to_learn_from() -> None:
    response = _engine().sample(made_context(1, unit_id=HOLDOUT_UNIT))
    decision = _decision(response)
    assert response.arm == decision.arm == ARM_HOLDOUT
    np.testing.assert_array_equal(response.weights, np.array([0.5, 0.3, 0.2], dtype=np.float32))
    assert list(decision.weights) == list(response.weights)
    assert (list(decision.alpha), list(decision.log_densities), decision.executed) == ([], [], 0)
    assert (decision.epoch, decision.version) == (1, 3)


def test_without_a_snapshot_the_baseline_is_sampled_around() -> None:
    engine = Engine(EXAMPLE, seed=0, members=MEMBERS)
    decision = _decision(engine.sample(made_context(1)))
    assert (decision.epoch, decision.version) == (0, 0)
    np.testing.assert_allclose(decision.alpha, [10.0, 6.0, 4.0], rtol=1e-12)


@pytest.mark.parametrize(
    ("wrong", "field", "message"),
    [
        ({"policy": "other"}, "context.policy", "expected 'example', seen 'other'"),
        ({"policy": ""}, "context.policy", "expected 'example', seen ''"),
        ({"request_id": ""}, "context.request_id", "expected 1 to 128 bytes of UTF-8, seen none"),
        ({"request_id": "é" * 65}, "context.request_id", "seen 130 bytes, beginning 'éé"),
        ({"unit_id": ""}, "context.unit_id", "expected 1 to 128 bytes of UTF-8, seen none"),
        ({"unit_id": "u" * 129}, "context.unit_id", "seen 129 bytes, beginning 'uuu"),
        ({"features": [1.0, 2.0]}, "context.features", "expected 3 numbers, seen 2"),
        ({"features": []}, "context.features", "expected 3 numbers, seen 0"),
        (
            {"features": [1.0, float("nan"), 2.0]},
            "context.features[1]",
            "expected a finite number for 'age_days', seen nan",
        ),
        (
            {"features": [float("inf"), 1.0, float("-inf")]},
            "context.features[0]",
            "expected a finite number for 'hour', seen inf",
        ),
        (
            {"features": [1.0, 2.0, 1e10]},
            "context.features[2]",
            "expected a number in [-1e+09, 1e+09] for 'past_click_rate', seen 1e+10",
        ),
        (
            {"features": [1.0, -3e38, float("nan")]},
            "context.features[1]",
            "expected a number in [-1e+09, 1e+09] for 'age_days', seen -3e+38",
        ),
    ],
)
def test_a_wrong_context_is_refused(wrong: dict[str, object], field: str, message: str) -> None:
    good = made_context(1)
    parts: dict[str, object] = {
        "policy": good.policy,
        "request_id": good.request_id,
        "unit_id": good.unit_id,
        "features": good.features,
    }
    bad = Context(**(parts | wrong))  # type: ignore[arg-type]  # fields of several types
    engine = _engine()
    with pytest.raises(InvalidContext, match=r"^context\.") as refused:
        engine.sample(bad)
    assert refused.value.field == field
    assert message in str(refused.value)
    with pytest.raises(InvalidContext) as refused:
        engine.sample_batch([good, bad])
    assert refused.value.field == f"requests[1].{field}"


def test_the_longest_names_and_the_largest_numbers_are_served() -> None:
    context = Context(
        policy="example",
        request_id="r" * 128,
        unit_id="é" * 64,
        features=[LARGEST_FEATURE, -LARGEST_FEATURE, 1e-45],
    )
    assert len(_engine().sample(context).weights) == 3


def test_versions_only_go_up() -> None:
    engine = Engine(EXAMPLE, seed=0, members=MEMBERS)
    policies = {
        order: engine.load(made_snapshot(order[1], epoch=order[0]))
        for order in [(1, 5), (1, 4), (1, 6), (2, 1)]
    }
    assert engine.swap(policies[1, 5])
    assert not engine.swap(policies[1, 4])
    assert not engine.swap(policies[1, 5])
    assert engine.policy.order == (1, 5)
    assert engine.swap(policies[1, 6])
    assert engine.swap(policies[2, 1])
    assert not engine.swap(policies[1, 6])
    assert engine.policy.order == (2, 1)


def test_a_refused_snapshot_changes_nothing() -> None:
    engine = _engine(version=3)
    before = encode(engine.sample(made_context(1)))
    snapshot = made_snapshot(4)
    snapshot.parameters += b"x"
    with pytest.raises(SnapshotRefused):
        engine.load(snapshot)
    engine.load(made_snapshot(5))
    assert encode(engine.sample(made_context(1))) == before


def test_describe_names_everything() -> None:
    description = _engine().describe()
    assert parse_schema(description.schema_toml) == EXAMPLE
    assert description.schema_digest == EXAMPLE.digest
    assert list(description.features) == ["hour", "age_days", "past_click_rate"]
    assert list(description.objectives) == ["pctr", "pcvr", "price"]
    assert list(description.outcomes) == ["click", "order"]
    assert (description.epoch, description.version) == (1, 3)


def test_hidden_layers_of_the_learners_size_are_served() -> None:
    tensors = made_tensors(EXAMPLE, 1, hidden=64, spread=0.2)
    assert {n: t.shape for n, t in tensors.items()} == parameter_shapes(EXAMPLE)
    engine = Engine(EXAMPLE, seed=0, members=MEMBERS)
    assert engine.swap(engine.load(made_snapshot(1, tensors=tensors)))
    assert _decision(engine.sample(made_context(1))).unit_id == POLICY_UNIT
