"""From contexts to decisions: the serving policy and the draw. No gRPC, Kafka or clock here."""

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from grade.v1.context_pb2 import Context
from grade.v1.decision_pb2 import ARM_HOLDOUT, Decision, SignedDecision
from grade.v1.parameters_pb2 import ParameterSnapshot
from grade.v1.policy_service_pb2 import DescribePolicyResponse, SampleResponse

from policy.dirichlet import log_density, simplex_to_weights
from policy.schema import Schema
from serving.checked_context import CheckedContext, check_context
from serving.draw import DrawKey, draw_simplices
from serving.serving_policy import ServingPolicy
from serving.snapshot import load_policy
from stream.codec import encode

EXECUTED = 0
"""The member that ranks. Members are independent draws of one density, so any fixed index is as
good as a random one and needs no randomness of its own."""


@dataclass(frozen=True, slots=True, eq=False)
class _Serving:
    """What a request takes at entry, in one reference."""

    policy: ServingPolicy
    key: DrawKey


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

    def load(
        self, snapshot: ParameterSnapshot, others: Mapping[bytes, Schema] | None = None
    ) -> ServingPolicy:
        """Check a snapshot and build its policy; what is served does not change.

        Args:
            snapshot: as published.
            others: schemas of other generations by their digests.

        Raises:
            SnapshotRefused: naming the check that failed.
        """
        return load_policy(snapshot, self._schema, others)

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
        return self.decide([self.check(context, "context")])[0]

    def sample_batch(self, contexts: Sequence[Context]) -> list[SampleResponse]:
        """Decide many requests with one version; each answer equals `sample`'s byte for byte.

        Raises:
            InvalidContext: naming the request's index and the field.
        """
        return self.decide(
            [
                self.check(context, f"requests[{index}].context")
                for index, context in enumerate(contexts)
            ]
        )

    def check(self, context: Context, where: str) -> CheckedContext:
        """Check a context; see `check_context`."""
        return check_context(context, self._schema, where)

    def decide(self, requests: Sequence[CheckedContext]) -> list[SampleResponse]:
        """[request] answers to contexts that have been checked, all of one version."""
        serving = self._serving
        drawing = [r for r in requests if r.arm != ARM_HOLDOUT]
        groups = iter(self._draw(serving, drawing) if drawing else ())
        return [
            self._answer(serving, r, self._holdout if r.arm == ARM_HOLDOUT else next(groups))
            for r in requests
        ]

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

    def _ready(self, policy: ServingPolicy) -> _Serving:
        key = DrawKey(self._seed, self._schema.policy, policy.epoch, policy.version)
        return _Serving(policy, key)

    def _answer(self, serving: _Serving, request: CheckedContext, group: _Group) -> SampleResponse:
        schema, (epoch, version) = self._schema, serving.policy.order
        decision = Decision(
            policy=schema.policy,
            request_id=request.context.request_id,
            unit_id=request.context.unit_id,
            epoch=epoch,
            version=version,
            schema_digest=schema.digest,
            arm=request.arm,
            features=request.features,
            alpha=group.alpha,
            weights=group.weights,
            log_densities=group.log_densities,
            executed=EXECUTED,
        )
        return SampleResponse(
            policy=schema.policy,
            weights=group.weights[self._executed],
            decision=SignedDecision(payload=encode(decision)),
            epoch=epoch,
            version=version,
            arm=request.arm,
        )

    def _draw(self, serving: _Serving, requests: Sequence[CheckedContext]) -> Iterable[_Group]:
        features = np.array([r.features for r in requests], dtype=np.float32)
        alpha = serving.policy.alpha(features)
        names = [r.encoded_id for r in requests]
        simplices = draw_simplices(serving.key, names, features, alpha, self._members)
        weights = simplex_to_weights(simplices, self._floors).astype(np.float32)
        densities = log_density(weights, alpha[:, None, :], self._floors)
        rows = weights.reshape(len(requests), -1)
        return map(
            _Group._make, zip(alpha.tolist(), rows.tolist(), densities.tolist(), strict=True)
        )
