"""Each benchmark runs in a small form and says what it must; how fast is for nobody's test."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks import join, learner, marketplace_in_memory
from benchmarks.loop import figures_of
from benchmarks.report import BEGIN, END, Report, renew_table
from cli.bench import bench
from policy.errors import FileNotWritten, SettingsError
from stream.broker import BrokerStatus


def assert_figures(figures: Mapping[str, float], *expected: str) -> None:
    assert set(expected) <= set(figures)
    assert all(math.isfinite(value) and value > 0 for value in figures.values()), figures


def test_join_and_its_peers_pass_a_small_backlog_on(broker: BrokerStatus, tmp_path: Path) -> None:
    figures = join.measure_on(broker.bootstrap_servers, tmp_path, requests=300, rounds=1)
    assert_figures(figures, "records_per_s", "cpu_s_per_100k", "vs_faust", "vs_aiokafka")


def test_the_learner_learns_a_small_backlog() -> None:
    assert_figures(learner.measure(large=300, small=100, rounds=1), "groups_per_s")


def test_the_loop_tells_the_demos_latencies() -> None:
    told = figures_of(
        {
            "close_to_served_ms": {"p50": 310.0, "p99": 640.0},
            "rpc_ms": {"p50": 2.0, "p99": 9.0},
            "groups": 8_000,
            "versions_served": 90,
        }
    )
    assert (told["close_to_served_p50_ms"], told["close_to_served_p99_ms"]) == (310.0, 640.0)


def test_the_marketplace_tells_how_much_was_recovered() -> None:
    figures = marketplace_in_memory.figures(1_900, [2])
    assert set(figures) == {"recovered_seed_2", "static_recovered_seed_2", "versions_seed_2"}
    assert figures["versions_seed_2"] >= 1


def test_the_verb_writes_name_figures_machine_and_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learner, "run", lambda full: {"groups_per_s": 2.0 if full else 1.0})
    page = tmp_path / "performance.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    bench("learner", json_file=tmp_path / "figures.json", full=True, table_file=page)
    report = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert report.keys() == {"name", "figures", "machine", "command"}
    assert (report["name"], report["command"]) == ("learner", "grade bench learner --full")
    assert report["figures"] == {"groups_per_s": 2.0}
    text = page.read_text(encoding="utf-8")
    assert "| learner | `groups_per_s` | 2 | `grade bench learner --full` |" in text
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")


def test_a_file_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After the figures were shown, which took long to measure."""
    monkeypatch.setattr(learner, "run", lambda full: {"groups_per_s": 1.0})
    (tmp_path / "file").touch()
    with pytest.raises(FileNotWritten, match="expected to write"):
        bench("learner", json_file=tmp_path / "file" / "figures.json")
    assert "groups_per_s" in capsys.readouterr().out


def test_an_unknown_benchmark_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"expected one of sampler, .*seen 'speed'"):
        bench("speed")


def test_a_page_without_marks_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("text", encoding="utf-8")
    with pytest.raises(ValueError, match="expected the marks"):
        renew_table(page, [Report("join", {}, "a machine", "grade bench join")])
    assert page.read_text(encoding="utf-8") == "text"
