"""Has the world changed? The lead that the served policy has earned, now against what it was.

Served weights that fit earn more than uniform ones on the same logged lists. When tastes change
that lead falls, whatever happens to the level of the rewards. It is compared between the latest
buckets of requests and those before them. numpy only; the whole memory is one small array, so it
is part of the learner's state bit for bit, which river's detectors could only be by pickling.
"""

import math
from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from policy.fusion import Floats

State = dict[str, npt.NDArray[np.generic]]

BUCKET: Final = 32
"""Least informative requests of a bucket; a slot is never cut."""
RECENT: Final = 8
"""Buckets that are the present."""
BEFORE: Final = 64
"""Most buckets before them that are the past."""
LEAST_BEFORE: Final = 8
"""Buckets that the past needs before it is compared with."""


class DriftDetector:
    """Scores how far the lead over uniform weights has fallen.

    Args:
        threshold: standard errors of the difference at which the world counts as changed.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._buckets = np.zeros((0, 3))  # [bucket, (count, sum, sum of squares)], oldest first
        self._open = np.zeros(3)

    def add(self, lead: Floats) -> None:
        """Take in [informative request] what served means earned beyond uniform, in rewards."""
        self._open = self._open + np.array([len(lead), lead.sum(), (lead**2).sum()])
        if self._open[0] >= BUCKET:
            self._buckets = np.vstack([self._buckets, self._open])[-(RECENT + BEFORE) :]
            self._open = np.zeros(3)

    def score(self) -> float:
        """Standard errors by which the recent lead is below that of before; 0 while unknown."""
        if len(self._buckets) < RECENT + LEAST_BEFORE:
            return 0.0
        before, recent = self._buckets[:-RECENT].sum(axis=0), self._buckets[-RECENT:].sum(axis=0)
        error = _variance_of_mean(before) + _variance_of_mean(recent)
        fallen = float(before[1] / before[0] - recent[1] / recent[0])
        return fallen / math.sqrt(error) if error > 0 else 0.0

    def fired(self) -> bool:
        """Whether the world counts as changed; whoever acts on it then clears the memory."""
        return self.score() > self._threshold

    def clear(self) -> None:
        """Forget everything: nothing can fire before both windows have filled again."""
        self._buckets, self._open = np.zeros((0, 3)), np.zeros(3)

    def state(self) -> State:
        """Everything, to be kept in a checkpoint; padded, so that its shape never changes."""
        padding = np.zeros((RECENT + BEFORE - len(self._buckets), 3))
        return {"buckets": np.vstack([padding, self._buckets]), "open": self._open}

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Continue from what `state` returned."""
        buckets = state["buckets"].astype(np.float64)
        self._buckets = buckets[buckets[:, 0] > 0]
        self._open = state["open"].astype(np.float64)


def _variance_of_mean(sums: Floats) -> float:
    count, total, squares = sums.tolist()
    return float(max(0.0, squares / count - (total / count) ** 2) / count)
