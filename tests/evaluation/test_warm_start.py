from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluation.data_folder import DataFolder, read_data_folder
from evaluation.warm_start import (
    BASELINE,
    STATIC,
    UNIFORM,
    WARM,
    held_out_rows,
    requests_of,
    warm_start_judged,
)
from evaluation.yardsticks import lists_of, ndcg_of_static
from policy.errors import DataError
from policy.logged_fit import WarmStartSettings
from policy.schema import parse_schema
from tests.evaluation.folders import (
    SCHEMA_TOML,
    learnable_tables,
    tiny_schema,
    tiny_tables,
    write,
)

QUICK = WarmStartSettings(objective="likelihood", steps=80, check_every=40)


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    return read_data_folder(write(tmp_path, learnable_tables()), tiny_schema())


def test_requests_are_read_as_the_learner_reads_them(tmp_path: Path) -> None:
    """The second item of `a` has a click (1) and a purchase of 2 (3 each), at position 1.

    It is looked at half of the time, so its gain of 7 counts 14; p is a probability of clicks.
    """
    schema = parse_schema(SCHEMA_TOML + "examination = [1.0, 0.5]\n")
    found = requests_of(read_data_folder(write(tmp_path, tiny_tables()), schema), schema)
    assert found.values.tolist() == [[0.0, 14.0], [0.0, 0.0]]
    assert found.ideal.tolist() == [14.0, 0.0]
    assert found.examination.tolist() == [[1.0, 0.5], [1.0, 0.5]]
    assert found.predicted == pytest.approx(np.array([[0.5, 0.25], [0.1, 0.2]]))
    assert found.features.tolist() == [[30.0, 10.0], [40.0, 11.0]]
    assert found.present.all()


def test_a_user_is_on_one_side(folder: DataFolder) -> None:
    held = held_out_rows(folder, 0.3, seed=0)
    sides: dict[str, set[bool]] = {}
    for unit, side in zip(folder.unit_ids, held.tolist(), strict=True):
        sides.setdefault(unit, set()).add(side)
    assert all(len(each) == 1 for each in sides.values())
    assert 0 < held.sum() < len(held)
    assert (held_out_rows(folder, 0.3, seed=1) != held).any()


def test_what_follows_one_objective_is_learned_and_judged_on_others(folder: DataFolder) -> None:
    schema, held = tiny_schema(), held_out_rows(folder, 0.3, seed=0)
    told: list[tuple[int, int]] = []
    judged = warm_start_judged(folder, schema, held, QUICK, lambda *done: told.append(done))
    rows = judged.rows
    assert judged.trained == (~held).sum()
    assert judged.requests == held.sum()  # every request has a click
    assert rows[UNIFORM].ndcg == rows[BASELINE].ndcg  # the baseline is .5 and .5
    assert rows[WARM].ndcg.value > rows[UNIFORM].ndcg.value + 0.05
    assert rows[STATIC].less_static.value == 0
    assert rows[WARM].mean_weights[1] > 0.65  # clicks follow q
    exact = ndcg_of_static(lists_of(folder, schema).at(np.flatnonzero(held)), np.array([[0.5] * 2]))
    assert rows[UNIFORM].ndcg.value == pytest.approx(exact.mean())
    done = [each for each, _ in told]
    assert done == sorted(done)
    assert told[-1][0] == told[-1][1]


def test_what_is_held_out_has_no_part_in_what_is_learned(folder: DataFolder) -> None:
    """Other outcomes of held-out users change the judgement, not a bit of the tensors."""
    schema, held = tiny_schema(), held_out_rows(folder, 0.3, seed=0)
    fewer = [c for c in folder.conversions if not held[c.request] or c.request % 2]
    quick = replace(QUICK, steps=40)
    first = warm_start_judged(folder, schema, held, quick)
    other = warm_start_judged(replace(folder, conversions=fewer), schema, held, quick)
    assert other.requests < first.requests
    for name, tensor in first.learned.tensors.items():
        assert other.learned.tensors[name].tobytes() == tensor.tobytes()


def test_a_side_without_gain_is_refused(folder: DataFolder) -> None:
    held = held_out_rows(folder, 0.3, seed=0)
    silent = [c for c in folder.conversions if not held[c.request]]
    with pytest.raises(DataError, match="some gain among those held out, seen none in"):
        warm_start_judged(replace(folder, conversions=silent), tiny_schema(), held, QUICK)
    with pytest.raises(DataError, match="some gain among those to learn from, seen none in 0"):
        warm_start_judged(folder, tiny_schema(), np.ones_like(held), QUICK)
