"""Settings: one declaration, a clear order of precedence, sentences for what is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

from cli.settings import Settings, environment_of, load_settings, source_of
from policy.errors import SettingsError


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
    settings = load_settings({"partitions": 3, "join_accept_loss": True, "topic_prefix": "shop"})
    for name, value in environment_of(settings).items():
        monkeypatch.setenv(name, value)
    assert load_settings() == settings


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
