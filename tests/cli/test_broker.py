"""`grade broker` as a person uses it."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.broker import STOPPED, app
from policy.errors import BrokerError, SettingsError
from stream.broker import BrokerStatus, LocalBroker
from tests.kafka import await_until

RUN = CliRunner()


def test_up_and_status_of_a_running_broker(broker: BrokerStatus) -> None:
    folder = str(broker.data_dir)
    up = RUN.invoke(app, ["up", "--port", "0", "--data-dir", folder])
    status = RUN.invoke(app, ["status", "--data-dir", folder])
    assert (up.exit_code, status.exit_code) == (0, 0)
    assert up.stdout == status.stdout
    assert status.stdout == (
        f"running: Apache Kafka 4.3.1 at 127.0.0.1:{broker.port} "
        f"(pid {broker.pid}, data in {broker.data_dir})\n"
    )


def test_status_and_down_of_a_stopped_broker(tmp_path: Path) -> None:
    folder = ["--data-dir", str(tmp_path)]
    status = RUN.invoke(app, ["status", *folder])
    assert status.exit_code == STOPPED == 3
    assert status.stdout == f"stopped (data in {tmp_path})\n"
    (tmp_path / "broker.pid").write_text("1\n")
    status = RUN.invoke(app, ["status", *folder])
    assert status.stdout.endswith("; broker.pid is stale: process 1 is not this broker\n")
    down = RUN.invoke(app, ["down", *folder])
    assert (down.exit_code, down.stdout) == (0, f"{tmp_path}: no broker was running\n")


def test_the_port_is_that_of_the_bootstrap_servers(
    broker: BrokerStatus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADE_BOOTSTRAP_SERVERS", broker.bootstrap_servers)
    monkeypatch.setenv("GRADE_DATA_DIR", str(tmp_path))
    refused = RUN.invoke(app, ["up"])
    assert isinstance(refused.exception, BrokerError)
    assert str(refused.exception).startswith(f"port {broker.port}: expected to be free")
    assert (tmp_path / "kafka").is_dir()


def test_a_remote_kafka_has_no_local_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADE_BOOTSTRAP_SERVERS", "kafka-1:9092,kafka-2:9092")
    refused = RUN.invoke(app, ["up"])
    assert isinstance(refused.exception, SettingsError)
    assert "one address on 127.0.0.1" in str(refused.exception)


def test_foreground_runs_until_it_is_told_to_stop(tmp_path: Path) -> None:
    arguments = ["broker", "up", "--foreground", "--port", "0", "--data-dir", str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-m", "cli.main", *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("running: Apache Kafka")
            assert LocalBroker(tmp_path).status().running
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
            await_until(lambda: not LocalBroker(tmp_path).status().running)
        finally:
            process.kill()
            LocalBroker(tmp_path).down()
