"""`grade replay` as a process: through the cores and through the real system, with equal bits."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stream.connection import Connection, open_admin
from tests.evaluation.folders import SCHEMA_TOML, learnable_tables, tiny_tables, write

if TYPE_CHECKING:
    from stream.broker import BrokerStatus


def grade_replay(
    *arguments: str | Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli.main", "replay", *map(str, arguments)],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def data_folder(path: Path) -> Path:
    (path / "policy.toml").write_text(SCHEMA_TOML, encoding="utf-8")
    return write(path, learnable_tables())


def test_both_ways_make_the_same_parameters(tmp_path: Path, broker: "BrokerStatus") -> None:
    figures_file = tmp_path / "figures.json"
    done = grade_replay(
        *(data_folder(tmp_path), "--through", "both", "--no-broker", "--json", figures_file),
        environment={"GRADE_BOOTSTRAP_SERVERS": broker.bootstrap_servers, "GRADE_PARTITIONS": "2"},
    )
    assert done.returncode == 0, done.stderr
    assert "bit for bit" in done.stderr
    figures = json.loads(figures_file.read_text(encoding="utf-8"))
    digests = figures["parameters_sha256"]
    assert digests["memory"] == digests["kafka"]
    assert len(digests["kafka"]) == 64
    assert figures["requests"] == 240
    assert figures["versions"] >= 11
    ndcg = figures["ndcg_second_half"]
    assert set(ndcg) == {
        "random", "logged", "uniform", "static_first_half", "static_hindsight",
        "served_mean", "served_executed",
    }  # fmt: skip
    assert ndcg["random"] < ndcg["uniform"] < ndcg["served_mean"] <= 1
    assert "served policy, mean weights" in done.stdout
    with open_admin(Connection(broker.bootstrap_servers)) as admin:
        assert [name for name in admin.list_topics() if "-replay-" in name] == []


def test_another_schema_and_what_was_left_out(tmp_path: Path) -> None:
    """Two requests, of which none in the second half gains anything."""
    tables = tiny_tables()
    tables["conversions"]["request_id"][0] = "unknown"
    write(tmp_path, tables)
    schema = tmp_path / "elsewhere.toml"
    schema.write_text(SCHEMA_TOML, encoding="utf-8")
    figures_file = tmp_path / "figures.json"
    done = grade_replay(tmp_path, "--schema", schema, "--slot-s", "60", "--json", figures_file)
    assert done.returncode == 0, done.stderr
    assert "1 of 2 rows name a request that is not in" in " ".join(done.stderr.split())
    figures = json.loads(figures_file.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert figures["ndcg_second_half"]["served_mean"] is None


def test_a_wrong_folder_ends_with_a_sentence(tmp_path: Path) -> None:
    tables = tiny_tables()
    del tables["impressions"]["score_q"]
    write(tmp_path, tables)
    (tmp_path / "policy.toml").write_text(SCHEMA_TOML, encoding="utf-8")
    done = grade_replay(tmp_path)
    assert done.returncode == 1
    assert "impressions.parquet: expected a column score_q, seen request_id, " in done.stderr
    assert "Traceback" not in done.stderr
