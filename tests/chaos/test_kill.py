"""Processes are killed under load, for real; nothing is lost and nothing is learned twice."""

import os
import signal
import time
from pathlib import Path

import pytest

from stream.connection import Connection
from tests.kafka import await_until
from tests.system import Traffic, running_system


@pytest.mark.alone
def test_join_learner_and_server_killed_in_turn_under_load(
    connection: Connection, tmp_path: Path
) -> None:
    with running_system(connection, tmp_path) as system:
        with Traffic(system) as traffic:
            traffic.await_more(200)
            for name in ("join", "learn"):
                system.kill(name)
                traffic.await_more(150)
            assert traffic.failures == [], "killing join or learner must not reach a request"

            down_from = time.time()
            system.kill("serve")
            up_at = time.time()
            traffic.await_more(200)
        assert all(down_from <= when <= up_at + 2.0 for when, _ in traffic.failures)
        assert system.supervisor.restarts == 3

        system.await_applied(traffic.shown)
        report = system.stop_and_reconcile()
        assert report.unconserved == []
        assert report.differences == []
        assert (report.versions.groups_lost, report.versions.groups_applied_twice) == (0, 0)
        assert report.groups == traffic.shown
        assert report.impressions.open == 0
        assert report.conversions.orphans > 0
        assert report.conversions.duplicates > 0


def test_a_second_join_worker_takes_over_and_served_versions_never_go_back(
    connection: Connection, tmp_path: Path
) -> None:
    with running_system(connection, tmp_path, join_workers=2) as system:
        with Traffic(system) as traffic:
            traffic.await_more(150)
            os.kill(system.supervisor.process_ids()["join-2"], signal.SIGKILL)
            traffic.await_more(400)
            await_until(lambda: len(set(traffic.versions)) > 8, 60, "several versions served")
        system.await_applied(traffic.shown)
        report = system.stop_and_reconcile()
        assert report.ok, [*report.unconserved, *map(str, report.differences)]
        assert report.groups == traffic.shown
        assert traffic.failures == []
        assert traffic.versions == sorted(traffic.versions)
