"""Asking the policy server for the fusion weights of ranking requests."""

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


class PolicyClient:
    """Asks a policy server. May be used from several threads; close it after use.

    Args:
        target: the server as host:port, or any gRPC target.
        policy: name of the policy to ask.
        timeout_s: how long to wait for an answer.
    """

    def __init__(self, target: str, policy: str, *, timeout_s: float = 1.0) -> None:
        self._calls = PolicyCalls(policy)
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(target, options=CHANNEL_OPTIONS)
        self._stub = PolicyServiceStub(self._channel)

    def sample(self, request_id: str, unit_id: str, features: Features) -> Sampled:
        """Fusion weights for one request.

        Args:
            request_id: unique name of the request, at most 128 bytes.
            unit_id: the unit that keeps its experiment arm.
            features: by name, or [feature] in the order of the schema that `describe` told last.
                By name they are put into the order that the server has, even if it changes; without
                names the request is refused then, unless `describe` was never called.

        Raises:
            InvalidContext: features by name are not those of the schema, or a field cannot be sent.
            PolicyCallFailed: the server did not answer in time, or refused the request.
            SchemaError: the server reads the policy's schema differently.
        """
        return self._run(self._calls.sample(SampleQuestion(request_id, unit_id, features)))

    def sample_batch(self, questions: Sequence[SampleQuestion]) -> list[Sampled]:
        """Fusion weights for many requests in one call; the same answers as one by one.

        Raises:
            InvalidContext: features by name are not those of the schema, or a field cannot be sent.
            PolicyCallFailed: the server did not answer in time, or refused one of the requests.
            SchemaError: the server reads the policy's schema differently.
        """
        return self._run(self._calls.sample_batch(questions))

    def describe(self) -> Description:
        """What the policy expects and which version is serving now.

        Raises:
            PolicyCallFailed: the server did not answer in time, or does not serve the policy.
            SchemaError: the server reads the policy's schema differently.
        """
        return self._run(self._calls.describe())

    def close(self) -> None:
        """End the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self, steps: Steps[_Answer]) -> _Answer:
        """Make the calls that the steps want."""
        try:
            call = next(steps)
            while True:
                try:
                    answer = self._answer(call)
                except PolicyCallFailed as failure:
                    call = steps.throw(failure)
                else:
                    call = steps.send(answer)
        except StopIteration as done:
            found: _Answer = done.value
            return found

    def _answer(self, call: Call) -> Any:
        try:
            return getattr(self._stub, call.method)(call.request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            # A unary call's error is always a grpc.Call too.
            raise PolicyCallFailed.of(call.method, error) from error
