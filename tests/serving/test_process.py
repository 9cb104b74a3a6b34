"""`grade serve` as a process: start, signals, what it loads."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grade.v1.policy_service_pb2 import SampleBatchRequest, SampleRequest
from grade.v1.policy_service_pb2_grpc import PolicyServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stream.connection import Connection
from stream.topics import Topics
from tests.kafka import await_until
from tests.serving.parameters import EXAMPLE_PATH, made_context, made_snapshot, publish

NO_KAFKA = {"GRADE_BOOTSTRAP_SERVERS": "127.0.0.1:9", "GRADE_SERVE_READY_TIMEOUT_S": "0"}


def _environment(folder: Path, changes: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GRADE_")}
    return kept | {
        "GRADE_SCHEMA_PATH": str(EXAMPLE_PATH),
        "GRADE_DATA_DIR": str(folder),
        "GRADE_SERVE_PORT": "0",
        "GRADE_SERVE_ADMIN_PORT": "0",
        "GRADE_LOG_FORMAT": "json",
        **changes,
    }


@contextmanager
def _serving(folder: Path, changes: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A server process; its log goes to a file of the folder."""
    with (folder / "log").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", "serve", "--port-file", str(folder / "port")],
            env=_environment(folder, changes),
            stderr=output,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def _log(folder: Path) -> str:
    return (folder / "log").read_text(encoding="utf-8")


def _ready(folder: Path, process: subprocess.Popen[bytes]) -> int:
    """Wait for the port file; returns the port."""

    def written() -> bool:
        assert process.poll() is None, _log(folder)
        return (folder / "port").exists()

    await_until(written, timeout_s=60, what="the port file")
    return int((folder / "port").read_text(encoding="ascii"))


def _events(folder: Path) -> dict[str, dict[str, object]]:
    lines = [json.loads(line) for line in _log(folder).splitlines() if line.startswith("{")]
    return {line["event"]: line for line in lines}


def test_sigterm_drains_what_is_in_flight(tmp_path: Path) -> None:
    with _serving(tmp_path, NO_KAFKA) as process:
        port = _ready(tmp_path, process)
        requests = [SampleRequest(context=made_context(i)) for i in range(1000)]
        batch = SampleBatchRequest(policy="example", requests=requests)
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = PolicyServiceStub(channel)
            watch = health_pb2_grpc.HealthStub(channel).Watch(
                health_pb2.HealthCheckRequest(), timeout=60
            )
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            calls = [stub.SampleBatch.future(batch, timeout=60) for _ in range(24)]
            calls[0].result()
            process.send_signal(signal.SIGTERM)
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert any(not call.done() for call in calls)
            assert [len(call.result().responses) for call in calls] == [1000] * 24
            watch.cancel()
            assert process.wait(timeout=30) == 0
    assert set(_events(tmp_path)) >= {"serve_ready", "serve_stopping", "serve_stopped"}


def test_sigterm_answers_every_call_that_has_arrived(tmp_path: Path) -> None:
    """Callers that wait for their answers before they ask again: none is cancelled."""
    failed: list[grpc.StatusCode] = []

    async def ask(port: int, process: subprocess.Popen[bytes]) -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = PolicyServiceStub(channel)
            answered = asyncio.Event()

            async def caller(first: int) -> None:
                for number in range(first, 1_000_000, 32):
                    try:
                        await stub.Sample(SampleRequest(context=made_context(number)), timeout=30)
                    except grpc.aio.AioRpcError as error:
                        failed.append(error.code())
                        return
                    if number > 320:
                        answered.set()

            callers = [asyncio.create_task(caller(first)) for first in range(32)]
            await answered.wait()
            process.send_signal(signal.SIGTERM)
            await asyncio.gather(*callers)

    with _serving(tmp_path, NO_KAFKA) as process:
        asyncio.run(ask(_ready(tmp_path, process), process))
        assert process.wait(timeout=30) == 0
    # Each found the server gone when it asked once more.
    assert failed == [grpc.StatusCode.UNAVAILABLE] * 32


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_waiting_for_kafka_ends_it_at_once(
    tmp_path: Path, number: signal.Signals
) -> None:
    changes = {"GRADE_BOOTSTRAP_SERVERS": "127.0.0.1:9", "GRADE_SERVE_READY_TIMEOUT_S": "300"}
    with _serving(tmp_path, changes) as process:
        await_until(lambda: "kafka_away" in _log(tmp_path), timeout_s=60)
        process.send_signal(number)
        assert process.wait(timeout=30) == 0
    assert "serve_ready" not in _events(tmp_path)


def test_a_restart_without_kafka_goes_on_with_the_last_good_version(
    tmp_path: Path, connection: Connection, topics: Topics
) -> None:
    publish(connection, topics.parameters, [made_snapshot(5)])
    with_kafka = {
        "GRADE_BOOTSTRAP_SERVERS": connection.bootstrap_servers,
        "GRADE_TOPIC_PREFIX": topics.prefix,
    }
    for changes in (with_kafka, with_kafka | NO_KAFKA):
        with _serving(tmp_path, changes) as process:
            port = _ready(tmp_path, process)
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                request = SampleRequest(context=made_context(1))
                assert PolicyServiceStub(channel).Sample(request, timeout=10).version == 5
            admin = f"http://127.0.0.1:{_events(tmp_path)['serve_ready']['admin_port']}"
            with urllib.request.urlopen(f"{admin}/health", timeout=10) as answer:
                health = json.load(answer)
            assert (health["status"], health["version"]) == ("ok", 5)
            with urllib.request.urlopen(f"{admin}/swaps", timeout=10) as answer:
                assert [swap["version"] for swap in json.load(answer)] == [5]
            with urllib.request.urlopen(f"{admin}/metrics", timeout=10) as answer:
                metrics = answer.read().decode()
            assert 'grade_serving_version{policy="example"} 5.0' in metrics
            called = 'code="OK",method="Sample",policy="example"'
            assert f"grade_serving_rpc_seconds_count{{{called}}} 1.0" in metrics
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0
        (tmp_path / "port").unlink()


def test_a_taken_port_gives_a_sentence(tmp_path: Path) -> None:
    with _serving(tmp_path, NO_KAFKA) as process:
        port = _ready(tmp_path, process)
        second = subprocess.run(
            [sys.executable, "-m", "cli.main", "serve", "--port", str(port)],
            env=_environment(tmp_path, NO_KAFKA),
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert second.returncode == 2
    assert f"expected an address that is free, seen 127.0.0.1:{port}" in second.stderr
    assert "Traceback" not in second.stderr


def test_the_process_loads_neither_torch_nor_faust() -> None:
    script = "import sys, cli.serve; print([m for m in ('torch', 'faust') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
