"""Sound messages of a small schema with a floor, to be broken."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from grade.v1.conversion_pb2 import Conversion
from grade.v1.decision_pb2 import ARM_HOLDOUT, ARM_POLICY, Decision, SignedDecision
from grade.v1.impression_pb2 import Impression

from policy.dirichlet import log_density, sample_weights
from policy.schema import parse_schema
from stream.codec import encode

FLOOR = 0.05
SCHEMA_TOML = (
    (Path(__file__).parent.parent / "example_schema.toml")
    .read_text(encoding="utf-8")
    .replace("baseline = 0.2\n", f"baseline = 0.2\nfloor = {FLOOR}\n")
)
SCHEMA = parse_schema(SCHEMA_TOML)
ITEMS = ("lamp", "sofa")
ALPHA = np.array([4.0, 3.0, 2.0])


def decision(request_id: str, *, members: int = 4, holdout: bool = False) -> Decision:
    """What the server would have decided."""
    made = Decision(
        policy=SCHEMA.policy,
        request_id=request_id,
        unit_id="user-1",
        epoch=1,
        version=7,
        schema_digest=SCHEMA.digest,
        arm=ARM_HOLDOUT if holdout else ARM_POLICY,
        features=[12.0, 30.0, 0.25],
    )
    if holdout:
        made.weights.extend(SCHEMA.baseline().tolist())
        return made
    weights = sample_weights(np.random.default_rng(1), ALPHA, SCHEMA.floors(), members)
    made.alpha.extend(ALPHA.tolist())
    made.weights.extend(weights.ravel().tolist())
    made.log_densities.extend(log_density(weights, ALPHA, SCHEMA.floors()).tolist())
    return made


def impression(
    request_id: str, decided: Decision | None = None, *, items: tuple[str, ...] = ITEMS
) -> Impression:
    """A list of items as it was shown."""
    return Impression(
        policy=SCHEMA.policy,
        request_id=request_id,
        decision=SignedDecision(payload=encode(decided or decision(request_id))),
        item_ids=items,
        positions=range(len(items)),
        scores=[0.5, 0.25, 10.0] * len(items),
        unshown_scores=[0.125, 0.125, 5.0],
        shown_at_ms=1_700_000_000_000,
    )


def conversion(request_id: str, conversion_id: str = "c1", item_id: str = "lamp") -> Conversion:
    """A click."""
    return Conversion(
        policy=SCHEMA.policy,
        request_id=request_id,
        conversion_id=conversion_id,
        item_id=item_id,
        outcome="click",
        value=1.0,
        happened_at_ms=1_700_000_000_000,
    )


def changed_impression(change: Callable[[Impression], object]) -> Callable[[str], bytes]:
    """Bytes of a sound impression after a change, by request."""

    def make(request_id: str) -> bytes:
        message = impression(request_id)
        change(message)
        return encode(message)

    return make


def redecided(
    change: Callable[[Decision], object], *, holdout: bool = False
) -> Callable[[str], bytes]:
    """Bytes of an impression whose decision was changed, by request."""

    def make(request_id: str) -> bytes:
        made = decision(request_id, holdout=holdout)
        change(made)
        return encode(impression(request_id, made))

    return make


def changed_conversion(change: Callable[[Conversion], object]) -> Callable[[str], bytes]:
    """Bytes of a sound conversion after a change, by request."""

    def make(request_id: str) -> bytes:
        message = conversion(request_id)
        change(message)
        return encode(message)

    return make
