"""The topics: their names, the settings they must have, and how they are created and checked."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaError, TopicAlreadyExistsError

from policy.errors import TopicError
from stream.connection import Connection, open_admin

DAY_MS = 86_400_000
LONG_MS = 365 * DAY_MS
"""How long topics are kept that design calls long-lived."""

INPUT_BYTES = 1_048_588
"""Largest record batch that the inputs take; Kafka's own default."""

LARGEST_EVENT_BYTES = 1_000_000
"""Largest record that an event producer writes: what the join accepts, and an input takes."""

OUTPUT_BYTES = 8 * 1024 * 1024
"""Largest record batch that join and learner may write: a group holds more than its impression."""

SEGMENT_BYTES = 2 * OUTPUT_BYTES
"""Size of a segment of the compacted topic; Kafka refuses a batch that is larger than a segment."""

SEGMENT_MS = 600_000
"""Longest time that a segment is written to: the one being written is never compacted, and every
process that starts reads all of it."""

TOMBSTONES_KEPT_MS = 60_000
"""How long a tombstone stays; who misses it keeps a snapshot that newer ones have overtaken."""

FUTURE_MS = 3_600_000
"""How far ahead of the broker's clock an event's own time may be before the broker refuses it."""

UNLIMITED = -1
"""Kafka's word for "for ever" in a retention."""

_LONGEST_MS = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Topics:
    """Names of the topics.

    >>> Topics("grade").reward_groups
    'grade.reward-groups.v1'
    """

    prefix: str = "grade"
    """First part of every name."""

    @property
    def impressions(self) -> str:
        """What was shown; key request_id."""
        return self._name("impressions")

    @property
    def conversions(self) -> str:
        """What users did; key request_id."""
        return self._name("conversions")

    @property
    def reward_groups(self) -> str:
        """Closed groups, progress and starts; partition = input partition."""
        return self._name("reward-groups")

    @property
    def late(self) -> str:
        """Conversions after their attribution window."""
        return self._name("late")

    @property
    def orphans(self) -> str:
        """Conversions without an impression."""
        return self._name("orphans")

    @property
    def dead_letters(self) -> str:
        """Records that could not be used."""
        return self._name("dead-letters")

    @property
    def parameters(self) -> str:
        """Parameter snapshots; key policy/epoch/version."""
        return self._name("parameters")

    @property
    def versions(self) -> str:
        """Lineage of policy versions."""
        return self._name("versions")

    @property
    def releases(self) -> str:
        """Release control."""
        return self._name("releases")

    @property
    def generations(self) -> str:
        """What join and learner go by, and since when; key policy."""
        return self._name("generations")

    @property
    def inputs(self) -> tuple[str, str]:
        """The two topics that are joined."""
        return self.impressions, self.conversions

    @property
    def refused(self) -> tuple[str, str, str]:
        """The topics of records that are in no reward group."""
        return self.late, self.orphans, self.dead_letters

    @property
    def all(self) -> tuple[str, ...]:
        """Every topic."""
        return (
            *self.inputs,
            self.reward_groups,
            *self.refused,
            self.parameters,
            self.versions,
            self.releases,
            self.generations,
        )

    def _name(self, subject: str) -> str:
        return f"{self.prefix}.{subject}.v1"


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """What the topics of one system must look like."""

    topics: Topics
    partitions: int
    """Partitions of the event topics; fixed for the life of the topics."""
    window_ms: int
    """Attribution window W."""
    early_ms: int
    """Early allowance E."""
    late_ms: int
    """Late horizon L."""
    timestamps: Literal["broker", "event"] = "broker"
    """Whose time the inputs carry: the broker's (live) or the event's own (replaying history)."""
    downtime_ms: int = 7 * DAY_MS
    """Longest downtime of the join after which nothing is lost."""

    @property
    def input_retention_ms(self) -> int:
        """How long the inputs must be kept at least; `UNLIMITED` when time is the event's own."""
        if self.timestamps == "event":
            return UNLIMITED
        return 4 * self.window_ms + 2 * self.early_ms + self.downtime_ms

    @property
    def specs(self) -> tuple["TopicSpec", ...]:
        """Settings of every topic, in the order of `Topics.all`."""
        topics, kept = self.topics, self.input_retention_ms
        longer = UNLIMITED if kept == UNLIMITED else kept + self.window_ms + DAY_MS
        long = UNLIMITED if kept == UNLIMITED else max(LONG_MS, longer)
        inputs = [
            TopicSpec(name, self.partitions, kept, self.timestamps, INPUT_BYTES)
            for name in topics.inputs
        ]
        groups = TopicSpec(topics.reward_groups, self.partitions, longer)
        refused = [TopicSpec(name, self.partitions, long) for name in topics.refused]
        lineage = [TopicSpec(name, 1, long) for name in (topics.versions, topics.releases)]
        generations = TopicSpec(topics.generations, 1, UNLIMITED)
        parameters = TopicSpec(topics.parameters, 1, None)
        return (*inputs, groups, *refused, parameters, *lineage, generations)


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """What one topic must look like."""

    name: str
    partitions: int
    retention_ms: int | None
    """Shortest time that records are kept, `UNLIMITED` for ever; None: compacted instead."""
    timestamps: Literal["broker", "event"] = "broker"
    """Whose time the records carry."""
    largest_bytes: int = OUTPUT_BYTES
    """Size of a record batch that the topic must take."""

    @property
    def config(self) -> dict[str, str]:
        """The settings with which the topic is created, as Kafka names them."""
        config = {
            "cleanup.policy": "compact" if self.retention_ms is None else "delete",
            "message.timestamp.type": "LogAppendTime",
            "max.message.bytes": str(self.largest_bytes),
        }
        if self.timestamps == "event":
            config |= {
                "message.timestamp.type": "CreateTime",
                "message.timestamp.after.max.ms": str(FUTURE_MS),
                "message.timestamp.before.max.ms": str(_LONGEST_MS),
            }
        if self.retention_ms is None:
            config |= {
                "min.cleanable.dirty.ratio": "0.1",
                "segment.bytes": str(SEGMENT_BYTES),
                "segment.ms": str(SEGMENT_MS),
                "delete.retention.ms": str(TOMBSTONES_KEPT_MS),
            }
        else:
            config |= {"retention.ms": str(self.retention_ms), "retention.bytes": str(UNLIMITED)}
        return config

    def findings(self, partitions: int, config: Mapping[str, str]) -> Iterator["Finding"]:
        """What is wrong with the topic as it is.

        Args:
            partitions: how many partitions it has.
            config: its settings as Kafka names them.
        """
        if partitions != self.partitions:
            yield Finding(self.name, "partitions", str(self.partitions), str(partitions))
        for setting, expected in self.config.items():
            seen = config.get(setting, "nothing")
            wanted = _wanted(setting, expected, seen)
            if wanted is not None:
                yield Finding(self.name, setting, wanted, seen)


class Finding(NamedTuple):
    """Something wrong with a topic."""

    topic: str
    setting: str
    expected: str
    seen: str

    def __str__(self) -> str:
        return f"{self.topic}: {self.setting}: expected {self.expected}, seen {self.seen}"


def create(connection: Connection, plan: TopicPlan) -> list[str]:
    """Create the topics that are missing, then check all of them.

    Returns:
        Names of the topics that were created.

    Raises:
        TopicError: a topic that was there before is wrong, or one could not be created.
        KafkaUnreachable: no broker answered in time.
    """
    with open_admin(connection) as admin:
        existing = set(admin.list_topics())
        missing = [spec for spec in plan.specs if spec.name not in existing]
        if missing:
            wanted = {
                spec.name: {"num_partitions": spec.partitions, "configs": spec.config}
                for spec in missing
            }
            try:
                admin.create_topics(wanted, wait_for_metadata=True)
            except TopicAlreadyExistsError:
                admin.wait_for_topics(list(wanted))
            except KafkaError as error:
                raise TopicError(f"{', '.join(wanted)}: not created: {error}") from error
        _refuse(_examine(admin, plan))
    return [spec.name for spec in missing]


def check(connection: Connection, plan: TopicPlan) -> None:
    """Refuse topics that are missing or wrong.

    Raises:
        TopicError: naming every wrong topic and setting, what was expected and what was seen.
        KafkaUnreachable: no broker answered in time.
    """
    with open_admin(connection) as admin:
        _refuse(_examine(admin, plan))


def _refuse(findings: list[Finding]) -> None:
    if findings:
        raise TopicError("\n".join(str(finding) for finding in findings))


def _examine(admin: KafkaAdminClient, plan: TopicPlan) -> list[Finding]:
    names = [spec.name for spec in plan.specs]
    existing = set(admin.list_topics()).intersection(names)
    partitions = {t["name"]: len(t["partitions"]) for t in admin.describe_topics(sorted(existing))}
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in sorted(existing)]
    described = admin.describe_configs(resources, config_filter="all").get("topic", {})
    configs = {
        name: {setting: entry["value"] for setting, entry in settings.items()}
        for name, settings in described.items()
    }
    findings: list[Finding] = []
    for spec in plan.specs:
        if spec.name in existing:
            findings.extend(spec.findings(partitions[spec.name], configs[spec.name]))
        else:
            findings.append(Finding(spec.name, "topic", "to exist", "none of this name"))
    return findings or list(_outlived(plan, configs))


def _outlived(plan: TopicPlan, configs: Mapping[str, Mapping[str, str]]) -> Iterator[Finding]:
    """Recovery reads the groups' tail, so groups must outlive inputs that are kept longer."""
    inputs = [int(configs[name]["retention.ms"]) for name in plan.topics.inputs]
    needed = UNLIMITED if UNLIMITED in inputs else max(inputs) + plan.window_ms
    name = plan.topics.reward_groups
    seen = int(configs[name]["retention.ms"])
    if seen != UNLIMITED and (needed == UNLIMITED or seen <= needed):
        expected = f"{UNLIMITED}" if needed == UNLIMITED else f"more than {needed}"
        yield Finding(name, "retention.ms", f"{expected}, as the inputs are kept", str(seen))


def _wanted(setting: str, expected: str, seen: str) -> str | None:
    """What a setting ought to be, in words; None if what was seen will do."""
    match setting:
        case "min.cleanable.dirty.ratio" | "segment.bytes" | "segment.ms" | "delete.retention.ms":
            return None  # costs disk, and time at every start, but is never wrong
        case "retention.ms" if expected != str(UNLIMITED):
            will_do = seen == str(UNLIMITED) or _at_least(seen, expected)
            return None if will_do else f"at least {expected}"
        case "max.message.bytes":
            return None if _at_least(seen, expected) else f"at least {expected}"
        case "message.timestamp.after.max.ms":
            return None if _at_least(expected, seen) else f"at most {expected}"
        case _:
            return None if seen == expected else expected


def _at_least(number: str, least: str) -> bool:
    try:
        return int(number) >= int(least)
    except ValueError:
        return False
