"""Settings: one declaration, a clear order of precedence, sentences for what is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

from cli.settings import Settings, environment_of, load_settings, source_of
from cli.wiring import trainer_settings
from policy.errors import SettingsError
from policy.trainer_settings import TrainerSettings


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(f"GRADE_{name.upper()}", raising=False)


def test_environment_goes_before_file_and_file_before_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "grade.toml").write_text("partitions = 7\nserve_members = 4\n")
    monkeypatch.setenv("GRADE_PARTITIONS", "9")
    settings = load_settings()
    assert (settings.partitions, settings.serve_members, settings.learn_slot_ms) == (9, 4, 250)
    assert source_of("partitions") == "environment"
    assert source_of("serve_members") == "grade.toml"
    assert source_of("learn_slot_ms") == "default"


def test_arguments_go_before_everything_and_none_is_no_argument(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GRADE_PARTITIONS", "9")
    assert load_settings({"partitions": 2, "serve_port": None}).partitions == 2


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("GRADE_PARTITIONS", "0", "GRADE_PARTITIONS .* greater than or equal to 1, seen '0'"),
        ("GRADE_SERVE_PORT", "99999", "GRADE_SERVE_PORT .* 65535, seen '99999'"),
        ("GRADE_LEARN_STATIC_RATE", "0", "GRADE_LEARN_STATIC_RATE .* greater than 0, seen '0'"),
        ("GRADE_LEARN_AVERAGE", "2", "GRADE_LEARN_AVERAGE .* less than or equal to 1, seen '2'"),
        ("GRADE_LEARN_KL_WEIGHT", "inf", "GRADE_LEARN_KL_WEIGHT .* finite number, seen 'inf'"),
        ("GRADE_JOIN_TICKS", "nobody", "'owner' or 'producer', seen 'nobody'"),
        ("GRADE_PARTITION", "3", "GRADE_PARTITION: expected a setting that .* lists"),
        ("GRADE_CONFIG", "missing.toml", "expected an existing TOML file, seen 'missing.toml'"),
    ],
)
def test_wrong_settings_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, sentence: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=sentence):
        load_settings()


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "grade.toml").write_text("partitions = [")
    with pytest.raises(SettingsError, match=r"grade\.toml: expected TOML"):
        load_settings()


def test_an_unknown_key_in_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "grade.toml").write_text("partition = 3\n")
    with pytest.raises(SettingsError, match="partition in the settings file"):
        load_settings()


def test_a_child_reads_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings({"partitions": 3, "serve_reflection": True, "topic_prefix": "shop"})
    for name, value in environment_of(settings).items():
        monkeypatch.setenv(name, value)
    assert load_settings() == settings


LEARNING = {
    "static_rate": 0.1,
    "contextual_rate": 1e-5,
    "served_epochs": 3,
    "epsilon": 0.3,
    "ratio_cap": 10.0,
    "kl_weight": 0.01,
    "fresh_steps": 0,
    "replay_steps": 4,
    "average": 1 / 3,
    "format_weight": 0.5,
    "staleness_cap": 0,
    "replay_slots": 400,
    "feature_noise": 0.25,
}


def test_the_learner_learns_by_its_own_defaults() -> None:
    # The settings are read where torch may be missing, so the numbers stand there again.
    assert trainer_settings(load_settings()) == TrainerSettings()


def test_a_setting_of_learning_reaches_the_learner(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = load_settings({f"learn_{name}": value for name, value in LEARNING.items()})
    for name, value in environment_of(chosen).items():
        monkeypatch.setenv(name, value)
    assert load_settings() == chosen
    assert trainer_settings(chosen) == TrainerSettings(**LEARNING)  # type: ignore[arg-type]  # numbers of two types


def test_what_may_be_off_is_set_to_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "grade.toml").write_text("learn_replay_slots = 4\nlearn_staleness_cap = 'off'\n")
    assert load_settings().learn_replay_slots == 4
    monkeypatch.setenv("GRADE_LEARN_REPLAY_SLOTS", "off")
    settings = load_settings()
    assert (settings.learn_replay_slots, settings.learn_staleness_cap) == (None, None)
    assert settings.model_dump(mode="json")["learn_replay_slots"] == "off"
    monkeypatch.setenv("GRADE_LEARN_REPLAY_SLOTS", "0")
    with pytest.raises(SettingsError, match=r"LEARN_REPLAY_SLOTS.*greater than or equal to 1.*'0'"):
        load_settings()


def test_every_setting_tells_its_meaning() -> None:
    assert [n for n, field in Settings.model_fields.items() if not field.description] == []


def test_a_wrong_setting_ends_the_command_with_two(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", "config"],
        env={"GRADE_PARTITIONS": "many", "PATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: GRADE_PARTITIONS")
    assert "Traceback" not in done.stderr
