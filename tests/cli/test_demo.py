"""The demo as a user runs it: the whole system, a short play, a summary that can be trusted."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.loop import figures_of
from tests.kafka import await_until

pytestmark = pytest.mark.alone

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
    """Across a boundary too: the attribution window grows in the middle, and nothing stops."""
    written = ["--json", "figures.json", "--picture", "view.svg"]
    running = demo(tmp_path, "--seconds", "12", "--boundary-at", "3", *written)
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
    assert figures["generations"] == 2
    assert "generation 2: attribution.window_s: 5.0 → 7.5, attribution.late_s: 10.0 → 15.0" in out
    assert set(figures["value"]) >= {"uniform", "static", "served", "oracle", "recovered"}
    assert "recovered share" in (tmp_path / "view.svg").read_text("utf-8").replace("&#160;", " ")
    assert processes_of(tmp_path) == []


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


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("precious")
    running = demo(tmp_path, "--data-dir", "mine")
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 1
    assert "expected an empty folder or one of an earlier demo" in out
    assert (tmp_path / "mine" / "notes.txt").read_text() == "precious"
