"""Asking the policy server for the fusion weights of ranking requests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

import grpc
import numpy as np
import numpy.typing as npt
from google.protobuf.message import Message
from grade.v1.context_pb2 import Context
from grade.v1.decision_pb2 import Arm, SignedDecision
from grade.v1.policy_service_pb2 import (
    DescribePolicyRequest,
    SampleBatchRequest,
    SampleRequest,
    SampleResponse,
)
from grade.v1.policy_service_pb2_grpc import PolicyServiceStub
from grade.v1.refused_pb2 import Reason

from grade_client.errors import PolicyCallFailed
from policy.errors import InvalidContext, SchemaError
from policy.fusion import fuse, transform_scores
from policy.schema import Schema, parse_schema

Features = Mapping[str, float] | Sequence[float] | npt.NDArray[np.floating]

_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response", bound=Message)

LARGEST_ANSWER_BYTES = 64 * 1024 * 1024
"""Largest answer that is taken; a batch holds a group of weights for each of its requests."""

_CHANNEL_OPTIONS = [
    # Try again soon after a server was restarted; gRPC would wait for up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # A name that stands for several servers is spread over them.
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.max_receive_message_length", LARGEST_ANSWER_BYTES),
]


class SampleQuestion(NamedTuple):
    """One ranking request to ask weights for."""

    request_id: str
    """Unique name of the request."""
    unit_id: str
    """The unit (a user, a device) that keeps its experiment arm."""
    features: Features
    """By name, or [feature] in the schema's order; in the schema's units."""


@dataclass(frozen=True, slots=True, eq=False)
class Sampled:
    """The answer for one request: weights to rank with, and what to log with the impression."""

    request_id: str
    weights: npt.NDArray[np.float32]
    """[objective] fusion weights on the simplex, in the schema's order."""
    decision: SignedDecision
    """To be logged unread."""
    epoch: int
    version: int
    """Policy version that decided; 0 is the declared baseline."""
    arm: "Arm.ValueType"


@dataclass(frozen=True, slots=True)
class Description:
    """What a policy expects and what it serves."""

    schema: Schema
    epoch: int
    version: int
    version_age_s: float
    """Seconds since the serving version was swapped in."""
    kafka_age_s: float
    """Seconds since the server last heard from Kafka; negative if never."""

    @property
    def features(self) -> tuple[str, ...]:
        """[feature] names in order."""
        return tuple(feature.name for feature in self.schema.features)


class PolicyClient:
    """Asks a policy server. May be used from several threads; close it after use.

    Args:
        target: the server as host:port, or any gRPC target.
        policy: name of the policy to ask.
        timeout_s: how long to wait for an answer.
    """

    def __init__(self, target: str, policy: str, *, timeout_s: float = 1.0) -> None:
        self._policy = policy
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(target, options=_CHANNEL_OPTIONS)
        self._stub = PolicyServiceStub(self._channel)
        self._described: Description | None = None

    def sample(self, request_id: str, unit_id: str, features: Features) -> Sampled:
        """Fusion weights for one request.

        Args:
            request_id: unique name of the request, at most 128 bytes.
            unit_id: the unit that keeps its experiment arm.
            features: by name, or [feature] in the schema's order.

        Raises:
            InvalidContext: features by name are not those of the schema, or a field cannot be sent.
            PolicyCallFailed: the server did not answer in time, or refused the request.
        """
        question = SampleQuestion(request_id, unit_id, features)
        request = SampleRequest(context=self._context(question))
        return _sampled(request_id, self._call("Sample", self._stub.Sample, request))

    def sample_batch(self, questions: Sequence[SampleQuestion]) -> list[Sampled]:
        """Fusion weights for many requests in one call; the same answers as one by one.

        Raises:
            InvalidContext: features by name are not those of the schema, or a field cannot be sent.
            PolicyCallFailed: the server did not answer in time, or refused one of the requests.
        """
        request = SampleBatchRequest(
            policy=self._policy,
            requests=[SampleRequest(context=self._context(question)) for question in questions],
        )
        answer = self._call("SampleBatch", self._stub.SampleBatch, request)
        return [
            _sampled(question.request_id, response)
            for question, response in zip(questions, answer.responses, strict=True)
        ]

    def describe(self) -> Description:
        """What the policy expects and which version is serving now.

        Raises:
            PolicyCallFailed: the server did not answer in time, or does not serve the policy.
            SchemaError: the server reads the policy's schema differently.
        """
        request = DescribePolicyRequest(policy=self._policy)
        answer = self._call("DescribePolicy", self._stub.DescribePolicy, request)
        schema = parse_schema(answer.schema_toml, where=f"schema of policy {self._policy!r}")
        if schema.digest != answer.schema_digest:
            raise SchemaError(
                f"schema of policy {self._policy!r}: expected digest {schema.digest.hex()}, seen "
                f"{answer.schema_digest.hex()} at the server; client and server differ in version",
                Reason.REASON_UNKNOWN_SCHEMA,
            )
        self._described = Description(
            schema, answer.epoch, answer.version, answer.version_age_s, answer.kafka_age_s
        )
        return self._described

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

    def _context(self, question: SampleQuestion) -> Context:
        features = question.features
        if isinstance(features, Mapping):
            features = self._in_order(features)
        try:
            return Context(
                policy=self._policy,
                request_id=question.request_id,
                unit_id=question.unit_id,
                features=features,
            )
        except (TypeError, ValueError) as error:
            raise InvalidContext(
                "context", "fields as the contract says", str(error), Reason.REASON_WRONG_TYPE
            ) from None

    def _in_order(self, features: Mapping[str, float]) -> list[float]:
        names = (self._described or self.describe()).features
        if features.keys() == set(names):
            return [float(features[name]) for name in names]
        missing = [name for name in names if name not in features]
        unknown = sorted(features.keys() - set(names))
        parts = [("missing", missing), ("unknown", unknown)]
        seen = "; ".join(f"{what}: {', '.join(which)}" for what, which in parts if which)
        reason = Reason.REASON_UNKNOWN_FEATURE if unknown else Reason.REASON_MISSING_FIELD
        raise InvalidContext("features", f"exactly {', '.join(names)}", seen, reason)

    def _call(
        self,
        name: str,
        call: "grpc.UnaryUnaryMultiCallable[_Request, _Response]",
        request: _Request,
    ) -> _Response:
        try:
            return call(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            # A unary call's error is always a grpc.Call too.
            raise PolicyCallFailed.of(name, error) from error


def blend(
    policy: Schema | Description, weights: npt.ArrayLike, scores: npt.ArrayLike
) -> npt.NDArray[np.float64]:
    """Fused score of every candidate; rank by it, largest first.

    Args:
        policy: the policy's schema, or what `PolicyClient.describe` returned.
        weights: [objective] fusion weights.
        scores: [item, objective] predicted scores of all candidates of the request, in the schema's
            units; standardised objectives are standardised over these.

    Returns:
        [item] fused scores, dimensionless.
    """
    schema = policy.schema if isinstance(policy, Description) else policy
    return np.asarray(fuse(np.asarray(weights)[None], transform_scores(schema, scores))[0])


def _sampled(request_id: str, response: SampleResponse) -> Sampled:
    return Sampled(
        request_id=request_id,
        weights=np.array(response.weights, dtype=np.float32),
        decision=response.decision,
        epoch=response.epoch,
        version=response.version,
        arm=response.arm,
    )
