"""Several policies in one system: one server, and a join and a learner for each."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from cli import topics, versions
from cli.policy_option import load_policy_settings, settings_of_each_policy
from cli.settings import Settings, load_settings
from cli.supervisor import Supervisor
from cli.system import admin_ports, free_ports, process_plans, wait_until_healthy
from grade_client import EventProducer, PolicyClient, Topics
from monitor.watch import ask
from policy.errors import SettingsError
from stream.connection import Connection
from tests.kafka import await_until, fresh_plan
from tests.system import EXAMPLE

TEXT = EXAMPLE.read_text("utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two policies that want opposite things; what is no TOML file is not looked at."""
    found = tmp_path / "policies"
    found.mkdir()
    for name in ("feed", "search"):
        text = TEXT.replace('policy = "example"', f'policy = "{name}"')
        for key, value in {"window_s": 1.0, "early_s": 0.5, "late_s": 2.0}.items():
            text = re.sub(rf"^{key} = [\d.]+", f"{key} = {value}", text, flags=re.M)
        (found / f"{name}.toml").write_text(text, encoding="utf-8")
    (found / "notes.txt").write_text("not a policy", encoding="utf-8")
    return found


def test_each_policy_of_a_folder_has_its_own_file_topics_and_group(folder: Path) -> None:
    settings = load_settings({"schema_path": folder, "topic_prefix": "grade"})
    of_each = settings_of_each_policy(settings)
    assert list(of_each) == ["feed", "search"]
    own = of_each["search"]
    assert own.schema_path == folder / "search.toml"
    assert own.topic_prefix == "grade.search"
    assert own.join_group == "grade-join.search"
    # To a process that reads these it is the only policy.
    assert settings_of_each_policy(own) == {"search": own}


def test_one_policys_file_needs_no_name_and_keeps_its_topics() -> None:
    settings = load_policy_settings(None, {"schema_path": EXAMPLE, "topic_prefix": "grade"})
    assert (settings.topic_prefix, settings.join_group) == ("grade", "grade-join")
    assert load_policy_settings("example", {"schema_path": EXAMPLE}).schema_path == EXAMPLE


@pytest.mark.parametrize(
    ("name", "message"),
    [(None, "expected one of feed, search .* seen none"), ("feeds", "feed, search .* 'feeds'")],
)
def test_a_process_must_say_which_policy(folder: Path, name: str | None, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_policy_settings(name, {"schema_path": folder})


def test_processes_of_two_policies_have_names_and_ports_of_their_own(folder: Path) -> None:
    settings = load_settings({"schema_path": folder})
    plans = process_plans(settings, join_workers=2)
    assert [plan.name for plan in plans] == [
        "serve",
        *("join-feed-1", "join-feed-2", "learn-feed"),
        *("join-search-1", "join-search-2", "learn-search"),
    ]
    ports = admin_ports(plans)
    assert len(set(ports.values())) == 7
    assert (ports["join-feed-1"], ports["learn-feed"]) == (
        settings.join_admin_port,
        settings.learn_admin_port,
    )
    assert plans[0].environment["GRADE_SCHEMA_PATH"] == str(folder)
    for plan in plans[4:]:
        assert plan.environment["GRADE_TOPIC_PREFIX"] == "grade.search"


@pytest.fixture
def settings(connection: Connection, folder: Path, tmp_path: Path) -> Settings:
    ports = free_ports(4)
    return load_settings(
        {
            "schema_path": folder,
            "data_dir": tmp_path / "data",
            "bootstrap_servers": connection.bootstrap_servers,
            "topic_prefix": fresh_plan().topics.prefix,
            "partitions": 2,
            "serve_port": ports[0],
            "serve_admin_port": ports[1],
            "join_admin_port": ports[2],
            "learn_admin_port": ports[3],
        }
    )


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs a verb with these settings."""
    for name in ("schema_path", "bootstrap_servers", "topic_prefix", "partitions"):
        monkeypatch.setenv(f"GRADE_{name.upper()}", str(getattr(settings, name)))

    def invoke(app: Any, *arguments: str) -> str:
        done = CliRunner().invoke(app, list(arguments))
        assert done.exit_code == 0, done.exception
        return done.output

    return invoke


def play(settings: Settings, connection: Connection, policy: str, liked: int) -> None:
    """Requests of one policy, whose users take what has the greatest score of one objective."""
    own = settings_of_each_policy(settings)[policy]
    random = np.random.default_rng(liked)
    with (
        PolicyClient(f"127.0.0.1:{settings.serve_port}", policy, timeout_s=5) as client,
        EventProducer(connection, Topics(own.topic_prefix), policy) as events,
    ):
        for number in range(150):
            sampled = client.sample(f"{policy}-{number}", f"unit-{number}", [0.0, 0.0, 0.0])
            scores = random.uniform(0.05, 0.95, size=(4, 3))
            items = [f"item-{k}" for k in range(4)]
            events.log_impression(sampled, items, scores)
            taken = items[int(np.argmax(scores[:, liked]))]
            events.log_conversion(sampled.request_id, taken, "click")


def test_two_policies_learn_from_their_own_traffic_alone(
    settings: Settings, run: Callable[..., Any], connection: Connection, tmp_path: Path
) -> None:
    assert "20 topics are as they must be, 20 of them new" in run(topics.app, "create")
    plans = process_plans(settings, join_workers=1)
    ports = admin_ports(plans)
    with Supervisor(plans, tmp_path / "grade.log") as supervisor:
        try:
            wait_until_healthy(ports, supervisor)
            for liked, policy in enumerate(("feed", "search")):
                play(settings, connection, policy, liked)
            for policy in ("feed", "search"):
                await_until(
                    lambda: (ask(ports[f"learn-{policy}"], "/health") or {}).get("version"),  # noqa: B023 - called at once
                    60,
                    f"a version of {policy}",
                )
                await_until(
                    lambda: ask(ports["serve"], "/health")["policies"][policy]["version"] > 0,  # noqa: B023 - as above
                    30,
                    f"{policy} served",
                )
        except BaseException:
            print((tmp_path / "grade.log").read_text("utf-8")[-8000:])
            raise
    grown = {}
    for policy in ("feed", "search"):
        file = tmp_path / f"{policy}.json"
        run(versions.app, "--policy", policy, "--last", "100", "--json", str(file))
        listed = json.loads(file.read_text("utf-8"))
        assert {each["policy"] for each in listed} == {policy}
        assert 0 < sum(each["groups"] for each in listed) <= 150
        grown[policy] = listed[-1]["mean_weights"]
    # One is taught the first objective, the other the second.
    assert grown["feed"]["pctr"] > grown["search"]["pctr"]
    assert grown["search"]["pcvr"] > grown["feed"]["pcvr"]
