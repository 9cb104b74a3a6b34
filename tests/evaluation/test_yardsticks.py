"""NDCG and the fixed policies, by hand and against the figures of the shipped requests."""

import math
from pathlib import Path

import numpy as np
import pytest

from evaluation.data_folder import read_data_folder
from evaluation.yardsticks import (
    Lists,
    gains_of,
    lists_of,
    mean_gained,
    ndcg_of_static,
    ndcg_of_weights,
    yardsticks,
)
from policy.schema import load_schema
from tests.evaluation.folders import tiny_schema, tiny_tables, write

KUAIRAND = Path(__file__).parents[2] / "examples" / "kuairand"
SECOND = 1 / math.log2(3)  # discount of the second position


@pytest.fixture
def lists(tmp_path: Path) -> Lists:
    return lists_of(read_data_folder(write(tmp_path, tiny_tables()), tiny_schema()), tiny_schema())


def test_gains_by_hand(tmp_path: Path) -> None:
    folder = read_data_folder(write(tmp_path, tiny_tables()), tiny_schema())
    # Item 2 of request a: click 1 + buy 3 × value 2.
    assert gains_of(folder, tiny_schema()).tolist() == [0, 7, 0, 0]


def test_ndcg_by_hand(lists: Lists) -> None:
    # Objective p ranks item 1 first, objective q item 2, which has all the gain.
    assert ndcg_of_weights(lists, [[1, 0], [1, 0]])[0] == pytest.approx(SECOND)
    assert ndcg_of_weights(lists, [[0, 1], [1, 0]])[0] == pytest.approx(1)
    # Nothing was gained in request b.
    assert math.isnan(ndcg_of_weights(lists, [[1, 0], [1, 0]])[1])
    assert mean_gained(np.array([SECOND, math.nan])) == SECOND


def test_fixed_weights_are_the_same_as_weights_per_request(lists: Lists) -> None:
    tried = np.array([[1.0, 0.0], [0.3, 0.7], [0.0, 1.0]])
    static = ndcg_of_static(lists, tried)
    for choice, weights in enumerate(tried):
        np.testing.assert_array_equal(
            static[:, choice], ndcg_of_weights(lists, np.tile(weights, (2, 1)))
        )


def test_padding_never_ranks(tmp_path: Path) -> None:
    """A shorter list beside a longer one is judged as if it were alone."""
    tables = tiny_tables()
    for column, value in (
        ("request_id", "b"), ("item_id", 9), ("position", 2), ("time_ms", 2_000),
        ("score_q", -50.0), ("score_p", 0.01),
    ):  # fmt: skip
        tables["impressions"][column].append(value)
    lists = lists_of(read_data_folder(write(tmp_path, tables), tiny_schema()), tiny_schema())
    assert lists.shown.tolist() == [[True, True, False], [True, True, True]]
    assert ndcg_of_weights(lists, [[1, 0], [1, 0]])[0] == pytest.approx(SECOND)


def test_the_figures_of_the_shipped_requests() -> None:
    """As the data's own README states them, to the digits it gives."""
    schema = load_schema(KUAIRAND / "policy.toml")
    folder = read_data_folder(KUAIRAND, schema)
    assert len(folder.request_ids) == 6726
    assert folder.remarks == []
    found = yardsticks(lists_of(folder, schema))
    assert found.random == pytest.approx(0.695, abs=5e-4)
    assert found.logged == pytest.approx(0.698, abs=5e-4)
    assert found.uniform == pytest.approx(0.7431, abs=5e-5)
    # The best of weights that are drawn: the README's draws were others.
    assert found.static_first_half == pytest.approx(0.7488, abs=1.5e-3)
    assert found.static_hindsight == pytest.approx(0.7531, abs=1.5e-3)
