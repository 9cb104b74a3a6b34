"""One server meets every broken call and every broken snapshot, and goes on answering."""

import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grade.v1.refused_pb2 import Reason
from prometheus_client import REGISTRY

from cli.admin import AdminServer
from grade_client import PolicyCallFailed, PolicyClient
from policy.errors import SnapshotRefused, reason_name
from serving.server import SERVICE, PolicyServer
from serving.snapshot import load_policy
from serving.snapshot_file import read_snapshot
from stream.connection import Connection
from stream.topics import Topics
from tests.bad_input.calls import CALLS, BrokenCall
from tests.bad_input.case import Case, named
from tests.bad_input.snapshots import FILES, FIRST_VERSION, LOADED, RECORDS, BrokenSnapshot
from tests.kafka import await_until, create_fresh, produce
from tests.serving.parameters import EXAMPLE, made_snapshot, publish
from tests.serving.running import running_server

SOUND = [12.0, 30.0, 0.5]


@pytest.fixture(scope="module")
def topics(broker: object) -> Topics:
    return create_fresh(Connection(broker.bootstrap_servers))  # type: ignore[attr-defined]  # a BrokerStatus


@pytest.fixture(scope="module")
def server(broker: object, topics: Topics) -> Iterator[PolicyServer]:
    connection = Connection(broker.bootstrap_servers)  # type: ignore[attr-defined]  # a BrokerStatus
    with running_server(connection, topics) as running:
        yield running


def send(channel: grpc.Channel, method: str, sent: bytes) -> None:
    """Call with any bytes at all."""
    call: Any = channel.unary_unary(f"/{SERVICE}/{method}")
    call(sent, timeout=10)


def refused_calls(reason: str) -> float:
    counted = [
        REGISTRY.get_sample_value(
            "grade_serving_calls_refused_total", {"policy": policy, "reason": reason}
        )
        for policy in ("example", "")  # calls for policies that are not served have no label
    ]
    return sum(each or 0.0 for each in counted)


@pytest.mark.parametrize("case", CALLS, ids=named)
def test_a_broken_call_is_refused(server: PolicyServer, case: Case[BrokenCall]) -> None:
    name = reason_name(case.reason)
    before = refused_calls(name)
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        with pytest.raises(grpc.RpcError) as raised:
            send(channel, case.broken.method, case.broken.sent)
    failed = PolicyCallFailed.of(case.broken.method, raised.value)
    assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
    case.check(failed.reason, failed.details)
    assert refused_calls(name) == before + 1


def test_a_call_that_is_larger_than_any_may_be_is_refused_by_grpc_itself(
    server: PolicyServer,
) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        with pytest.raises(grpc.RpcError) as raised:
            send(channel, "Sample", bytes(2 * 1024 * 1024))
    failed = PolicyCallFailed.of("Sample", raised.value)
    assert failed.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert failed.reason == Reason.REASON_UNSPECIFIED


def test_the_client_tells_the_reason(server: PolicyServer) -> None:
    with PolicyClient(f"127.0.0.1:{server.port}", "example", timeout_s=10) as client:
        with pytest.raises(PolicyCallFailed) as refused:
            client.sample("r", "u", [1.0])
        assert refused.value.reason == Reason.REASON_WRONG_DIMENSION
        with pytest.raises(PolicyCallFailed) as refused:
            client.sample("r", "u", [1.0, float("nan"), 1.0])
        assert refused.value.reason == Reason.REASON_NOT_FINITE


def test_broken_snapshots_do_not_stop_what_is_serving(
    server: PolicyServer, topics: Topics, connection: Connection
) -> None:
    publish(connection, topics.parameters, [made_snapshot(1)])
    await_until(lambda: server.engines["example"].policy.order == (1, 1), 20, "version 1")
    expected: Counter[str] = Counter()
    with PolicyClient(f"127.0.0.1:{server.port}", "example", timeout_s=10) as client:
        for number, case in enumerate(RECORDS):
            record = case.broken.made(FIRST_VERSION + number)
            produce(connection, topics.parameters, [record])
            refused = number + 1
            await_until(lambda n=refused: server.health()["refused"] == n, 20, case.name)  # type: ignore[misc]  # bound now
            expected[reason_name(case.reason)] += 1
            health = server.health()
            case.check(case.reason, health["last_refused"])
            assert health["refused_by_reason"] == expected, case.name
            assert client.sample("r", "u", SOUND).version == 1
        # A tombstone is no snapshot at all; then comes one that is sound.
        produce(connection, topics.parameters, [record._replace(value=None, key=b"example/1/1")])
        publish(connection, topics.parameters, [made_snapshot(2_000)])
        await_until(
            lambda: server.engines["example"].policy.order == (1, 2_000), 20, "version 2000"
        )
        assert client.sample("r", "u", SOUND).version == 2_000
    assert server.health()["refused"] == len(RECORDS)
    with AdminServer(0, server.health) as admin:
        url = f"http://127.0.0.1:{admin.port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            metrics = answer.read().decode()
    for reason in expected:
        assert f'reason="{reason}"' in metrics


@pytest.mark.parametrize("case", [*LOADED], ids=named)
def test_a_broken_snapshot_is_not_loaded(case: Case[BrokenSnapshot]) -> None:
    value = case.broken.made(7).value
    assert value is not None
    with pytest.raises(SnapshotRefused) as refused:
        load_policy(type(made_snapshot(1)).FromString(value), EXAMPLE)
    case.check(refused.value.reason, str(refused.value))


@pytest.mark.parametrize("case", FILES, ids=named)
def test_a_broken_snapshot_file_is_refused(
    tmp_path: Path, case: Case[Callable[[Path], object]]
) -> None:
    path = tmp_path / "snapshot"
    case.broken(path)
    with pytest.raises(SnapshotRefused) as refused:
        read_snapshot(path)
    case.check(refused.value.reason, str(refused.value))
