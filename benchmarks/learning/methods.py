"""Every method of the benchmark by name."""

from typing import Final

import numpy as np

from benchmarks.learning import ours, vowpal
from benchmarks.learning.fixed import CrossEntropy, Fixed
from benchmarks.learning.method import Method
from benchmarks.learning.peers import PlainGrpo, Ppo, Reinforce
from policy.fusion import Floats
from policy.schema import Schema
from policy.trainer_settings import TrainerSettings

OURS: Final = "ours"
OTHERS: Final = ("uniform", "static_first_half", "static_hindsight", "cem", "reinforce", "grpo")
"""Methods beside ours; the static ones are told the truth of the traffic."""
FULL_OTHERS: Final = ("ppo", "vw")
ABLATIONS: Final = (
    *(f"no_{part}" for part in ours.WITHOUT),
    "no_position",
)


def new_method(
    name: str, schema: Schema, examination: Floats, settings: TrainerSettings, seed: int
) -> Method:
    """A method that has learned nothing.

    Args:
        name: of a method that learns; the static ones are `Fixed`.
        schema: the policy's schema.
        examination: [position] what the gains of positions are divided by.
        settings: of our own learner.
        seed: of the method.

    Raises:
        ValueError: there is no method of that name.
    """
    match name:
        case "uniform":
            return Fixed(np.full(schema.n_objectives, 1 / schema.n_objectives))
        case "cem":
            return CrossEntropy(schema, seed)
        case "reinforce":
            return Reinforce(schema, seed)
        case "grpo":
            return PlainGrpo(schema, seed)
        case "ppo":
            return Ppo(schema, seed)
        case "vw":
            return vowpal.Vowpal(schema, seed)
        case "no_position":
            return ours.WithoutPositionWeights(schema, settings, examination)
        case "ours":
            return ours.Grade(schema, settings)
    part = name.removeprefix("no_")
    if part in ours.WITHOUT:
        return ours.Grade(schema, ours.without(settings, part))
    known = ", ".join((OURS, *OTHERS, *FULL_OTHERS, *ABLATIONS))
    raise ValueError(f"expected a method of {known}, seen {name!r}")
