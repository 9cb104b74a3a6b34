"""What both policy clients have in common: questions, answers, and the calls in between.

A method of a client is a generator that yields the calls it needs and is sent their answers; a
client only makes the calls. So both clients do the same, whatever way they wait.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, TypeVar

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
from grade.v1.refused_pb2 import Reason

from grade_client.errors import PolicyCallFailed
from policy.errors import InvalidContext, SchemaError
from policy.fusion import fuse, transform_scores
from policy.schema import Schema, parse_schema

Features = Mapping[str, float] | Sequence[float] | npt.NDArray[np.floating]

LARGEST_ANSWER_BYTES: Final = 64 * 1024 * 1024
"""Largest answer that is taken; a batch holds a group of weights for each of its requests."""

CHANNEL_OPTIONS: Final = (
    # Try again soon after a server was restarted; gRPC would wait for up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # A name that stands for several servers is spread over them.
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.max_receive_message_length", LARGEST_ANSWER_BYTES),
)

Method = Literal["Sample", "SampleBatch", "DescribePolicy"]


class Call(NamedTuple):
    """A call that is to be made."""

    method: Method
    request: Message


_Answer = TypeVar("_Answer")
Steps = Generator[Call, Any, _Answer]
"""Calls to be made; each is sent its answer or thrown its `PolicyCallFailed`."""


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

    @property
    def baseline(self) -> npt.NDArray[np.float32]:
        """[objective] the declared weights, to rank with while the server does not answer.

        Such a ranking has no decision, so it is not logged as an impression, and nothing is learned
        from it.
        """
        return self.schema.baseline().astype(np.float32)


class PolicyCalls:
    """The calls of one client, and what it knows of its policy.

    Args:
        policy: name of the policy to ask.
    """

    def __init__(self, policy: str) -> None:
        self._policy = policy
        self._told: Description | None = None
        """What the caller was told last: it orders features by it that come without names."""
        self._orders: Description | None = None
        """What orders features that come by name."""

    def sample(self, question: SampleQuestion) -> Steps[Sampled]:
        """One request."""
        [sampled] = yield from self._by_schema([question], self._ask_one)
        return sampled

    def sample_batch(self, questions: Sequence[SampleQuestion]) -> Steps[list[Sampled]]:
        """Many requests in one call."""
        return (yield from self._by_schema(questions, self._ask_many))

    def describe(self) -> Steps[Description]:
        """What the policy expects, for the caller."""
        self._told = yield from self._describe()
        return self._told

    def _describe(self) -> Steps[Description]:
        policy = self._policy
        answer = yield Call("DescribePolicy", DescribePolicyRequest(policy=policy))
        schema = parse_schema(answer.schema_toml, where=f"schema of policy {policy!r}")
        if schema.digest != answer.schema_digest:
            raise SchemaError(
                f"schema of policy {policy!r}: expected digest {schema.digest.hex()}, seen "
                f"{answer.schema_digest.hex()} at the server; client and server differ in version",
                Reason.REASON_UNKNOWN_SCHEMA,
            )
        self._orders = Description(
            schema, answer.epoch, answer.version, answer.version_age_s, answer.kafka_age_s
        )
        return self._orders

    def _by_schema(self, questions: Sequence[SampleQuestion], ask: "_Ask") -> Steps[list[Sampled]]:
        """Ask; if the server has another schema than was thought, describe anew and ask once more.

        Features without names cannot be put into another order, so then the refusal stands.
        """
        named = [isinstance(question.features, Mapping) for question in questions]
        known = self._orders
        try:
            if any(named) and known is None:
                yield from self._describe()
            return (yield from ask(questions))
        except PolicyCallFailed as failure:
            if failure.reason != Reason.REASON_UNKNOWN_SCHEMA or not all(named):
                raise
        except InvalidContext as error:
            # The names may be those of a schema that the server has had since it was described.
            if error.reason not in _WRONG_NAMES or known is None or not all(named):
                raise
        yield from self._describe()
        return (yield from ask(questions))

    def _ask_one(self, questions: Sequence[SampleQuestion]) -> Steps[list[Sampled]]:
        [question] = questions
        answer = yield Call("Sample", SampleRequest(context=self._context(question)))
        return [_sampled(question, answer)]

    def _ask_many(self, questions: Sequence[SampleQuestion]) -> Steps[list[Sampled]]:
        requests = [SampleRequest(context=self._context(question)) for question in questions]
        answer = yield Call(
            "SampleBatch", SampleBatchRequest(policy=self._policy, requests=requests)
        )
        return [_sampled(q, each) for q, each in zip(questions, answer.responses, strict=True)]

    def _context(self, question: SampleQuestion) -> Context:
        features, ordered_by = question.features, self._told
        if isinstance(features, Mapping):
            ordered_by = self._orders
            features = _in_order(features, ordered_by.features if ordered_by else ())
        try:
            return Context(
                policy=self._policy,
                request_id=question.request_id,
                unit_id=question.unit_id,
                features=features,
                schema_digest=ordered_by.schema.digest if ordered_by else b"",
            )
        except (TypeError, ValueError) as error:
            raise InvalidContext(
                "context", "fields as the contract says", str(error), Reason.REASON_WRONG_TYPE
            ) from None


_Ask = Callable[[Sequence[SampleQuestion]], Steps[list[Sampled]]]
_WRONG_NAMES = (Reason.REASON_UNKNOWN_FEATURE, Reason.REASON_MISSING_FIELD)


def blend(
    policy: Schema | Description, weights: npt.ArrayLike, scores: npt.ArrayLike
) -> npt.NDArray[np.float64]:
    """Fused score of every candidate; rank by it, largest first.

    Args:
        policy: the policy's schema, or what a client's `describe` returned.
        weights: [objective] fusion weights.
        scores: [item, objective] predicted scores of all candidates of the request, in the schema's
            units; standardised objectives are standardised over these.

    Returns:
        [item] fused scores, dimensionless.
    """
    schema = policy.schema if isinstance(policy, Description) else policy
    return np.asarray(fuse(np.asarray(weights)[None], transform_scores(schema, scores))[0])


def _in_order(features: Mapping[str, float], names: Sequence[str]) -> list[float]:
    if features.keys() == set(names):
        return [float(features[name]) for name in names]
    missing = [name for name in names if name not in features]
    unknown = sorted(features.keys() - set(names))
    parts = [("missing", missing), ("unknown", unknown)]
    seen = "; ".join(f"{what}: {', '.join(which)}" for what, which in parts if which)
    reason = Reason.REASON_UNKNOWN_FEATURE if unknown else Reason.REASON_MISSING_FIELD
    raise InvalidContext("features", f"exactly {', '.join(names)}", seen, reason)


def _sampled(question: SampleQuestion, response: SampleResponse) -> Sampled:
    return Sampled(
        request_id=question.request_id,
        weights=np.array(response.weights, dtype=np.float32),
        decision=response.decision,
        epoch=response.epoch,
        version=response.version,
        arm=response.arm,
    )
