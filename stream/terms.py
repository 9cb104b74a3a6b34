"""The terms of a generation: under which schema and settings the join judges a record.

Generations come from their topic or, where one begins, from the boundary record itself; both say
the same. Pure: no Kafka.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from grade.v1.generation_pb2 import Generation

from policy.errors import BoundaryError, SchemaError, SettingsError, StreamError
from policy.rewards import COMPUTATION, COMPUTATIONS
from policy.schema import Schema, parse_schema
from stream.join_records import JoinSettings

MAX_RECORD_BYTES_SETTING = "join_max_record_bytes"
"""Name of the one setting of the join that a generation has beside its schema."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What one generation decides about the records that lie in it."""

    generation: int
    """Its number, counted from 1."""
    schema: Schema
    settings: JoinSettings
    accepted: frozenset[bytes]
    """Digests of the schemas whose decisions are taken."""
    computation: int
    """Version of the reward computation."""
    digest: bytes = field(init=False)
    """sha256 of settings and schema, as every record of the join names it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", self.settings.digest(self.schema.digest))

    def require_computable(self) -> None:
        """Refuse a generation whose rewards this build cannot compute.

        Raises:
            BoundaryError: with what would help.
        """
        if self.computation not in COMPUTATIONS:
            known = ", ".join(map(str, sorted(COMPUTATIONS)))
            raise BoundaryError(
                f"generation {self.generation} of policy {self.schema.policy}: expected a reward "
                f"computation that this build has ({known}), seen {self.computation}: start a "
                "newer build"
            )


def terms_of(generations: Iterable[Generation]) -> dict[int, Terms]:
    """The terms of known generations, by number.

    A computation that this build lacks is no error before its generation has been reached.

    Raises:
        BoundaryError: this build cannot read what one of them says.
    """
    return {each.generation: read_terms(each) for each in generations}


def first_terms(schema: Schema, settings: JoinSettings | None = None) -> dict[int, Terms]:
    """The terms of a policy that has known nothing but its first generation.

    Args:
        schema: the policy's schema.
        settings: how to join; the schema's times by default.
    """
    settings = settings or JoinSettings(schema.window_ms, schema.early_ms, schema.late_ms)
    return {1: Terms(1, schema, settings, frozenset((schema.digest,)), COMPUTATION)}


def read_terms(generation: Generation) -> Terms:
    """The terms of one generation.

    Raises:
        BoundaryError: this build cannot read what it says.
    """
    schema = schema_of(generation)
    try:
        settings = settings_of(generation)
        join = JoinSettings(
            window_ms=schema.window_ms,
            early_ms=schema.early_ms,
            late_ms=schema.late_ms,
            max_record_bytes=settings[MAX_RECORD_BYTES_SETTING],
        )
    except (KeyError, TypeError, ValueError, SettingsError) as error:
        raise BoundaryError(
            f"settings of generation {generation.generation}: expected {MAX_RECORD_BYTES_SETTING} "
            f"as this build knows it, seen {error}; start the build that began it"
        ) from None
    return Terms(
        generation.generation,
        schema,
        join,
        frozenset((schema.digest, *generation.accepted_schema_digests)),
        generation.computation,
    )


def next_terms(
    known: dict[int, Terms], current: int, generation: Generation, place: str
) -> Terms | None:
    """The terms that a boundary record begins.

    Args:
        known: by number; what the record says is added.
        current: number of the generation that the record may end.
        generation: the record's.
        place: where it is, for messages.

    Returns:
        the terms; None if the generation has begun already.

    Raises:
        StreamError: boundaries are missing before it, or it is not what has been begun.
        BoundaryError: this build cannot go on under it.
    """
    number = generation.generation
    if number <= current:
        return None
    if number > current + 1:
        raise StreamError(
            f"{place}: expected the boundary of generation {current + 1} before the next one, "
            f"seen that of generation {number}"
        )
    said = read_terms(generation)
    terms = known.setdefault(number, said)
    if terms != said:
        raise StreamError(
            f"{place}: expected the boundary of generation {number} as it was begun, seen one "
            "with other terms"
        )
    terms.require_computable()
    return terms


def settings_of(generation: Generation) -> dict[str, Any]:
    """Every setting of a generation beside its schema and its computation, by name."""
    return {each.name: json.loads(each.value) for each in generation.settings}


def schema_of(generation: Generation) -> Schema:
    """The schema of a generation.

    Raises:
        BoundaryError: this build reads it otherwise than the one that began the generation.
    """
    where = f"generation {generation.generation}"
    try:
        schema = parse_schema(generation.schema_toml, where=f"schema of {where}")
    except SchemaError as error:
        raise BoundaryError(f"{error}; start the build that began {where}") from None
    if schema.digest != generation.schema_digest:
        raise BoundaryError(
            f"schema of {where}: expected digest {generation.schema_digest.hex()[:12]}, seen "
            f"{schema.digest.hex()[:12]}; start the build that began {where}"
        )
    return schema
