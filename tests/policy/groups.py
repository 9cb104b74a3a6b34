"""Schemas and reward groups that the tests of the mathematics are made of."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from grade.v1.conversion_pb2 import Conversion
from grade.v1.decision_pb2 import ARM_HOLDOUT, ARM_POLICY, Decision
from grade.v1.impression_pb2 import Impression
from grade.v1.reward_group_pb2 import JoinedConversion, RewardGroup

from policy.dirichlet import log_density, sample_weights
from policy.rewards import group_rewards
from policy.schema import Schema, parse_schema

Floats = npt.NDArray[np.float64]


def make_schema(
    *,
    features: int = 2,
    objectives: int = 3,
    floor: float = 0.0,
    baseline: Sequence[float] | None = None,
    transform: str = "linear",
    standardise: bool = False,
    normalise: Literal["running_mean", "request"] = "running_mean",
    examination: Sequence[float] = (),
    predicts: bool = False,
    soft_rules: str = "",
    holdout: float = 0.0,
) -> Schema:
    """A schema of any size: features f0.., objectives o0.., outcomes click (1) and order (5)."""
    weights = baseline or [1 / objectives] * objectives
    blocks = [f"policy = 'test'\nfeatures = {[f'f{i}' for i in range(features)]}\n"]
    for index, weight in enumerate(weights):
        predicted = ("click", "order")[index] if predicts and index < 2 else None
        blocks.append(
            f"[[objectives]]\nname = 'o{index}'\ntransform = '{transform}'\n"
            f"standardise = {str(standardise).lower()}\nbaseline = {weight!r}\nfloor = {floor!r}\n"
            + (f"predicts = '{predicted}'\n" if predicted else "")
        )
    blocks.append("[[outcomes]]\nname = 'click'\ngain = 1\n")
    # A probability predicts no value, so the schema refuses the two together.
    weighted = str(not (predicts and transform == "logit")).lower()
    blocks.append(f"[[outcomes]]\nname = 'order'\ngain = 5\nvalue_weighted = {weighted}\n")
    blocks.append("[attribution]\nwindow_s = 5\n")
    blocks.append(f"[reward]\nnormalise = '{normalise}'\nexamination = {list(examination)}\n")
    blocks.append(f"[holdout]\nshare = {holdout}\n{soft_rules}")
    return parse_schema("".join(blocks))


def make_impression(scores: npt.ArrayLike, unshown: npt.ArrayLike = ()) -> Impression:
    """Items i0, i1, ... shown in the order of the rows of scores."""
    rows = np.asarray(scores, dtype=np.float32)
    return Impression(
        policy="test",
        request_id="r",
        item_ids=[f"i{k}" for k in range(len(rows))],
        positions=range(len(rows)),
        scores=rows.ravel().tolist(),
        unshown_scores=np.asarray(unshown, dtype=np.float32).ravel().tolist(),
    )


def click(item: int) -> Conversion:
    """A click on item i<item>."""
    return Conversion(conversion_id=f"c{item}", item_id=f"i{item}", outcome="click", value=1)


def order(item: int, value: float) -> Conversion:
    """An order of item i<item>."""
    return Conversion(conversion_id=f"o{item}", item_id=f"i{item}", outcome="order", value=value)


def make_group(
    schema: Schema,
    impression: Impression,
    conversions: Sequence[Conversion],
    *,
    features: npt.ArrayLike,
    alpha: Floats,
    generator: np.random.Generator,
    members: int = 8,
    executed: int = 0,
    holdout: bool = False,
) -> RewardGroup:
    """A group as serving and join make it, with weights drawn from alpha."""
    floors = schema.floors()
    weights = sample_weights(generator, alpha, floors, members)
    decision = Decision(
        policy=schema.policy,
        request_id="r",
        schema_digest=schema.digest,
        arm=ARM_HOLDOUT if holdout else ARM_POLICY,
        features=np.asarray(features, dtype=np.float32).tolist(),
        weights=weights.ravel().tolist(),
        executed=executed,
    )
    group = RewardGroup(policy=schema.policy, impression=impression)
    group.conversions.extend(JoinedConversion(conversion=conversion) for conversion in conversions)
    if not holdout:
        decision.alpha.extend(alpha.tolist())
        decision.log_densities.extend(log_density(weights, alpha, floors).tolist())
        group.rewards.CopyFrom(group_rewards(schema, impression, weights, conversions))
    group.impression.decision.payload = decision.SerializeToString()
    return group
