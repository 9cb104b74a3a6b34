"""Simulated traffic against a real policy server and a real Kafka."""

import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from grade.v1.conversion_pb2 import Conversion
from grade.v1.impression_pb2 import Impression
from kafka.admin import ConfigResource, ConfigResourceType

import simulator
from cli.system import free_ports
from grade_client import EventProducer, PolicyClient, decode_decision
from policy.errors import GradeError
from policy.schema import Schema, parse_schema
from serving.server import PolicyServer, ServerSettings
from simulator.marketplace import POLICY, Marketplace, MarketplaceSettings
from simulator.traffic import Mishaps, Traffic, TrafficSettings
from stream.connection import Connection, open_admin
from stream.logs import read_logs
from stream.topics import Topics

NO_MISHAPS = Mishaps(0, 0, 0, 0, 0, 0, 0)


def short_schema() -> Schema:
    """The marketplace's policy with a window of half a second, so that runs end soon."""
    text = Path(str(simulator.__file__)).with_name("marketplace.toml").read_text("utf-8")
    for long, short in (("window_s = 5.0", "window_s = 0.5"), ("late_s = 10.0", "late_s = 1.0")):
        assert long in text
        text = text.replace(long, short)
    return parse_schema(text)


@contextmanager
def served(schema: Schema, connection: Connection, topics: Topics) -> Iterator[PolicyServer]:
    server = PolicyServer([(schema, topics)], ServerSettings(), connection)
    server.start()
    try:
        assert server.get_ready()
        yield server
    finally:
        server.stop()


@contextmanager
def traffic(
    connection: Connection, topics: Topics, settings: TrafficSettings
) -> Iterator[tuple[Traffic, PolicyServer]]:
    with (
        served(short_schema(), connection, topics) as server,
        PolicyClient(f"127.0.0.1:{server.port}", POLICY) as client,
        EventProducer(connection, topics, POLICY) as producer,
    ):
        world = Marketplace(MarketplaceSettings(seed=2))
        yield Traffic(world, client, producer, settings, run="run"), server


def logged(connection: Connection, topics: Topics) -> tuple[list[Impression], list[Conversion]]:
    logs = read_logs(connection, [topics.impressions, topics.conversions])
    records = {
        name: [record for log in partitions for record in log.records]
        for name, partitions in logs.items()
    }
    impressions = [Impression.FromString(r.value or b"") for r in records[topics.impressions]]
    conversions = [Conversion.FromString(r.value or b"") for r in records[topics.conversions]]
    return impressions, conversions


def test_what_is_reported_is_what_was_logged(connection: Connection, topics: Topics) -> None:
    statuses: list[dict[str, Any]] = []
    settings = TrafficSettings(rate=150, duration_s=2.0, value_every=2)
    with traffic(connection, topics, settings) as (playing, _):
        report = playing.run(statuses.append)
        calls = playing.calls()
    impressions, conversions = logged(connection, topics)
    assert 200 < report["decisions"] < 400
    assert report["failed_rpcs"] == report["overdue"] == report["events_refused"] == 0
    assert len(calls) == report["decisions"]
    assert (calls[:, 1] > 0).all()
    assert len(impressions) == report["impressions"]
    assert len(impressions) == (
        report["decisions"] - report["impressions_lost"] + report["impressions_repeated"]
    )
    kinds = Counter(conversion.outcome for conversion in conversions)
    assert kinds["click"] == report["click"] > 50
    assert kinds["order"] == report["order"]
    assert len(conversions) == report["conversions"] == report["click"] + report["order"]
    shown = {i.request_id: set(i.item_ids) for i in impressions}
    lost = {c.request_id for c in conversions} - shown.keys()
    assert len(lost) <= report["impressions_lost"]
    assert all(c.item_id in shown[c.request_id] for c in conversions if c.request_id in shown)
    # Nobody learns here, so the baseline, uniform weights, is served all the time.
    assert report["value"]["requests"] > 10
    assert report["value"]["recovered"] == pytest.approx(0, abs=1e-9)
    assert report["value"]["uniform"] < report["value"]["static"] < report["value"]["oracle"]
    assert statuses[-1]["decisions"] == report["decisions"]
    assert 0.3 < statuses[-1]["value"]["static_recovered"] < 0.7


def test_without_mishaps_every_event_comes_once(connection: Connection, topics: Topics) -> None:
    settings = TrafficSettings(rate=100, duration_s=1.0, mishaps=NO_MISHAPS)
    with traffic(connection, topics, settings) as (playing, _):
        report = playing.run()
    impressions, conversions = logged(connection, topics)
    assert len({i.request_id for i in impressions}) == len(impressions) == report["decisions"]
    names = [(c.request_id, c.conversion_id) for c in conversions]
    assert len(set(names)) == len(names)
    assert {c.request_id for c in conversions} <= {i.request_id for i in impressions}


def test_only_features_and_scores_reach_the_system(connection: Connection, topics: Topics) -> None:
    """Apart from the list, an impression tells predicted scores of what was and was not shown."""
    settings = TrafficSettings(rate=100, duration_s=0.3, mishaps=NO_MISHAPS)
    with traffic(connection, topics, settings) as (playing, _):
        playing.run()
    impressions, _ = logged(connection, topics)
    assert len(impressions) > 10
    world = Marketplace(MarketplaceSettings(seed=2))
    features_of_all = set()
    for impression in impressions:
        request = world.request(int(impression.request_id.removeprefix("run-")))
        candidates = [int(item.removeprefix("item-")) for item in impression.item_ids]
        assert list(impression.scores) == request.scores[candidates].ravel().tolist()
        rows = {tuple(row) for row in request.scores.tolist()}
        unshown = list(impression.unshown_scores)
        for start in range(0, len(unshown), 5):
            assert tuple(unshown[start : start + 5]) in rows
        # A user's number is drawn apart from the type; everything else is the server's own.
        decision = decode_decision(impression.decision)
        assert re.fullmatch(r"user-\d+", decision.unit_id)
        assert decision.unit_id == request.unit_id
        assert decision.request_id == impression.request_id
        assert list(decision.features) == request.features.tolist()
        assert (decision.policy, decision.version) == (POLICY, 0)
        features_of_all.add(tuple(decision.features))
    assert len(features_of_all) > 10


def test_refused_events_are_counted_and_the_run_goes_on(
    connection: Connection, topics: Topics
) -> None:
    settings = TrafficSettings(rate=200, duration_s=1.0, mishaps=NO_MISHAPS)
    with (
        served(short_schema(), connection, topics) as server,
        PolicyClient(f"127.0.0.1:{server.port}", POLICY) as client,
        EventProducer(connection, topics, POLICY, max_unconfirmed=1) as producer,
    ):
        world = Marketplace(MarketplaceSettings(seed=2))
        playing = Traffic(world, client, producer, settings, run="run")
        report = playing.run()
        health = playing.health()
    impressions, conversions = logged(connection, topics)
    assert report["events_refused"] == health["events_refused"] > 10
    assert report["events_undelivered"] == 0
    assert report["decisions"] > 100
    assert report["impressions"] == len(impressions) < report["decisions"]
    assert report["conversions"] == len(conversions)
    assert health["status"] == "ok"


def test_a_run_whose_events_kafka_refuses_still_reports(
    connection: Connection, topics: Topics, tmp_path: Path
) -> None:
    """As a process: health and metrics while it runs, then the file, then exit status 1."""
    with open_admin(connection) as admin:
        resource = ConfigResource(
            ConfigResourceType.TOPIC, topics.impressions, {"max.message.bytes": "100"}
        )
        admin.alter_configs([resource])
    report_file, (port,) = tmp_path / "report.json", free_ports(1)
    with served(short_schema(), connection, topics) as server:
        running = subprocess.Popen(
            [
                *(sys.executable, "-m", "cli.main", "simulate", "--rate", "50"),
                *("--duration-s", "2", "--target", f"127.0.0.1:{server.port}"),
                *("--json", str(report_file)),
            ],
            env={
                **os.environ,
                "GRADE_BOOTSTRAP_SERVERS": connection.bootstrap_servers,
                "GRADE_TOPIC_PREFIX": topics.prefix,
                "GRADE_SIMULATE_ADMIN_PORT": str(port),
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            health, metrics = None, ""
            while running.poll() is None and not (health and health["decisions"]):
                try:
                    health = json.loads(ask(port, "/health"))
                    metrics = ask(port, "/metrics")
                except OSError:
                    time.sleep(0.02)  # polling another process
            told = running.communicate(timeout=60)[1]
        finally:
            running.kill()
            running.wait()
    assert health is not None
    assert health["status"] == "ok"
    for name in ("requests", "failed_rpcs", "events_refused"):
        assert f"grade_simulate_{name}_total " in metrics
    report = json.loads(report_file.read_text(encoding="utf-8"))
    assert report["events_undelivered"] > 10
    assert running.returncode == 1, told
    assert (
        f"expected every event to be confirmed, seen {report['events_undelivered']} that Kafka "
        "did not confirm" in told
    )
    assert "Traceback" not in told


def ask(port: int, page: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{page}", timeout=5) as answer:
        content: bytes = answer.read()
    return content.decode()


def test_stop_ends_an_endless_run_and_flushes(connection: Connection, topics: Topics) -> None:
    with traffic(connection, topics, TrafficSettings(rate=100)) as (playing, _):
        reports: list[dict[str, Any]] = []
        running = threading.Thread(target=lambda: reports.append(playing.run()))
        running.start()
        while len(playing.calls()) < 20:
            assert running.is_alive()
            running.join(0.01)
        playing.stop()
        running.join(20)
        assert not running.is_alive()
    impressions, _ = logged(connection, topics)
    assert len(impressions) == reports[0]["impressions"] >= 15


def test_a_server_that_goes_away_is_counted_and_asked_twice_at_most(
    connection: Connection, topics: Topics
) -> None:
    settings = TrafficSettings(rate=50, duration_s=1.5)
    with traffic(connection, topics, settings) as (playing, server):
        stopper = threading.Timer(0.7, server.stop)
        stopper.start()
        report = playing.run()
        stopper.join()
    assert report["decisions"] > 5
    assert report["given_up"] > 5
    assert (
        report["given_up"] <= report["failed_rpcs"] <= 2 * report["given_up"] + report["decisions"]
    )


def test_another_policys_server_is_refused(connection: Connection, topics: Topics) -> None:
    text = short_schema().toml.replace('"network_speed"', '"shoe_size"')
    with (
        served(parse_schema(text), connection, topics) as server,
        PolicyClient(f"127.0.0.1:{server.port}", POLICY) as client,
        EventProducer(connection, topics, POLICY) as producer,
        pytest.raises(GradeError, match=r"expected the marketplace's features .* seen .*shoe_size"),
    ):
        Traffic(Marketplace(MarketplaceSettings()), client, producer, TrafficSettings(), run="run")
