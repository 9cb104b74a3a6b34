"""Generations of a random history: what may differ between them, and as the join reads them."""

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

from grade.v1.generation_pb2 import Generation, Setting

from policy.rewards import COMPUTATION
from policy.schema import Schema, parse_schema
from stream.codec import encode
from stream.terms import Terms, read_terms

_TOML = (Path(__file__).parent.parent / "example_schema.toml").read_text()

_PRICE = """[[objectives]]
name = "price"
transform = "log"
standardise = true
baseline = 0.2

"""
_PRICE_RULE = """[[soft_rules]]
objective = "price"
max_weight = 0.6
"""
_ORDER = """[[outcomes]]
name = "order"
gain = 5.0

"""
_LIKE = """[[outcomes]]
name = "like"
gain = 0.5

"""

OUTCOMES = {
    "few": ("click",),
    "some": ("click", "order"),
    "many": ("click", "order", "like"),
}
ALL_OUTCOMES = OUTCOMES["many"]


class Definition(NamedTuple):
    """What a generation decides: the design's W, E and L in milliseconds, and what it takes."""

    number: int
    window: int
    early: int
    late: int
    max_record_bytes: int = 1_000_000
    objectives: int = 3
    """Number of objectives, 3 or 2; decisions of the other number are not taken."""
    outcomes: str = "some"
    """A key of `OUTCOMES`."""
    computation: int = COMPUTATION

    @property
    def value(self) -> bytes:
        """The value of its boundary records."""
        return encode(generation(self))


def schema_toml(window: int, early: int, late: int, objectives: int, outcomes: str) -> str:
    """The example schema with other times, fewer objectives, or fewer or more outcome types."""
    text = _TOML
    for old, new in (
        ("window_s = 5.0", f"window_s = {window / 1000}"),
        ("early_s = 1.0", f"early_s = {early / 1000}"),
        ("late_s = 10.0", f"late_s = {late / 1000}"),
        *([(_PRICE, ""), (_PRICE_RULE, ""), ("= 0.3", "= 0.5")] if objectives == 2 else []),
        *([(_ORDER, ""), ('predicts = "order"\n', "")] if outcomes == "few" else []),
        *([(_ORDER, _ORDER + _LIKE)] if outcomes == "many" else []),
    ):
        assert old in text, f"the example schema has changed: {old}"
        text = text.replace(old, new)
    return text


SCHEMA = parse_schema(_TOML)
SCHEMAS: dict[int, Schema] = {
    3: SCHEMA,
    2: parse_schema(schema_toml(5_000, 1_000, 10_000, 2, "some")),
}
"""By number of objectives: the schemas that all decisions here were made under."""


@cache
def generation(definition: Definition) -> Generation:
    """A definition as its boundary records have it."""
    text = schema_toml(*definition[1:4], definition.objectives, definition.outcomes)
    digest = parse_schema(text).digest
    return Generation(
        policy=SCHEMA.policy,
        generation=definition.number,
        schema_toml=text,
        schema_digest=digest,
        accepted_schema_digests=[digest, SCHEMAS[definition.objectives].digest],
        computation=definition.computation,
        settings=[
            Setting(name="join_max_record_bytes", value=json.dumps(definition.max_record_bytes)),
            Setting(name="learn_slot_ms", value="250"),
        ],
    )


@cache
def definition_as_read(definition: Definition) -> Terms:
    """A definition as the join takes it."""
    return read_terms(generation(definition))
