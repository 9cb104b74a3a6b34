"""Asking a policy server over real gRPC."""

import socket
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from grade.v1.decision_pb2 import ARM_POLICY
from grade.v1.policy_service_pb2 import SampleRequest, SampleResponse

from grade_client import PolicyCallFailed, PolicyClient, SampleQuestion, blend
from policy.errors import InvalidContext, SchemaError
from tests.grade_client.served import SCHEMA, KnownAnswers, serving

BY_NAME = {"past_click_rate": 0.25, "hour": 13.0, "age_days": 2.0}
IN_ORDER = [13.0, 2.0, 0.25]


@pytest.fixture
def answers() -> KnownAnswers:
    return KnownAnswers()


@pytest.fixture
def client(answers: KnownAnswers) -> Iterator[PolicyClient]:
    with serving(answers) as target, PolicyClient(target, "example", timeout_s=10.0) as client:
        yield client


def test_sample(client: PolicyClient) -> None:
    sampled = client.sample("r1", "u1", IN_ORDER)
    assert sampled.request_id == "r1"
    assert sampled.weights.dtype == np.float32
    assert sampled.weights.tolist() == np.array([0.5, 0.3, 0.2], np.float32).tolist()
    assert (sampled.epoch, sampled.version, sampled.arm) == (1, 7, ARM_POLICY)
    assert sampled.decision.payload == b"r1|u1|[13.0, 2.0, 0.25]"


def test_features_by_name_are_ordered_as_the_policy_declares(
    client: PolicyClient, answers: KnownAnswers
) -> None:
    for request_id in ("r1", "r2"):
        by_name = client.sample(request_id, "u1", BY_NAME)
        assert by_name.decision == client.sample(request_id, "u1", IN_ORDER).decision
    assert answers.described == 1, "the description is asked for once"


def test_features_may_be_an_array(client: PolicyClient) -> None:
    array = np.array(IN_ORDER, dtype=np.float32)
    assert client.sample("r1", "u1", array).decision.payload == b"r1|u1|[13.0, 2.0, 0.25]"


def test_missing_and_unknown_names_are_told(client: PolicyClient) -> None:
    with pytest.raises(InvalidContext) as refused:
        client.sample("r1", "u1", {"hour": 1.0, "weather": 2.0})
    assert str(refused.value) == (
        "features: expected exactly hour, age_days, past_click_rate, "
        "seen missing: age_days, past_click_rate; unknown: weather"
    )


def test_a_batch_is_the_same_as_one_by_one(client: PolicyClient) -> None:
    questions = [SampleQuestion("r1", "u1", BY_NAME), SampleQuestion("r2", "u2", IN_ORDER)]
    batch = client.sample_batch(questions)
    singles = [client.sample(*question) for question in questions]
    assert [s.request_id for s in batch] == ["r1", "r2"]
    assert [s.decision for s in batch] == [s.decision for s in singles]
    assert [s.weights.tolist() for s in batch] == [s.weights.tolist() for s in singles]


class LargeAnswers(KnownAnswers):
    """Decisions of 5 MiB, more than gRPC takes by default."""

    def Sample(self, request: SampleRequest, context: grpc.ServicerContext) -> SampleResponse:  # noqa: N802 - the RPC
        """Answer, and say much."""
        answer = super().Sample(request, context)
        answer.decision.payload = bytes(5 << 20)
        return answer


def test_a_large_batch_is_taken() -> None:
    questions = [SampleQuestion(f"r{n}", "u1", IN_ORDER) for n in range(2)]
    with (
        serving(LargeAnswers()) as target,
        PolicyClient(target, "example", timeout_s=10.0) as client,
    ):
        answers = client.sample_batch(questions)
    assert [len(answer.decision.payload) for answer in answers] == [5 << 20] * 2


def test_what_the_server_refuses_is_told_with_its_status(client: PolicyClient) -> None:
    with pytest.raises(PolicyCallFailed) as refused:
        client.sample("r1", "u1", [1.0])
    assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert str(refused.value) == ("Sample: INVALID_ARGUMENT: context.features: expected 3, seen 1")


def test_describe(client: PolicyClient) -> None:
    described = client.describe()
    assert described.schema == SCHEMA
    assert described.features == ("hour", "age_days", "past_click_rate")
    assert (described.epoch, described.version) == (1, 7)
    assert (described.version_age_s, described.kafka_age_s) == (2.5, 0.5)


def test_another_reading_of_the_schema_is_refused(
    client: PolicyClient, answers: KnownAnswers
) -> None:
    answers.digest = b"another"
    with pytest.raises(SchemaError, match="client and server differ"):
        client.describe()


def test_an_absent_server_is_told_and_found_again_when_it_is_back() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with PolicyClient(f"127.0.0.1:{port}", "example", timeout_s=0.5) as client:
        with pytest.raises(PolicyCallFailed) as refused:
            client.sample("r1", "u1", IN_ORDER)
        assert refused.value.code in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.DEADLINE_EXCEEDED,
        )


def test_blend_is_the_fusion_of_the_schema(client: PolicyClient) -> None:
    # One candidate pair whose signals are mirrored: standardised, each objective is ±s with
    # s = sd / (sd + 1e-3), so the fused scores are ± the sum of the weights' signed parts.
    scores = [[0.8, 0.1, 3.0], [0.2, 0.3, 1.0]]
    fused = blend(client.describe(), [1.0, 0.0, 0.0], scores)
    half_gap = (np.log(0.8 / 0.2) - np.log(0.2 / 0.8)) / 2
    expected = half_gap / (half_gap + 1e-3)
    assert fused == pytest.approx([expected, -expected], rel=1e-12)
    assert fused.tolist() == blend(SCHEMA, np.array([1.0, 0.0, 0.0]), scores).tolist()
    mixed = blend(SCHEMA, [0.5, 0.5, 0.0], scores)
    assert mixed[0] == pytest.approx(-mixed[1])
