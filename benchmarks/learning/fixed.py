"""Methods that know no context: fixed weights, and the cross-entropy method on live traffic."""

from typing import Final

import numpy as np

from benchmarks.learning.method import Groups, same_for_all
from policy.batch import Requests, posteriors
from policy.fusion import Floats
from policy.schema import Schema


class Fixed:
    """Serves the same weights for ever.

    Args:
        weights: [objective]
    """

    def __init__(self, weights: Floats) -> None:
        self._weights = weights

    def means(self, features: Floats) -> Floats:
        """[request, objective] see `Method`."""
        return np.tile(self._weights, (len(features), 1))

    def groups(self, features: Floats, generator: np.random.Generator) -> Groups:
        """The weights themselves."""
        return same_for_all(self._weights, len(features))

    def learn(self, requests: Requests, groups: Groups) -> None:
        """Nothing."""

    def inside(self) -> dict[str, float]:
        """Nothing."""
        return {}


class CrossEntropy:
    """Searches the best static weights on live traffic, as production teams do.

    A generation of weights is drawn from one Dirichlet for all requests, each ranks its share of
    the traffic, and the Dirichlet moves towards the moments of the best. As our own learner does,
    and to its advantage over a plain test on live traffic, each is judged on the lists of all
    requests of the generation, not only on those that it has ranked.

    Reference: Rubinstein and Kroese, "The Cross-Entropy Method", 2004, chapter 2; smoothed update
    of section 5.2.
    """

    POPULATION: Final = 32
    ELITE: Final = 8
    REQUESTS: Final = 512
    """Of one generation."""
    SMOOTHING: Final = 0.7
    """Share of the best in the next generation's Dirichlet."""

    def __init__(self, schema: Schema, seed: int) -> None:
        self._draw = np.random.default_rng([seed, 4])
        self._mean = schema.baseline()
        self._concentration = float(schema.n_objectives)
        self._generation()

    def means(self, features: Floats) -> Floats:
        """[request, objective] the Dirichlet's mean."""
        return np.tile(self._mean, (len(features), 1))

    def groups(self, features: Floats, generator: np.random.Generator) -> Groups:
        """The generation's weights in turn, all of them as members."""
        count = len(features)
        weights = np.tile(self._population, (count, 1, 1))
        turn = (self._seen + np.arange(count)) % self.POPULATION
        return Groups(weights, np.zeros(weights.shape[:2]), turn)

    def learn(self, requests: Requests, groups: Groups) -> None:
        """Judge the generation, and once it has had its traffic, draw the next."""
        self._scores += posteriors(requests, groups.weights).sum(axis=0)
        self._seen += len(requests.features)
        if self._seen >= self.REQUESTS:
            best = self._population[np.argsort(-self._scores)[: self.ELITE]]
            mean, variance = best.mean(axis=0), best.var(axis=0).mean()
            concentration = float((mean * (1 - mean)).mean() / max(float(variance), 1e-6)) - 1
            self._mean = self.SMOOTHING * mean + (1 - self.SMOOTHING) * self._mean
            limited = min(max(concentration, 1.0), 300.0)
            self._concentration += self.SMOOTHING * (limited - self._concentration)
            self._generation()

    def inside(self) -> dict[str, float]:
        """The Dirichlet's concentration."""
        return {"concentration": self._concentration}

    def _generation(self) -> None:
        alpha = np.maximum(self._concentration * self._mean, 0.05)
        self._population = self._draw.dirichlet(alpha, self.POPULATION)
        self._scores, self._seen = np.zeros(self.POPULATION), 0
