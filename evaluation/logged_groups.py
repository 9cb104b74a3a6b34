"""Reward groups as they were logged, read from their topic into arrays for evaluation."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError
from grade.v1.decision_pb2 import ARM_HOLDOUT
from grade.v1.generation_pb2 import Generation
from grade.v1.packed_pb2 import PackedDecision
from grade.v1.reward_group_pb2 import JoinRecord, RewardGroup

from evaluation.importance import LoggedDecisions
from evaluation.uplift import Observed
from policy.errors import SettingsError, quoted
from policy.packed import FLOAT32, FLOAT64, numbers, read_packed
from policy.schema import Schema
from stream.connection import Connection
from stream.generation_changes import decide_alike
from stream.logs import Log, count_partitions, read_logs
from stream.terms import schema_of
from stream.topics import Topics

_RELATIVE = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Span(NamedTuple):
    """A stretch of log time: impressions from `since_ms` on, before `until_ms`."""

    since_ms: int | None = None
    until_ms: int | None = None

    def __contains__(self, time_ms: object) -> bool:
        assert isinstance(time_ms, int)
        return (self.since_ms is None or self.since_ms <= time_ms) and (
            self.until_ms is None or time_ms < self.until_ms
        )


class LeftOut(NamedTuple):
    """Groups that were read and not used."""

    other_schema: int
    """Decided under a schema whose decisions cannot be compared with this one's."""
    not_finite: int
    """With a reward, a feature or a density that is no finite number."""


def parse_time(text: str, option: str, now_ms: int) -> int:
    """A moment that somebody wrote, in milliseconds since 1970 UTC.

    Args:
        text: a date, a date and a time (UTC if they do not say their zone), or how long ago.
        option: what to call it in messages.
        now_ms: what `ago` counts from.

    Raises:
        SettingsError: it is neither.

    >>> parse_time("2026-01-01T00:00:00Z", "--since", 0), parse_time("2h", "--since", 10_000_000)
    (1767225600000, 2800000)
    """
    ago = _RELATIVE.fullmatch(text)
    if ago is not None:
        return now_ms - round(float(ago[1]) * _SECONDS[ago[2]] * 1000)
    try:
        when = datetime.fromisoformat(text)
        return round((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise SettingsError(
            f"{option}: expected a date such as 2026-03-01, a time such as 2026-03-01T12:30:00, "
            f"or how long ago such as 90s, 30m, 6h or 7d, seen {quoted(text)}"
        ) from None


def read_groups(
    connection: Connection, topics: Topics, tell: Callable[[str], object] = lambda _: None
) -> Iterator[RewardGroup]:
    """Every group of a policy once, one partition after the other.

    Args:
        connection: where Kafka is.
        topics: names of the topics.
        tell: is told how far reading has come.

    Raises:
        TopicError: there is no such topic.
        KafkaUnreachable: no broker answers.
    """
    name = topics.reward_groups
    partitions = count_partitions(connection, name)
    for partition in range(partitions):
        tell(f"reading {name}, partition {partition + 1} of {partitions}")
        [log] = read_logs(connection, [name], partition=partition)[name]
        yield from distinct_groups(log)


def distinct_groups(log: Log) -> Iterator[RewardGroup]:
    """The groups of one partition without repeats, and without what an old owner wrote late."""
    seen: set[int] = set()
    segment = 0
    for record in log.records:
        try:
            message = JoinRecord.FromString(record.value or b"")
        except DecodeError:
            continue
        segment = max(segment, message.start.segment)
        group = message.group
        if (
            message.HasField("group")
            and group.standing.segment == segment
            and group.offset not in seen
        ):
            seen.add(group.offset)
            yield group


def realised(gains: Mapping[str, tuple[float, bool]], group: RewardGroup) -> float:
    """What the user did with the list as it was shown, in gain units.

    The same number as `Rewards.realised`, but for the holdout arm too, which has no rewards, and by
    the gains that are given: outcomes that these do not name count nothing.

    Args:
        gains: by outcome type: gain, and whether the conversion's value multiplies it.
        group: of either arm.
    """
    total = 0.0
    for joined in group.conversions:
        gain, value_weighted = gains.get(joined.conversion.outcome, (0.0, False))
        total += gain * joined.conversion.value if value_weighted else gain
    return total


def gains_of(schema: Schema) -> dict[str, tuple[float, bool]]:
    """By outcome type: gain, and whether the conversion's value multiplies it."""
    return {o.name: (o.gain, o.value_weighted) for o in schema.outcomes}


def comparable_digests(schema: Schema, generations: Iterable[Generation]) -> frozenset[bytes]:
    """Digests of the schemas whose decisions may be compared with those of this one."""
    alike = {schema.digest}
    for generation in generations:
        if decide_alike(schema_of(generation), schema):
            alike.add(generation.schema_digest)
    return frozenset(alike)


def observed(
    groups: Iterable[RewardGroup], schema: Schema, comparable: frozenset[bytes], span: Span
) -> tuple[Observed, LeftOut]:
    """What `evaluation.uplift` compares, in the order of time.

    Args:
        groups: of both arms.
        schema: whose gains count.
        comparable: see `comparable_digests`.
        span: of log time.
    """
    gains = gains_of(schema)
    rows: list[tuple[int, float, bool]] = []
    units: list[str] = []
    other = not_finite = 0
    for group, decision in _decisions(groups, span):
        gain = realised(gains, group)
        if decision.schema_digest not in comparable:
            other += 1
        elif not np.isfinite(gain):
            not_finite += 1
        else:
            rows.append((group.impression_time_ms, gain, decision.arm == ARM_HOLDOUT))
            units.append(decision.unit_id)
    times = np.array([row[0] for row in rows], dtype=np.int64)
    order = np.argsort(times, kind="stable")
    return (
        Observed(
            times[order],
            np.array([row[1] for row in rows], dtype=np.float64)[order],
            np.array([row[2] for row in rows], dtype=np.bool_)[order],
            _numbered(units)[order],
        ),
        LeftOut(other, not_finite),
    )


def logged_decisions(
    groups: Iterable[RewardGroup], schema: Schema, comparable: frozenset[bytes], span: Span
) -> tuple[LoggedDecisions, LeftOut]:
    """What `evaluation.off_policy` reads: the policy arm, in the order of time.

    Args:
        groups: of both arms.
        schema: whose objectives, features and gains count.
        comparable: see `comparable_digests`.
        span: of log time.
    """
    gains = gains_of(schema)
    times: list[int] = []
    rewards: list[float] = []
    decisions: list[PackedDecision] = []
    other = 0
    for group, decision in _decisions(groups, span):
        if decision.arm == ARM_HOLDOUT:
            continue
        if decision.schema_digest not in comparable:
            other += 1
            continue
        times.append(group.impression_time_ms)
        rewards.append(realised(gains, group))
        decisions.append(decision)
    count, objectives = len(decisions), schema.n_objectives
    executed = [decision.executed for decision in decisions]
    found = LoggedDecisions(
        features=numbers(FLOAT32, [d.features for d in decisions]).reshape(
            count, schema.n_features
        ),
        alpha=numbers(FLOAT64, [d.alpha for d in decisions]).reshape(count, objectives),
        weights=numbers(
            FLOAT32,
            [
                d.weights[4 * objectives * e : 4 * objectives * (e + 1)]
                for d, e in zip(decisions, executed, strict=True)
            ],
        ).reshape(count, objectives),
        log_densities=numbers(
            FLOAT64,
            [
                d.log_densities[8 * e : 8 * (e + 1)]
                for d, e in zip(decisions, executed, strict=True)
            ],
        ),
        rewards=np.array(rewards, dtype=np.float64),
        units=_numbered([d.unit_id for d in decisions]),
        time_ms=np.array(times, dtype=np.int64),
    )
    finite = np.isfinite(found.features).all(axis=1) & np.isfinite(found.rewards)
    finite &= np.isfinite(found.log_densities)
    kept = np.flatnonzero(finite)
    kept = kept[np.argsort(found.time_ms[kept], kind="stable")]
    return found.rows(kept), LeftOut(other, count - len(kept))


def _decisions(
    groups: Iterable[RewardGroup], span: Span
) -> Iterator[tuple[RewardGroup, PackedDecision]]:
    for group in groups:
        if group.impression_time_ms in span:
            yield group, read_packed(group.impression.decision.payload)


def _numbered(names: list[str]) -> npt.NDArray[np.intp]:
    """[name] numbers from 0, the same for the same name."""
    numbers_of: dict[str, int] = {}
    return np.array([numbers_of.setdefault(n, len(numbers_of)) for n in names], dtype=np.intp)
