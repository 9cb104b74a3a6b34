"""`grade uplift` and `grade ope` on a topic of reward groups of both arms."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer import Typer
from typer.testing import CliRunner, Result

from cli.ope import ope
from cli.uplift import uplift
from policy.errors import GradeError, SettingsError, TooLittleData
from stream.codec import encode
from stream.connection import Connection
from stream.topics import Topics
from tests.evaluation.logged_groups import group, record
from tests.kafka import Produced, create_fresh, produce
from tests.stream import learner_world as world

SCHEMA = world.SCHEMA
REQUESTS = 1_200

app = Typer()
app.command("uplift")(uplift)
app.command("ope")(ope)

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def published(broker: Any) -> tuple[Connection, Topics]:
    """Every sixth request is held out; of these every third is clicked, of the others every second.

    A unit has two requests in a row; one group is there twice.
    """
    connection = Connection(broker.bootstrap_servers, client_id="grade-test")
    topics = create_fresh(connection)
    first_generation = Produced(encode(world.FIRST[1]), SCHEMA.policy.encode())
    produce(connection, topics.generations, [first_generation])
    groups = []
    for number in range(REQUESTS):
        held = number // 2 % 6 == 0
        clicks = int(number // 12 % 3 == 0) if held else number % 2
        groups.append(group(number, clicks=clicks, held=held, unit=f"unit-{number // 2}"))
    records = [Produced(record(each), b"key", each.offset % 2) for each in groups]
    produce(connection, topics.reward_groups, [*records, records[5]])
    return connection, topics


@pytest.fixture
def run(
    published: tuple[Connection, Topics], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Run:
    connection, topics = published
    (tmp_path / "policy.toml").write_text(SCHEMA.toml, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRADE_BOOTSTRAP_SERVERS", connection.bootstrap_servers)
    monkeypatch.setenv("GRADE_TOPIC_PREFIX", topics.prefix)

    def invoke(*arguments: str) -> Result:
        result = CliRunner().invoke(app, list(arguments))
        if result.exception is not None and not isinstance(result.exception, GradeError):
            raise result.exception
        return result

    return invoke


def refusal(result: Result, kind: type[GradeError]) -> str:
    assert isinstance(result.exception, kind), result.output
    return str(result.exception)


def test_uplift_compares_the_arms_over_time(run: Run, tmp_path: Path) -> None:
    done = run("uplift", "--json", "uplift.json")
    assert done.exit_code == 0, done.output
    figures = json.loads((tmp_path / "uplift.json").read_text("utf-8"))
    assert figures["policy"] == pytest.approx(
        {"gain_per_request": 0.5, "standard_error": 0.0, "requests": 1000, "units": 500}
    )
    # Of the 100 held-out units those of every third dozen were clicked, 34 of them.
    assert figures["holdout"]["gain_per_request"] == pytest.approx(0.34)
    assert (figures["holdout"]["requests"], figures["holdout"]["units"]) == (200, 100)
    assert figures["absolute"]["value"] == pytest.approx(0.16)
    assert figures["relative"]["value"] == pytest.approx(0.5 / 0.34 - 1)
    low, high = figures["absolute"]["sequence"]
    inner_low, inner_high = figures["absolute"]["interval"]
    assert low < inner_low < 0.16 < inner_high < high
    assert figures["over_time"][-1]["absolute"] == figures["absolute"]
    assert figures["left_out"] == {"other_schema": 0, "not_finite": 0}
    assert "policy 0.5, holdout 0.34 gain per request: difference +0.16" in done.output


def test_uplift_of_a_stretch_with_too_few_units_is_refused(run: Run) -> None:
    message = refusal(run("uplift", "--until", "2023-11-14T22:20:00"), TooLittleData)
    assert "expected at least 100 units in either arm, seen" in message
    swapped = run("uplift", "--since", "2026-01-02", "--until", "2026-01-01")
    assert "expected a time after --since 2026-01-02" in refusal(swapped, SettingsError)


def test_ope_of_weights_like_the_served_ones(run: Run, tmp_path: Path) -> None:
    done = run("ope", "--baseline", "--json", "ope.json")
    assert done.exit_code == 0, done.output
    figures = json.loads((tmp_path / "ope.json").read_text("utf-8"))
    assert (figures["requests"], figures["units"]) == (1000, 500)
    assert figures["served_gain_per_request"] == 0.5
    # Served was a Dirichlet of the same concentration around the same weights, but for 2 %.
    assert figures["overlap"]["effective"] > 950
    assert figures["overlap"]["lost"] == 0
    for name in ("ips", "snips", "dr"):
        assert figures[name]["value"] == pytest.approx(0.5, abs=0.03)
        assert figures[name]["sequence"][0] < figures[name]["interval"][0] < 0.5
    assert [each["requests"] for each in figures["over_time"]][-1] == 1000
    assert "doubly robust" in done.output


def test_ope_says_how_many_requests_speak_of_the_target_and_refuses(run: Run) -> None:
    far = run("ope", "--weights", "pctr=0.02,pcvr=0.03,price=0.95", "--concentration", "100")
    message = refusal(far, TooLittleData)
    assert "expected an effective sample of at least 300 requests" in message
    assert "of 1,000 requests" in message
    assert "--concentration" in message
    assert "seen none" in refusal(run("ope", "--baseline", "--until", "2001-01-01"), TooLittleData)


def test_ope_wants_one_target(run: Run) -> None:
    assert "seen none" in refusal(run("ope"), SettingsError)
    two = refusal(run("ope", "--baseline", "--weights", "pctr=1"), SettingsError)
    assert "expected one policy to evaluate" in two
    assert "seen several" in two
