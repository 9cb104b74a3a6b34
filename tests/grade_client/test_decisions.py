"""Reading decisions."""

from pathlib import Path

import numpy as np
import pytest
from grade.v1.decision_pb2 import ARM_HOLDOUT, ARM_POLICY, Decision, SignedDecision

from grade_client import decode_decision, mean_weights
from policy.errors import StreamError
from policy.schema import parse_schema
from tests.grade_client.served import SCHEMA

FLOORED = parse_schema(
    (Path(__file__).parents[1] / "example_schema.toml")
    .read_text(encoding="utf-8")
    .replace('name = "price"', 'name = "price"\nfloor = 0.1')
)


def test_a_decision_comes_out_as_it_went_in() -> None:
    decision = Decision(policy="example", request_id="r1", arm=ARM_POLICY, alpha=[1.0, 2.0, 5.0])
    signed = SignedDecision(payload=decision.SerializeToString())
    assert decode_decision(signed) == decision


def test_other_bytes_are_refused() -> None:
    with pytest.raises(StreamError, match="seen 3 other bytes"):
        decode_decision(SignedDecision(payload=b"\xff\xff\xff"))


def test_mean_weights_are_the_dirichlets_mean() -> None:
    decision = Decision(arm=ARM_POLICY, alpha=[1.0, 2.0, 5.0])
    assert mean_weights(decision, SCHEMA) == pytest.approx([1 / 8, 2 / 8, 5 / 8])


def test_mean_weights_keep_the_floors() -> None:
    # floor [0, 0, 0.1]: floor + 0.9 * [1/8, 2/8, 5/8]
    decision = Decision(arm=ARM_POLICY, alpha=[1.0, 2.0, 5.0])
    assert mean_weights(decision, FLOORED) == pytest.approx([0.1125, 0.225, 0.6625])


def test_the_holdouts_mean_is_the_baseline() -> None:
    decision = Decision(arm=ARM_HOLDOUT, weights=[0.5, 0.3, 0.2])
    assert mean_weights(decision, SCHEMA) == pytest.approx(np.array([0.5, 0.3, 0.2]))
