"""`grade warmstart`: what it prints, writes and refuses, and that a system starts from its file."""

import json
from pathlib import Path

import pytest
import safetensors.numpy

import cli.warmstart
from cli.policy_file import import_policy
from cli.warmstart import sentences, warmstart
from evaluation.bootstrap import Interval
from evaluation.target_policy import PolicyTarget, read_target
from evaluation.warm_start import STATIC, WARM, Judged, Row
from policy import policy_file
from policy.errors import DataError, SchemaError, SettingsError
from policy.exploration import Exploration
from policy.logged_fit import WarmStartSettings
from policy.warm_start import Decided, WarmStart
from stream.connection import Connection
from stream.generations import read_generations
from tests.evaluation.folders import SCHEMA_TOML, learnable_tables, tiny_schema, tiny_tables, write
from tests.kafka import create_fresh


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, and a verb that takes fewer steps."""

    def quick(**settings: object) -> WarmStartSettings:
        return WarmStartSettings(steps=80, check_every=40, **settings)  # type: ignore[arg-type]  # by name

    monkeypatch.setattr(cli.warmstart, "WarmStartSettings", quick)
    (tmp_path / "policy.toml").write_text(SCHEMA_TOML, encoding="utf-8")
    return write(tmp_path, learnable_tables())


def test_the_file_is_a_policy_that_would_be_served(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, figures_file = tmp_path / "warm.safetensors", tmp_path / "figures.json"
    warmstart(data_dir, out=out, json_file=figures_file)
    figures = json.loads(figures_file.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    written = policy_file.read(out)
    assert (written.epoch, written.version, written.generation) == (0, 0, 0)
    assert written.schema == tiny_schema()
    assert written.tensors["gate"][0] == figures["gate"]
    # Reading a target checks the tensors as a server and `grade import` do.
    target = read_target(out, tiny_schema(), None)
    assert isinstance(target, PolicyTarget)
    alpha = target.alpha(written.tensors["feature_mean"][None])[0]
    assert alpha.sum() == pytest.approx(figures["concentration"])
    assert alpha[1] > alpha[0]  # clicks follow q
    ranked_by = figures["ranked_by"]
    assert list(ranked_by) == [
        "uniform", "baseline", "best static", "warm start", "warm start, sampled",
    ]  # fmt: skip
    assert figures["objective"] == WarmStartSettings().objective
    assert figures["requests_learned_from"] + figures["requests_judged"] == 240
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{ranked_by['warm start']['ndcg']['value']:.4f}" in printed
    p, q = ranked_by["warm start"]["mean_weights"]
    assert f"mean weights: p {p:.2f}, q {q:.2f}" in printed
    assert f"gate {figures['gate']:g}:" in printed
    assert "budget 2.00%" in printed
    assert f"grade import {out}" in printed
    assert f"sha256 {figures['sha256'][:16]}" in printed


def test_a_system_starts_from_the_file(
    data_dir: Path,
    tmp_path: Path,
    connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    warmstart(data_dir, out=tmp_path / "warm.safetensors")
    topics = create_fresh(connection, window_ms=600_000, late_ms=1_200_000)
    monkeypatch.setenv("GRADE_BOOTSTRAP_SERVERS", connection.bootstrap_servers)
    monkeypatch.setenv("GRADE_TOPIC_PREFIX", topics.prefix)
    monkeypatch.setenv("GRADE_PARTITIONS", "2")
    import_policy(tmp_path / "warm.safetensors", schema=data_dir / "policy.toml")
    said = "generation 1 of policy 'tiny' starts from the warm start in warm.safetensors"
    assert said in capsys.readouterr().out
    (begun,) = read_generations(connection, topics, "tiny")
    assert begun.note == "imported the warm start in warm.safetensors"
    started = safetensors.numpy.load(begun.initial_parameters)
    for name, tensor in policy_file.read(tmp_path / "warm.safetensors").tensors.items():
        assert started[name].tobytes() == tensor.tobytes()


def test_the_same_seed_writes_the_same_policy(data_dir: Path, tmp_path: Path) -> None:
    """The checksum is over every number and every entry but their order, which is none."""
    found = []
    for name in ("one", "two"):
        figures_file = tmp_path / f"{name}.json"
        warmstart(data_dir, out=tmp_path / name, seed=3, objective="direct", json_file=figures_file)
        found.append(json.loads(figures_file.read_text(encoding="utf-8")))
    assert found[0] == found[1]
    assert len(found[0]["sha256"]) == 64


def test_wrong_options_are_named_before_anything_is_read(tmp_path: Path) -> None:
    nowhere = tmp_path / "none"
    with pytest.raises(SettingsError, match=r"--objective: .* lambda, direct, seen 'good'"):
        warmstart(nowhere, objective="good")
    for wrong in (0.0, 1.0, -0.5, float("nan")):
        with pytest.raises(SettingsError, match=r"--exploration-budget: expected a share between"):
            warmstart(nowhere, exploration_budget=wrong)
    with pytest.raises(SettingsError, match=r"--held-out: expected a share from .* seen 0.95"):
        warmstart(nowhere, held_out=0.95)


def test_a_folder_that_says_too_little_is_refused_and_nothing_is_written(
    data_dir: Path, tmp_path: Path
) -> None:
    write(data_dir, tiny_tables())
    out = tmp_path / "warm.safetensors"
    with pytest.raises(DataError, match="expected a request with some gain among those"):
        warmstart(data_dir, out=out)
    assert not out.exists()
    with pytest.raises(SchemaError, match=r"none\.toml"):
        warmstart(data_dir, schema=data_dir / "none.toml", out=out)


def told(gate: float, less_static: Interval, cost: float) -> str:
    exploration = Exploration(0.0, 150.0, cost)
    decided = Decided("lambda", 60)
    learned = WarmStart({}, gate, decided, decided, {0.0: 0.5, 1.0: 0.4}, exploration)
    row = Row(Interval(0.5, 0.4, 0.6), less_static, [0.5, 0.5])
    judged = Judged(learned, 90, 10, 5, {STATIC: row, WARM: row})
    return " ".join(sentences(judged, WarmStartSettings(exploration_budget=0.02)))


def test_what_did_not_come_off_is_said() -> None:
    well = told(1.0, Interval(0.02, 0.01, 0.03), 0.019)
    assert "static: lambda, 60 steps" in well
    assert "sampling costs 1.90% of what" in well
    assert "does not rank better" not in well
    assert "more than the budget" not in well
    badly = told(0.0, Interval(0.01, -0.01, 0.03), 0.05)
    assert "static weights on users held out (+.0100 [-.0100, +.0300] NDCG)" in badly
    assert "its context stayed shut" in badly
    assert "more than the budget, at the greatest concentration" in badly
    assert "too few requests" in told(0.5, Interval(0.01, -0.01, 0.03), 0.01)
