"""A real gRPC server that answers as a policy server does, with answers known beforehand."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import grpc
from grade.v1.decision_pb2 import ARM_POLICY, SignedDecision
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
    add_PolicyServiceServicer_to_server,
)

from policy.schema import load_schema

SCHEMA = load_schema(Path(__file__).parents[1] / "example_schema.toml")


class KnownAnswers(PolicyServiceServicer):
    """Weights are [0.5, 0.3, 0.2]; the decision's bytes tell the features that were asked with."""

    def __init__(self) -> None:
        self.described = 0
        self.digest = SCHEMA.digest

    def Sample(self, request: SampleRequest, context: grpc.ServicerContext) -> SampleResponse:  # noqa: N802 - the RPC
        """Answer, unless the number of features is wrong."""
        asked = request.context
        if len(asked.features) != SCHEMA.n_features:
            _refuse(context, f"context.features: expected 3, seen {len(asked.features)}")
        told = f"{asked.request_id}|{asked.unit_id}|{list(asked.features)}"
        return SampleResponse(
            policy=asked.policy,
            weights=[0.5, 0.3, 0.2],
            decision=SignedDecision(payload=told.encode()),
            epoch=1,
            version=7,
            arm=ARM_POLICY,
        )

    def SampleBatch(  # noqa: N802 - the RPC
        self, request: SampleBatchRequest, context: grpc.ServicerContext
    ) -> SampleBatchResponse:
        """Answer each as `Sample` would."""
        return SampleBatchResponse(
            policy=request.policy, responses=[self.Sample(r, context) for r in request.requests]
        )

    def DescribePolicy(  # noqa: N802 - the RPC
        self, request: DescribePolicyRequest, context: grpc.ServicerContext
    ) -> DescribePolicyResponse:
        """Describe the example policy."""
        self.described += 1
        return DescribePolicyResponse(
            policy=SCHEMA.policy,
            schema_toml=SCHEMA.toml,
            schema_digest=self.digest,
            epoch=1,
            version=7,
            version_age_s=2.5,
            kafka_age_s=0.5,
        )


def _refuse(context: grpc.ServicerContext, details: str) -> NoReturn:
    context.abort(grpc.StatusCode.INVALID_ARGUMENT, details)
    raise AssertionError("abort raises")


@contextmanager
def serving(answers: KnownAnswers) -> Iterator[str]:
    """Serve on a free port; gives host:port."""
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        add_PolicyServiceServicer_to_server(answers, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(grace=None).wait()
