"""The semi-real world: covariates untouched, outcomes of the stated truth."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from evaluation.data_folder import DataFolder, read_data_folder
from evaluation.semi_real import Planted, semi_real, shuffled
from evaluation.yardsticks import gains_of, lists_of, mean_gained, ndcg_of_weights
from policy.schema import Schema, load_schema
from tests.evaluation.folders import learnable_tables, tiny_schema, tiny_tables, write

KUAIRAND = Path(__file__).parents[2] / "examples" / "kuairand"


@pytest.fixture(scope="module")
def schema() -> Schema:
    return load_schema(KUAIRAND / "policy.toml")


@pytest.fixture(scope="module")
def folder(schema: Schema) -> DataFolder:
    return read_data_folder(KUAIRAND, schema)


def test_only_outcomes_are_drawn_and_only_by_the_seed(folder: DataFolder, schema: Schema) -> None:
    world = semi_real(folder, schema, seed=1)
    assert world.folder.features is folder.features
    assert world.folder.scores is folder.scores
    assert world.folder.conversions == semi_real(folder, schema, seed=1).folder.conversions
    assert world.folder.conversions != semi_real(folder, schema, seed=2).folder.conversions
    times = [c.time_ms for c in world.folder.conversions]
    assert times == sorted(times)
    np.testing.assert_allclose(world.weights.sum(axis=1), 1)


def test_outcomes_are_as_frequent_as_the_logged_ones(folder: DataFolder, schema: Schema) -> None:
    """With everything examined: 5 standard errors of a sum of independent draws at most."""
    drawn = Counter(
        c.outcome for c in semi_real(folder, schema, 3, Planted(), (1.0,)).folder.conversions
    )
    for outcome, logged in Counter(c.outcome for c in folder.conversions).items():
        assert abs(drawn[outcome] - logged) < 5 * np.sqrt(logged)


def test_an_examination_of_a_half_halves_the_outcomes(folder: DataFolder, schema: Schema) -> None:
    full = len(semi_real(folder, schema, 4, Planted(), (1.0,)).folder.conversions)
    half = len(semi_real(folder, schema, 4, Planted(), (0.5,)).folder.conversions)
    assert half / full == pytest.approx(0.5, abs=0.02)


def test_expected_gains_are_those_that_are_drawn(folder: DataFolder, schema: Schema) -> None:
    world = semi_real(folder, schema, 5, Planted(), (1.0,))
    drawn = gains_of(world.folder, schema)
    by_gain = np.argsort(world.gains)
    for tenth in np.array_split(by_gain, 10):
        error = drawn[tenth].std() / np.sqrt(len(tenth))
        assert abs(drawn[tenth].mean() - world.gains[tenth].mean()) < 5 * error


@pytest.mark.parametrize("nonlinear", [False, True])
def test_the_true_weights_rank_better_than_any_that_ignore_the_context(
    folder: DataFolder, schema: Schema, nonlinear: bool
) -> None:
    world = semi_real(folder, schema, 6, Planted(nonlinear=nonlinear))
    lists = lists_of(world.folder, schema)
    mean = np.tile(world.weights.mean(axis=0), (len(world.weights), 1))
    true, static = (mean_gained(ndcg_of_weights(lists, w)) for w in (world.weights, mean))
    assert true > static + 0.01


def test_without_strength_there_is_one_truth_for_all(folder: DataFolder, schema: Schema) -> None:
    weights = semi_real(folder, schema, 7, Planted(strength=0)).weights
    np.testing.assert_allclose(weights, np.tile(weights[0], (len(weights), 1)))


def test_a_shuffle_stays_within_requests_and_keeps_bundles(tmp_path: Path) -> None:
    folder = read_data_folder(write(tmp_path, learnable_tables()), tiny_schema())
    moved = shuffled(folder, seed=0)
    assert [c._replace(item=0) for c in moved.conversions] == [
        c._replace(item=0) for c in folder.conversions
    ]
    for conversion in moved.conversions:
        items = moved.items(conversion.request)
        assert items.start <= conversion.item < items.stop
    # The 240 clicks follow objective q; shuffled among 4 items a quarter of them still hit it.
    q = folder.scores[:, 1].reshape(-1, 4)
    hits = [q[c.request].argmax() == c.item - 4 * c.request for c in moved.conversions]
    assert 0.25 - 0.14 < np.mean(hits) < 0.25 + 0.14
    # An item's click and purchase stay together.
    (tmp_path / "two").mkdir()
    bundle = read_data_folder(write(tmp_path / "two", tiny_tables()), tiny_schema())
    for seed in range(8):
        assert len({c.item for c in shuffled(bundle, seed).conversions}) == 1


def test_features_that_never_change_cannot_matter(tmp_path: Path) -> None:
    tables = tiny_tables()
    for name in ("ctx_hour", "ctx_age"):
        tables["requests"][name] = [1.0, 1.0]
    folder = read_data_folder(write(tmp_path, tables), tiny_schema())
    with pytest.raises(ValueError, match="expected a feature with fewer than 90% equal values"):
        semi_real(folder, tiny_schema(), 0)
