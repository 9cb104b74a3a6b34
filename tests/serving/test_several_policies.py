"""Several policies behind one port: each has its engine, its topics and its figures."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grade.v1.policy_service_pb2 import DescribePolicyRequest, SampleBatchRequest, SampleRequest
from prometheus_client import REGISTRY

from grade_client import PolicyCallFailed, PolicyClient
from policy.schema import parse_schema
from serving.server import PolicyServer
from stream.connection import Connection
from stream.topics import Topics
from tests.kafka import await_until, create_fresh
from tests.serving.parameters import EXAMPLE, made_context, made_schema, made_snapshot, publish
from tests.serving.running import SETTINGS, calling

SEARCH = parse_schema(made_schema(5, 4).toml.replace('"made"', '"search"'))


@pytest.fixture(scope="module")
def topics(broker: Any) -> tuple[Topics, Topics]:
    connection = Connection(broker.bootstrap_servers)
    return create_fresh(connection), create_fresh(connection)


@pytest.fixture(scope="module")
def server(broker: Any, topics: tuple[Topics, Topics]) -> Iterator[PolicyServer]:
    policies = list(zip((EXAMPLE, SEARCH), topics, strict=True))
    server = PolicyServer(policies, SETTINGS, Connection(broker.bootstrap_servers))
    server.start()
    try:
        assert server.get_ready()
        yield server
    finally:
        server.stop()


def _figure(name: str, policy: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, {"policy": policy, **labels}) or 0.0


def test_each_follows_its_own_topic(
    server: PolicyServer, topics: tuple[Topics, Topics], connection: Connection
) -> None:
    example, search = server.engines["example"], server.engines["search"]
    publish(connection, topics[0].parameters, [made_snapshot(3)])
    await_until(lambda: example.policy.order == (1, 3))
    # Another policy's snapshot in its topic is nothing to it.
    publish(connection, topics[1].parameters, [made_snapshot(9)])
    publish(connection, topics[1].parameters, [made_snapshot(2, epoch=4, schema=SEARCH)])
    await_until(lambda: search.policy.order == (4, 2))
    assert example.policy.order == (1, 3)
    health = server.health()
    assert health["status"] == "ok"
    states = {name: (each["epoch"], each["version"]) for name, each in health["policies"].items()}
    assert states == {"example": (1, 3), "search": (4, 2)}
    assert {each["kafka"] for each in health["policies"].values()} == {"following"}
    assert [(swap["policy"], swap["version"]) for swap in server.swaps()] == [
        ("example", 3),
        ("search", 2),
    ]
    assert _figure("grade_serving_version", "example") == 3
    assert _figure("grade_serving_version", "search") == 2
    assert _figure("grade_serving_epoch", "search") == 4


def test_the_request_chooses(server: PolicyServer) -> None:
    contexts = {s.policy: made_context(1, schema=s) for s in (EXAMPLE, SEARCH)}
    before = {
        policy: _figure("grade_serving_decisions_total", policy, arm="policy")
        for policy in contexts
    }
    with calling(server) as stub:
        for policy, context in contexts.items():
            request = SampleRequest(context=context)
            answer = stub.Sample(request, timeout=10)
            batch = SampleBatchRequest(policy=policy, requests=[request])
            assert list(stub.SampleBatch(batch, timeout=10).responses) == [answer]
            assert answer.policy == policy
            described = stub.DescribePolicy(DescribePolicyRequest(policy=policy), timeout=10)
            assert described.schema_digest == server.engines[policy].schema.digest
    for policy, count in before.items():
        assert _figure("grade_serving_decisions_total", policy, arm="policy") == count + 2


def test_an_unknown_policy_is_told_the_known_ones(server: PolicyServer) -> None:
    before = _figure(
        "grade_serving_rpc_seconds_count", "", method="Sample", code="INVALID_ARGUMENT"
    )
    with PolicyClient(f"127.0.0.1:{server.port}", "shop", timeout_s=10) as client:
        for ask in (client.describe, lambda: client.sample("r", "u", [1.0])):
            with pytest.raises(PolicyCallFailed) as refused:
                ask()
            assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT
            assert "policy: expected 'example' or 'search', seen 'shop'" in refused.value.details
    after = _figure("grade_serving_rpc_seconds_count", "", method="Sample", code="INVALID_ARGUMENT")
    assert after == before + 1, "names that nobody serves share one label"


def test_a_batch_is_of_one_policy(server: PolicyServer) -> None:
    mixed = [
        SampleRequest(context=made_context(n, schema=s)) for n, s in enumerate((EXAMPLE, SEARCH))
    ]
    with calling(server) as stub, pytest.raises(grpc.RpcError) as refused:
        stub.SampleBatch(SampleBatchRequest(policy="example", requests=mixed), timeout=10)
    assert refused.value.details() == (
        "requests[1].context.policy: expected 'example', seen 'search'"
    )
