import math

import numpy as np
import pytest
from grade.v1.decision_pb2 import Decision
from grade.v1.reward_group_pb2 import RewardGroup
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.batch import Batch, Requests, best_promise, collate, padded, posteriors
from policy.schema import Schema
from tests.policy.groups import click, make_group, make_impression, make_schema, order


def random_groups(schema: Schema, seed: int, count: int = 6) -> list[RewardGroup]:
    """Groups of different lengths, sizes and outcomes."""
    generator = np.random.default_rng(seed)
    size = schema.n_objectives
    groups = []
    for _ in range(count):
        items = int(generator.integers(1, 12))
        scores = generator.uniform(0.01, 0.99, (items, size))
        unshown = generator.uniform(0.01, 0.99, (int(generator.integers(0, 9)), size))
        clicked = [click(int(k)) for k in np.flatnonzero(generator.random(items) < 0.3)]
        ordered = [order(0, 2.0)] if generator.random() < 0.2 else []
        groups.append(
            make_group(
                schema,
                make_impression(scores, unshown),
                clicked + ordered,
                features=generator.normal(size=schema.n_features),
                alpha=np.full(size, 2.0),
                generator=generator,
                members=int(generator.integers(2, 9)),
                executed=1,
            )
        )
    return groups


def collated(schema: Schema, groups: list[RewardGroup]) -> Batch:
    batch = collate(schema, groups)
    assert batch is not None
    return batch


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32))
def test_scoring_the_served_weights_again_gives_the_joins_rewards(seed: int) -> None:
    schema = make_schema(
        objectives=4, transform="logit", standardise=True, examination=(1.0, 0.5), floor=0.05
    )
    groups = random_groups(schema, seed)
    batch = collated(schema, groups)
    again = posteriors(batch.requests, batch.served.weights)
    for row, group in enumerate(groups):
        earned = list(group.rewards.posterior)
        assert again[row, : len(earned)].tolist() == earned
        assert batch.served.posterior[row, : len(earned)].tolist() == earned
        assert batch.served.present[row].sum() == len(earned)
        assert batch.requests.ideal[row] == pytest.approx(group.rewards.ideal, rel=1e-12)
        assert batch.served.executed[row] == earned[1]


def test_padding_changes_no_score() -> None:
    schema = make_schema(standardise=True)
    batch = collated(schema, random_groups(schema, seed=5))
    weights = np.random.default_rng(0).dirichlet(np.ones(3), (len(batch.requests.values), 4))
    together = posteriors(batch.requests, weights)
    for row in range(len(weights)):
        items = batch.requests.present[row].sum()
        cut = {
            name: array[row : row + 1, :items]
            for name, array in batch.requests._asdict().items()
            if name not in ("features", "ideal")
        }
        one = Requests(
            features=batch.requests.features[row : row + 1],
            ideal=batch.requests.ideal[row : row + 1],
            **cut,
        )
        alone = posteriors(one, weights[row : row + 1])
        assert alone[0].tolist() == together[row].tolist()


def test_items_that_are_not_there_never_rank_first() -> None:
    # With negative signals, padding of zero would win if it counted.
    schema = make_schema(objectives=2)
    generator = np.random.default_rng(0)
    scores = [[[-1, -1]], [[-1, -1], [-2, -2], [-3, -3]]]
    groups = [
        make_group(
            schema,
            make_impression(rows),
            [click(0)],
            features=[0, 0],
            alpha=np.ones(2),
            generator=generator,
        )
        for rows in scores
    ]
    batch = collated(schema, groups)
    assert (posteriors(batch.requests, batch.served.weights) == 1.0).all()


def test_the_decision_is_read_as_it_was_served() -> None:
    schema = make_schema(floor=0.1)
    groups = random_groups(schema, seed=1)
    batch = collated(schema, groups)
    for row, group in enumerate(groups):
        decision = Decision.FromString(group.impression.decision.payload)
        count = len(decision.log_densities)
        assert batch.requests.features[row].tolist() == list(decision.features)
        assert batch.served.weights[row, :count].ravel().tolist() == list(decision.weights)
        assert batch.served.log_densities[row, :count].tolist() == list(decision.log_densities)
        assert batch.served.versions[row].tolist() == [decision.epoch, decision.version]


def test_holdout_groups_are_left_out() -> None:
    schema = make_schema()
    held = make_group(
        schema,
        make_impression(np.eye(3)),
        [click(0)],
        features=[0, 0],
        alpha=np.ones(3),
        generator=np.random.default_rng(0),
        holdout=True,
    )
    assert collate(schema, [held]) is None
    others = random_groups(schema, seed=2)
    mixed = collated(schema, [held, *others, held])
    assert len(mixed.requests.values) == len(others)
    assert collate(schema, []) is None


def test_a_member_whose_reward_is_nan_is_absent_and_the_others_stay() -> None:
    schema = make_schema()
    groups = random_groups(schema, seed=3)
    clean = collated(schema, groups)
    groups[2].rewards.posterior[1] = math.nan
    batch = collated(schema, groups)
    assert not batch.served.present[2, 1]
    assert batch.served.present.sum() == clean.served.present.sum() - 1
    assert np.isfinite(batch.served.posterior).all()
    assert math.isnan(batch.served.executed[2])


@pytest.mark.parametrize("where", ["scores", "features"])
def test_a_group_that_is_not_finite_is_left_out(where: str) -> None:
    schema = make_schema()
    groups = random_groups(schema, seed=4)
    if where == "scores":
        groups[1].impression.scores[0] = math.nan
    else:
        decision = Decision.FromString(groups[1].impression.decision.payload)
        decision.features[0] = math.inf
        groups[1].impression.decision.payload = decision.SerializeToString()
    batch = collated(schema, groups)
    assert len(batch.requests.values) == len(groups) - 1
    assert np.isfinite(batch.requests.signals).all()


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_items_may_be_read_only_where_there_is_an_outcome(seed: int) -> None:
    schema = make_schema(objectives=4, transform="logit", standardise=True, examination=(1.0, 0.5))
    groups = random_groups(schema, seed)
    whole, part = collated(schema, groups), collate(schema, groups, outcomes_only=True)
    assert part is not None
    for name, expected in whole.served._asdict().items():
        assert getattr(part.served, name).tolist() == expected.tolist(), name
    for row, group in enumerate(groups):
        items = len(group.impression.item_ids) if group.conversions else 0
        assert part.requests.present[row].sum() == items
        for name in ("signals", "values", "predicted", "examination"):
            seen, expected = (getattr(each.requests, name)[row, :items] for each in (part, whole))
            assert seen.tolist() == expected.tolist(), name
    assert part.requests.ideal.tolist() == whole.requests.ideal.tolist()
    assert part.requests.features.tolist() == whole.requests.features.tolist()


def test_a_slot_without_any_outcome_can_be_read() -> None:
    schema = make_schema()
    quiet = [group for seed in range(9) for group in random_groups(schema, seed)]
    quiet = [group for group in quiet if not group.conversions]
    assert len(quiet) > 2
    batch = collate(schema, quiet, outcomes_only=True)
    assert batch is not None
    assert not batch.requests.present.any()
    assert not batch.served.posterior.any()
    assert len(batch.requests.earned().features) == 0


def test_a_promise_below_nothing_is_not_outdone_by_what_is_no_item() -> None:
    present = np.array([[True, True, False]])
    requests = padded(
        np.zeros((1, 1)), present, np.zeros((2, 1)), np.zeros(2), np.array([-1.0, -2.0]), np.ones(2)
    )
    assert best_promise(requests).tolist() == [-1 - 2 / math.log2(3)]
