"""Reward groups of both arms as the join would write them, with rewards that can be set."""

import numpy as np
from grade.v1.conversion_pb2 import Conversion
from grade.v1.decision_pb2 import ARM_HOLDOUT, ARM_POLICY, Decision, SignedDecision
from grade.v1.impression_pb2 import Impression
from grade.v1.reward_group_pb2 import JoinedConversion, JoinRecord, RewardGroup, Rewards

from policy.dirichlet import log_density, sample_weights
from stream.codec import encode
from tests.stream.learner_world import BEGIN_MS, MEMBERS, SCHEMA

ALPHA = 20 * SCHEMA.baseline()


def group(
    number: int,
    *,
    clicks: int = 0,
    held: bool = False,
    unit: str | None = None,
    digest: bytes = SCHEMA.digest,
) -> RewardGroup:
    """One group; its list was clicked so many times. Requests come a second apart."""
    decision = Decision(
        policy=SCHEMA.policy,
        request_id=f"request-{number}",
        unit_id=unit or f"unit-{number}",
        schema_digest=digest,
        arm=ARM_HOLDOUT if held else ARM_POLICY,
        features=[float(number % 7 + at) for at in range(SCHEMA.n_features)],
    )
    if held:
        decision.weights.extend(SCHEMA.baseline().tolist())
    else:
        floors = SCHEMA.floors()
        weights = sample_weights(np.random.default_rng(number), ALPHA, floors, MEMBERS)
        decision.alpha.extend(ALPHA.tolist())
        decision.weights.extend(weights.ravel().tolist())
        decision.log_densities.extend(log_density(weights, ALPHA, floors).tolist())
        decision.executed = number % MEMBERS
    made = RewardGroup(
        policy=SCHEMA.policy,
        offset=number,
        impression_time_ms=BEGIN_MS + 1000 * number,
        impression=Impression(
            policy=SCHEMA.policy,
            request_id=decision.request_id,
            decision=SignedDecision(payload=encode(decision)),
            item_ids=["item-0"],
            positions=[0],
        ),
        conversions=[
            JoinedConversion(conversion=Conversion(item_id="item-0", outcome="click", value=1.0))
            for _ in range(clicks)
        ],
    )
    if not held:
        made.rewards.CopyFrom(Rewards(realised=float(clicks)))
    return made


def record(made: RewardGroup) -> bytes:
    """A group as the value of a record."""
    return encode(JoinRecord(group=made))
