"""What the benchmark makes of its runs, by runs made up by hand; and a few real, short ones."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.learning import tasks as planned
from benchmarks.learning.figures import figures_of, left_out
from benchmarks.learning.interval import interval
from benchmarks.learning.logged import SemiRealWorld
from benchmarks.learning.play import Point
from benchmarks.learning.run_task import Outcome, log_yardsticks, requests_to_regain, run_task
from benchmarks.learning.table import tables
from benchmarks.learning.tasks import DRIFT_AT, Task, tasks, world_names
from benchmarks.learning.world import Worth
from benchmarks.report import BEGIN, END
from cli.bench import bench
from evaluation.data_folder import read_data_folder
from evaluation.semi_real import semi_real
from policy.errors import SettingsError
from policy.schema import load_schema

KUAIRAND = Path(__file__).parents[3] / "examples" / "kuairand"
WORTH = Worth(uniform=1.0, oracle=3.0, informed=2.5)


def outcome(method: str, seed: int, value: float, weight: float | None = None) -> Outcome:
    world = "base" if weight is None else "prior_noisy"
    task = Task(world, method, seed, 13_000, (13_000,), weight)
    return Outcome(task, {"13000": value}, {}, 0.0)


def point(requests: int, recovered: float) -> Point:
    return Point(requests, 1.0 + 2.0 * recovered, WORTH, {})


def test_shares_are_of_the_way_from_uniform() -> None:
    assert point(0, 0.75).recovered == pytest.approx(0.75)
    assert point(0, 0.75).of_informed == pytest.approx(1.0)


def test_means_and_intervals_over_seeds() -> None:
    found = figures_of([outcome("ours", s, v) for s, v in enumerate((0.9, 0.92, 0.94))], KUAIRAND)
    assert found["base_13000"] == pytest.approx(0.92)
    # Standard deviation 0.02, Student's 4.303 with two degrees of freedom.
    assert found["base_13000_ci"] == pytest.approx(4.303 * 0.02 / 3**0.5)


def test_the_lead_is_what_lies_between_the_intervals() -> None:
    outcomes = [outcome("ours", s, v) for s, v in enumerate((0.95, 0.97))]
    outcomes += [outcome("cem", s, v) for s, v in enumerate((0.5, 0.5))]
    outcomes += [outcome("grpo", s, v) for s, v in enumerate((0.7, 0.7))]
    outcomes += [outcome("no_replay", s, v) for s, v in enumerate((0.99, 0.99))]
    found = figures_of(outcomes, KUAIRAND)
    low = 0.96 - 12.706 * 0.01
    assert found["base_13000_lead"] == pytest.approx(low - 0.7)


def test_one_seed_has_no_interval() -> None:
    found = figures_of([outcome("ours", 0, 0.9)], KUAIRAND)
    assert found == {"base_13000": 0.9}


def test_an_interval_of_many_numbers_is_the_normals() -> None:
    numbers = [0.0, 1.0] * 50
    assert interval(numbers).half == pytest.approx(1.96 * np.std(numbers, ddof=1) / 10)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([point(DRIFT_AT, 0.97), point(DRIFT_AT + 64, 0.3), point(DRIFT_AT + 640, 0.91)], 640),
        ([point(DRIFT_AT, 0.97), point(DRIFT_AT + 64, 0.3)], 8_000),
    ],
)
def test_requests_to_regain_count_from_the_drift(points: list[Point], expected: int) -> None:
    assert requests_to_regain(points, DRIFT_AT + 8_000) == expected


def test_every_world_is_played_with_every_seed() -> None:
    planned = list(tasks(range(2), full=False))
    assert {task.world for task in planned} == set(world_names())
    assert {task.seed for task in planned} == {0, 1}
    assert len({(task.key, task.seed) for task in planned}) == len(planned)
    assert {t.method for t in tasks(range(1), full=True)} - {t.method for t in planned} == {
        "ppo",
        "vw",
    }


def test_what_cannot_be_run_is_told(tmp_path: Path) -> None:
    assert left_out(tmp_path, full=False) == []
    [remark] = left_out(tmp_path / "none", full=False)
    assert "real and the semi-real world are left out" in remark


def test_tables_hold_what_there_is() -> None:
    text = tables({"base_1500": 0.912, "base_1500_ci": 0.0042, "drift_90": 1_500.0})
    assert "| ours |  | .912 ± .004 |  |  |" in text
    assert "| `drift_90` | 1,500 |" in text
    assert "reinforce" not in text


def test_a_run_is_the_same_in_any_process() -> None:
    task = Task("m3", "cem", 100, 640, (640,))
    assert run_task(task, KUAIRAND).figures == run_task(task, KUAIRAND).figures


def test_the_semi_real_world_is_best_ranked_by_its_planted_weights() -> None:
    schema = load_schema(KUAIRAND / "policy.toml")
    world = SemiRealWorld(semi_real(read_data_folder(KUAIRAND, schema), schema, 100), schema)
    worth = world.worth(0)
    block = world.block(0, 640)
    equal = np.full((640, 6), 1 / 6)
    logged = world.show(block, equal)
    assert logged.values.shape == logged.present.shape == logged.signals.shape[:2]
    assert not logged.values[~logged.present].any()
    static = np.tile(world.best_static(0, 640), (640, 1))
    assert world.value(block, equal).mean() < world.value(block, static).mean()
    assert worth.uniform < worth.oracle == worth.informed
    drawn = np.random.default_rng(0).dirichlet(np.ones(6), len(world.probes(0).rows))
    assert world.value(world.probes(0), drawn).mean() < worth.oracle


def test_the_real_log_is_judged_as_a_replay_is() -> None:
    told = log_yardsticks(KUAIRAND)
    run = run_task(Task("kuairand", "uniform", 100, 6_726, ()), KUAIRAND)
    assert run.figures["served_mean"] == pytest.approx(told["uniform"])


def test_an_unknown_world_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"expected one of .*base.*, seen 'mars'"):
        bench("learning", world=["mars"])


def test_the_verb_runs_tasks_in_processes_and_writes_figures_and_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = [Task("m3", method, 100, 128, (128,)) for method in ("cem", "uniform")]
    monkeypatch.setattr(planned, "tasks", lambda *args, **kwargs: iter(short))
    page = tmp_path / "learning.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    figures = tmp_path / "figures.json"
    bench("learning", seeds=1, first_seed=100, workers=1, json_file=figures, table_file=page)
    report = json.loads(figures.read_text(encoding="utf-8"))
    assert report["command"] == "grade bench learning --seeds 1 --first-seed 100"
    # Nothing has been learned after two blocks: a generation of the search takes eight.
    assert report["figures"] == {"m3_128_cem": 0.0, "m3_128_uniform": 0.0}
    text = page.read_text(encoding="utf-8")
    assert "old" not in text
    assert report["command"] in text
