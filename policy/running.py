"""What the learner remembers beside its parameters: statistics and the gate's record.

Each keeps its memory in plain arrays, so that a checkpoint can hold it exactly. numpy only.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from policy.fusion import Floats
from policy.initial import LARGEST_FEATURE, LEAST_SCALE

ENOUGH_CONTEXTS: Final = 100
"""Contexts after which their own mean and scale tell what is an outlier."""
LARGEST_DEVIATION: Final = 10.0
"""Scales from the mean at which a feature is counted; the policy itself sees no more than 4."""
ENOUGH_OUTCOMES: Final = 100
"""Requests with an outcome after which their own mean tells what is an outlier."""
LARGEST_IDEAL: Final = 100.0
"""Running means at which a request's ideal is counted; its rewards are scaled down to that."""

State = dict[str, npt.NDArray[np.generic]]


class ContextScale:
    """Running mean and standard deviation of the features, over every request learned from.

    Nothing is forgotten, so an outlier must not count as what it is: features are clipped to what
    was usual before them. Each feature counts for itself: a generation may bring new ones.

    Reference: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
    sample variances", 1979.
    """

    def __init__(self, features: int) -> None:
        self._count = np.zeros(features)
        self._mean = np.zeros(features)
        self._squares = np.zeros(features)

    def assume(self, mean: Floats, scale: Floats) -> None:
        """Begin as if so many contexts had been seen as tell an outlier.

        Args:
            mean: [feature] their mean.
            scale: [feature] their standard deviation.
        """
        self._count = np.full(len(mean), float(ENOUGH_CONTEXTS))
        self._mean = np.array(mean, dtype=np.float64)
        self._squares = ENOUGH_CONTEXTS * np.square(scale, dtype=np.float64)

    def add(self, features: Floats) -> None:
        """Take in [request, feature] contexts."""
        features = self._clipped(features)
        count, total = len(features), self._count + len(features)
        mean = features.mean(axis=0)
        shift = mean - self._mean
        self._squares = (
            self._squares
            + ((features - mean) ** 2).sum(axis=0)
            + shift**2 * (self._count * count / total)
        )
        self._mean = self._mean + shift * (count / total)
        self._count = total

    def mean_and_scale(self) -> tuple[Floats, Floats]:
        """[feature] mean and [feature] standard deviation; 1 where a feature has not varied."""
        mean = np.clip(self._mean, -LARGEST_FEATURE, LARGEST_FEATURE)
        deviation = np.sqrt(self._squares / np.maximum(self._count, 1))
        varies = (deviation > 1e-9 * np.abs(mean)) & (deviation > LEAST_SCALE)
        return mean, np.where(varies, np.minimum(deviation, LARGEST_FEATURE), 1)

    def state(self) -> State:
        """Everything, to be kept in a checkpoint."""
        return {"count": self._count, "mean": self._mean, "squares": self._squares}

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Continue from what `state` returned."""
        self._count, self._mean, self._squares = (
            state[name].astype(np.float64) for name in ("count", "mean", "squares")
        )

    def _clipped(self, features: Floats) -> Floats:
        usual = np.clip(features, -LARGEST_FEATURE, LARGEST_FEATURE)
        mean, scale = self.mean_and_scale()
        reach = np.where(self._count < ENOUGH_CONTEXTS, np.inf, LARGEST_DEVIATION * scale)
        return np.asarray(np.clip(usual, mean - reach, mean + reach))


class RunningIdeal:
    """Running mean of the requests' ideal gain, over requests that have any.

    Args:
        half_life: requests after which a request counts half.
    """

    def __init__(self, half_life: float) -> None:
        self._half_life = half_life
        self._sums = np.zeros(2)

    def add(self, ideal: Floats) -> None:
        """Take in [request] ideals in gain units; zeros are requests without outcome."""
        earned = ideal[ideal > 0]
        if self._sums[1] >= ENOUGH_OUTCOMES:
            earned = np.minimum(earned, LARGEST_IDEAL * self.mean())
        decay = 0.5 ** (len(earned) / self._half_life)
        self._sums = self._sums * decay + np.array([earned.sum(), len(earned)])

    def mean(self) -> float:
        """In gain units; 1 before the first outcome."""
        total, count = self._sums.tolist()
        return total / count if count else 1.0

    def state(self) -> State:
        """Everything, to be kept in a checkpoint."""
        return {"sums": self._sums}

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Continue from what `state` returned."""
        self._sums = state["sums"].astype(np.float64)


class Gate:
    """How much of the contextual part is served: earned, not assumed.

    Each batch scores, before it is learned from, the means that every opening would have served.
    An opening's lead over the static mean is its summed advantage less one standard deviation of
    that sum, so context that does not pay stays out.

    Args:
        half_life: informative requests after which a request counts half.
    """

    OPENINGS = (0.0, 0.25, 0.5, 1.0)

    def __init__(self, half_life: float) -> None:
        self._half_life = half_life
        self._sums = np.zeros((2, len(self.OPENINGS)))

    def assume(self, opening: float) -> None:
        """Begin at the nearest of the openings, with a lead that a few hundred requests undo."""
        nearest = int(np.argmin(np.abs(np.array(self.OPENINGS) - opening)))
        if nearest:
            self._sums[:, nearest] = 2.0, 1.0

    def add(self, rewards: Floats) -> None:
        """Take in [request, opening] rewards of the means, in reward units."""
        lead = rewards - rewards[:, :1]
        decay = 0.5 ** (int(np.any(lead != 0, axis=1).sum()) / self._half_life)
        self._sums = self._sums * decay + np.array([lead.sum(axis=0), (lead**2).sum(axis=0)])

    def clear(self) -> None:
        """Forget every record: the gate is shut."""
        self._sums = np.zeros((2, len(self.OPENINGS)))

    def opening(self) -> float:
        """The opening with the greatest lead, in [0, 1]."""
        lead = self._sums[0] - np.sqrt(self._sums[1])
        return self.OPENINGS[int(np.argmax(lead))]

    def state(self) -> State:
        """Everything, to be kept in a checkpoint."""
        return {"sums": self._sums}

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Continue from what `state` returned."""
        self._sums = state["sums"].astype(np.float64)
