"""Reading a logged decision, for evaluation and for people; a ranking tier never needs to."""

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError
from grade.v1.decision_pb2 import Decision, SignedDecision

from policy.errors import StreamError
from policy.schema import Schema


def decode_decision(signed: SignedDecision) -> Decision:
    """The decision inside its envelope.

    Raises:
        StreamError: the bytes are not a decision.
    """
    try:
        return Decision.FromString(signed.payload)
    except DecodeError as error:
        raise StreamError(
            f"decision: expected a serialized Decision, seen {len(signed.payload)} other bytes"
        ) from error


def mean_weights(decision: Decision, schema: Schema) -> npt.NDArray[np.float64]:
    """The weights that the policy would serve without exploring: the mean of its Dirichlet.

    Args:
        decision: of either arm; in the holdout arm the mean is the baseline itself.
        schema: the policy's schema, for its floors and baseline.

    Returns:
        [objective] on the simplex.
    """
    if not decision.alpha:
        return schema.baseline()
    alpha = np.array(decision.alpha, dtype=np.float64)
    floors = schema.floors()
    return np.asarray(floors + (1.0 - floors.sum()) * (alpha / alpha.sum()))
