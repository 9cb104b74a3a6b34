"""A contextual bandit of Vowpal Wabbit over a discretised simplex; an optional extra."""

import importlib
import importlib.util
import itertools
from typing import Any, Final

import numpy as np

from benchmarks.learning.method import Groups
from policy.batch import Requests, posteriors
from policy.fusion import Floats
from policy.running import ContextScale, RunningIdeal
from policy.schema import Schema

MOST_ACTIONS: Final = 15
_OPTIONS: Final = (
    "--cb_explore {actions} --cb_type ips --epsilon 0.2 -l 0.01 --quiet --random_seed 1"
)


def available() -> bool:
    """Whether the extra is installed."""
    return importlib.util.find_spec("vowpalwabbit") is not None


def simplex_grid(objectives: int, most: int = MOST_ACTIONS) -> Floats:
    """The finest even grid on the simplex that has no more than some points.

    Args:
        objectives: corners of the simplex.
        most: points at most; at least the corners are always there.

    Returns:
        [point, objective] each sums to 1.

    >>> simplex_grid(2, 3).tolist()
    [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]
    """
    grid = _grid(objectives, 1)
    for parts in itertools.count(2):
        finer = _grid(objectives, parts)
        if len(finer) > most:
            break
        grid = finer
    return np.array(sorted(grid.tolist()))


class Vowpal:
    """Epsilon-greedy exploration, regression on importance-weighted rewards.

    Points, kind of estimate, exploration and learning rate were chosen among six combinations on
    seeds that are not reported.

    Reference: Bietti, Agarwal and Langford, "A contextual bandit bake-off", arXiv:1802.04064.

    Args:
        schema: the policy's schema.
        seed: does nothing; exploration is drawn by the caller's generator.
    """

    def __init__(self, schema: Schema, seed: int) -> None:
        self._grid = simplex_grid(schema.n_objectives)
        module: Any = importlib.import_module("vowpalwabbit")
        self._workspace = module.Workspace(_OPTIONS.format(actions=len(self._grid)))
        self._scale = ContextScale(schema.n_features)
        self._ideal = RunningIdeal(2_000.0)
        self._chosen = np.zeros(0, dtype=np.intp)
        self._chances = np.zeros(0)

    def means(self, features: Floats) -> Floats:
        """[request, objective] the point that is thought best."""
        return np.asarray(self._grid[np.argmax(self._pmf(features), axis=1)])

    def groups(self, features: Floats, generator: np.random.Generator) -> Groups:
        """One point of the grid per request."""
        pmf = self._pmf(features)
        below = generator.random(len(pmf))[:, None] < np.cumsum(pmf, axis=1)
        self._chosen = np.argmax(below, axis=1)
        self._chances = pmf[np.arange(len(pmf)), self._chosen]
        weights = self._grid[self._chosen][:, None, :]
        return Groups(weights, np.log(self._chances)[:, None], np.zeros(len(pmf), dtype=np.intp))

    def learn(self, requests: Requests, groups: Groups) -> None:
        """One example per request; the cost is minus the reward."""
        self._ideal.add(requests.ideal)
        rewards = posteriors(requests, groups.weights)[:, 0] / self._ideal.mean()
        contexts = self._contexts(requests.features)
        for action, chance, reward, context in zip(
            self._chosen.tolist(), self._chances.tolist(), rewards.tolist(), contexts, strict=True
        ):
            self._workspace.learn(f"{action + 1}:{-reward:.6f}:{chance:.6f} {context}")
        self._scale.add(requests.features)

    def inside(self) -> dict[str, float]:
        """How many points there are to choose from."""
        return {"actions": float(len(self._grid))}

    def _pmf(self, features: Floats) -> Floats:
        pmf = np.array([self._workspace.predict(each) for each in self._contexts(features)])
        return np.asarray(pmf / pmf.sum(axis=1, keepdims=True))

    def _contexts(self, features: Floats) -> list[str]:
        mean, scale = self._scale.mean_and_scale()
        standard = np.clip((features - mean) / scale, -4, 4)
        return [
            "| " + " ".join(f"f{index}:{value:.4f}" for index, value in enumerate(row))
            for row in standard.tolist()
        ]


def _grid(objectives: int, parts: int) -> Floats:
    """[point, objective] every way to share some equal parts among the objectives."""
    ways = itertools.combinations(range(parts + objectives - 1), objectives - 1)
    bars = np.array(list(ways)).reshape(-1, objectives - 1)
    edges = np.hstack(
        [np.full((len(bars), 1), -1), bars, np.full((len(bars), 1), parts + objectives - 1)]
    )
    return np.asarray((np.diff(edges, axis=1) - 1) / parts)
