"""Fusion: from predicted scores and fusion weights to a ranking. The one place that does it.

Serving, rewards, learner, evaluation and client all call these functions. Every sum goes over its
terms in order (`np.add.accumulate`), so that no number depends on what else is in the batch: BLAS
and numpy's own sums choose their order by shape.
"""

import hashlib
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from grade.v1.decision_pb2 import ARM_HOLDOUT, ARM_POLICY, Arm

from policy.schema import Schema

Floats = npt.NDArray[np.float64]

LOGIT_CLIP = 1e-5
"""Probabilities are kept this far from 0 and 1 before their logit is taken."""
STANDARD_DEVIATION_FLOOR = 1e-3
"""Added to a request's standard deviation, so that equal scores become 0 and not NaN."""


class _Columns(NamedTuple):
    logit: npt.NDArray[np.intp]
    log: npt.NDArray[np.intp]
    standardised: npt.NDArray[np.intp]
    all_standardised: bool


@lru_cache(maxsize=64)
def _columns(schema: Schema) -> _Columns:
    def where(wanted: list[bool]) -> npt.NDArray[np.intp]:
        return np.flatnonzero(np.array(wanted))

    return _Columns(
        logit=where([o.transform == "logit" for o in schema.objectives]),
        log=where([o.transform == "log" for o in schema.objectives]),
        standardised=where([o.standardise for o in schema.objectives]),
        all_standardised=all(o.standardise for o in schema.objectives),
    )


def transform_scores(schema: Schema, scores: npt.ArrayLike) -> Floats:
    """Turn the predicted scores of requests' candidates into signals that can be blended.

    `linear` leaves a score as it is; `log` is log(1 + score), scores below 0 count as 0; `logit` is
    log(p / (1 - p)) with p kept `LOGIT_CLIP` from 0 and 1. A standardised objective is then centred
    on the request's mean and divided by its population standard deviation +
    `STANDARD_DEVIATION_FLOOR`.

    Args:
        schema: the policy's schema.
        scores: [..., candidate, objective] in the schema's units, finite; at least one candidate.

    Returns:
        [..., candidate, objective] signals, dimensionless; the same bits in any batch.
    """
    signals = np.array(scores, dtype=np.float64, order="C")
    columns = _columns(schema)
    if columns.logit.size:
        p = np.minimum(np.maximum(signals[..., columns.logit], LOGIT_CLIP), 1 - LOGIT_CLIP)
        signals[..., columns.logit] = np.log(p / (1 - p))
    if columns.log.size:
        signals[..., columns.log] = np.log1p(np.maximum(signals[..., columns.log], 0))
    if columns.all_standardised:
        return _standardised(signals)
    if columns.standardised.size:
        signals[..., columns.standardised] = _standardised(signals[..., columns.standardised])
    return signals


def _standardised(signals: Floats) -> Floats:
    count = signals.shape[-2]
    centred = signals - np.add.accumulate(signals, axis=-2)[..., -1:, :] / count
    variance = np.add.accumulate(centred * centred, axis=-2)[..., -1:, :] / count
    return np.asarray(centred / (np.sqrt(variance) + STANDARD_DEVIATION_FLOOR))


def fuse(weights: npt.ArrayLike, signals: Floats) -> Floats:
    """Blend signals: the sum over objectives of weight × signal, in the objectives' order.

    Args:
        weights: [..., member, objective] fusion weights.
        signals: [..., item, objective] as `transform_scores` returns them.

    Returns:
        [..., member, item] fused scores, dimensionless; the same bits in any batch.

    >>> fuse([[0.5, 0.5], [1.0, 0.0]], np.array([[1.0, 3.0], [2.0, -2.0]]))
    array([[2., 0.],
           [1., 2.]])
    """
    weight = np.asarray(weights, dtype=np.float64)[..., :, None, :]
    signal = signals[..., None, :, :]
    if signal.ndim == 3:  # of one request: here fewer calls are faster, for many larger ones
        return np.add.accumulate(weight * signal, axis=-1)[..., -1]
    fused: Floats = weight[..., 0] * signal[..., 0]
    for objective in range(1, signal.shape[-1]):
        fused += weight[..., objective] * signal[..., objective]
    return fused


def rank(fused: Floats) -> npt.NDArray[np.intp]:
    """Order items by fused score.

    Args:
        fused: [..., item].

    Returns:
        [..., item] indices of the items, best first; items with equal scores in the order of their
        indices, NaN last.

    >>> rank(np.array([1.0, 3.0, 1.0]))
    array([1, 0, 2])
    """
    return np.argsort(-fused, axis=-1, kind="stable")


def arm(schema: Schema, unit_id: str) -> "Arm.ValueType":
    """The experiment arm of a unit; it never changes while policy name and share stay.

    The first 64 bits of blake2b over policy and unit, as a number in [0, 1), are compared with the
    schema's holdout share, so a larger share keeps the units that a smaller one held out.
    """
    text = f"{len(schema.policy)}:{schema.policy}{unit_id}".encode("utf-8", "surrogatepass")
    number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
    return ARM_HOLDOUT if number < schema.holdout_share * 2**64 else ARM_POLICY
