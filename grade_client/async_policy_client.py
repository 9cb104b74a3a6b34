"""The same as `PolicyClient` for programs that run on asyncio."""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from grade.v1.policy_service_pb2_grpc import PolicyServiceStub

from grade_client.calls import (
    CHANNEL_OPTIONS,
    Call,
    Description,
    Features,
    PolicyCalls,
    Sampled,
    SampleQuestion,
    Steps,
)
from grade_client.errors import PolicyCallFailed

_Answer = TypeVar("_Answer")


class AsyncPolicyClient:
    """Asks a policy server without holding up the event loop that it is made in.

    May be used by any number of tasks of that loop; close it after use.

    Args:
        target: the server as host:port, or any gRPC target.
        policy: name of the policy to ask.
        timeout_s: how long to wait for an answer.
    """

    def __init__(self, target: str, policy: str, *, timeout_s: float = 1.0) -> None:
        self._calls = PolicyCalls(policy)
        self._timeout_s = timeout_s
        self._channel = grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
        self._stub: Any = PolicyServiceStub(self._channel)

    async def sample(self, request_id: str, unit_id: str, features: Features) -> Sampled:
        """Fusion weights for one request; arguments and errors as `PolicyClient.sample`."""
        question = SampleQuestion(request_id, unit_id, features)
        return await self._run(self._calls.sample(question))

    async def sample_batch(self, questions: Sequence[SampleQuestion]) -> list[Sampled]:
        """Fusion weights for many requests in one call; errors as `PolicyClient.sample_batch`."""
        return await self._run(self._calls.sample_batch(questions))

    async def describe(self) -> Description:
        """What the policy expects and which version is serving now.

        Raises:
            PolicyCallFailed: the server did not answer in time, or does not serve the policy.
            SchemaError: the server reads the policy's schema differently.
        """
        return await self._run(self._calls.describe())

    async def close(self) -> None:
        """End the connection."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _run(self, steps: Steps[_Answer]) -> _Answer:
        """Make the calls that the steps want."""
        try:
            call = next(steps)
            while True:
                try:
                    answer = await self._answer(call)
                except PolicyCallFailed as failure:
                    call = steps.throw(failure)
                else:
                    call = steps.send(answer)
        except StopIteration as done:
            found: _Answer = done.value
            return found

    async def _answer(self, call: Call) -> Any:
        try:
            return await getattr(self._stub, call.method)(call.request, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            raise PolicyCallFailed.of(call.method, error) from error
