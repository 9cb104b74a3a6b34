"""What differs between two generations, by the names that people know, and what that means.

A place in a schema is named as in its TOML file, a table of a list by the name that it gives:
`attribution.window_s`, `outcomes.order.gain`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from policy.schema import Feature, Objective, Outcome, Schema, SoftRule

ABSENT = "absent"
"""Old or new value of what is not there at all."""

PRESENT = "present"
"""Old or new value of a feature, objective, outcome or rule that the other schema does not have."""


class Change(NamedTuple):
    """One setting, or one place in the schema, that two generations have differently."""

    name: str
    """The setting, or the place in the schema."""
    old: str
    """Its value as JSON, or `ABSENT` or `PRESENT`."""
    new: str
    """Its value as JSON, or `ABSENT` or `PRESENT`."""

    def __str__(self) -> str:
        return f"{self.name}: {self.old} → {self.new}"


def decide_alike(one: Schema, other: Schema) -> bool:
    """Whether servers of two schemas answer alike, so that the decisions of both may be joined.

    They do if all that a decision and the ranking by it rest on is the same: features, objectives
    with transform, baseline and floor, and the holdout. Windows, outcomes and rules play no part,
    nor what an objective predicts.
    """
    return _deciding(one) == _deciding(other)


def schema_changes(old: Schema, new: Schema) -> Iterator[Change]:
    """The places that two schemas have differently, lists first."""
    yield from _list_changes("features", old.features, new.features, "name")
    yield from _list_changes("objectives", old.objectives, new.objectives, "name")
    yield from _list_changes("outcomes", old.outcomes, new.outcomes, "name")
    yield from _list_changes("soft_rules", old.soft_rules, new.soft_rules, "objective")
    yield from value_changes(_single_values(old), _single_values(new))


def value_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    """The names whose values differ; those that only one of the two has come last.

    >>> [str(each) for each in value_changes({"a": 1, "b": 2}, {"a": 1, "b": 2.5, "c": "x"})]
    ['b: 2 → 2.5', 'c: absent → "x"']
    """
    for name in dict.fromkeys([*old, *new]):
        if old.get(name) != new.get(name):
            yield Change(name, _text(old.get(name)), _text(new.get(name)))


def _deciding(schema: Schema) -> tuple[Any, ...]:
    objectives = [
        (each.name, each.transform, each.standardise, each.baseline, each.floor)
        for each in schema.objectives
    ]
    return schema.policy, schema.features, objectives, schema.holdout_share


def _list_changes(
    place: str,
    old: Sequence[Feature | Objective | Outcome | SoftRule],
    new: Sequence[Feature | Objective | Outcome | SoftRule],
    key: str,
) -> Iterator[Change]:
    """Tables that came or went, what changed in the others, and whether these changed places."""
    before, after = ({getattr(each, key): asdict(each) for each in tables} for tables in (old, new))
    for name in dict.fromkeys([*before, *after]):
        if name not in before:
            yield Change(f"{place}.{name}", ABSENT, PRESENT)
        elif name not in after:
            yield Change(f"{place}.{name}", PRESENT, ABSENT)
        else:
            yield from value_changes(
                *(
                    {f"{place}.{name}.{k}": v for k, v in each[name].items()}
                    for each in (before, after)
                )
            )
    orders = [[n for n in each if n in before and n in after] for each in (before, after)]
    # In a schema's digest the order counts: contexts and scores are read by it.
    if orders[0] != orders[1]:
        yield Change(place, _text(orders[0]), _text(orders[1]))


def _single_values(schema: Schema) -> dict[str, Any]:
    return {
        "policy": schema.policy,
        "attribution.window_s": schema.window_ms / 1000,
        "attribution.early_s": schema.early_ms / 1000,
        "attribution.late_s": schema.late_ms / 1000,
        "reward.examination": list(schema.examination),
        "reward.normalise": schema.normalise,
        "holdout.share": schema.holdout_share,
    }


def _text(value: Any) -> str:
    return ABSENT if value is None else json.dumps(value, ensure_ascii=False)
