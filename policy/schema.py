"""A policy's schema: what it reads, what it blends, what counts as success.

One TOML file per policy. `parse_schema` refuses anything that it does not know, naming the place,
what was expected and what was seen.
"""

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from grade.v1.refused_pb2 import Reason

from policy.errors import SchemaError, cut
from policy.toml_table import Table, parse_toml, read_text, seen_as

Transform = Literal["linear", "log", "logit"]
Normalise = Literal["running_mean", "request"]

# Hand-written thirds and sevenths (0.3333) are accepted and divided by their sum.
BASELINE_TOLERANCE = 1e-3
_POLICY_NAME = re.compile(r"[a-z0-9_-]+")
_LONGEST_NAME = 128

LARGEST_GAIN = 1e9
"""So that rewards stay far from overflow whatever a conversion's value is."""
LEAST_EXAMINATION = 1e-6
"""A gain is divided by it."""
MOST_FEATURES, MOST_OBJECTIVES, MOST_OUTCOMES, MOST_POSITIONS = 10_000, 256, 1_000, 10_000
"""Beyond them a request or an impression would not fit into a message."""


@dataclass(frozen=True, slots=True)
class Feature:
    """One number of a request's context."""

    name: str


@dataclass(frozen=True, slots=True)
class Objective:
    """One predicted signal of a candidate, and its share in the blend."""

    name: str
    transform: Transform
    """How a score becomes a signal: see `policy.fusion.transform_scores`."""
    standardise: bool
    """Whether the signal is centred and scaled within the request."""
    baseline: float
    """Today's fusion weight; over all objectives they sum to 1."""
    floor: float = 0.0
    """Least fusion weight that is ever served."""
    predicts: str | None = None
    """Outcome type that the raw score predicts: its probability or, if its value counts, its
    expected value, which a `logit` objective's probability cannot be."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One type of what a user can do with an item."""

    name: str
    gain: float
    """Reward of one such outcome."""
    value_weighted: bool = False
    """Whether the gain is multiplied by the conversion's value."""


@dataclass(frozen=True, slots=True)
class SoftRule:
    """A range that an objective's fusion weight should stay in; leaving it costs reward."""

    objective: str
    min_weight: float = 0.0
    max_weight: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Schema:
    """The schema of one policy. Two schemas are equal iff their digests are.

    The digest is the sha256 of the content as canonical JSON with every default written out, so
    comments, order of keys and spelling of numbers do not matter.
    """

    policy: str
    features: tuple[Feature, ...]
    objectives: tuple[Objective, ...]
    outcomes: tuple[Outcome, ...]
    window_ms: int
    """Attribution window W."""
    early_ms: int
    """How much earlier than its impression a conversion may be logged, E."""
    late_ms: int
    """Horizon L up to which a conversion after the window is late rather than an orphan."""
    holdout_share: float
    """Share of units that always get the baseline and are never learned from, in [0, 1)."""
    examination: tuple[float, ...]
    """[position] probability that a position is looked at; the last repeats; empty = 1."""
    normalise: Normalise
    """What a posterior is divided by when learned from: the running mean of the ideal, or the
    request's own ideal."""
    soft_rules: tuple[SoftRule, ...]
    toml: str
    digest: bytes

    @property
    def n_features(self) -> int:
        """Number of features."""
        return len(self.features)

    @property
    def n_objectives(self) -> int:
        """Number of objectives."""
        return len(self.objectives)

    @property
    def n_outcomes(self) -> int:
        """Number of outcome types."""
        return len(self.outcomes)

    def baseline(self) -> npt.NDArray[np.float64]:
        """[objective] today's fusion weights, divided by their sum."""
        weights = np.array([o.baseline for o in self.objectives], dtype=np.float64)
        return weights / math.fsum(weights)

    def floors(self) -> npt.NDArray[np.float64]:
        """[objective] least fusion weight that is ever served."""
        return np.array([o.floor for o in self.objectives], dtype=np.float64)

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, Schema) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)


def load_schema(path: Path) -> Schema:
    """Read a schema file.

    Raises:
        SchemaError: the file is not there, not text, too large, or not a schema.
    """
    text = read_text(path, "a schema file", SchemaError)
    return parse_schema(text, where=str(path))


def parse_schema(text: str, *, where: str = "schema") -> Schema:
    """Read a schema from TOML.

    Args:
        text: the TOML.
        where: what to call it in messages, such as the file's name.

    Raises:
        SchemaError: one sentence: where, what was expected, what was seen.

    >>> parse_schema("policy = 'Feed'", where="feed.toml")
    Traceback (most recent call last):
    policy.errors.SchemaError: feed.toml: policy: expected a name of a-z, 0-9, _ and -, seen 'Feed'
    """
    content = parse_toml(text, where, SchemaError)
    top = Table(content, where, "")
    policy = top.text("policy", "a name of a-z, 0-9, _ and -", _is_policy_name)
    features = _features(top)
    objectives = _objectives(top)
    outcomes = _outcomes(top)
    window_ms, early_ms, late_ms = _attribution(top)
    examination, normalise = _reward(top)
    soft_rules = _soft_rules(top)
    holdout = top.table("holdout")
    share = holdout.number("share", "a share in [0, 1)", lambda x: 0 <= x < 1, 0.0)
    holdout.finish()
    top.finish()
    _check_baseline(top, objectives)
    _check_references(top, objectives, outcomes, soft_rules)
    schema = Schema(
        policy=policy,
        features=features,
        objectives=objectives,
        outcomes=outcomes,
        window_ms=window_ms,
        early_ms=early_ms,
        late_ms=late_ms,
        holdout_share=share,
        examination=examination,
        normalise=normalise,
        soft_rules=soft_rules,
        toml=text,
        digest=b"",
    )
    object.__setattr__(schema, "digest", _digest(schema))
    return schema


def _features(top: Table) -> tuple[Feature, ...]:
    value = top.take("features")
    if not isinstance(value, list):
        raise top.mistyped("features", "a list of at least one name", value)
    if not value:
        expected = "a list of at least one name"
        raise top.wrong("features", expected, "[]", Reason.REASON_MISSING_FIELD)
    if len(value) > MOST_FEATURES:
        expected = f"at most {MOST_FEATURES} names"
        raise top.wrong("features", expected, str(len(value)), Reason.REASON_TOO_LARGE)
    for i, name in enumerate(value):
        if not isinstance(name, str):
            raise top.mistyped(f"features[{i}]", _NAME, name)
        if not _is_name(name):
            raise top.wrong(f"features[{i}]", _NAME, seen_as(name), Reason.REASON_BAD_NAME)
    _check_unique(top, "features", value)
    return tuple(Feature(name) for name in value)


def _objectives(top: Table) -> tuple[Objective, ...]:
    tables = top.tables("objectives", MOST_OBJECTIVES)
    if len(tables) < 2:
        raise top.wrong(
            "objectives",
            "at least 2 tables [[objectives]]",
            str(len(tables)),
            Reason.REASON_MISSING_FIELD,
        )
    found = []
    for table in tables:
        found.append(
            Objective(
                name=table.text("name", _NAME, _is_name),
                transform=table.choice("transform", get_args(Transform), "linear"),  # type: ignore[arg-type]  # one of the three
                standardise=table.flag("standardise", True),
                baseline=table.number("baseline", "a weight in [0, 1]", lambda x: 0 <= x <= 1),
                floor=table.number("floor", "a weight in [0, 1)", lambda x: 0 <= x < 1, 0.0),
                predicts=_optional_name(table, "predicts"),
            )
        )
        table.finish()
    _check_unique(top, "objectives", [o.name for o in found])
    return tuple(found)


def _outcomes(top: Table) -> tuple[Outcome, ...]:
    tables = top.tables("outcomes", MOST_OUTCOMES)
    if not tables:
        raise top.wrong(
            "outcomes", "at least 1 table [[outcomes]]", "0", Reason.REASON_MISSING_FIELD
        )
    found = []
    for table in tables:
        found.append(
            Outcome(
                name=table.text("name", _NAME, _is_name),
                gain=table.number(
                    "gain",
                    f"a finite number >= 0 and at most {LARGEST_GAIN:g}",
                    lambda x: 0 <= x <= LARGEST_GAIN,
                ),
                value_weighted=table.flag("value_weighted", False),
            )
        )
        table.finish()
    _check_unique(top, "outcomes", [o.name for o in found])
    if not any(o.gain > 0 for o in found):
        raise top.wrong("outcomes", "at least one gain above 0", "none")
    return tuple(found)


def _attribution(top: Table) -> tuple[int, int, int]:
    table = top.table("attribution")
    window = table.milliseconds("window_s", "a time in seconds above 0")
    if window == 0:
        raise table.wrong("window_s", "a time in seconds above 0", "0")
    early = table.milliseconds("early_s", "a time in seconds >= 0", 0)
    late = table.milliseconds("late_s", "a time in seconds >= 0", 2 * window)
    longest = window + window + early
    if not window <= late <= longest:
        raise table.wrong(
            "late_s",
            f"a time from window_s to 2 × window_s + early_s ({window / 1000:g} to "
            f"{longest / 1000:g})",
            f"{late / 1000:g}",
            Reason.REASON_INCONSISTENT,
        )
    table.finish()
    return window, early, late


def _reward(top: Table) -> tuple[tuple[float, ...], Normalise]:
    table = top.table("reward")
    examination = table.take("examination", [])
    if not isinstance(examination, list):
        raise table.mistyped("examination", "a list of probabilities", examination)
    if len(examination) > MOST_POSITIONS:
        raise table.wrong(
            "examination",
            f"at most {MOST_POSITIONS} probabilities",
            str(len(examination)),
            Reason.REASON_TOO_LARGE,
        )
    expected = f"a probability in (0, 1], at least {LEAST_EXAMINATION:g}"
    for position, propensity in enumerate(examination):
        table.check_number(f"examination[{position}]", expected, propensity)
        if not LEAST_EXAMINATION <= propensity <= 1:
            raise table.wrong(f"examination[{position}]", expected, seen_as(propensity))
    normalise: Normalise = table.choice("normalise", get_args(Normalise), "running_mean")  # type: ignore[assignment]  # one of the two
    table.finish()
    return tuple(float(p) for p in examination), normalise


def _soft_rules(top: Table) -> tuple[SoftRule, ...]:
    found = []
    for table in top.tables("soft_rules", MOST_OBJECTIVES):
        rule = SoftRule(
            objective=table.text("objective", "the name of an objective", _is_name),
            min_weight=table.number("min_weight", "a weight in [0, 1]", lambda x: 0 <= x <= 1, 0.0),
            max_weight=table.number("max_weight", "a weight in [0, 1]", lambda x: 0 <= x <= 1, 1.0),
        )
        if rule.min_weight > rule.max_weight:
            raise table.wrong(
                "min_weight",
                f"at most max_weight ({rule.max_weight:g})",
                f"{rule.min_weight:g}",
                Reason.REASON_INCONSISTENT,
            )
        table.finish()
        found.append(rule)
    _check_unique(top, "soft_rules", [r.objective for r in found])
    return tuple(found)


def _check_baseline(top: Table, objectives: Sequence[Objective]) -> None:
    total = math.fsum(o.baseline for o in objectives)
    if abs(total - 1) > BASELINE_TOLERANCE:
        raise top.wrong(
            "objectives",
            "baseline weights that sum to 1",
            f"a sum of {total:g}",
            Reason.REASON_INCONSISTENT,
        )
    floors = math.fsum(o.floor for o in objectives)
    if floors >= 1:
        raise top.wrong(
            "objectives",
            "floors that sum to less than 1",
            f"a sum of {floors:g}",
            Reason.REASON_INCONSISTENT,
        )
    for i, objective in enumerate(objectives):
        if objective.baseline / total < objective.floor - 1e-12:
            raise top.wrong(
                f"objectives[{i}].baseline",
                f"at least the floor ({objective.floor:g})",
                f"{objective.baseline:g}",
                Reason.REASON_INCONSISTENT,
            )


def _check_references(
    top: Table,
    objectives: Sequence[Objective],
    outcomes: Sequence[Outcome],
    soft_rules: Sequence[SoftRule],
) -> None:
    known = [o.name for o in outcomes]
    predicted: set[str] = set()
    for i, objective in enumerate(objectives):
        outcome = objective.predicts
        if outcome is None:
            continue
        where = f"objectives[{i}].predicts"
        if outcome not in known:
            raise top.wrong(
                where,
                f"an outcome type ({cut(', '.join(known))})",
                seen_as(outcome),
                Reason.REASON_UNKNOWN_OUTCOME,
            )
        if outcome in predicted:
            raise top.wrong(
                where,
                "one objective per outcome type",
                f"{outcome!r} again",
                Reason.REASON_REPEATED_NAME,
            )
        predicted.add(outcome)
        if objective.transform == "logit" and outcomes[known.index(outcome)].value_weighted:
            raise top.wrong(
                where,
                "an outcome type that is not value_weighted (a logit objective's score is a "
                "probability; an expected value wants linear or log)",
                repr(outcome),
                Reason.REASON_INCONSISTENT,
            )
    names = [o.name for o in objectives]
    for i, rule in enumerate(soft_rules):
        if rule.objective not in names:
            raise top.wrong(
                f"soft_rules[{i}].objective",
                f"an objective ({cut(', '.join(names))})",
                repr(rule.objective),
                Reason.REASON_UNKNOWN_OBJECTIVE,
            )


def _check_unique(top: Table, key: str, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for i, name in enumerate(names):
        if name in seen:
            raise top.wrong(
                f"{key}[{i}]", "each name once", f"{name!r} again", Reason.REASON_REPEATED_NAME
            )
        seen.add(name)


def _optional_name(table: Table, key: str) -> str | None:
    value = table.take(key)
    if value is not None and not isinstance(value, str):
        raise table.mistyped(key, "the name of an outcome type", value)
    return value


_NAME = f"a name of 1 to {_LONGEST_NAME} printable characters without spaces around it"


def _is_name(text: str) -> bool:
    return 0 < len(text) <= _LONGEST_NAME and text.isprintable() and text == text.strip()


def _is_policy_name(text: str) -> bool:
    return len(text) <= _LONGEST_NAME and _POLICY_NAME.fullmatch(text) is not None


def _digest(schema: Schema) -> bytes:
    content = {
        "policy": schema.policy,
        "features": [f.name for f in schema.features],
        "objectives": [
            [o.name, o.transform, o.standardise, o.baseline, o.floor, o.predicts]
            for o in schema.objectives
        ],
        "outcomes": [[o.name, o.gain, o.value_weighted] for o in schema.outcomes],
        "attribution_ms": [schema.window_ms, schema.early_ms, schema.late_ms],
        "examination": schema.examination,
        "normalise": schema.normalise,
        "soft_rules": [[r.objective, r.min_weight, r.max_weight] for r in schema.soft_rules],
        "holdout_share": schema.holdout_share,
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).digest()
