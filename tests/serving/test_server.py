"""The server over a real socket, without Kafka: what callers see."""

import threading
from collections.abc import Callable, Iterator

import grpc
import pytest
from grade.v1.decision_pb2 import ARM_HOLDOUT, Decision
from grade.v1.policy_service_pb2 import (
    DescribePolicyRequest,
    SampleBatchRequest,
    SampleRequest,
)
from grade.v1.policy_service_pb2_grpc import PolicyServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from policy.errors import SettingsError
from serving.server import SERVICE, PolicyServer
from serving.servicer import LARGEST_BATCH
from tests.kafka import await_until
from tests.serving.parameters import EXAMPLE, HOLDOUT_UNIT, made_context
from tests.serving.running import NO_TOPICS, NOBODY, SETTINGS, calling, running_server


@pytest.fixture(scope="module")
def server() -> Iterator[PolicyServer]:
    with running_server(NOBODY, NO_TOPICS, ready_timeout_s=0.0) as server:
        yield server


@pytest.fixture
def stub(server: PolicyServer) -> Iterator[PolicyServiceStub]:
    with calling(server) as stub:
        yield stub


def _health(port: int, service: str = "") -> int:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=10)
        return int(answer.status)


def _refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as refused:
        call()
    return refused.value.code(), refused.value.details() or ""


def test_sample_without_kafka_serves_the_baseline(stub: PolicyServiceStub) -> None:
    response = stub.Sample(SampleRequest(context=made_context(1)), timeout=10)
    decision = Decision.FromString(response.decision.payload)
    assert (response.epoch, response.version) == (0, 0)
    assert len(decision.log_densities) == 4
    assert sum(response.weights) == pytest.approx(1, abs=1e-6)


def test_batch_answers_in_order(stub: PolicyServiceStub) -> None:
    contexts = [made_context(1), made_context(2, unit_id=HOLDOUT_UNIT), made_context(3)]
    requests = [SampleRequest(context=context) for context in contexts]
    answer = stub.SampleBatch(SampleBatchRequest(policy="example", requests=requests), timeout=10)
    assert answer.policy == "example"
    assert list(answer.responses) == [stub.Sample(request, timeout=10) for request in requests]
    assert answer.responses[1].arm == ARM_HOLDOUT


def test_describe(stub: PolicyServiceStub) -> None:
    answer = stub.DescribePolicy(DescribePolicyRequest(policy="example"), timeout=10)
    assert answer.schema_digest == EXAMPLE.digest
    assert answer.version_age_s > 0
    assert answer.kafka_age_s == -1


def test_refusals_name_field_expected_and_seen(stub: PolicyServiceStub) -> None:
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    good = SampleRequest(context=made_context(1))
    short = SampleRequest(context=made_context(1))
    del short.context.features[:]
    assert _refusal(lambda: stub.Sample(short, timeout=10)) == (
        invalid,
        "context.features: expected 3 numbers, seen 0",
    )
    batch = SampleBatchRequest(policy="example", requests=[good, short])
    assert _refusal(lambda: stub.SampleBatch(batch, timeout=10)) == (
        invalid,
        "requests[1].context.features: expected 3 numbers, seen 0",
    )
    other = SampleBatchRequest(policy="other", requests=[good])
    assert _refusal(lambda: stub.SampleBatch(other, timeout=10)) == (
        invalid,
        "policy: expected 'example', seen 'other'",
    )
    long = SampleBatchRequest(policy="example", requests=[good] * (LARGEST_BATCH + 1))
    assert _refusal(lambda: stub.SampleBatch(long, timeout=10)) == (
        invalid,
        "requests: expected at most 1024 requests, seen 1025",
    )
    assert _refusal(lambda: stub.DescribePolicy(DescribePolicyRequest(), timeout=10)) == (
        invalid,
        "policy: expected 'example', seen ''",
    )


def test_a_request_beyond_the_limit_is_refused(stub: PolicyServiceStub) -> None:
    request = SampleRequest(context=made_context(1))
    request.context.unit_id = "u" * (1024 * 1024)
    code, message = _refusal(lambda: stub.Sample(request, timeout=10))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in message


def test_health_is_serving_when_ready(server: PolicyServer) -> None:
    serving = health_pb2.HealthCheckResponse.SERVING
    assert _health(server.port) == _health(server.port, SERVICE) == serving
    health = server.health()
    assert (health["status"], health["version"], health["refused"]) == ("ok", 0, 0)
    assert health["kafka"] in ("connecting", "away")
    assert server.swaps() == []


def test_not_serving_until_ready() -> None:
    server = PolicyServer([(EXAMPLE, NO_TOPICS)], SETTINGS, NOBODY)
    server.start()
    try:
        assert _health(server.port) == health_pb2.HealthCheckResponse.NOT_SERVING
        assert server.health()["status"] == "starting"
        with calling(server) as stub:
            request = SampleRequest(context=made_context(1))
            code, message = _refusal(lambda: stub.Sample(request, timeout=10))
            assert code is grpc.StatusCode.UNAVAILABLE
            assert "seen one that starts or stops" in message
            stub.DescribePolicy(DescribePolicyRequest(policy="example"), timeout=10)
        given_up = threading.Event()
        given_up.set()
        assert not server.get_ready(given_up)
        assert _health(server.port) == health_pb2.HealthCheckResponse.NOT_SERVING
    finally:
        server.stop()


def test_health_says_that_it_stops() -> None:
    with running_server(NOBODY, NO_TOPICS, ready_timeout_s=0.0) as server:
        with calling(server) as stub:
            requests = [SampleRequest(context=made_context(i)) for i in range(LARGEST_BATCH)]
            batch = SampleBatchRequest(policy="example", requests=requests)
            call = stub.SampleBatch.future(batch, timeout=60)
            stopping = threading.Thread(target=server.stop)
            stopping.start()
            await_until(lambda: server.health()["status"] == "stopping")
            call.exception()
            stopping.join()
    assert server.health()["status"] == "stopping"


def test_a_taken_port_gives_a_sentence(server: PolicyServer) -> None:
    with pytest.raises(
        SettingsError, match=f"expected an address that is free, seen .*:{server.port}"
    ):
        with running_server(NOBODY, NO_TOPICS, port=server.port):
            pass


def test_reflection_is_off_unless_asked_for(server: PolicyServer) -> None:
    def services(port: int) -> list[str]:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            return list(ProtoReflectionDescriptorDatabase(channel).get_services())

    assert _refusal(lambda: services(server.port))[0] is grpc.StatusCode.UNIMPLEMENTED
    with running_server(NOBODY, NO_TOPICS, ready_timeout_s=0.0, reflection=True) as open_server:
        assert SERVICE in services(open_server.port)


def test_calls_beyond_the_limit_are_refused_and_the_rest_answered() -> None:
    with running_server(NOBODY, NO_TOPICS, ready_timeout_s=0.0, max_concurrent_rpcs=1) as server:
        with calling(server) as stub:
            requests = [SampleRequest(context=made_context(i)) for i in range(LARGEST_BATCH)]
            batch = SampleBatchRequest(policy="example", requests=requests)
            calls = [stub.SampleBatch.future(batch, timeout=60) for _ in range(8)]
            codes = {call.code() for call in calls}
    assert codes == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
