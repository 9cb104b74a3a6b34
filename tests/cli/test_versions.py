"""`grade versions`, its `show` and its `diff`, on topics that hold a whole small world."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli.versions import app
from policy.errors import FileNotWritten, SettingsError
from stream.codec import encode
from stream.connection import Connection
from stream.reconcile import Content
from stream.topics import Topics
from tests.kafka import Produced, create_fresh, produce
from tests.stream import learner_world as world

OBJECTIVES = [objective.name for objective in world.SCHEMA.objectives]


@pytest.fixture(scope="module")
def content() -> Content:
    return world.content(seed=5)


@pytest.fixture(scope="module")
def published(broker: Any, content: Content) -> tuple[Connection, Topics]:
    """Topics with every version; the first one's snapshot has a tombstone."""
    connection = Connection(broker.bootstrap_servers, client_id="grade-test")
    topics = create_fresh(connection)
    first = content.parameters.records[0]
    first_generation = Produced(encode(world.FIRST[1]), world.SCHEMA.policy.encode())
    produce(connection, topics.generations, [first_generation])
    for topic, records in (
        (topics.versions, content.versions.records),
        (topics.parameters, [*content.parameters.records, first._replace(value=None)]),
    ):
        produce(connection, topic, [Produced(each.value, each.key) for each in records])
    return connection, topics


@pytest.fixture
def run(
    published: tuple[Connection, Topics], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    connection, topics = published
    schema = tmp_path / "policy.toml"
    schema.write_text(world.SCHEMA.toml, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRADE_BOOTSTRAP_SERVERS", connection.bootstrap_servers)
    monkeypatch.setenv("GRADE_TOPIC_PREFIX", topics.prefix)

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(app, list(arguments))

    return invoke


def test_the_list_says_what_each_version_learned_from(
    run: Any, content: Content, tmp_path: Path
) -> None:
    count = len(content.versions.records)
    assert count > 4
    listed = run("--last", "3", "--json", "list.json")
    assert listed.exit_code == 0, listed.output
    rows = [line for line in listed.output.splitlines() if f"1:{count}" in line]
    assert len(rows) == 1
    assert "kept" in rows[0]
    entries = json.loads((tmp_path / "list.json").read_text("utf-8"))
    assert [each["id"] for each in entries] == [f"1:{count - 2}", f"1:{count - 1}", f"1:{count}"]
    for before, each in itertools.pairwise(entries):
        assert each["parent"] == before["id"]
        assert {str(c["partition"]): c["after"] for c in each["learned_from"]} == before["ledger"]
        assert {str(c["partition"]): c["up_to"] for c in each["learned_from"]} == each["ledger"]
        assert list(each["mean_weights"]) == OBJECTIVES
        assert sum(each["mean_weights"].values()) == pytest.approx(1)
    # What is listed first is known to its beginning too.
    assert entries[0]["learned_from"] is not None
    # Slot k begins at k times its length of log time.
    begins = world.BEGIN_MS + world.SCHEMA.window_ms  # the first window that closes
    assert entries[0]["slot"] * 250 > begins
    assert entries[0]["slot_begins"].startswith("2023-11-14 22:13:")


def test_a_file_that_cannot_be_written_is_named(run: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    failed = run("--json", str(tmp_path / "file" / "versions.json"))
    assert isinstance(failed.exception, FileNotWritten)


def test_show_has_everything_of_one_version(run: Any) -> None:
    shown = run("show", "1:1")
    assert shown.exit_code == 0, shown.output
    rows = {
        cells[1].strip(): cells[2].strip()
        for line in shown.output.splitlines()
        if len(cells := line.split("│")) == 4
    }
    assert rows["parent"] == "baseline"
    assert rows["snapshot kept"] == "False"
    assert {f"mean weights {name}" for name in OBJECTIVES} <= rows.keys()
    assert {"learned from, partition 0", "learned from, partition 1"} <= rows.keys()
    assert len(rows["parameters sha256"]) == 64


def test_diff_shows_figures_tensors_and_probes(run: Any) -> None:
    found = run("diff", "2", "1:4")
    assert found.exit_code == 0, found.output
    assert "from 1:2 to 1:4: 2 versions," in found.output
    for word in (
        "reward",
        "concentration",
        *OBJECTIVES,
        "concentration_weight",
        "the mean context",
    ):
        assert word in found.output


def test_diff_without_a_snapshot_says_so(run: Any) -> None:
    found = run("diff", "1:1", "1:2")
    assert found.exit_code == 0, found.output
    assert "no longer has 1:1" in found.output
    assert "static_logits" not in found.output


def test_an_unknown_version_is_named_with_those_that_there_are(run: Any, content: Content) -> None:
    for arguments in (["show", "7:1"], ["diff", "7:1", "1:1"]):
        result = run(*arguments)
        assert isinstance(result.exception, SettingsError)
        count = len(content.versions.records)
        assert f"has 1:1 to 1:{count}, seen 7:1" in str(result.exception)


def test_a_policy_without_versions_is_served_by_its_baseline(
    run: Any, connection: Connection, topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADE_TOPIC_PREFIX", topics.prefix)
    listed = run()
    assert listed.exit_code == 0
    assert "no versions yet" in listed.output
