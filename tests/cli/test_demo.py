"""The demo as a user runs it: the whole system, a short play, a summary that can be trusted."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.loop import figures_of
from cli.main import command_line
from policy.errors import GradeError, SettingsError
from tests.kafka import await_until

DATA_DIR = ".grade/demo"

KEYS = {
    *("decisions", "impressions", "conversions", "conversions_joined", "groups", "late", "orphans"),
    *("dead_letters", "duplicates", "ticks", "open", "conserved", "reconciled", "failed_rpcs"),
    *("versions_published", "versions_served", "groups_applied", "groups_applied_twice"),
    *("groups_lost", "close_to_served_ms", "rpc_ms", "rpc_near_swap_ms", "value", "generations"),
    "uplift",
}


def demo(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cli.main", "demo", "--rate", "60", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def processes_of(folder: Path) -> list[str]:
    """Command lines (with environment) of processes that name this folder's demo."""
    done = subprocess.run(["ps", "axeww", "-o", "args"], capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if f"{folder}/.grade/demo" in line]


def test_a_short_demo_balances_its_books(tmp_path: Path) -> None:
    """Across two boundaries: a longer attribution window, then dearer orders; nothing stops."""
    written = ["--json", "figures.json", "--picture", "view.svg"]
    boundaries = ["--boundary-at", "3", "--boundary-at", "6"]
    running = demo(tmp_path, "--seconds", "10", *boundaries, *written)
    out, _ = running.communicate(timeout=240)
    assert running.returncode == 0, out
    figures = json.loads((tmp_path / "figures.json").read_text("utf-8"))
    assert set(figures) == KEYS
    assert all(value > 0 for value in figures_of(figures).values())
    assert figures["conserved"]
    assert figures["reconciled"]
    assert (figures["groups_lost"], figures["groups_applied_twice"]) == (0, 0)
    assert figures["failed_rpcs"] == 0
    assert figures["open"] == 0
    assert figures["groups"] > 200
    # Both logs together: every record has one fate.
    assert figures["impressions"] + figures["conversions"] == sum(
        figures[fate]
        for fate in (
            *("groups", "conversions_joined", "late", "orphans"),
            *("duplicates", "dead_letters", "open"),
        )
    )
    assert figures["versions_served"] >= 3
    assert figures["generations"] == 3
    assert "generation 2: attribution.window_s: 5.0 → 7.5, attribution.late_s: 10.0 → 15.0" in out
    assert "generation 3: outcomes.order.gain: 5.0 → 6.0" in out
    assert set(figures["value"]) >= {"uniform", "static", "served", "oracle", "recovered"}
    assert "recovered share" in (tmp_path / "view.svg").read_text("utf-8").replace("&#160;", " ")
    assert processes_of(tmp_path) == []
    assert f"cd {DATA_DIR} && grade broker up" in out
    look_at_what_is_left(tmp_path / DATA_DIR, figures)


def look_at_what_is_left(folder: Path, figures: dict[str, Any]) -> None:
    """As the demo's last words say."""

    def grade(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "cli.main", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    grade("broker", "up")
    try:
        told = grade("reconcile", "--versions", "all", "--json", "books.json")
        listed = grade("versions", "--last", "1")
    finally:
        grade("broker", "down")
    assert "conserved and reconciled" in told
    books = json.loads((folder / "books.json").read_text("utf-8"))
    assert (books["conserved"], books["reconciled"]) == (True, True)
    assert books["versions_compared"] == books["versions"] == figures["versions_published"]
    # Each boundary began an epoch.
    assert "3:" in listed


def refused(*arguments: object) -> BaseException | None:
    """What `grade demo` says before it has started anything."""
    said = CliRunner().invoke(command_line("demo"), ["demo", *map(str, arguments)])
    assert said.exit_code == 1
    return said.exception


@pytest.mark.parametrize("option", ["--boundary-at", "--drift-at"])
def test_what_would_never_happen_is_refused(tmp_path: Path, option: str) -> None:
    folder = tmp_path / "demo"
    error = refused("--seconds", 20, option, 20, "--data-dir", folder)
    assert isinstance(error, SettingsError)
    assert re.match(rf"{option}: expected .* the traffic's end at 20, seen 20", str(error))
    assert not folder.exists()


@pytest.mark.parametrize("kind", ["a file", "a folder"])
def test_what_no_demo_has_made_is_left_alone(tmp_path: Path, kind: str) -> None:
    mine = tmp_path / "mine"
    notes = mine
    if kind == "a folder":
        mine.mkdir()
        notes = mine / "notes.txt"
    notes.write_text("precious")
    error = refused("--data-dir", mine)
    assert isinstance(error, GradeError)
    assert "expected an empty folder or one of an earlier demo, seen" in str(error)
    assert notes.read_text() == "precious"


def test_ctrl_c_in_the_middle_stops_everything(tmp_path: Path) -> None:
    running = demo(tmp_path, "--seconds", "300")
    played = tmp_path / ".grade" / "demo" / "traffic.json"
    await_until(played.exists, 120, "traffic")
    assert processes_of(tmp_path) != []
    os.kill(running.pid, signal.SIGINT)
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 130, out
    assert "Traceback" not in out
    assert "stopped" in out
    assert processes_of(tmp_path) == []
