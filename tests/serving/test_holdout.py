"""The holdout: a unit keeps its arm whatever changes, and the arms have their shares."""

import math

import pytest
from grade.v1.context_pb2 import Context
from grade.v1.decision_pb2 import ARM_HOLDOUT, ARM_POLICY, Decision
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.fusion import arm
from policy.schema import Schema, parse_schema
from serving.engine import Engine
from tests.serving.parameters import made_snapshot

UNITS = [f"unit-{number}" for number in range(20_000)]
FEATURES = ("hour", "age", "clicks")
UNIT_IDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30)


def schema_of(
    policy: str = "shop",
    *,
    share: float = 0.3,
    features: tuple[str, ...] = FEATURES,
    objectives: int = 2,
    window_s: int = 5,
) -> Schema:
    """A policy; all but its name and share could change from one generation to the next."""
    lines = [f"policy = {policy!r}", f"features = {list(features)}"]
    for number in range(objectives):
        lines += ["[[objectives]]", f'name = "o{number}"', f"baseline = {1 / objectives!r}"]
    lines += ["[[outcomes]]", 'name = "click"', "gain = 1.0"]
    lines += ["[attribution]", f"window_s = {window_s}", "[holdout]", f"share = {share}"]
    return parse_schema("\n".join(lines))


def decided(engine: Engine, unit: str, request: str) -> Decision:
    schema = engine.schema
    context = Context(
        policy=schema.policy, request_id=request, unit_id=unit, features=[0.5] * schema.n_features
    )
    return Decision.FromString(engine.sample(context).decision.payload)


@given(
    units=st.lists(UNIT_IDS, min_size=1, max_size=8),
    order=st.permutations(FEATURES),
    objectives=st.integers(2, 4),
    window_s=st.integers(1, 100),
    seeds=st.tuples(st.integers(0, 99), st.integers(0, 99)),
    request=st.text("abc", min_size=1, max_size=9),
)
@settings(max_examples=25, deadline=None)
def test_a_unit_never_changes_its_arm(
    units: list[str],
    order: list[str],
    objectives: int,
    window_s: int,
    seeds: tuple[int, int],
    request: str,
) -> None:
    before = Engine(schema_of(), seed=seeds[0], members=2)
    later = schema_of(features=tuple(order), objectives=objectives, window_s=window_s)
    after = Engine(later, seed=seeds[1], members=3)
    for unit in units:
        expected = arm(before.schema, unit)
        assert decided(before, unit, "first").arm == expected
        assert decided(after, unit, request).arm == expected
    for epoch, version in [(1, 1), (1, 2), (2, 1)]:
        snapshot = made_snapshot(version, epoch=epoch, schema=later)
        assert after.swap(after.load(snapshot))
        for unit in units:
            decision = decided(after, unit, request)
            assert decision.arm == arm(before.schema, unit)
            assert (decision.epoch, decision.version) == (epoch, version)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2, 0.5, 0.9])
def test_the_share_of_units_that_are_held_out(share: float) -> None:
    schema = schema_of(share=share)
    held_out = sum(arm(schema, unit) == ARM_HOLDOUT for unit in UNITS)
    # A binomial count leaves five standard deviations once in two million.
    deviation = math.sqrt(len(UNITS) * share * (1 - share))
    assert abs(held_out - len(UNITS) * share) <= 5 * deviation


def test_without_a_share_nobody_is_held_out() -> None:
    schema = schema_of(share=0.0)
    assert all(arm(schema, unit) == ARM_POLICY for unit in UNITS)


def test_a_larger_share_keeps_whom_a_smaller_one_held_out() -> None:
    small, large = schema_of(share=0.05), schema_of(share=0.2)
    held_out = [unit for unit in UNITS if arm(small, unit) == ARM_HOLDOUT]
    assert all(arm(large, unit) == ARM_HOLDOUT for unit in held_out)


@pytest.mark.parametrize("others", [("shop", "shop2"), ("a", "aa"), ("feed", "search")])
def test_policies_split_independently(others: tuple[str, str]) -> None:
    one, other = (schema_of(policy, share=0.3) for policy in others)
    both = sum(arm(one, unit) == arm(other, unit) == ARM_HOLDOUT for unit in UNITS)
    share = 0.3 * 0.3
    deviation = math.sqrt(len(UNITS) * share * (1 - share))
    assert abs(both - len(UNITS) * share) <= 5 * deviation
