"""Asking a policy server over real gRPC: the same of both clients."""

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import grpc
import numpy as np
import pytest
from grade.v1.decision_pb2 import ARM_POLICY
from grade.v1.policy_service_pb2 import SampleRequest, SampleResponse
from grade.v1.refused_pb2 import Reason

from grade_client import (
    AsyncPolicyClient,
    Description,
    PolicyCallFailed,
    PolicyClient,
    Sampled,
    SampleQuestion,
    blend,
    decode_decision,
)
from grade_client.calls import Features
from policy.errors import InvalidContext, SchemaError
from policy.schema import Schema, parse_schema
from tests.grade_client.served import SCHEMA, KnownAnswers, serving
from tests.kafka import await_until
from tests.serving.running import NO_TOPICS, NOBODY, running_server

BY_NAME = {"past_click_rate": 0.25, "hour": 13.0, "age_days": 2.0}
IN_ORDER = [13.0, 2.0, 0.25]


_Answer = TypeVar("_Answer")


class OnLoop:
    """An `AsyncPolicyClient` on a loop of its own, asked from outside as a `PolicyClient` is."""

    def __init__(self, target: str, policy: str, timeout_s: float) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.client = self._wait(self._made(target, policy, timeout_s))

    async def _made(self, target: str, policy: str, timeout_s: float) -> AsyncPolicyClient:
        return AsyncPolicyClient(target, policy, timeout_s=timeout_s)

    def sample(self, request_id: str, unit_id: str, features: Features) -> Sampled:
        return self._wait(self.client.sample(request_id, unit_id, features))

    def sample_batch(self, questions: Sequence[SampleQuestion]) -> list[Sampled]:
        return self._wait(self.client.sample_batch(questions))

    def describe(self) -> Description:
        return self._wait(self.client.describe())

    def close(self) -> None:
        self._wait(self.client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait(self, awaited: Awaitable[_Answer]) -> _Answer:
        async def awaiting() -> _Answer:
            return await awaited

        return asyncio.run_coroutine_threadsafe(awaiting(), self._loop).result(60)


Client = PolicyClient | OnLoop
Connect = Callable[..., Client]


@pytest.fixture(params=["blocking", "asyncio"])
def connect(request: pytest.FixtureRequest) -> Connect:
    """Makes clients of one kind."""

    def made(target: str, timeout_s: float = 10.0) -> Client:
        if request.param == "blocking":
            return PolicyClient(target, "example", timeout_s=timeout_s)
        return OnLoop(target, "example", timeout_s)

    return made


@contextmanager
def open_client(connect: Connect, target: str, timeout_s: float = 10.0) -> Iterator[Client]:
    client = connect(target, timeout_s)
    try:
        yield client
    finally:
        client.close()


@pytest.fixture
def answers() -> KnownAnswers:
    return KnownAnswers()


@pytest.fixture
def client(answers: KnownAnswers, connect: Connect) -> Iterator[Client]:
    with serving(answers) as target, open_client(connect, target) as client:
        yield client


def test_sample(client: Client) -> None:
    sampled = client.sample("r1", "u1", IN_ORDER)
    assert sampled.request_id == "r1"
    assert sampled.weights.dtype == np.float32
    assert sampled.weights.tolist() == np.array([0.5, 0.3, 0.2], np.float32).tolist()
    assert (sampled.epoch, sampled.version, sampled.arm) == (1, 7, ARM_POLICY)
    assert sampled.decision.payload == b"r1|u1|[13.0, 2.0, 0.25]"


def test_features_by_name_are_ordered_as_the_policy_declares(
    client: Client, answers: KnownAnswers
) -> None:
    for request_id in ("r1", "r2"):
        by_name = client.sample(request_id, "u1", BY_NAME)
        assert by_name.decision == client.sample(request_id, "u1", IN_ORDER).decision
    assert answers.described == 1, "the description is asked for once"


def test_features_may_be_an_array(client: Client) -> None:
    array = np.array(IN_ORDER, dtype=np.float32)
    assert client.sample("r1", "u1", array).decision.payload == b"r1|u1|[13.0, 2.0, 0.25]"


def test_missing_and_unknown_names_are_told(client: Client) -> None:
    with pytest.raises(InvalidContext) as refused:
        client.sample("r1", "u1", {"hour": 1.0, "weather": 2.0})
    assert str(refused.value) == (
        "features: expected exactly hour, age_days, past_click_rate, "
        "seen missing: age_days, past_click_rate; unknown: weather"
    )


def test_a_batch_is_the_same_as_one_by_one(client: Client) -> None:
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


def test_a_large_batch_is_taken(connect: Connect) -> None:
    questions = [SampleQuestion(f"r{n}", "u1", IN_ORDER) for n in range(2)]
    with serving(LargeAnswers()) as target, open_client(connect, target) as client:
        answers = client.sample_batch(questions)
    assert [len(answer.decision.payload) for answer in answers] == [5 << 20] * 2


def test_what_the_server_refuses_is_told_with_its_status(client: Client) -> None:
    with pytest.raises(PolicyCallFailed) as refused:
        client.sample("r1", "u1", [1.0])
    assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert str(refused.value) == ("Sample: INVALID_ARGUMENT: context.features: expected 3, seen 1")


def test_describe(client: Client) -> None:
    described = client.describe()
    assert described.schema == SCHEMA
    assert described.features == ("hour", "age_days", "past_click_rate")
    assert (described.epoch, described.version) == (1, 7)
    assert (described.version_age_s, described.kafka_age_s) == (2.5, 0.5)


def test_another_reading_of_the_schema_is_refused(client: Client, answers: KnownAnswers) -> None:
    answers.digest = b"another"
    with pytest.raises(SchemaError, match="client and server differ"):
        client.describe()


def test_an_absent_server_is_told_and_found_again_when_it_is_back(connect: Connect) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with open_client(connect, f"127.0.0.1:{port}", timeout_s=0.5) as client:
        with pytest.raises(PolicyCallFailed) as refused:
            client.sample("r1", "u1", IN_ORDER)
        assert refused.value.code in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.DEADLINE_EXCEEDED,
        )
        with running_server(NOBODY, NO_TOPICS, SCHEMA, port=port, ready_timeout_s=0.0):
            await_until(lambda: _answers(client), what="an answer of the server that is back")


def _answers(client: Client) -> bool:
    try:
        return client.sample("r1", "u1", IN_ORDER).version == 0
    except PolicyCallFailed:
        return False


def test_blend_is_the_fusion_of_the_schema(client: Client) -> None:
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


def test_the_baseline_is_at_hand_while_no_server_answers(client: Client) -> None:
    described = client.describe()
    assert described.baseline.tolist() == np.array([0.5, 0.3, 0.2], np.float32).tolist()
    # Where the server could never be asked, the schema's own file says the same.
    assert described.baseline.tolist() == SCHEMA.baseline().astype(np.float32).tolist()


REORDERED = parse_schema(
    SCHEMA.toml.replace('["hour", "age_days"', '["age_days", "hour"'), where="reordered"
)
GROWN = parse_schema(
    SCHEMA.toml.replace('["hour", "age_days"', '["hour", "weekday", "age_days"'), where="grown"
)


@contextmanager
def restarted(connect: Connect, later: Schema) -> Iterator[tuple[Client, Callable[[], None]]]:
    """A client of a server that is started again under another schema when told to."""
    with ExitStack() as stack:
        first = ExitStack()
        server = first.enter_context(running_server(NOBODY, NO_TOPICS, SCHEMA, **AT_ONCE))
        port = server.port
        client = stack.enter_context(open_client(connect, f"127.0.0.1:{port}"))

        def restart() -> None:
            first.close()
            stack.enter_context(running_server(NOBODY, NO_TOPICS, later, port=port, **AT_ONCE))
            await_until(lambda: _reached(client), what="the server that was started again")

        with first:
            yield client, restart


AT_ONCE = {"ready_timeout_s": 0.0}


def _reached(client: Client) -> bool:
    """Without telling the client anything about the server's schema."""
    try:
        client.sample("", "", [])
    except PolicyCallFailed as failure:
        return failure.code is grpc.StatusCode.INVALID_ARGUMENT
    return False


def _decided(sampled: Sampled) -> tuple[bytes, list[float]]:
    decision = decode_decision(sampled.decision)
    return decision.schema_digest, list(decision.features)


def test_named_features_follow_the_schema_of_a_server_that_was_started_again(
    connect: Connect,
) -> None:
    with restarted(connect, REORDERED) as (client, restart):
        assert _decided(client.sample("r1", "u1", BY_NAME)) == (SCHEMA.digest, [13.0, 2.0, 0.25])
        restart()
        swapped = (REORDERED.digest, [2.0, 13.0, 0.25])
        batch = client.sample_batch([SampleQuestion(f"r{n}", "u1", BY_NAME) for n in range(3)])
        assert [_decided(each) for each in batch] == [swapped] * 3
        assert _decided(client.sample("r1", "u1", BY_NAME)) == swapped


def test_features_without_names_are_refused_when_their_order_is_another(connect: Connect) -> None:
    with restarted(connect, REORDERED) as (client, restart):
        unchecked = client.sample("r1", "u1", IN_ORDER)
        assert _decided(unchecked) == (SCHEMA.digest, IN_ORDER)
        client.describe()
        restart()
        # A description that the client got for itself tells the caller nothing.
        client.sample("r1", "u1", BY_NAME)
        for features in (IN_ORDER, np.array(IN_ORDER, dtype=np.float32)):
            with pytest.raises(PolicyCallFailed) as refused:
                client.sample("r1", "u1", features)
            assert refused.value.reason == Reason.REASON_UNKNOWN_SCHEMA
            assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT
            assert f"ordered by the schema {REORDERED.digest.hex()}" in refused.value.details
        mixed = [SampleQuestion("r1", "u1", BY_NAME), SampleQuestion("r2", "u1", IN_ORDER)]
        with pytest.raises(PolicyCallFailed) as refused:
            client.sample_batch(mixed)
        assert refused.value.reason == Reason.REASON_UNKNOWN_SCHEMA
        assert client.describe().features == ("age_days", "hour", "past_click_rate")
        assert _decided(client.sample("r1", "u1", [2.0, 13.0, 0.25]))[0] == REORDERED.digest


def test_a_feature_that_the_server_has_meanwhile_is_taken(connect: Connect) -> None:
    with restarted(connect, GROWN) as (client, restart):
        client.sample("r1", "u1", BY_NAME)
        with pytest.raises(InvalidContext, match="unknown: weekday"):
            client.sample("r1", "u1", BY_NAME | {"weekday": 3.0})
        restart()
        grown = client.sample("r1", "u1", BY_NAME | {"weekday": 3.0})
        assert _decided(grown) == (GROWN.digest, [13.0, 3.0, 2.0, 0.25])
        with pytest.raises(InvalidContext, match="missing: weekday"):
            client.sample("r1", "u1", BY_NAME)


def test_one_loop_has_many_requests_in_flight() -> None:
    async def ask(port: int) -> list[Sampled]:
        async with AsyncPolicyClient(f"127.0.0.1:{port}", "example", timeout_s=30) as client:
            return await asyncio.gather(*(client.sample(f"r{n}", "u1", BY_NAME) for n in range(64)))

    with running_server(NOBODY, NO_TOPICS, SCHEMA, **AT_ONCE) as server:
        answers = asyncio.run(ask(server.port))
    assert [each.request_id for each in answers] == [f"r{n}" for n in range(64)]
