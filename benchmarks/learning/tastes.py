"""What the types of users want, and how objectives conflict, for any number of objectives."""

import numpy as np

from simulator.marketplace import CONFLICTS, TASTES, Floats

SALES = 1
"""Objective that matters to everyone, as in the marketplace."""
_SHARE_OF_SALES, _SPREAD_EVENLY = 0.35, 0.05


def tastes_of(objectives: int) -> Floats:
    """What each type of user is drawn to.

    The marketplace's own tastes where there are five objectives. Else every type gives a part of
    its taste to sales, and the rest to a few others that are drawn once for all seeds: a world of
    12 objectives is one world.

    Args:
        objectives: how many, at least 2.

    Returns:
        [type, objective] rows sum to 1.

    >>> tastes_of(3).sum(axis=1).round(6).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    tastes = np.array(TASTES)
    if objectives != tastes.shape[1]:
        draw = np.random.default_rng([objectives, 0])
        tastes = draw.dirichlet(np.full(objectives, 1 / objectives), len(TASTES))
        tastes *= 1 - _SHARE_OF_SALES - _SPREAD_EVENLY
        tastes += _SPREAD_EVENLY / objectives
        tastes[:, SALES] += _SHARE_OF_SALES
    return np.asarray(tastes / tastes.sum(axis=1, keepdims=True))


def conflicts_of(objectives: int) -> Floats:
    """How the signals of a candidate go together.

    The marketplace's own where there are five objectives, else a correlation matrix of a few common
    factors, drawn once for all seeds.

    Args:
        objectives: how many, at least 2.

    Returns:
        [objective, objective] correlations, positive definite.

    >>> bool(np.linalg.eigvalsh(conflicts_of(12)).min() > 0)
    True
    """
    if objectives == len(CONFLICTS):
        return np.array(CONFLICTS)
    draw = np.random.default_rng([objectives, 1])
    factors = 0.7 * draw.standard_normal((objectives, 3))
    covariance = factors @ factors.T + np.eye(objectives)
    scale = np.sqrt(np.diag(covariance))
    return np.asarray(covariance / np.outer(scale, scale))
