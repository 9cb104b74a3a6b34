"""However a list of numbers was written, it is read the same."""

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from grade.v1.decision_pb2 import Decision

from policy.packed import FLOAT32, FLOAT64, numbers, read_packed

DECISION = Decision(
    request_id="r1", features=[1.5, -2.0], alpha=[0.1, 3.0], weights=[0.25, 0.75, 0.5, 0.5]
)


def written(decision: Decision) -> bytes:
    return decision.SerializeToString()


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(written(DECISION), id="as usual"),
        pytest.param(
            written(Decision(request_id="r1", features=[1.5, -2.0], weights=[0.25]))
            + written(Decision(alpha=[0.1, 3.0], weights=[0.75, 0.5, 0.5])),
            id="in two pieces",
        ),
        pytest.param(
            written(Decision(request_id="r1", features=[1.5], alpha=[0.1, 3.0]))
            + b"\x45"  # field 8, 4 bytes
            + np.float32(-2.0).tobytes()
            + written(Decision(weights=[0.25, 0.75, 0.5, 0.5])),
            id="one by one",
        ),
        pytest.param(written(DECISION) + b"\xf8\x07\x01", id="with a field that is not known"),
    ],
)
def test_lists_of_numbers_become_arrays(payload: bytes) -> None:
    read = read_packed(payload)
    assert read.request_id == "r1"
    assert numbers(FLOAT32, [read.features, read.features]).tolist() == [1.5, -2.0, 1.5, -2.0]
    assert numbers(FLOAT64, [read.alpha]).tolist() == [0.1, 3.0]
    assert numbers(FLOAT32, [read.weights]).tolist() == [0.25, 0.75, 0.5, 0.5]
    assert numbers(FLOAT64, [read.log_densities, b""]).tolist() == []


def test_what_is_no_decision_is_refused() -> None:
    with pytest.raises(DecodeError):
        read_packed(b"\xff")
