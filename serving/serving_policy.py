"""The policy function in numpy: what a version answers, without torch.

The same function as `policy/network.py`; `policy/initial.py` gives the formula and the tensors.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from policy.initial import CONCENTRATION_BOUNDS, CONTEXT_CLIP, initial_parameters
from policy.schema import Schema

Floats = npt.NDArray[np.float64]

_LOG_LEAST, _LOG_GREATEST = map(math.log, CONCENTRATION_BOUNDS)
# Arrays, as numpy takes half as long again for a number of Python's.
_LOG_HALF_RANGE = np.array((_LOG_GREATEST - _LOG_LEAST) / 2)
_LOG_MIDDLE = np.array((_LOG_GREATEST + _LOG_LEAST) / 2)
_CLIP_LEAST, _CLIP_GREATEST = np.array(-CONTEXT_CLIP), np.array(CONTEXT_CLIP)
_ZERO = np.array(0.0)

BASELINE_EPOCH = 0
"""Epoch of the declared baseline, before every epoch that a learner makes."""


@dataclass(frozen=True, slots=True, eq=False)
class ServingPolicy:
    """One version, immutable. What does not depend on the context is worked out once."""

    epoch: int
    version: int
    slot: int
    """Last slot of log time that it learned from; -1 for the baseline."""
    slot_ms: int
    """Length of a slot in milliseconds; 0 for the baseline."""
    feature_mean: Floats
    feature_scale: Floats
    hidden0_weight: Floats
    hidden0_bias: Floats
    hidden1_weight: Floats
    hidden1_bias: Floats
    heads_weight: Floats
    """[objective + 1, hidden] gated mean head; the last row is half of the concentration's."""
    heads_bias: Floats
    """[objective + 1] static and contextual biases, blended by the gate; half of the
    concentration's."""
    mean_floor: Floats
    """[objective] the least that the mean can become."""
    mean_share: Floats
    """[] 1 less the sum of `mean_floor`."""

    @property
    def order(self) -> tuple[int, int]:
        """Versions replace each other in this order."""
        return self.epoch, self.version

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Floats],
        *,
        epoch: int,
        version: int,
        slot: int = -1,
        slot_ms: int = 0,
    ) -> Self:
        """Build a version.

        Args:
            tensors: as `policy.initial.parameter_shapes` lists them; not checked here.
            epoch: epoch of the version.
            version: the version within its epoch.
            slot: last slot of log time that it learned from.
            slot_ms: length of a slot in milliseconds.
        """
        gate = tensors["gate"][0]
        # Halving is exact, and the sigmoid by tanh wants half of its argument.
        concentration_weight = 0.5 * tensors["concentration_weight"]
        heads_weight = np.vstack([gate * tensors["mean_weight"], concentration_weight])
        bias = (1 - gate) * tensors["static_logits"] + gate * tensors["mean_bias"]
        return cls(
            epoch=epoch,
            version=version,
            slot=slot,
            slot_ms=slot_ms,
            feature_mean=_frozen(tensors["feature_mean"]),
            feature_scale=_frozen(tensors["feature_scale"]),
            hidden0_weight=_frozen(tensors["hidden0_weight"]),
            hidden0_bias=_frozen(tensors["hidden0_bias"]),
            hidden1_weight=_frozen(tensors["hidden1_weight"]),
            hidden1_bias=_frozen(tensors["hidden1_bias"]),
            heads_weight=_frozen(heads_weight),
            heads_bias=_frozen(np.concatenate([bias, 0.5 * tensors["concentration_bias"]])),
            mean_floor=_frozen(tensors["mean_floor"]),
            mean_share=_frozen(1 - math.fsum(tensors["mean_floor"])),
        )

    @classmethod
    def baseline(cls, schema: Schema) -> Self:
        """Version 0: the declared baseline for every context.

        The seed of the hidden layers cannot be seen: version 0's gate is closed.
        """
        return cls.from_tensors(initial_parameters(schema, seed=0), epoch=BASELINE_EPOCH, version=0)

    def alpha(self, features: npt.NDArray[np.float32]) -> Floats:
        """The Dirichlets of requests.

        `np.matvec` multiplies row by row, each row by the same call whatever else is in the batch;
        every other step is elementwise or a sum in order. So a row's bits do not depend on the
        batch.

        Args:
            features: [request, feature] in the schema's units, finite.

        Returns:
            [request, objective] concentration parameters, > 0.
        """
        # Not the product with 1 / scale: its last bit would differ from the learner's.
        z = features.astype(np.float64)
        z -= self.feature_mean
        z /= self.feature_scale
        z = np.minimum(np.maximum(z, _CLIP_LEAST, out=z), _CLIP_GREATEST, out=z)
        hidden = _relu_layer(self.hidden0_weight, self.hidden0_bias, z)
        hidden = _relu_layer(self.hidden1_weight, self.hidden1_bias, hidden)
        heads = np.matvec(self.heads_weight, hidden)
        heads += self.heads_bias
        logits = heads[:, :-1]
        mean: Floats = logits - np.maximum.reduce(logits, axis=-1, keepdims=True)
        np.exp(mean, out=mean)
        mean /= np.add.accumulate(mean, axis=-1)[:, -1:]
        mean *= self.mean_share
        mean += self.mean_floor
        # The sigmoid is 0.5 + 0.5 tanh, which cannot overflow.
        concentration = np.tanh(heads[:, -1:])
        concentration *= _LOG_HALF_RANGE
        concentration += _LOG_MIDDLE
        mean *= np.exp(concentration, out=concentration)
        return mean


def _relu_layer(weight: Floats, bias: Floats, below: Floats) -> Floats:
    above: Floats = np.matvec(weight, below)
    above += bias
    np.maximum(above, _ZERO, out=above)
    return above


def _frozen(values: npt.ArrayLike) -> Floats:
    copy = np.array(values, dtype=np.float64, order="C")
    copy.setflags(write=False)
    return copy
