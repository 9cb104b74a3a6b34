"""Whether tensors from a checkpoint are the state of a trainer: names, types, shapes, numbers."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt
from grade.v1.refused_pb2 import Reason

from policy.errors import CheckpointRefused
from policy.schema import Schema

Tensors = Mapping[str, npt.NDArray[np.generic]]


class Part(Protocol):
    """What a trainer remembers beside its tensors."""

    def state(self) -> dict[str, npt.NDArray[np.generic]]:
        """Everything, to be kept in a checkpoint."""

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Continue from what `state` returned."""


_PAST = "past."
"""Prefix of the requests that are learned from again: as many as there are, or none at all."""


def check_state(schema: Schema, expected: Tensors, seen: Tensors) -> None:
    """Refuse a state that could not be learned from.

    Args:
        schema: the policy's schema.
        expected: the state of a trainer that has learned nothing.
        seen: what the checkpoint holds.

    Raises:
        CheckpointRefused: naming the first tensor that is missing, of another type or shape, or
            not finite.
    """
    for name, tensor in expected.items():
        if name.startswith(_PAST):
            continue
        if name not in seen:
            raise CheckpointRefused(
                f"{name}: expected shape {tensor.shape}, seen nothing", Reason.REASON_MISSING_FIELD
            )
        _check(name, seen[name], tensor.dtype, tensor.shape)
    past = {name.removeprefix(_PAST): each for name, each in seen.items() if name.startswith(_PAST)}
    if past:
        _check_past(schema, past)
    for name, tensor in seen.items():
        if not np.isfinite(tensor.astype(np.float64)).all():
            raise CheckpointRefused(
                f"{name}: expected finite numbers, seen others", Reason.REASON_NOT_FINITE
            )


def _check_past(schema: Schema, past: Tensors) -> None:
    names = {"lengths", "slots", "features", "signals", "values", "predicted", "examination"}
    missing = names - past.keys()
    if missing:
        raise CheckpointRefused(
            f"{_PAST}{min(missing)}: expected beside the others, seen nothing",
            Reason.REASON_MISSING_FIELD,
        )
    lengths = past["lengths"]
    _check(f"{_PAST}lengths", lengths, np.dtype(np.int64), (lengths.size,))
    requests, items = lengths.size, int(lengths.astype(np.int64).sum())
    if lengths.astype(np.int64).min(initial=1) < 1:
        raise CheckpointRefused(
            f"{_PAST}lengths: expected at least 1 item per request, seen {lengths.min()}",
            Reason.REASON_OUT_OF_RANGE,
        )
    _check(f"{_PAST}slots", past["slots"], np.dtype(np.int64), (requests,))
    for name, shape in (
        ("features", (requests, schema.n_features)),
        ("signals", (items, schema.n_objectives)),
        ("values", (items,)),
        ("predicted", (items,)),
        ("examination", (items,)),
    ):
        _check(_PAST + name, past[name], np.dtype(np.float32), shape)


def _check(
    name: str, tensor: npt.NDArray[np.generic], dtype: np.dtype[np.generic], shape: tuple[int, ...]
) -> None:
    if tensor.dtype != dtype:
        raise CheckpointRefused(
            f"{name}: expected {dtype}, seen {tensor.dtype}", Reason.REASON_WRONG_TYPE
        )
    if tensor.shape != shape:
        raise CheckpointRefused(
            f"{name}: expected shape {shape}, seen {tensor.shape}", Reason.REASON_WRONG_DIMENSION
        )
