"""The RPCs: what comes over the wire, handed to the engine."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import grpc
from grade.v1.decision_pb2 import ARM_HOLDOUT
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
from serving.engine import Engine
from serving.status import NotServing

LARGEST_BATCH = 1024
"""Requests in one batch; a batch holds a thread for about 30 µs per request."""

_HOLDOUT_DECISIONS = metrics.DECISIONS.labels(arm="holdout")
_POLICY_DECISIONS = metrics.DECISIONS.labels(arm="policy")


class Ages(NamedTuple):
    """How old the server's knowledge is, in seconds."""

    version: float
    """Since the serving version was swapped in."""
    kafka: float
    """Since the parameters topic was last heard from; negative if never."""


class PolicyServicer(PolicyServiceServicer):
    """Answers the ranking tier; errors are raised and become statuses in `serving.status`.

    Args:
        engine: decides.
        ages: asked when the policy is described.
        ready: whether requests may be answered.
    """

    def __init__(self, engine: Engine, ages: Callable[[], Ages], ready: Callable[[], bool]) -> None:
        self._engine = engine
        self._ages = ages
        self._ready = ready

    def Sample(  # noqa: N802 - the contract's name
        self, request: SampleRequest, context: grpc.ServicerContext
    ) -> SampleResponse:
        """Decide one request."""
        self._check_ready()
        response = self._engine.sample(request.context)
        _count([response])
        return response

    def SampleBatch(  # noqa: N802 - the contract's name
        self, request: SampleBatchRequest, context: grpc.ServicerContext
    ) -> SampleBatchResponse:
        """Decide many requests with one version."""
        self._check_ready()
        self._engine.check_policy(request.policy)
        if len(request.requests) > LARGEST_BATCH:
            raise InvalidContext(
                "requests",
                f"at most {LARGEST_BATCH} requests",
                str(len(request.requests)),
                Reason.REASON_TOO_LARGE,
            )
        responses = self._engine.sample_batch([r.context for r in request.requests])
        _count(responses)
        return SampleBatchResponse(policy=request.policy, responses=responses)

    def DescribePolicy(  # noqa: N802 - the contract's name
        self, request: DescribePolicyRequest, context: grpc.ServicerContext
    ) -> DescribePolicyResponse:
        """Say what the policy expects and what is serving."""
        self._engine.check_policy(request.policy)
        description = self._engine.describe()
        description.version_age_s, description.kafka_age_s = self._ages()
        return description

    def _check_ready(self) -> None:
        if not self._ready():
            raise NotServing("expected a server that is ready, seen one that starts or stops")


def _count(responses: Sequence[SampleResponse]) -> None:
    held_out = sum(r.arm == ARM_HOLDOUT for r in responses)
    if held_out:
        _HOLDOUT_DECISIONS.inc(held_out)
    if held_out < len(responses):
        _POLICY_DECISIONS.inc(len(responses) - held_out)
