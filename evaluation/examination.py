"""How likely each position is looked at, estimated from a log by a position-based model.

Within a request, item i at position p_i is taken to be the one of an outcome in proportion to

    exp(log examination(p_i) + beta · signals_i)

which is the conditional (listwise) likelihood of the position-based click model with a log-linear
relevance: outcomes happen where a position is looked at and the item is wanted, and are rare. Log
examination by position, less that of position 0, and beta are fitted together by Newton's method;
the likelihood is concave. What a request's user is like drops out, for it is the same for all its
items. It can tell positions from relevance as far as items of like signals were shown at different
positions: a log of one fixed ranking has nothing but the model's form to tell them by.

Reference: the position-based model of Richardson, Dominowska, Ragno, WWW 2007, and its estimation
along with a relevance model, Wang, Golbandi, Bendersky, Metzler, Najork, WSDM 2018; the conditional
likelihood is McFadden's (Conditional logit analysis of qualitative choice behavior, 1974). The
intervals perturb the scores by unit: Kline and Santos, J. Econometric Methods 1, 2012.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from grade.v1.refused_pb2 import Reason

from evaluation.bootstrap import DRAWS, Interval
from evaluation.yardsticks import Lists
from policy.errors import DataError
from policy.fusion import Floats

LEAST_OUTCOMES: Final = 20
"""Items with an outcome that a position must have; deeper ones are one with the last that has."""
_MOST_STEPS, _ENOUGH = 50, 1e-9
_RIDGE = 1e-6
_ROWS_AT_ONCE = 4_096


class Examination(NamedTuple):
    """The estimated curve."""

    curve: list[Interval]
    """[position] examination relative to position 0, which is 1; the last one repeats."""
    outcomes: list[int]
    """[position] items with an outcome that it rests on."""
    relevance: list[float]
    """[objective] log odds per unit of a signal."""
    requests: int
    """With an outcome and at least 2 items."""


class _Sums(NamedTuple):
    scores: Floats
    """[request, parameter] gradients of the log-likelihood."""
    curvature: Floats
    """[parameter, parameter] minus its second derivative."""
    likelihood: float


def estimate_examination(lists: Lists, unit_ids: Sequence[str], *, seed: int = 0) -> Examination:
    """Estimate how likely positions are looked at.

    Args:
        lists: every request's items; gains as they were earned.
        unit_ids: [request] their units.
        seed: of the resamples.

    Raises:
        DataError: fewer than two positions have enough outcomes.
    """
    happened = (lists.gains > 0) & lists.shown
    rows = np.flatnonzero(happened.any(axis=1) & (lists.shown.sum(axis=1) > 1))
    lists, happened = lists.at(rows), happened[rows]
    counts = np.bincount(lists.positions[happened], minlength=1)
    enough = counts >= LEAST_OUTCOMES
    depth = len(counts) if enough.all() else int(np.argmin(enough))
    if depth < 2:
        raise DataError(
            f"expected {LEAST_OUTCOMES} items with an outcome at each of positions 0 and 1 at "
            f"least, seen {', '.join(map(str, counts[:2])) if len(rows) else 'none'}",
            Reason.REASON_MISSING_FIELD,
        )
    pooled = np.minimum(lists.positions, depth - 1)
    parameters = np.zeros(depth - 1 + lists.signals.shape[2])
    sums = _sums(lists, happened, pooled, depth, parameters)
    for _ in range(_MOST_STEPS):
        step = np.linalg.solve(sums.curvature, _gradient(sums, parameters))
        tried = _sums(lists, happened, pooled, depth, parameters + step)
        while _penalised(tried, parameters + step) < _penalised(sums, parameters):
            step /= 2
            tried = _sums(lists, happened, pooled, depth, parameters + step)
            if np.abs(step).max() < _ENOUGH:
                break
        parameters, sums = parameters + step, tried
        if np.abs(step).max() < _ENOUGH:
            break
    draws = parameters + _perturbed(sums, [unit_ids[row] for row in rows.tolist()], seed)
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    bounds = np.exp(np.stack([parameters, low, high], axis=1))[: depth - 1]
    places = np.bincount(pooled[happened], minlength=depth)
    return Examination(
        [Interval(1.0, 1.0, 1.0), *(Interval(*each) for each in bounds.tolist())],
        places.tolist(),
        parameters[depth - 1 :].tolist(),
        len(rows),
    )


def _gradient(sums: _Sums, parameters: Floats) -> Floats:
    return np.asarray(sums.scores.sum(axis=0) - _RIDGE * parameters)


def _penalised(sums: _Sums, parameters: Floats) -> float:
    return sums.likelihood - _RIDGE / 2 * float(parameters @ parameters)


def _sums(
    lists: Lists,
    happened: npt.NDArray[np.bool_],
    pooled: npt.NDArray[np.int64],
    depth: int,
    parameters: Floats,
) -> _Sums:
    """Likelihood, gradients and curvature at some parameters: log examination, then relevance."""
    width = len(parameters)
    curvature, parts, likelihood = _RIDGE * np.eye(width), [], 0.0
    for first in range(0, len(pooled), _ROWS_AT_ONCE):
        block = slice(first, first + _ROWS_AT_ONCE)
        columns = np.concatenate(
            [np.eye(depth)[pooled[block]][..., 1:], lists.signals[block]], axis=2
        )
        level = np.where(lists.shown[block], columns @ parameters, -np.inf)
        level -= level.max(axis=1, keepdims=True)
        shares = np.exp(level)
        shares /= shares.sum(axis=1, keepdims=True)
        wanted = happened[block].astype(np.float64)
        total = wanted.sum(axis=1)
        mean = np.einsum("ri,rip->rp", shares, columns)
        parts.append(np.einsum("ri,rip->rp", wanted, columns) - total[:, None] * mean)
        weighted = (shares * total[:, None])[..., None] * columns
        flat = columns.reshape(-1, width)
        curvature += weighted.reshape(-1, width).T @ flat
        curvature -= (mean * total[:, None]).T @ mean
        likelihood += float(np.log(shares[happened[block]]).sum())
    return _Sums(np.concatenate(parts), curvature, likelihood)


def _perturbed(sums: _Sums, unit_ids: Sequence[str], seed: int) -> Floats:
    """[draw, parameter] how far the parameters move when units count Poisson(1) times."""
    _, unit = np.unique(np.asarray(unit_ids, dtype=object), return_inverse=True)
    by_unit = np.zeros((int(unit.max()) + 1, sums.scores.shape[1]))
    np.add.at(by_unit, unit, sums.scores)
    draw = np.random.default_rng(seed)
    moved = [draw.poisson(1.0, len(by_unit)) @ by_unit for _ in range(DRAWS)]
    return np.asarray(np.linalg.solve(sums.curvature, np.stack(moved).T).T)
