"""The RPCs: what comes over the wire, handed to the engine of its policy."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple, TypeAlias

import grpc
from grade.v1.decision_pb2 import ARM_HOLDOUT, ARM_POLICY
from grade.v1.policy_service_pb2 import (
    DescribePolicyRequest,
    DescribePolicyResponse,
    SampleBatchRequest,
    SampleBatchResponse,
    SampleRequest,
    SampleResponse,
)
from grade.v1.policy_service_pb2_grpc import PolicyServiceServicer
from grade.v1.refused_pb2 import Reason

from policy.errors import InvalidContext
from serving import metrics
from serving.checked_context import unknown_policy
from serving.engine import Engine
from serving.gathering import Gathering
from serving.status import NotServing

LARGEST_BATCH = 1024
"""Requests in one batch; a batch holds a thread for about 30 µs per request."""


Call: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Ages(NamedTuple):
    """How old the server's knowledge of a policy is, in seconds."""

    version: float
    """Since the serving version was swapped in."""
    kafka: float
    """Since the parameters topic was last heard from; negative if never."""


class PolicyServicer(PolicyServiceServicer):
    """Answers the ranking tier; errors are raised and become statuses in `serving.status`.

    Args:
        engines: what decides, by name of the policy.
        threads: where batches are decided, so that they do not hold up single requests.
        ages: asked with a policy's name when it is described.
        ready: whether requests may be answered.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        threads: Executor,
        ages: Callable[[str], Ages],
        ready: Callable[[], bool],
    ) -> None:
        self._engines = dict(engines)
        self._gatherings = {name: Gathering(engine) for name, engine in engines.items()}
        self._threads = threads
        self._ages = ages
        self._ready = ready

    def hold(self) -> None:
        """Accept single requests without deciding them, until `release`."""
        for gathering in self._gatherings.values():
            gathering.hold()

    def release(self) -> None:
        """Decide what has been held."""
        for gathering in self._gatherings.values():
            gathering.release()

    async def Sample(  # noqa: N802 - the contract's name
        self, request: SampleRequest, context: Call
    ) -> SampleResponse:
        """Decide one request."""
        self._check_ready()
        gathering = self._gatherings.get(request.context.policy)
        if gathering is None:
            raise unknown_policy(request.context.policy, self._engines, "context.policy")
        response = await gathering.sample(request.context)
        metrics.CALLS.decided(response.policy, response.arm)
        return response

    async def SampleBatch(  # noqa: N802 - the contract's name
        self, request: SampleBatchRequest, context: Call
    ) -> SampleBatchResponse:
        """Decide many requests with one version."""
        self._check_ready()
        engine = self._engine(request.policy)
        if len(request.requests) > LARGEST_BATCH:
            raise InvalidContext(
                "requests",
                f"at most {LARGEST_BATCH} requests",
                str(len(request.requests)),
                Reason.REASON_TOO_LARGE,
            )
        contexts = [r.context for r in request.requests]
        loop = asyncio.get_running_loop()
        responses = await loop.run_in_executor(self._threads, engine.sample_batch, contexts)
        _count(request.policy, responses)
        return SampleBatchResponse(policy=request.policy, responses=responses)

    async def DescribePolicy(  # noqa: N802 - the contract's name
        self, request: DescribePolicyRequest, context: Call
    ) -> DescribePolicyResponse:
        """Say what the policy expects and what is serving."""
        description = self._engine(request.policy).describe()
        description.version_age_s, description.kafka_age_s = self._ages(request.policy)
        return description

    def _engine(self, policy: str) -> Engine:
        engine = self._engines.get(policy)
        if engine is None:
            raise unknown_policy(policy, self._engines, "policy")
        return engine

    def _check_ready(self) -> None:
        if not self._ready():
            raise NotServing("expected a server that is ready, seen one that starts or stops")


def _count(policy: str, responses: Sequence[SampleResponse]) -> None:
    held_out = sum(r.arm == ARM_HOLDOUT for r in responses)
    if held_out:
        metrics.CALLS.decided(policy, ARM_HOLDOUT, held_out)
    if held_out < len(responses):
        metrics.CALLS.decided(policy, ARM_POLICY, len(responses) - held_out)
