"""Batches whose groups are one pair of members, so that a step can be worked out by hand.

Member 0 weighs two objectives 7 : 3, member 1 the other way round. Where alpha is the same for both
objectives, the log density of a member changes with the static logit of the first objective by
± κ (1 - Σ floor) / 4 · log(7 / 3).
"""

import math
from collections.abc import Sequence

import numpy as np

from policy import dirichlet
from policy.batch import Batch, Served, padded
from policy.fusion import Floats
from policy.initial import INITIAL_CONCENTRATION
from policy.schema import Schema
from policy.trainer import Trainer
from policy.trainer_settings import TrainerSettings
from tests.policy.groups import make_schema

WEIGHTS = [[0.7, 0.3], [0.3, 0.7]]
ALONE = {"fresh_steps": 0, "replay_steps": 0, "served_epochs": 1, "prior_weight": 0.0}
"""Settings of one step on the served groups, the prior left out."""


def pair_schema() -> Schema:
    """Two objectives that start alike."""
    return make_schema(features=1, objectives=2)


def pairs(
    posterior: Sequence[Sequence[float]],
    *,
    ratio: float = 1.0,
    weights: Sequence[Sequence[float]] = WEIGHTS,
    versions: Sequence[tuple[int, int]] | None = None,
    predicted: float = 0.0,
) -> Batch:
    """Requests whose single item earned one gain, so that rewards are shares of 1.

    Args:
        posterior: [request, member] rewards; NaN is an absent member.
        ratio: how much likelier the members are under the first policy than as they were served.
        weights: [member, objective] of every group.
        versions: [request, (epoch, version)] that decided; the first of epoch 1 if left out.
        predicted: gain of the item.
    """
    rewards = np.array(posterior, dtype=np.float64)
    count = len(rewards)
    one = np.ones(count)
    requests = padded(
        np.zeros((count, 1)), np.ones((count, 1), bool), np.zeros((count, 2)), one, one * 0, one
    )
    requests = requests._replace(predicted=np.full((count, 1), predicted))
    alpha = np.full(2, INITIAL_CONCENTRATION / 2)
    density = dirichlet.log_density(np.array(weights), alpha, np.zeros(2)) - math.log(ratio)
    present = np.isfinite(rewards)
    return Batch(
        requests,
        Served(
            weights=np.tile(np.array(weights), (count, 1, 1)),
            log_densities=np.tile(density, (count, 1)),
            posterior=np.where(present, rewards, 0),
            present=present,
            executed=rewards[:, 0],
            versions=np.array(versions or [(1, 1)] * count, dtype=np.uint64),
        ),
    )


def slope(trainer: Trainer) -> float:
    """How the log density of member 0 changes with the first static logit, at the start."""
    spare = 1 - math.fsum(trainer.serving_parameters()["mean_floor"].tolist())
    return INITIAL_CONCENTRATION * spare / 4 * math.log(7 / 3)


def static_gradient(trainer: Trainer) -> Floats:
    """[objective] of the static logits in the first step: Adam's first moment is a tenth of it."""
    return trainer.state()["static_adam.0.first"].astype(np.float64) * 10


def new_trainer(**settings: object) -> Trainer:
    """A trainer of `pair_schema` with settings on top of `ALONE`."""
    return Trainer(pair_schema(), TrainerSettings(**{**ALONE, **settings}))  # type: ignore[arg-type]  # named by the tests
