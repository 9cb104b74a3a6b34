"""A policy's schema: what it reads, what it blends, what counts as success.

One TOML file per policy. `parse_schema` refuses anything that it does not know, naming the place,
what was expected and what was seen.
"""

import hashlib
import json
import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from policy.errors import SchemaError

Transform = Literal["linear", "log", "logit"]
Normalise = Literal["running_mean", "request"]

# Hand-written thirds and sevenths (0.3333) are accepted and divided by their sum.
BASELINE_TOLERANCE = 1e-3
_POLICY_NAME = re.compile(r"[a-z0-9_-]+")
_LONGEST_NAME = 128


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
        SchemaError: the file is not there, not text, or not a schema.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        reason = error.strerror or str(error)
        raise SchemaError(f"{path}: expected a schema file, seen: {reason}") from None
    except UnicodeDecodeError as error:
        raise SchemaError(f"{path}: expected UTF-8 text, seen: {error}") from None
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
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SchemaError(f"{where}: expected TOML, seen: {error}") from None
    top = _Table(content, where, "")
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


class _Table:
    """A TOML table that is read key by key; what is left over is refused."""

    def __init__(self, content: Mapping[str, Any], where: str, path: str) -> None:
        self._left = dict(content)
        self._where = where
        self._path = path

    def wrong(self, key: str, expected: str, seen: str) -> SchemaError:
        name = f"{self._path}.{key}" if self._path and key else self._path or key
        return SchemaError(f"{self._where}: {name}: expected {expected}, seen {seen}")

    def take(self, key: str, default: object = None) -> Any:
        return self._left.pop(key, default)

    def text(self, key: str, expected: str, valid: Callable[[str], bool]) -> str:
        value = self.take(key)
        if not isinstance(value, str) or not valid(value):
            raise self.wrong(key, expected, _seen(value))
        return value

    def choice(self, key: str, options: Sequence[str], default: str) -> str:
        value = self.take(key, default)
        if not isinstance(value, str) or value not in options:
            raise self.wrong(key, "one of " + ", ".join(options), _seen(value))
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.take(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false", _seen(value))
        return value

    def number(
        self,
        key: str,
        expected: str,
        valid: Callable[[float], bool],
        default: float | None = None,
    ) -> float:
        value = self.take(key, default)
        if not _is_finite(value) or not valid(value):
            raise self.wrong(key, expected, _seen(value))
        return float(value)

    def milliseconds(self, key: str, expected: str, default_ms: int | None = None) -> int:
        default = None if default_ms is None else default_ms / 1000
        seconds = self.number(key, expected, lambda x: 0 <= x < 1e9, default)
        if abs(seconds * 1000 - round(seconds * 1000)) > 1e-6:
            raise self.wrong(key, "whole milliseconds", f"{seconds!r} seconds")
        return round(seconds * 1000)

    def table(self, key: str) -> "_Table":
        value = self.take(key, {})
        if not isinstance(value, dict):
            raise self.wrong(key, f"a table [{key}]", _seen(value))
        return _Table(value, self._where, key)

    def tables(self, key: str) -> list["_Table"]:
        value = self.take(key, [])
        if not isinstance(value, list) or not all(isinstance(x, dict) for x in value):
            raise self.wrong(key, f"tables [[{key}]]", _seen(value))
        return [_Table(x, self._where, f"{key}[{i}]") for i, x in enumerate(value)]

    def finish(self) -> None:
        if self._left:
            raise self.wrong(
                sorted(self._left)[0], "only keys that are documented", "an unknown key"
            )


def _features(top: _Table) -> tuple[Feature, ...]:
    value = top.take("features")
    if not isinstance(value, list) or not value:
        raise top.wrong("features", "a list of at least one name", _seen(value))
    for i, name in enumerate(value):
        if not isinstance(name, str) or not _is_name(name):
            raise top.wrong(f"features[{i}]", _NAME, _seen(name))
    _check_unique(top, "features", value)
    return tuple(Feature(name) for name in value)


def _objectives(top: _Table) -> tuple[Objective, ...]:
    tables = top.tables("objectives")
    if len(tables) < 2:
        raise top.wrong("objectives", "at least 2 tables [[objectives]]", str(len(tables)))
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


def _outcomes(top: _Table) -> tuple[Outcome, ...]:
    tables = top.tables("outcomes")
    if not tables:
        raise top.wrong("outcomes", "at least 1 table [[outcomes]]", "0")
    found = []
    for table in tables:
        found.append(
            Outcome(
                name=table.text("name", _NAME, _is_name),
                gain=table.number("gain", "a finite number >= 0", lambda x: x >= 0),
                value_weighted=table.flag("value_weighted", False),
            )
        )
        table.finish()
    _check_unique(top, "outcomes", [o.name for o in found])
    if not any(o.gain > 0 for o in found):
        raise top.wrong("outcomes", "at least one gain above 0", "none")
    return tuple(found)


def _attribution(top: _Table) -> tuple[int, int, int]:
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
        )
    table.finish()
    return window, early, late


def _reward(top: _Table) -> tuple[tuple[float, ...], Normalise]:
    table = top.table("reward")
    examination = table.take("examination", [])
    if not isinstance(examination, list):
        raise table.wrong("examination", "a list of probabilities", _seen(examination))
    for position, propensity in enumerate(examination):
        if not _is_finite(propensity) or not 0 < propensity <= 1:
            raise table.wrong(
                f"examination[{position}]", "a probability in (0, 1]", _seen(propensity)
            )
    normalise: Normalise = table.choice("normalise", get_args(Normalise), "running_mean")  # type: ignore[assignment]  # one of the two
    table.finish()
    return tuple(float(p) for p in examination), normalise


def _soft_rules(top: _Table) -> tuple[SoftRule, ...]:
    found = []
    for table in top.tables("soft_rules"):
        rule = SoftRule(
            objective=table.text("objective", "the name of an objective", _is_name),
            min_weight=table.number("min_weight", "a weight in [0, 1]", lambda x: 0 <= x <= 1, 0.0),
            max_weight=table.number("max_weight", "a weight in [0, 1]", lambda x: 0 <= x <= 1, 1.0),
        )
        if rule.min_weight > rule.max_weight:
            raise table.wrong(
                "min_weight", f"at most max_weight ({rule.max_weight:g})", f"{rule.min_weight:g}"
            )
        table.finish()
        found.append(rule)
    _check_unique(top, "soft_rules", [r.objective for r in found])
    return tuple(found)


def _check_baseline(top: _Table, objectives: Sequence[Objective]) -> None:
    total = math.fsum(o.baseline for o in objectives)
    if abs(total - 1) > BASELINE_TOLERANCE:
        raise top.wrong("objectives", "baseline weights that sum to 1", f"a sum of {total:g}")
    floors = math.fsum(o.floor for o in objectives)
    if floors >= 1:
        raise top.wrong("objectives", "floors that sum to less than 1", f"a sum of {floors:g}")
    for i, objective in enumerate(objectives):
        if objective.baseline / total < objective.floor - 1e-12:
            raise top.wrong(
                f"objectives[{i}].baseline",
                f"at least the floor ({objective.floor:g})",
                f"{objective.baseline:g}",
            )


def _check_references(
    top: _Table,
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
            raise top.wrong(where, "an outcome type (" + ", ".join(known) + ")", repr(outcome))
        if outcome in predicted:
            raise top.wrong(where, "one objective per outcome type", f"{outcome!r} again")
        predicted.add(outcome)
        if objective.transform == "logit" and outcomes[known.index(outcome)].value_weighted:
            raise top.wrong(
                where,
                "an outcome type that is not value_weighted (a logit objective's score is a "
                "probability; an expected value wants linear or log)",
                repr(outcome),
            )
    names = [o.name for o in objectives]
    for i, rule in enumerate(soft_rules):
        if rule.objective not in names:
            raise top.wrong(
                f"soft_rules[{i}].objective",
                "an objective (" + ", ".join(names) + ")",
                repr(rule.objective),
            )


def _check_unique(top: _Table, key: str, names: Sequence[str]) -> None:
    for i, name in enumerate(names):
        if name in names[:i]:
            raise top.wrong(f"{key}[{i}]", "each name once", f"{name!r} again")


def _optional_name(table: _Table, key: str) -> str | None:
    value = table.take(key)
    if value is not None and not isinstance(value, str):
        raise table.wrong(key, "the name of an outcome type", _seen(value))
    return value


_NAME = f"a name of 1 to {_LONGEST_NAME} printable characters without spaces around it"


def _is_name(text: str) -> bool:
    return 0 < len(text) <= _LONGEST_NAME and text.isprintable() and text == text.strip()


def _is_policy_name(text: str) -> bool:
    return len(text) <= _LONGEST_NAME and _POLICY_NAME.fullmatch(text) is not None


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _seen(value: object) -> str:
    return "nothing" if value is None else repr(value)


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
