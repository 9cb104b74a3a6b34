"""The composite reward: how posterior, prior and format become one advantage. Pure, but for one
running regression. numpy only.

Components are [request, member] in reward units; so are advantages, whose rows sum to zero over the
members that are present.
"""

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from policy.fusion import Floats

State = dict[str, npt.NDArray[np.generic]]
Flags = npt.NDArray[np.bool_]

Combination = Literal["calibrated", "gated", "weighted_sum", "gdpo"]
COMBINATIONS: Final[tuple[Combination, ...]] = get_args(Combination)

STANDARD_DEVIATION_FLOOR: Final = 1e-4
"""Added to a standard deviation that is divided by, so that equal rewards stay 0."""
LEAST_SPREAD: Final = 1e-9
"""Advantages below it say nothing."""


class Components(NamedTuple):
    """The rewards of some groups, kept apart."""

    posterior: Floats
    """[request, member] what users did, as a share of an ideal."""
    prior: Floats
    """[request, member] what the scores promise, as a share of an ideal."""
    format: Floats
    """[request, member] minus the violation of soft rules."""
    present: Flags
    """[request, member] whether the member counts."""


def centred(rewards: Floats, present: Flags) -> Floats:
    """Rewards less the mean of their group; zero where a member does not count.

    Reference: the group baseline of DeepSeekMath, arXiv:2402.03300, section 4.1.2.

    >>> centred(np.array([[1.0, 3.0, np.nan]]), np.array([[True, True, False]])).tolist()
    [[-1.0, 1.0, 0.0]]
    """
    counted = np.where(present, rewards, 0)
    mean = counted.sum(axis=-1, keepdims=True) / np.maximum(present.sum(axis=-1, keepdims=True), 1)
    return np.where(present, counted - mean, 0)


def weighted_sum(c: Components, prior_weight: float, format_weight: float) -> Floats:
    """A = centred(posterior + λ prior + φ format).

    Simple, and a trap: a prior of any fixed weight goes on pulling when outcomes have said
    otherwise.
    """
    return centred(c.posterior + prior_weight * c.prior + format_weight * c.format, c.present)


def gdpo(c: Components, prior_weight: float, format_weight: float) -> Floats:
    """A = n(posterior) + λ n(prior) + φ n(format), n: centred over its group's deviation.

    Each component counts by its weight whatever its scale; so a dense prior drowns a sparse
    posterior.

    Reference: the decoupled normalisation of GDPO (group reward-decoupled normalisation policy
    optimisation).
    """
    return (
        _normalised(c.posterior, c.present)
        + prior_weight * _normalised(c.prior, c.present)
        + format_weight * _normalised(c.format, c.present)
    )


def gated(c: Components, prior_weight: float, format_weight: float) -> Floats:
    """The prior counts only where the posterior says nothing: A_post + λ 1[A_post = 0] A_prior."""
    posterior = centred(c.posterior, c.present)
    flat = np.abs(posterior).max(axis=-1, keepdims=True, initial=0) <= LEAST_SPREAD
    ruled = format_weight * centred(c.format, c.present)
    return posterior + ruled + np.where(flat, prior_weight * centred(c.prior, c.present), 0)


def calibrated(c: Components, prior_weight: float, format_weight: float, scale: float) -> Floats:
    """A = A_post + φ A_format + λ c A_prior, with c as `Calibration.scale` has measured it."""
    posterior = centred(c.posterior + format_weight * c.format, c.present)
    return posterior + prior_weight * scale * centred(c.prior, c.present)


class Calibration:
    """How far the prior agrees with the posterior.

    Over groups with an outcome, the regression of the posterior's advantages on the prior's,
    c0 = S_xy / S_xx; c = c0 max(0, 1 - 2 se² / c0²), which is 0 unless c0 is told from 0. At the
    posterior's optimum its advantages no longer depend on the prior's, so c goes to 0 by itself; a
    prior that is upside down gets a negative c, and is of use.

    Args:
        half_life: informative groups after which a group counts half.
    """

    def __init__(self, half_life: float) -> None:
        self._half_life = half_life
        self._sums = np.zeros(5)  # S_xy, S_xx, Σ xy², Σ xy xx, Σ xx² over batches

    def add(self, c: Components) -> None:
        """Take in the served groups of a batch, before anything is learned from them."""
        posterior = centred(c.posterior, c.present)
        spoke = np.abs(posterior).max(axis=-1, initial=0) > LEAST_SPREAD
        if not spoke.any():
            return
        y, x = posterior[spoke], centred(c.prior, c.present)[spoke]
        xy, xx = float((x * y).sum()), float((x * x).sum())
        decay = 0.5 ** (int(spoke.sum()) / self._half_life)
        self._sums = self._sums * decay + np.array([xy, xx, xy * xy, xy * xx, xx * xx])

    def scale(self) -> float:
        """c; 0 before anything is known."""
        s_xy, s_xx, xy2, xyxx, xx2 = self._sums.tolist()
        if s_xx <= 0 or s_xy == 0:
            return 0.0
        c0 = s_xy / s_xx
        error = max(0.0, xy2 - 2 * c0 * xyxx + c0 * c0 * xx2) / (s_xx * s_xx)
        return c0 * max(0.0, 1 - 2 * error / (c0 * c0))

    def clear(self) -> None:
        """Forget everything."""
        self._sums = np.zeros(5)

    def state(self) -> State:
        """Everything, to be kept in a checkpoint."""
        return {"sums": self._sums}

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Continue from what `state` returned."""
        self._sums = state["sums"].astype(np.float64)


def _normalised(rewards: Floats, present: Flags) -> Floats:
    advantages = centred(rewards, present)
    count = np.maximum(present.sum(axis=-1, keepdims=True), 1)
    deviation = np.sqrt((advantages**2).sum(axis=-1, keepdims=True) / count)
    return np.asarray(advantages / (deviation + STANDARD_DEVIATION_FLOOR))
