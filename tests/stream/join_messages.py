"""A valid impression and a valid conversion of the example schema, to be changed by tests."""

import math
from pathlib import Path

from grade.v1.conversion_pb2 import Conversion
from grade.v1.decision_pb2 import ARM_HOLDOUT, ARM_POLICY, Decision, SignedDecision
from grade.v1.impression_pb2 import Impression

from policy.schema import load_schema
from stream.codec import encode

SCHEMA = load_schema(Path(__file__).parent.parent / "example_schema.toml")

ITEMS = ("lamp", "sofa")


def valid_decision(request_id: str = "r1", *, holdout: bool = False) -> Decision:
    """Two members of the policy arm, or the baseline of the holdout arm."""
    if holdout:
        return Decision(
            policy=SCHEMA.policy,
            request_id=request_id,
            unit_id="user-1",
            schema_digest=SCHEMA.digest,
            arm=ARM_HOLDOUT,
            features=[12.0, 30.0, 0.25],
            weights=[0.5, 0.3, 0.2],
        )
    return Decision(
        policy=SCHEMA.policy,
        request_id=request_id,
        unit_id="user-1",
        epoch=1,
        version=7,
        schema_digest=SCHEMA.digest,
        arm=ARM_POLICY,
        features=[12.0, 30.0, 0.25],
        alpha=[2.0, 1.0, 1.0],
        weights=[0.5, 0.25, 0.25, 0.125, 0.125, 0.75],
        # Alpha is (2, 1, 1), so the density is Gamma(4) / Gamma(2) times the first weight.
        log_densities=[math.log(6 * 0.5), math.log(6 * 0.125)],
        executed=1,
    )


def valid_impression(request_id: str = "r1", *, holdout: bool = False) -> Impression:
    """Two items shown, one candidate that was not."""
    return Impression(
        policy=SCHEMA.policy,
        request_id=request_id,
        decision=SignedDecision(payload=encode(valid_decision(request_id, holdout=holdout))),
        item_ids=ITEMS,
        positions=[0, 1],
        scores=[0.5, 0.25, 10.0, 0.25, 0.5, 20.0],
        unshown_scores=[0.125, 0.125, 5.0],
    )


def valid_conversion(
    request_id: str = "r1", conversion_id: str = "c1", item_id: str = "lamp"
) -> Conversion:
    """A click on an item."""
    return Conversion(
        policy=SCHEMA.policy,
        request_id=request_id,
        conversion_id=conversion_id,
        item_id=item_id,
        outcome="click",
        value=1.0,
    )
