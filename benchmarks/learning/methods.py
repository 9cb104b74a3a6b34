"""How fusion weights can be learned: each method answers the same calls on the same traffic."""

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from policy import dirichlet
from policy.batch import Batch, Requests, Served, posteriors
from policy.fusion import Floats
from policy.schema import Schema
from policy.trainer import StepReport, Trainer
from policy.trainer_settings import TrainerSettings
from serving.serving_policy import ServingPolicy


class Groups(NamedTuple):
    """Fusion weights for some requests."""

    weights: Floats
    """[request, member, objective]"""
    log_densities: Floats
    """[request, member] in nats; zero where the method has no density."""
    executed: npt.NDArray[np.intp]
    """[request] the member that ranks."""

    def ranking(self) -> Floats:
        """[request, objective] weights of the members that rank."""
        return np.asarray(self.weights[np.arange(len(self.executed)), self.executed])


class Method(Protocol):
    """Learns fusion weights from blocks of requests."""

    def means(self, features: Floats) -> Floats:
        """[request, objective] the weights that it would serve if it did not explore."""

    def groups(self, features: Floats, generator: np.random.Generator) -> Groups:
        """Weights to explore with."""

    def learn(self, requests: Requests, groups: Groups) -> None:
        """Learn from what users did with the lists that the groups' executed members ranked."""

    def inside(self) -> dict[str, float]:
        """What the method tells of itself, by name."""


class Grade:
    """This project's own learner, the class that the learner process runs.

    Args:
        schema: the policy's schema.
        settings: how to learn.
        members: of a group.
    """

    def __init__(self, schema: Schema, settings: TrainerSettings, members: int = 8) -> None:
        self._floors = schema.floors()
        self._members = members
        self._trainer = Trainer(schema, settings)
        self._versions = 0
        self._report: StepReport | None = None
        self._serve()

    def means(self, features: Floats) -> Floats:
        """[request, objective] see `Method`."""
        alpha = self._alpha(features)
        mean = alpha / alpha.sum(axis=1, keepdims=True)
        return dirichlet.simplex_to_weights(mean, self._floors)

    def groups(self, features: Floats, generator: np.random.Generator) -> Groups:
        """Draws from the served Dirichlets, shipped as float32 as the server ships them."""
        alpha = self._alpha(features)
        drawn = dirichlet.draw_simplex(generator, alpha, self._members)
        shipped = dirichlet.simplex_to_weights(drawn, self._floors).astype(np.float32)
        weights = shipped.astype(np.float64)
        density = dirichlet.log_density(weights, alpha[:, None, :], self._floors)
        executed = generator.integers(self._members, size=len(alpha))
        return Groups(weights, density, executed)

    def learn(self, requests: Requests, groups: Groups) -> None:
        """One step of the trainer, and the swap."""
        earned = posteriors(requests, groups.weights)
        served = Served(
            simplex=dirichlet.weights_to_simplex(groups.weights, self._floors),
            weights=groups.weights,
            log_densities=groups.log_densities,
            posterior=earned,
            present=np.ones(earned.shape, dtype=np.bool_),
            executed=earned[np.arange(len(earned)), groups.executed],
        )
        self._report = self._trainer.learn(Batch(requests, served), slot=self._versions)
        self._versions += 1
        self._serve()

    def inside(self) -> dict[str, float]:
        """Every number of the trainer's last report."""
        if self._report is None:
            return {}
        told = self._report._asdict().items()
        return {name: float(value) for name, value in told if isinstance(value, int | float)}

    def _alpha(self, features: Floats) -> Floats:
        return self._policy.alpha(features.astype(np.float32))

    def _serve(self) -> None:
        self._policy = ServingPolicy.from_tensors(
            self._trainer.serving_parameters(), epoch=1, version=self._versions
        )
