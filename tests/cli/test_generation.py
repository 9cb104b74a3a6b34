"""`grade generation` as a person uses it."""

import json
import uuid
from pathlib import Path

import pytest
from kafka import TopicPartition
from typer.testing import CliRunner

from cli.generation import app
from cli.settings import load_settings
from cli.wiring import generations_to_go_by, topic_plan, wanted_generation
from policy.errors import BoundaryError, GradeError, SettingsError
from policy.schema import load_schema
from stream.boundaries import append
from stream.codec import encode
from stream.connection import Connection
from stream.generations import read_generations
from stream.topics import Topics, create
from tests.kafka import read_topic

RUN = CliRunner()
EXAMPLE = Path(__file__).parents[1] / "example_schema.toml"


class System:
    """Topics of a system that nothing has been started in, and its schema file."""

    def __init__(self, connection: Connection, schema_path: Path) -> None:
        self.connection = connection
        self.schema_path = schema_path
        schema_path.write_text(EXAMPLE.read_text("utf-8"), "utf-8")
        create(connection, topic_plan(load_settings(), load_schema(schema_path)))

    @property
    def topics(self) -> Topics:
        return Topics(load_settings().topic_prefix)

    def start(self) -> int:
        """What join and learner do first; the number of the generation that they go by."""
        schema = load_schema(self.schema_path)
        found = generations_to_go_by(load_settings(), schema, self.connection)
        return found[-1].generation

    def edit(self, was: str, now: str) -> None:
        text = self.schema_path.read_text("utf-8")
        assert text.count(was) == 1
        self.schema_path.write_text(text.replace(was, now), "utf-8")


@pytest.fixture
def system(connection: Connection, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> System:
    monkeypatch.setenv("GRADE_BOOTSTRAP_SERVERS", connection.bootstrap_servers)
    monkeypatch.setenv("GRADE_TOPIC_PREFIX", f"cli.{uuid.uuid4().hex[:12]}")
    monkeypatch.setenv("GRADE_PARTITIONS", "2")
    monkeypatch.setenv("GRADE_SCHEMA_PATH", str(tmp_path / "policy.toml"))
    return System(connection, tmp_path / "policy.toml")


def lines(*arguments: str) -> list[str]:
    done = RUN.invoke(app, arguments)
    assert done.exit_code == 0, done.exception
    return done.stdout.splitlines()


def test_a_change_takes_effect_by_command_alone(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first start over a refused change to two generations, told by list and check."""
    [told] = lines("check")
    assert told.startswith("no generation of policy 'example' has begun")
    assert system.start() == 1
    assert lines("check") == ["generation 1 is in force and is what the settings say"]
    assert lines("begin") == ["generation 1 says the same already; nothing to begin"]

    system.edit("window_s = 5.0", "window_s = 7.5")
    monkeypatch.setenv("GRADE_LEARN_SLOT_MS", "500")
    for refused in (lambda: RUN.invoke(app, ["check"], catch_exceptions=False), system.start):
        with pytest.raises(
            BoundaryError, match=r"^attribution.window_s: .* seen 7.5\nlearn_slot_m"
        ):
            refused()
    assert len(read_generations(system.connection, system.topics, "example")) == 1

    *kept, begun, window, slot, servers = lines("begin", "--note", "a longer window")
    # Seven days for downtime, 4W, and 2E; the groups a window and a day longer.
    inputs = 7 * 86_400_000 + 4 * 7_500 + 2 * 1_000
    groups = inputs + 7_500 + 86_400_000
    prefix = system.topics.prefix
    assert [each.partition(",")[0] for each in kept] == [
        f"{prefix}.impressions.v1 is now kept for {inputs} ms",
        f"{prefix}.conversions.v1 is now kept for {inputs} ms",
        f"{prefix}.reward-groups.v1 is now kept for {groups} ms",
    ]
    assert [begun, window, slot, servers] == [
        "generation 2 of policy 'example' has begun",
        "  attribution.window_s: 5.0 → 7.5",
        "  learn_slot_ms: 250 → 500",
        "decisions of servers that still run by the schema before are taken as well",
    ]
    assert system.start() == 2
    assert lines("check") == ["generation 2 is in force and is what the settings say"]
    for topic in system.topics.inputs:
        assert [r.partition for r in read_topic(system.connection, topic)] == [0, 1]

    system.edit('"hour", ', "")
    assert lines("begin")[-1].startswith("from here on decisions by the schema before are dead")
    first, second, third = json.loads("\n".join(lines("list", "--json")))
    assert (first["changes"], second["note"]) == ([], "a longer window")
    assert second["changes"][1] == {"name": "learn_slot_ms", "old": "250", "new": "500"}
    assert second["settings"]["learn_slot_ms"] == 500
    assert second["accepted_schema_digests"] == [second["schema_digest"], first["schema_digest"]]
    assert [each["name"] for each in third["changes"]] == ["features.hour"]
    monkeypatch.setenv("COLUMNS", "200")
    table = "\n".join(lines("list"))
    assert "a longer window" in table
    assert "learn_slot_ms: 250 → 500" in table
    monkeypatch.setenv("COLUMNS", "80")
    assert "…" not in "\n".join(lines("list"))


def test_a_generation_that_is_half_begun_is_named_and_completed(system: System) -> None:
    """As after a crash between the generation's own record and its boundaries."""
    system.start()
    system.edit("gain = 5.0", "gain = 6.0")
    second = wanted_generation(load_settings(), load_schema(system.schema_path))
    second.generation = 2
    place = TopicPartition(system.topics.generations, 0)
    append(system.connection, [place], b"example", encode(second))
    with pytest.raises(
        GradeError, match=r"generation 2: .*impressions.v1 0, .* `grade generation begin` again"
    ):
        RUN.invoke(app, ["check"], catch_exceptions=False)
    lines("begin")
    assert lines("check") == ["generation 2 is in force and is what the settings say"]


def test_a_history_takes_no_boundary(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADE_TIMESTAMPS", "event")
    with pytest.raises(SettingsError, match=r"^timestamps: expected 'broker' .* seen 'event'"):
        RUN.invoke(app, ["begin"], catch_exceptions=False)
