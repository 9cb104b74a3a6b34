"""This project's own learner as a method of the benchmark, and what it is without a part."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from benchmarks.learning.method import Groups, draw_groups
from policy import dirichlet
from policy.batch import Batch, Requests, Served, posteriors
from policy.fusion import Floats
from policy.rewards import ideal
from policy.schema import Schema
from policy.trainer import StepReport, Trainer
from policy.trainer_settings import TrainerSettings
from serving.serving_policy import ServingPolicy


class Grade:
    """The class that the learner process runs, with the policy function that the server runs.

    Args:
        schema: the policy's schema.
        settings: how to learn.
        members: of a group.
        start: serving tensors to start from, by name; the declared baseline if left out.
    """

    def __init__(
        self,
        schema: Schema,
        settings: TrainerSettings,
        members: int = 8,
        start: Mapping[str, Floats] | None = None,
    ) -> None:
        self._floors = schema.floors()
        self._members = members
        self._trainer = Trainer(schema, settings, start=start)
        self._versions = 0
        self._report: StepReport | None = None
        self._serve()

    def means(self, features: Floats) -> Floats:
        """[request, objective] weights of the served Dirichlets' means."""
        alpha = self._alpha(features)
        mean = alpha / alpha.sum(axis=1, keepdims=True)
        return dirichlet.simplex_to_weights(mean, self._floors)

    def groups(self, features: Floats, generator: np.random.Generator) -> Groups:
        """Draws from the served Dirichlets."""
        return draw_groups(self._alpha(features), self._floors, self._members, generator)

    def learn(self, requests: Requests, groups: Groups) -> None:
        """One step of the trainer, and the swap."""
        earned = posteriors(requests, groups.weights)
        served = Served(
            weights=groups.weights,
            log_densities=groups.log_densities,
            posterior=earned,
            present=np.ones(earned.shape, dtype=np.bool_),
            executed=earned[np.arange(len(earned)), groups.executed],
            versions=np.tile(np.array([1, self._versions], dtype=np.uint64), (len(earned), 1)),
        )
        batch = Batch(requests, served)
        self._report = self._trainer.learn(batch, slot=self._versions, version=self._versions)
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


class WithoutPositionWeights(Grade):
    """The same, learning as if every position were looked at alike.

    Args:
        examination: [position] the chances that the gains were divided by; the last repeats.
    """

    def __init__(self, schema: Schema, settings: TrainerSettings, examination: Floats) -> None:
        super().__init__(schema, settings)
        self._examination = examination

    def learn(self, requests: Requests, groups: Groups) -> None:
        """One step of the trainer on the gains as they came; the likelihood has no offset."""
        position = np.minimum(np.arange(requests.values.shape[1]), len(self._examination) - 1)
        values = requests.values * self._examination[position]
        super().learn(
            requests._replace(
                values=values, ideal=ideal(values), examination=np.ones_like(requests.examination)
            ),
            groups,
        )


WITHOUT: Final[Mapping[str, Mapping[str, Any]]] = {
    "gate": {"gate": False},
    "fresh": {"fresh_steps": 0},
    "replay": {"replay_steps": 0},
    "prior": {"prior_weight": 0.0},
    "concentration": {"learn_concentration": False},
}
"""Fields of `TrainerSettings` that switch a part off, by its name."""


def without(settings: TrainerSettings, part: str) -> TrainerSettings:
    """Settings without a part of `WITHOUT`."""
    return replace(settings, **WITHOUT[part])


def with_prior(settings: TrainerSettings, weight: float) -> TrainerSettings:
    """Settings with this weight of the prior."""
    named: Mapping[str, Any] = {"prior_weight": weight}
    return replace(settings, **named)
