"""Every error has a status, and the interceptor applies it on a real connection."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
import pytest
from grade.v1.policy_service_pb2 import (
    DescribePolicyRequest,
    DescribePolicyResponse,
    SampleBatchRequest,
    SampleBatchResponse,
    SampleRequest,
    SampleResponse,
)
from grade.v1.policy_service_pb2_grpc import (
    PolicyServiceServicer,
    PolicyServiceStub,
    add_PolicyServiceServicer_to_server,
)
from grade.v1.refused_pb2 import Reason
from prometheus_client import REGISTRY

from policy.errors import GradeError, InvalidContext, OffsetGap, SnapshotRefused
from serving.server import SERVICE
from serving.servicer import Call
from serving.status import INTERNAL_MESSAGE, STATUS, NotServing, StatusInterceptor, status_of

LIST_ERRORS = """
import cli.serve
from policy.errors import GradeError
def walk(kind):
    for each in kind.__subclasses__():
        yield each
        yield from walk(each)
for each in walk(GradeError):
    print(each.__name__)
"""


def test_every_error_that_the_process_knows_has_a_status() -> None:
    listed = subprocess.run(
        [sys.executable, "-c", LIST_ERRORS], capture_output=True, text=True, check=True
    )
    known = set(listed.stdout.split())
    assert known >= {"InvalidContext", "KafkaUnreachable", "NotServing"}
    named = {kind.__name__ for kind in STATUS}
    # An error without a line of its own must be a refinement of one that has a line.
    refinements = {"OffsetGap", "RetentionLost", "BoundaryError"}
    assert known - refinements == named


def test_status_of() -> None:
    assert status_of(NotServing("not yet")) == (grpc.StatusCode.UNAVAILABLE, "not yet")
    assert status_of(OffsetGap("log", 1, 2)) == (grpc.StatusCode.INTERNAL, INTERNAL_MESSAGE)
    assert status_of(GradeError("secret")) == (grpc.StatusCode.INTERNAL, INTERNAL_MESSAGE)
    assert status_of(KeyError("secret")) == (grpc.StatusCode.INTERNAL, INTERNAL_MESSAGE)


class _Raises(PolicyServiceServicer):
    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action

    async def DescribePolicy(  # noqa: N802 - the contract's name
        self, request: DescribePolicyRequest, context: Call
    ) -> DescribePolicyResponse:
        self._action()
        return DescribePolicyResponse(policy=request.policy)

    async def Sample(  # noqa: N802 - the contract's name
        self, request: SampleRequest, context: Call
    ) -> SampleResponse:
        raise NotImplementedError

    async def SampleBatch(  # noqa: N802 - the contract's name
        self, request: SampleBatchRequest, context: Call
    ) -> SampleBatchResponse:
        raise NotImplementedError


@contextmanager
def _stub(action: Callable[[], None]) -> Iterator[PolicyServiceStub]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> tuple[grpc.aio.Server, int]:
        server = grpc.aio.server(interceptors=[StatusInterceptor(SERVICE, ["x"])])
        add_PolicyServiceServicer_to_server(_Raises(action), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port

    server, port = asyncio.run_coroutine_threadsafe(start(), loop).result()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield PolicyServiceStub(channel)
    asyncio.run_coroutine_threadsafe(server.stop(None), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def _fails(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def _count(code: str) -> float:
    labels = {"policy": "x", "method": "DescribePolicy", "code": code}
    return REGISTRY.get_sample_value("grade_serving_rpc_seconds_count", labels) or 0.0


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            InvalidContext("context.policy", "'a'", "'b'", Reason.REASON_UNKNOWN_POLICY),
            grpc.StatusCode.INVALID_ARGUMENT,
            "context.policy: expected 'a', seen 'b'",
        ),
        (NotServing("starting"), grpc.StatusCode.UNAVAILABLE, "starting"),
        (
            SnapshotRefused("finite", "a", "b", Reason.REASON_NOT_FINITE),
            grpc.StatusCode.INTERNAL,
            INTERNAL_MESSAGE,
        ),
        (ZeroDivisionError("secret"), grpc.StatusCode.INTERNAL, INTERNAL_MESSAGE),
    ],
)
def test_errors_over_the_wire(error: Exception, code: grpc.StatusCode, message: str) -> None:
    before = _count(code.name)
    with _stub(_fails(error)) as stub, pytest.raises(grpc.RpcError) as refused:
        stub.DescribePolicy(DescribePolicyRequest(policy="x"), timeout=10)
    assert refused.value.code() is code
    assert refused.value.details() == message
    assert _count(code.name) == before + 1


def test_an_answer_passes_and_is_counted() -> None:
    before = _count("OK")
    with _stub(lambda: None) as stub:
        answer = stub.DescribePolicy(DescribePolicyRequest(policy="x"), timeout=10)
    assert answer.policy == "x"
    assert _count("OK") == before + 1


def test_a_call_whose_deadline_passed_in_the_queue_is_not_worked_on() -> None:
    started, release, worked = threading.Event(), threading.Event(), []

    def work() -> None:
        worked.append(1)
        started.set()
        assert release.wait(30)

    request = DescribePolicyRequest(policy="x")
    with _stub(work) as stub:
        first = stub.DescribePolicy.future(request, timeout=30)
        assert started.wait(10)
        with pytest.raises(grpc.RpcError) as refused:
            stub.DescribePolicy(request, timeout=0.05)
        assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        release.set()
        assert first.result().policy == "x"
        # The server has one thread and takes calls in order, so the second one's turn is over.
        assert stub.DescribePolicy(request, timeout=30).policy == "x"
    assert len(worked) == 2
