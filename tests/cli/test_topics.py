"""`grade topics` as a person uses it."""

import uuid
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.topics import app
from policy.errors import TopicError
from stream.broker import BrokerStatus
from stream.topics import Topics

RUN = CliRunner()


@pytest.fixture
def prefix(broker: BrokerStatus, monkeypatch: pytest.MonkeyPatch) -> str:
    """Settings of a system that has no topics yet."""
    prefix = f"cli.{uuid.uuid4().hex[:12]}"
    monkeypatch.setenv("GRADE_BOOTSTRAP_SERVERS", broker.bootstrap_servers)
    monkeypatch.setenv("GRADE_TOPIC_PREFIX", prefix)
    monkeypatch.setenv("GRADE_PARTITIONS", "2")
    schema = Path(__file__).parents[1] / "example_schema.toml"
    monkeypatch.setenv("GRADE_SCHEMA_PATH", str(schema))
    return prefix


def test_create_then_check(prefix: str) -> None:
    missing = RUN.invoke(app, ["check"])
    assert isinstance(missing.exception, TopicError)
    created = RUN.invoke(app, ["create"])
    assert created.exit_code == 0
    assert created.stdout.splitlines() == [
        *(f"created {name}" for name in Topics(prefix).all),
        "10 topics are as they must be, 10 of them new",
    ]
    again = RUN.invoke(app, ["create"])
    assert again.stdout == "10 topics are as they must be, 0 of them new\n"
    checked = RUN.invoke(app, ["check"])
    assert (checked.exit_code, checked.stdout) == (0, "10 topics are as they must be\n")


def test_check_refuses_other_settings(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert RUN.invoke(app, ["create"]).exit_code == 0
    monkeypatch.setenv("GRADE_PARTITIONS", "3")
    refused = RUN.invoke(app, ["check"])
    assert isinstance(refused.exception, TopicError)
    first = str(refused.exception).splitlines()[0]
    assert first == f"{prefix}.impressions.v1: partitions: expected 3, seen 2"
