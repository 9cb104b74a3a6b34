"""The terms of a generation: under which schema and settings the learner learns. Pure."""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from grade.v1.generation_pb2 import Generation
from safetensors import SafetensorError
from safetensors.numpy import load

from policy.errors import BoundaryError
from policy.initial import parameter_shapes
from policy.schema import Schema
from policy.trainer_settings import TrainerSettings, trainer_settings_of
from stream.codec import encode
from stream.slots import Names
from stream.terms import read_terms, schema_of, settings_of

SLOT_SETTING = "learn_slot_ms"
"""Name of the setting that is the length of a slot in milliseconds of log time."""


@dataclass(frozen=True, slots=True)
class LearningTerms:
    """What one generation decides about learning."""

    generation: int
    """Its number, counted from 1."""
    schema: Schema
    trainer: TrainerSettings
    slot_ms: int
    """Length of a slot in milliseconds of log time."""
    start: dict[str, npt.NDArray[np.float64]] | None
    """Serving tensors that learning starts from; None: what the generation before has learned."""


def read_learning_terms(generation: Generation) -> LearningTerms:
    """The terms of one generation.

    Raises:
        BoundaryError: this build cannot read what it says, or cannot learn so.
    """
    schema, settings = schema_of(generation), settings_of(generation)
    where = f"generation {generation.generation}"
    slot_ms = settings.get(SLOT_SETTING)
    if not isinstance(slot_ms, int) or slot_ms < 1:
        raise BoundaryError(
            f"{where}: {SLOT_SETTING}: expected a whole number of at least 1, seen {slot_ms!r}"
        )
    try:
        trainer = trainer_settings_of(settings)
    except BoundaryError as error:
        raise BoundaryError(f"{where}: {error}") from None
    return LearningTerms(
        generation=generation.generation,
        schema=schema,
        trainer=trainer,
        slot_ms=slot_ms,
        start=_start(generation, schema, where),
    )


def read_names(generation: Generation) -> Names:
    """What every record of the join names in one generation.

    Raises:
        BoundaryError: this build cannot read what it says.
    """
    terms = read_terms(generation)
    definition = hashlib.sha256(encode(generation)).digest()
    return Names(terms.schema.policy, terms.digest, terms.computation, definition)


def _start(
    generation: Generation, schema: Schema, where: str
) -> dict[str, npt.NDArray[np.float64]] | None:
    if not generation.initial_parameters:
        return None
    try:
        tensors = load(generation.initial_parameters)
    except SafetensorError as error:
        raise BoundaryError(
            f"{where}: expected initial parameters in a safetensors file, seen: {error}"
        ) from None
    expected, seen = parameter_shapes(schema), {name: each.shape for name, each in tensors.items()}
    for name in sorted(expected.keys() | seen.keys()):
        if expected.get(name) != seen.get(name):
            raise BoundaryError(
                f"{where}: initial parameters: {name}: expected {expected.get(name, 'none')}, "
                f"seen {seen.get(name, 'none')}"
            )
    wrong = [name for name, each in tensors.items() if not np.isfinite(each).all()]
    if wrong:
        raise BoundaryError(
            f"{where}: initial parameters: expected finite numbers, seen others in {wrong[0]}"
        )
    return {name: np.asarray(tensors[name], dtype=np.float64) for name in expected}
