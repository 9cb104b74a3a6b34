"""Is what the system wrote what its inputs and settings yield? Byte for byte, from its topics.

Groups are recomputed from the input logs, versions from the groups; every input record must have
ended somewhere. Nothing that a running process holds is asked. It is the oracle of the chaos tests.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from policy.schema import Schema
from policy.trainer_settings import TrainerSettings
from stream.connection import Connection
from stream.differences import Difference
from stream.join import JoinSettings, Kind
from stream.logs import Log, read_logs
from stream.reconcile_join import (
    NO_FATES,
    Fates,
    PartitionContent,
    PartitionReport,
    reconcile_partition,
)
from stream.reconcile_versions import VersionsReport, VersionTopics, reconcile_versions
from stream.topics import Topics

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ReconcileSettings:
    """How join and learner worked."""

    join: JoinSettings
    trainer: TrainerSettings
    slot_ms: int = 250
    """Length of a slot in milliseconds."""
    epoch: int = 1
    """Epoch of the versions."""


@dataclass(frozen=True, slots=True)
class Content:
    """Everything that the topics hold; lists are [partition]."""

    topics: Topics
    impressions: Sequence[Log]
    conversions: Sequence[Log]
    reward_groups: Sequence[Log]
    late: Sequence[Log]
    orphans: Sequence[Log]
    dead_letters: Sequence[Log]
    versions: Log
    parameters: Log


@dataclass(slots=True)
class ReconcileReport:
    """What was found; `reconciled` and `conserved` say whether all is well."""

    partitions: list[PartitionReport] = field(default_factory=list)
    versions: VersionsReport = field(default_factory=VersionsReport)

    @property
    def differences(self) -> list[Difference]:
        """Every difference, the join's before the learner's."""
        found = [each for partition in self.partitions for each in partition.differences]
        return found + self.versions.differences

    @property
    def unconserved(self) -> list[str]:
        """A sentence for every sum that does not add up."""
        return [each for partition in self.partitions for each in partition.unconserved]

    @property
    def conserved(self) -> bool:
        """Whether every input record has exactly one fate."""
        return not self.unconserved

    @property
    def reconciled(self) -> bool:
        """Whether everything equals its recomputation."""
        return not self.differences

    @property
    def ok(self) -> bool:
        """Whether nothing at all is wrong."""
        versions = self.versions
        return (
            self.conserved
            and self.reconciled
            and not versions.groups_lost
            and not versions.groups_applied_twice
        )

    @property
    def impressions(self) -> Fates:
        """Fates of all impressions."""
        return sum((each.impressions for each in self.partitions), NO_FATES)

    @property
    def conversions(self) -> Fates:
        """Fates of all conversions."""
        return sum((each.conversions for each in self.partitions), NO_FATES)

    @property
    def groups(self) -> int:
        """Distinct groups in the topic."""
        return sum(each.groups for each in self.partitions)

    def as_json(self, *, differences: int = 100) -> dict[str, Any]:
        """The report as JSON-able values, with at most so many differences spelled out."""
        versions = self.versions
        return {
            "conserved": self.conserved,
            "reconciled": self.reconciled,
            "impressions": asdict(self.impressions),
            "conversions": asdict(self.conversions),
            "partitions": [
                {"impressions": asdict(each.impressions), "conversions": asdict(each.conversions)}
                for each in self.partitions
            ],
            "groups": self.groups,
            "group_repeats": sum(each.repeats for each in self.partitions),
            "versions": versions.versions,
            "versions_compared": versions.versions_compared,
            "snapshots_compared": versions.snapshots_compared,
            "groups_applied": versions.groups_applied,
            "groups_lost": versions.groups_lost,
            "groups_applied_twice": versions.groups_applied_twice,
            "unconserved": self.unconserved,
            "differences_count": len(self.differences),
            "differences": [str(each) for each in self.differences[:differences]],
        }

    def to_json(self) -> str:
        """`as_json` as text."""
        return json.dumps(self.as_json(), indent=2)


def read_content(connection: Connection, topics: Topics) -> Content:
    """Read all topics to the ends that they have now, outputs before what they are made from.

    Raises:
        TopicError: a topic is missing.
        KafkaUnreachable: no broker answers.
    """
    order = [
        topics.parameters,
        topics.versions,
        topics.reward_groups,
        *topics.refused,
        *topics.inputs,
    ]
    logs = read_logs(connection, order)
    return Content(
        topics,
        impressions=logs[topics.impressions],
        conversions=logs[topics.conversions],
        reward_groups=logs[topics.reward_groups],
        late=logs[topics.late],
        orphans=logs[topics.orphans],
        dead_letters=logs[topics.dead_letters],
        versions=logs[topics.versions][0],
        parameters=logs[topics.parameters][0],
    )


def reconcile(
    schema: Schema,
    settings: ReconcileSettings,
    content: Content,
    *,
    tell: Tell = lambda _: None,
) -> ReconcileReport:
    """Recompute everything and compare; a pure function of its arguments.

    Args:
        schema: the policy's schema.
        settings: how join and learner worked.
        content: what the topics hold.
        tell: is told how far it has come.

    Raises:
        RetentionLost: retention has deleted the beginning of the groups, or input records that
            they were made from.
        OffsetGap: an input log has holes.
    """
    report = ReconcileReport()
    topics = content.topics
    names = {
        Kind.LATE: topics.late,
        Kind.ORPHANS: topics.orphans,
        Kind.DEAD_LETTERS: topics.dead_letters,
        Kind.REWARD_GROUPS: topics.reward_groups,
    }
    partitions = len(content.impressions)
    for partition in range(partitions):
        tell(f"groups of partition {partition + 1} of {partitions}")
        report.partitions.append(
            reconcile_partition(
                schema,
                settings.join,
                PartitionContent(
                    content.impressions[partition],
                    content.conversions[partition],
                    content.reward_groups[partition],
                    {
                        Kind.LATE: content.late[partition],
                        Kind.ORPHANS: content.orphans[partition],
                        Kind.DEAD_LETTERS: content.dead_letters[partition],
                    },
                ),
                names,
                partition=partition,
                partitions=partitions,
            )
        )
    tell("versions")
    report.versions = reconcile_versions(
        schema,
        settings.trainer,
        VersionTopics(
            reward_groups=content.reward_groups,
            versions=content.versions,
            parameters=content.parameters,
            reward_groups_name=topics.reward_groups,
            versions_name=topics.versions,
            parameters_name=topics.parameters,
        ),
        slot_ms=settings.slot_ms,
        epoch=settings.epoch,
        tell=tell,
    )
    return report
