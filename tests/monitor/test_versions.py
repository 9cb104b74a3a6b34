"""What `grade versions diff` compares, with values worked out by hand."""

import math

import numpy as np
import pytest
from grade.v1.parameters_pb2 import ParameterSnapshot, Version

from monitor import versions as comparing
from policy.errors import SnapshotRefused
from policy.initial import initial_parameters
from policy.schema import Schema, parse_schema
from serving.serving_policy import ServingPolicy
from tests.stream import learner_world as world

SCHEMA = world.SCHEMA


def loaded(schema: Schema = SCHEMA, **changes: np.ndarray) -> comparing.Loaded:
    tensors = initial_parameters(schema, seed=1) | changes
    return comparing.Loaded(
        schema, tensors, ServingPolicy.from_tensors(tensors, epoch=1, version=1)
    )


def test_tensors_are_ranked_by_how_far_they_moved_relative_to_what_they_were() -> None:
    before = {
        "same": np.array([5.0]),
        "much": np.array([3.0, 4.0]),
        "little": np.array([[100.0, 0.0]]),
        "new": np.zeros(2),
        "wider": np.zeros((2, 3)),
        "gone": np.zeros(1),
    }
    after = {
        "same": np.array([5.0]),
        "much": np.array([3.0, 6.5]),  # moved by 2.5 from a norm of 5
        "little": np.array([[100.0, -3.0]]),  # by 3 from 100
        "new": np.array([0.0, 0.1]),
        "wider": np.zeros((2, 4)),
    }
    changes = comparing.tensor_changes(before, after)
    assert [(each.name, each.relative) for each in changes] == [
        ("new", math.inf),
        ("wider", math.inf),
        ("much", 0.5),
        ("little", 0.03),
        ("same", 0.0),
    ]
    assert [each.largest for each in changes if each.name in ("much", "little")] == [2.5, 3.0]
    assert changes[1].shapes == ((2, 3), (2, 4))


def test_weights_are_matched_by_name() -> None:
    assert comparing.weight_changes({"a": 0.4, "b": 0.6}, {"b": 0.5, "c": 0.5}) == [
        ("weight of a", 0.4, None),
        ("weight of b", 0.6, 0.5),
        ("weight of c", None, 0.5),
    ]


def test_weights_without_a_schema_of_their_number_are_numbered() -> None:
    weights = Version(mean_weights=[0.25, 0.75])
    assert comparing.mean_weights(weights, None) == {"objective 0": 0.25, "objective 1": 0.75}
    assert comparing.mean_weights(weights, SCHEMA) == {"objective 0": 0.25, "objective 1": 0.75}
    names = [objective.name for objective in SCHEMA.objectives]
    of_three = Version(mean_weights=[0.2, 0.3, 0.5])
    assert comparing.mean_weights(of_three, SCHEMA) == dict(
        zip(names, [0.2, 0.3, 0.5], strict=True)
    )


def test_the_same_parameters_answer_the_same_for_every_probe() -> None:
    for probe in comparing.probe_changes(loaded(), loaded()):
        np.testing.assert_array_equal(probe.before, probe.after)
        # Version 0 answers the declared baseline for every context.
        np.testing.assert_allclose(probe.before, SCHEMA.baseline(), atol=1e-3)


def test_probes_are_the_middle_and_where_the_answers_differ_most() -> None:
    # The second feature alone reaches the first hidden unit, and that the first objective's mean.
    weight0, weight1 = np.zeros((64, 3)), np.zeros((64, 64))
    weight0[0, 1] = 1.0
    weight1[0, 0] = 1.0
    mean = np.zeros((3, 64))
    mean[0, 0] = 2.0
    after = loaded(
        hidden0_weight=weight0,
        hidden1_weight=weight1,
        mean_weight=mean,
        gate=np.array([1.0]),
        feature_mean=np.array([10.0, 20.0, 30.0]),
        feature_scale=np.array([1.0, 2.0, 3.0]),
    )
    probes = comparing.probe_changes(loaded(), after)
    second = SCHEMA.features[1].name
    assert [probe.context for probe in probes[:2]] == [
        "the mean context",
        f"{second} + 1 deviation",
    ]
    assert len(probes) == comparing.MOST_PROBES
    np.testing.assert_allclose(probes[0].after, probes[0].before, atol=1e-9)
    # One deviation up adds 2 to the first logit: odds times e^2, before MEAN_FLOOR and floors.
    assert probes[1].after[0] > probes[1].before[0]
    for probe in probes[2:]:
        np.testing.assert_allclose(probe.after, probe.before, atol=1e-9)


def test_versions_with_other_objectives_have_no_common_probes() -> None:
    other = parse_schema(SCHEMA.toml.replace('"pcvr"', '"pcvr2"'))
    with pytest.raises(SnapshotRefused, match="expected objectives"):
        comparing.probe_changes(loaded(), loaded(other))


def test_a_snapshot_is_checked_before_it_is_compared() -> None:
    (learned, *_) = world.learn_logs([*world.content().reward_groups])
    taken = comparing.load(learned.snapshot, SCHEMA)
    assert taken.policy.order == (1, 1)
    altered = ParameterSnapshot()
    altered.CopyFrom(learned.snapshot)
    altered.parameters = b"nothing"
    with pytest.raises(SnapshotRefused, match="checksum"):
        comparing.load(altered, SCHEMA)
