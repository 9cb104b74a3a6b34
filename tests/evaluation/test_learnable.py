"""Is it learnable: what is asked, what is answered, and that no fold sees itself."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.answer import answer
from evaluation.bootstrap import Interval
from evaluation.cross_fit import cross_fit, folds_of
from evaluation.data_folder import DataFolder, read_data_folder
from evaluation.delays import delays_of
from evaluation.learnable import Compared, Learnable, Power, learnable, requests_of
from evaluation.semi_real import shuffled
from policy.errors import GradeError
from tests.evaluation.folders import learnable_tables, tiny_schema, tiny_tables, write
from tests.evaluation.test_fusion_model import world


def folder_of(path: Path, tables: dict[str, dict[str, list[Any]]]) -> DataFolder:
    return read_data_folder(write(path, tables), tiny_schema())


def by_age() -> dict[str, dict[str, list[Any]]]:
    """Clicks follow objective q for the old and p for the young, in turn users of both ages."""
    tables = learnable_tables()
    old = [number % 2 == 0 for number in range(len(tables["requests"]["request_id"]))]
    tables["requests"]["ctx_age"] = [60.0 if each else 20.0 for each in old]
    p = np.array(tables["impressions"]["score_p"]).reshape(-1, 4)
    for row, request_id in enumerate(tables["conversions"]["request_id"]):
        number = int(request_id[1:])
        if not old[number]:
            tables["conversions"]["item_id"][row] = int(p[number].argmax())
    return tables


def test_static_weights_are_learnable_and_shuffled_outcomes_are_not(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, learnable_tables())
    told: list[int] = []
    found = learnable(folder, tiny_schema(), progress=told.append)
    assert told == [1, 2, 3, 4, 5]
    assert found.yes("static")
    assert not found.yes("contextual")
    assert not found.yes("segment")
    assert found.ndcg["static"].value > 0.98 > found.ndcg["baseline"].value
    assert (found.requests, found.with_gain, found.units) == (240, 240, 30)
    assert answer(found).startswith("Yes, but only static weights: ")
    nothing = learnable(shuffled(folder, 1), tiny_schema())
    assert not any(c.yes for c in nothing.compared)
    assert answer(nothing).startswith("No: in these 240 requests")


def test_weights_by_the_context_are_learnable(tmp_path: Path) -> None:
    found = learnable(folder_of(tmp_path, by_age()), tiny_schema())
    assert found.yes("contextual")
    assert found.yes("segment")
    assert set(found.segment_features) == {"age"}
    assert found.features[0].name == "age"
    assert found.features[0].loss.low > 0
    assert answer(found).startswith("Yes: ")


def test_the_answer_does_not_depend_on_when_it_is_asked(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, by_age())
    assert learnable(folder, tiny_schema()) == learnable(folder, tiny_schema())


def test_nothing_of_a_fold_reaches_what_it_is_judged_under(tmp_path: Path) -> None:
    """Other outcomes in a fold change none of the models that judge it."""
    schema, folder = tiny_schema(), folder_of(tmp_path, by_age())
    requests, rows = requests_of(folder, schema)
    fold = folds_of([folder.unit_ids[row] for row in rows])
    inside = set(rows[fold == 2].tolist())
    moved = [
        c._replace(item=folder.items(c.request).start) if c.request in inside else c
        for c in folder.conversions
    ]
    others, _ = requests_of(replace(folder, conversions=moved), schema)
    before, after = (cross_fit(each, fold, schema.floors()) for each in (requests, others))
    assert not np.array_equal(before[0].static.coefficients, after[0].static.coefficients)
    np.testing.assert_array_equal(before[2].static.coefficients, after[2].static.coefficients)
    for choice, other in (
        (before[2].segment, after[2].segment),
        (before[2].contextual, after[2].contextual),
    ):
        assert choice.model is not None
        assert other.model is not None
        np.testing.assert_array_equal(choice.model.coefficients, other.model.coefficients)


def test_a_unit_is_in_one_fold_and_folds_are_even() -> None:
    units = [f"user-{number % 1000}" for number in range(3000)]
    fold = folds_of(units)
    assert len({(unit, int(each)) for unit, each in zip(units, fold, strict=True)}) == 1000
    assert np.bincount(fold, minlength=5).min() > 480
    assert not np.array_equal(fold, folds_of(units, seed=1))


def test_every_request_is_held_out_once_and_chooses_once() -> None:
    requests = world(requests=60)
    folds = cross_fit(requests, np.arange(60) % 5, np.zeros(2))
    assert sorted(np.concatenate([f.held_out for f in folds]).tolist()) == list(range(60))
    assert sorted(np.concatenate([f.chose for f in folds]).tolist()) == list(range(60))
    assert all(not set(f.held_out) & set(f.chose) for f in folds)


def test_power_is_that_of_the_paired_error(tmp_path: Path) -> None:
    found = learnable(folder_of(tmp_path, learnable_tables()), tiny_schema())
    static = next(c for c in found.compared if (c.better, c.than) == ("static", "baseline"))
    error = (static.gain.high - static.gain.low) / (2 * 1.96)
    # One-sided level .05 / 3, widened by √2, and power .8: 3.010 + 0.842 standard errors.
    assert found.power["static"].detectable == pytest.approx(3.85 * error, rel=0.1)
    assert static.lower_bound == pytest.approx(static.gain.value - 3.01 * error, abs=0.3 * error)
    needed = found.power["static"].requests_for
    assert needed["0.001"] == pytest.approx(100 * needed["0.01"], rel=0.01)
    expected = 240 * (found.power["static"].detectable / 0.01) ** 2
    assert needed["0.01"] == pytest.approx(expected, abs=1)


def test_too_few_units_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GradeError, match="of at least 20 units, seen 1: too few"):
        learnable(folder_of(tmp_path, tiny_tables()), tiny_schema())


def told(static: float, segment: float, contextual: float) -> str:
    """The answer for three lower bounds."""
    gain = Interval(0.01, 0.002, 0.018)
    bounds = {"static": static, "segment": segment, "contextual": contextual}
    compared = [
        Compared(better, "baseline" if better == "static" else "static", gain, bound)
        for better, bound in bounds.items()
    ]
    power = {better: Power(0.004, {}) for better in bounds}
    return answer(Learnable(1000, 900, 800, {}, compared, power, [], ["age", None], [], []))


def test_the_answer_names_what_was_found() -> None:
    assert told(0.0, -0.1, 0.0).startswith("No: in these 1,000 requests")
    assert told(0.1, 0.0, -0.1).startswith("Yes, but only static weights: they rank better")
    both = told(0.1, -0.1, 0.1)
    assert both.startswith(
        "Yes: static weights rank better than today's by +.0100 [+.0020, +.0180]"
    )
    assert "weights by the context" in both
    segments = told(-0.1, 0.1, 0.0)
    assert "no better than today's beyond chance" in segments
    assert "weights by segments of age better" in segments
    for sentence in (both, segments):
        assert sentence.count(". ") == 0
        assert sentence.endswith(".")


def test_delays_by_hand(tmp_path: Path) -> None:
    # Request a at 1.0 s: its click after 0.5 s, its purchase after 8 s.
    found = delays_of(folder_of(tmp_path, tiny_tables()), tiny_schema())
    click, buy = found.by_outcome
    assert (click.outcome, click.number, click.quantiles_s["0.5"]) == ("click", 1, 0.5)
    assert (buy.outcome, buy.quantiles_s["1"], buy.outside) == ("buy", 8.0, 0.0)
    assert (found.window_s, found.declared_s) == (8.0, 600.0)


def test_outcomes_outside_the_window_are_counted(tmp_path: Path) -> None:
    tables = tiny_tables()
    # The window ends 600 s after the request; a conversion at its very end still counts.
    tables["conversions"]["time_ms"] = [601_000, 601_001]
    click, buy = delays_of(folder_of(tmp_path, tables), tiny_schema()).by_outcome
    assert (click.outside, buy.outside) == (0.0, 1.0)


def test_without_outcomes_no_window_is_suggested(tmp_path: Path) -> None:
    tables = tiny_tables()
    tables["conversions"] = {name: column[:1] for name, column in tables["conversions"].items()}
    found = delays_of(folder_of(tmp_path, tables), tiny_schema())
    assert [d.number for d in found.by_outcome] == [1, 0]
    assert found.by_outcome[1].quantiles_s == {}
    assert found.window_s == 0.5
