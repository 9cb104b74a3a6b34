"""From contexts to decisions: the serving policy and the draw. No gRPC, Kafka or clock here."""

import math
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from grade.v1.context_pb2 import Context
from grade.v1.decision_pb2 import ARM_HOLDOUT, Arm, Decision, SignedDecision
from grade.v1.parameters_pb2 import ParameterSnapshot
from grade.v1.policy_service_pb2 import DescribePolicyResponse, SampleResponse
from grade.v1.refused_pb2 import Reason

from policy.dirichlet import log_density, simplex_to_weights
from policy.errors import InvalidContext, quoted
from policy.fusion import arm
from policy.initial import LARGEST_FEATURE
from policy.names import has_control_character
from policy.schema import Schema
from serving.draw import DrawKey, draw_simplices
from serving.serving_policy import ServingPolicy
from serving.snapshot import load_policy
from stream.codec import encode

LONGEST_NAME_BYTES = 128
"""Of request_id and unit_id, in UTF-8."""

EXECUTED = 0
"""The member that ranks. Members are independent draws of one density, so any fixed index is as
good as a random one and needs no randomness of its own."""


@dataclass(frozen=True, slots=True, eq=False)
class _Serving:
    """What a request takes at entry, in one reference."""

    policy: ServingPolicy
    key: DrawKey


class _Request(NamedTuple):
    """A context that has been checked."""

    request_id: str
    encoded_id: bytes
    unit_id: str
    features: npt.NDArray[np.float32]
    arm: "Arm.ValueType"


class _Group(NamedTuple):
    """What one request's decision says about its weights."""

    alpha: list[float]
    """[objective]; empty in the holdout arm."""
    weights: list[float]
    """[member, objective] row-major."""
    log_densities: list[float]
    """[member]; empty in the holdout arm."""


class Engine:
    """Answers contexts with the newest policy that was swapped in; the baseline until then.

    Safe to use from any number of threads.

    Args:
        schema: the policy's schema.
        seed: of the draws.
        members: weight vectors per sampled group, at least 1.
    """

    def __init__(self, schema: Schema, *, seed: int, members: int) -> None:
        self._schema = schema
        self._seed = seed
        self._members = members
        self._floors = schema.floors()
        baseline: list[float] = schema.baseline().astype(np.float32).tolist()
        self._holdout = _Group(alpha=[], weights=baseline, log_densities=[])
        self._executed = slice(EXECUTED * len(baseline), (EXECUTED + 1) * len(baseline))
        self._swap_lock = threading.Lock()
        self._serving = self._ready(ServingPolicy.baseline(schema))

    @property
    def schema(self) -> Schema:
        """The schema that contexts and snapshots are checked against."""
        return self._schema

    @property
    def policy(self) -> ServingPolicy:
        """The policy that is serving."""
        return self._serving.policy

    def load(self, snapshot: ParameterSnapshot) -> ServingPolicy:
        """Check a snapshot and build its policy; what is served does not change.

        Raises:
            SnapshotRefused: naming the check that failed.
        """
        return load_policy(snapshot, self._schema)

    def swap(self, policy: ServingPolicy) -> bool:
        """Serve a policy from now on, by one reference assignment.

        Returns:
            False, and nothing changes, unless its (epoch, version) is above the serving one's.
        """
        ready = self._ready(policy)
        with self._swap_lock:
            if policy.order <= self._serving.policy.order:
                return False
            self._serving = ready
            return True

    def sample(self, context: Context) -> SampleResponse:
        """Decide one request.

        Raises:
            InvalidContext: naming the field.
        """
        return self._answer(self._serving, [self._checked(context, "context")])[0]

    def sample_batch(self, contexts: Sequence[Context]) -> list[SampleResponse]:
        """Decide many requests with one version; each answer equals `sample`'s byte for byte.

        Raises:
            InvalidContext: naming the request's index and the field.
        """
        serving = self._serving
        requests = [self._checked(c, f"requests[{i}].context") for i, c in enumerate(contexts)]
        return self._answer(serving, requests)

    def describe(self) -> DescribePolicyResponse:
        """What the policy expects and what it serves; the ages are left to the caller."""
        schema, policy = self._schema, self.policy
        return DescribePolicyResponse(
            policy=schema.policy,
            schema_toml=schema.toml,
            schema_digest=schema.digest,
            features=[f.name for f in schema.features],
            objectives=[o.name for o in schema.objectives],
            outcomes=[o.name for o in schema.outcomes],
            epoch=policy.epoch,
            version=policy.version,
        )

    def check_policy(self, policy: str, field: str = "policy") -> None:
        """Refuse another policy's name.

        Raises:
            InvalidContext: naming the field.
        """
        if policy != self._schema.policy:
            reason = Reason.REASON_UNKNOWN_POLICY if policy else Reason.REASON_MISSING_FIELD
            raise InvalidContext(field, repr(self._schema.policy), quoted(policy), reason)

    def _ready(self, policy: ServingPolicy) -> _Serving:
        key = DrawKey(self._seed, self._schema.policy, policy.epoch, policy.version)
        return _Serving(policy, key)

    def _checked(self, context: Context, where: str) -> _Request:
        self.check_policy(context.policy, f"{where}.policy")
        encoded_id = _check_name(context.request_id, f"{where}.request_id")
        _check_name(context.unit_id, f"{where}.unit_id")
        features = context.features[:]
        if len(features) != self._schema.n_features:
            raise InvalidContext(
                f"{where}.features",
                f"{self._schema.n_features} numbers",
                str(len(features)),
                Reason.REASON_WRONG_DIMENSION,
            )
        # A sum of float32 numbers in float64 is finite iff all of them are.
        if (
            not math.isfinite(sum(features))
            or max(features) > LARGEST_FEATURE
            or min(features) < -LARGEST_FEATURE
        ):
            index = next(i for i, x in enumerate(features) if not abs(x) <= LARGEST_FEATURE)
            name, seen = self._schema.features[index].name, features[index]
            kind, reason = "finite number", Reason.REASON_NOT_FINITE
            if math.isfinite(seen):
                kind = f"number in [{-LARGEST_FEATURE:g}, {LARGEST_FEATURE:g}]"
                reason = Reason.REASON_OUT_OF_RANGE
            expected = f"a {kind} for {name!r}"
            raise InvalidContext(f"{where}.features[{index}]", expected, f"{seen:g}", reason)
        return _Request(
            context.request_id,
            encoded_id,
            context.unit_id,
            np.array(features, dtype=np.float32),
            arm(self._schema, context.unit_id),
        )

    def _answer(self, serving: _Serving, requests: Sequence[_Request]) -> list[SampleResponse]:
        drawing = [r for r in requests if r.arm != ARM_HOLDOUT]
        groups = iter(self._draw(serving, drawing) if drawing else ())
        answers = []
        for request in requests:
            group = self._holdout if request.arm == ARM_HOLDOUT else next(groups)
            decision = Decision(
                policy=self._schema.policy,
                request_id=request.request_id,
                unit_id=request.unit_id,
                epoch=serving.policy.epoch,
                version=serving.policy.version,
                schema_digest=self._schema.digest,
                arm=request.arm,
                features=request.features.tolist(),
                alpha=group.alpha,
                weights=group.weights,
                log_densities=group.log_densities,
                executed=EXECUTED,
            )
            answers.append(
                SampleResponse(
                    policy=decision.policy,
                    weights=group.weights[self._executed],
                    decision=SignedDecision(payload=encode(decision)),
                    epoch=decision.epoch,
                    version=decision.version,
                    arm=request.arm,
                )
            )
        return answers

    def _draw(self, serving: _Serving, requests: Sequence[_Request]) -> Iterable[_Group]:
        alpha = serving.policy.alpha(np.array([r.features for r in requests]))
        simplices = draw_simplices(
            [(serving.key, r.encoded_id, r.features) for r in requests], alpha, self._members
        )
        weights = simplex_to_weights(simplices, self._floors).astype(np.float32)
        densities = log_density(weights, alpha[:, None, :], self._floors)
        rows = weights.reshape(len(requests), -1)
        return map(
            _Group._make, zip(alpha.tolist(), rows.tolist(), densities.tolist(), strict=True)
        )


def _check_name(name: str, field: str) -> bytes:
    encoded = name.encode()
    if not 1 <= len(encoded) <= LONGEST_NAME_BYTES:
        seen = f"{len(encoded)} bytes, beginning {name[:16]!r}" if encoded else "none"
        reason = Reason.REASON_OUT_OF_RANGE if encoded else Reason.REASON_MISSING_FIELD
        raise InvalidContext(field, f"1 to {LONGEST_NAME_BYTES} bytes of UTF-8", seen, reason)
    if not name.isprintable() and has_control_character(name):
        raise InvalidContext(field, "no control characters", repr(name), Reason.REASON_BAD_NAME)
    return encoded
