"""From the reward-groups topic to arrays: what is read, in which order, and what is left out."""

import math

import numpy as np
import pytest
from grade.v1.decision_pb2 import ARM_HOLDOUT, Decision
from grade.v1.reward_group_pb2 import JoinRecord, Start

from evaluation.logged_groups import (
    LeftOut,
    Span,
    comparable_digests,
    distinct_groups,
    gains_of,
    logged_decisions,
    observed,
    parse_time,
    realised,
)
from policy.errors import SettingsError
from policy.schema import parse_schema
from stream.codec import encode
from tests.evaluation.logged_groups import ALPHA, group, record
from tests.stream import learner_world as world

SCHEMA = world.SCHEMA
ALIKE = frozenset([SCHEMA.digest])
ALWAYS = Span()


def test_what_was_realised_is_what_the_join_says_and_is_known_of_the_holdout_too() -> None:
    content = world.content(seed=3, requests=300)
    arms: set[int] = set()
    values: list[float] = []
    for log in content.reward_groups:
        for found in distinct_groups(log):
            value = realised(gains_of(SCHEMA), found)
            values.append(value)
            decision = Decision.FromString(found.impression.decision.payload)
            arms.add(decision.arm)
            if decision.arm == ARM_HOLDOUT:
                assert not found.HasField("rewards")
            else:
                assert value == pytest.approx(found.rewards.realised)
    assert len(arms) == 2
    assert sum(value > 0 for value in values) > 50


def test_repeats_late_segments_and_strange_records_are_passed_over() -> None:
    late = group(7)
    begun = encode(JoinRecord(start=Start(policy=SCHEMA.policy, segment=3)))
    again = group(8)
    again.standing.segment = 3
    values = [record(group(1)), record(group(2)), record(group(1)), b"\xff", None, begun]
    values += [record(late), record(again)]
    log = world.log_of([(b"key", value) for value in values])
    assert [each.offset for each in distinct_groups(log)] == [1, 2, 8]


def test_both_arms_in_the_order_of_time() -> None:
    groups = [group(3, clicks=2, unit="b"), group(1, held=True, clicks=1, unit="a")]
    groups += [group(2, unit="b"), group(4, digest=b"another")]
    found, left_out = observed(groups, SCHEMA, ALIKE, ALWAYS)
    assert ((found.time_ms - world.BEGIN_MS) // 1000).tolist() == [1, 2, 3]
    assert found.gain.tolist() == [1, 0, 2]
    assert found.holdout.tolist() == [True, False, False]
    assert found.unit[1] == found.unit[2] != found.unit[0]
    assert left_out == LeftOut(other_schema=1, not_finite=0)


def test_a_span_takes_its_begin_and_leaves_its_end() -> None:
    span = Span(world.BEGIN_MS + 1000, world.BEGIN_MS + 3000)
    found, _ = observed([group(number) for number in range(5)], SCHEMA, ALIKE, span)
    assert ((found.time_ms - world.BEGIN_MS) // 1000).tolist() == [1, 2]


def test_decisions_are_the_executed_members_of_the_policy_arm() -> None:
    groups = [group(5, clicks=1), group(2), group(3, held=True, clicks=9)]
    found, left_out = logged_decisions(groups, SCHEMA, ALIKE, ALWAYS)
    assert left_out == LeftOut(0, 0)
    assert found.rewards.tolist() == [0, 1]
    assert found.alpha.tolist() == [ALPHA.tolist()] * 2
    for row, number in enumerate((2, 5)):
        decision = Decision.FromString(group(number).impression.decision.payload)
        members = np.array(decision.weights).reshape(-1, SCHEMA.n_objectives)
        assert found.weights[row].tolist() == members[decision.executed].tolist()
        assert found.log_densities[row] == decision.log_densities[decision.executed]
        assert found.features[row].tolist() == list(decision.features)


def test_what_is_not_finite_is_left_out_and_counted() -> None:
    broken = group(1, clicks=1)
    decision = Decision.FromString(broken.impression.decision.payload)
    decision.features[0] = math.nan
    broken.impression.decision.payload = encode(decision)
    found, left_out = logged_decisions([broken, group(2)], SCHEMA, ALIKE, ALWAYS)
    assert len(found.rewards) == 1
    assert left_out == LeftOut(0, 1)


def test_decisions_of_a_schema_that_decides_alike_are_comparable() -> None:
    dearer = parse_schema(SCHEMA.toml.replace("gain = 5.0", "gain = 7.0"))
    other = parse_schema(SCHEMA.toml.replace('transform = "log"', 'transform = "linear"'))
    assert len({SCHEMA.digest, dearer.digest, other.digest}) == 3
    generations = [world.generation(schema=each) for each in (dearer, other)]
    assert comparable_digests(SCHEMA, generations) == {SCHEMA.digest, dearer.digest}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-01", 1_767_225_600_000),
        ("2026-01-01T01:00:00+01:00", 1_767_225_600_000),
        ("90s", 10_000_000 - 90_000),
        ("1.5h", 10_000_000 - 5_400_000),
    ],
)
def test_times_as_people_write_them(text: str, expected: int) -> None:
    assert parse_time(text, "--since", 10_000_000) == expected


def test_a_time_that_is_none_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"--until: expected a date .* seen 'yesterday'"):
        parse_time("yesterday", "--until", 0)
