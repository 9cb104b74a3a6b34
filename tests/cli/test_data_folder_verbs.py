"""`grade evaluate` and `grade learnable`: what they print, write and refuse."""

import json
from pathlib import Path

import pytest

from benchmarks.learnable import Answered, Log, figures_of
from cli.evaluate import evaluate
from cli.learnable import learnable
from policy import policy_file
from policy.errors import GradeError, SettingsError
from policy.initial import initial_parameters
from policy.policy_file import PolicyFile
from tests.evaluation.folders import SCHEMA_TOML, learnable_tables, tiny_schema, write


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    (tmp_path / "policy.toml").write_text(SCHEMA_TOML, encoding="utf-8")
    return write(tmp_path, learnable_tables())


def test_evaluate_judges_files_and_static_weights(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported = tmp_path / "exported.safetensors"
    schema = tiny_schema()
    policy_file.write(exported, PolicyFile(schema, initial_parameters(schema, 0), 1, 1, 0))
    hand = tmp_path / "hand.toml"
    hand.write_text("[weights]\np = 0.1\nq = 0.9\n", encoding="utf-8")
    again = tmp_path / "more" / "hand.toml"
    again.parent.mkdir()
    again.write_text("[weights]\np = 0.9\nq = 0.1\n", encoding="utf-8")
    figures_file, picture = tmp_path / "figures.json", tmp_path / "plot.svg"
    evaluate(data_dir, policy=[exported, hand, again], json_file=figures_file, plot=picture, k=1)
    figures = json.loads(figures_file.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    rows = figures["ranked_by"]
    assert list(rows)[4:] == ["exported", "hand", "hand (2)"]
    # Version 0 serves the baseline.
    assert rows["exported"]["less_baseline"]["ndcg"] == {"value": 0, "low": 0, "high": 0}
    assert rows["hand"]["mean_weights"] == pytest.approx([0.1, 0.9])
    ndcg = {name: row["figures"]["ndcg"]["value"] for name, row in rows.items()}
    assert ndcg["hand"] > ndcg["baseline"] > ndcg["hand (2)"]
    assert rows["hand"]["figures"]["cvr"]["value"] == 0  # clicks, but no purchase
    printed = capsys.readouterr().out
    assert "120 requests of 30 users" in printed
    assert "NDCG@1" in printed
    assert picture.read_text(encoding="utf-8").startswith("<svg ")


def test_evaluate_refuses_what_it_cannot_use(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--plot: expected a file called .svg, seen '.*png'"):
        evaluate(data_dir, plot=tmp_path / "plot.png")
    with pytest.raises(SettingsError, match="expected one of click, buy, seen 'order'"):
        evaluate(data_dir, order="order")
    with pytest.raises(GradeError, match="expected a policy file, seen: No such file"):
        evaluate(data_dir, policy=[tmp_path / "none"])


def test_learnable_prints_its_answer_and_writes_everything(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures_file = tmp_path / "figures.json"
    learnable(data_dir, json_file=figures_file)
    figures = json.loads(figures_file.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert figures["yes"] == {"static": True, "segment": False, "contextual": False}
    assert figures["ndcg"].keys() == {"uniform", "baseline", "static", "segment", "contextual"}
    assert len(figures["differences"]) == 8
    assert figures["delays"]["window_declared_s"] == 600
    assert figures["delays"]["by_outcome"]["buy"] == {
        "count": 0, "quantiles_s": {}, "outside": None,
    }  # fmt: skip
    printed = " ".join(capsys.readouterr().out.split())
    assert figures["answer"].split(":")[0] in printed
    assert printed.rstrip().endswith("would most likely have shown).")


def test_the_benchmark_counts_yes_by_kind() -> None:
    figures = figures_of(
        [
            Answered(Log("real", 0), ("static",), 0.006, 0.0, 9.0),
            Answered(Log("linear", 100), ("static", "contextual"), 0.01, 0.03, 9.0),
            Answered(Log("linear", 101), (), 0.0, 0.001, 9.0),
            Answered(Log("nonlinear", 100), ("segment",), 0.01, 0.02, 9.0),
            Answered(Log("shuffled", 0), (), 0.0, 0.0, 9.0),
            Answered(Log("shuffled", 1), ("static", "segment"), 0.0, 0.0, 9.0),
        ]
    )
    assert figures == {
        "real_static_yes": 1, "real_context_yes": 0,
        "real_static_gain": 0.006, "real_contextual_gain": 0.0, "cpu_s": 9.0,
        "linear_worlds": 2, "linear_contextual_yes": 1, "linear_contextual_gain_least": 0.001,
        "nonlinear_worlds": 1, "nonlinear_contextual_yes": 0,
        "nonlinear_contextual_gain_least": 0.02,
        "shuffles": 2, "false_yes": 1,
        "false_yes_static": 1, "false_yes_segment": 1, "false_yes_contextual": 0,
    }  # fmt: skip
