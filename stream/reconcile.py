"""Is what the system wrote what its inputs and generations yield? Byte for byte, from its topics.

Groups are recomputed from the input logs, versions from the groups; every input record must have
ended somewhere. Nothing that a running process holds is asked, nor anybody's settings: what join
and learner went by is in the generations topic. It is the oracle of the chaos tests.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from grade.v1.generation_pb2 import Generation

from policy.errors import SettingsError
from stream.connection import Connection
from stream.differences import Difference
from stream.join import Kind
from stream.logs import Log, count_partitions, read_logs
from stream.reconcile_join import (
    NO_FATES,
    Fates,
    PartitionContent,
    PartitionReport,
    reconcile_partition,
)
from stream.reconcile_versions import VersionsReport, VersionTopics, reconcile_versions
from stream.terms import terms_of
from stream.topics import Topics
from stream.version_chain import by_number
from stream.version_range import check_range

Tell = Callable[[str], None]


class Content(Protocol):
    """What the topics hold; a partition is held in memory only while it is looked at."""

    @property
    def topics(self) -> Topics:
        """Their names."""

    @property
    def partitions(self) -> int:
        """Partitions of the event topics."""

    @property
    def versions(self) -> Log:
        """The versions topic."""

    @property
    def parameters(self) -> Log:
        """The parameters topic."""

    def partition(self, number: int) -> PartitionContent:
        """What is held of one partition, read anew each time."""


@dataclass(frozen=True, slots=True)
class WholeContent:
    """Everything that the topics hold, in memory; lists are [partition]."""

    topics: Topics
    impressions: Sequence[Log]
    conversions: Sequence[Log]
    reward_groups: Sequence[Log]
    late: Sequence[Log]
    orphans: Sequence[Log]
    dead_letters: Sequence[Log]
    versions: Log
    parameters: Log

    @property
    def partitions(self) -> int:
        """See `Content`."""
        return len(self.impressions)

    def partition(self, number: int) -> PartitionContent:
        """See `Content`."""
        return PartitionContent(
            self.impressions[number],
            self.conversions[number],
            self.reward_groups[number],
            {
                Kind.LATE: self.late[number],
                Kind.ORPHANS: self.orphans[number],
                Kind.DEAD_LETTERS: self.dead_letters[number],
            },
        )


class TopicContent:
    """What the topics hold, read as it is needed: outputs before what they are made from.

    Args:
        connection: how to reach Kafka.
        topics: names of the topics.

    Raises:
        TopicError: a topic is missing.
        KafkaUnreachable: no broker answers.
    """

    def __init__(self, connection: Connection, topics: Topics) -> None:
        self._connection = connection
        self.topics = topics
        order = [topics.parameters, topics.versions]
        logs = read_logs(connection, order)
        (self.parameters,), (self.versions,) = (logs[name] for name in order)
        self.partitions = count_partitions(connection, topics.reward_groups)

    def partition(self, number: int) -> PartitionContent:
        """See `Content`."""
        topics = self.topics
        order = [topics.reward_groups, *topics.refused, *topics.inputs]
        logs = read_logs(self._connection, order, partition=number)
        only = {name: log for name, (log,) in logs.items()}
        return PartitionContent(
            only[topics.impressions],
            only[topics.conversions],
            only[topics.reward_groups],
            {
                Kind.LATE: only[topics.late],
                Kind.ORPHANS: only[topics.orphans],
                Kind.DEAD_LETTERS: only[topics.dead_letters],
            },
        )


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
    def not_compared(self) -> list[str]:
        """A sentence for everything that could not, or was not to, be compared."""
        found = [each for partition in self.partitions for each in partition.not_compared]
        return found + self.versions.not_compared

    @property
    def losses(self) -> list[str]:
        """A sentence for every loss of inputs that an operator accepted."""
        return [each for partition in self.partitions for each in partition.losses]

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
            "not_compared": self.not_compared,
            "losses": self.losses,
            "differences_count": len(self.differences),
            "differences": [str(each) for each in self.differences[:differences]],
        }

    def to_json(self) -> str:
        """`as_json` as text."""
        return json.dumps(self.as_json(), indent=2)


def reconcile(
    generations: Sequence[Generation],
    content: Content,
    *,
    versions: str = "all",
    tell: Tell = lambda _: None,
) -> ReconcileReport:
    """Recompute everything and compare.

    Args:
        generations: of the policy, as its topic has them.
        content: what the topics hold.
        versions: those to compare; see `stream.version_range.parse_range`.
        tell: is told how far it has come.

    Raises:
        RetentionLost: retention has deleted the beginning of the groups, or input records that
            they were made from.
        OffsetGap: an input log has holes.
        BoundaryError: this build lacks the computation of a generation.
        SettingsError: no generation has begun, or `versions` names none.
    """
    check_range(versions)
    if not generations:
        raise SettingsError(
            "expected a policy of which a generation has begun, seen none: join and learner have "
            "never run there"
        )
    report = ReconcileReport()
    topics, partitions = content.topics, content.partitions
    names = {
        Kind.LATE: topics.late,
        Kind.ORPHANS: topics.orphans,
        Kind.DEAD_LETTERS: topics.dead_letters,
        Kind.REWARD_GROUPS: topics.reward_groups,
    }
    terms = terms_of(generations)
    groups: list[Log] = []
    for number in range(partitions):
        tell(f"groups of partition {number + 1} of {partitions}")
        # Of a partition only the groups are needed once it has been compared.
        partition = content.partition(number)
        groups.append(partition.reward_groups)
        report.partitions.append(
            reconcile_partition(terms, partition, names, partition=number, partitions=partitions)
        )
    tell("versions")
    report.versions = reconcile_versions(
        by_number({each.generation: each for each in generations}),
        generations[0].policy,
        VersionTopics(
            reward_groups=groups,
            versions=content.versions,
            parameters=content.parameters,
            reward_groups_name=topics.reward_groups,
            versions_name=topics.versions,
            parameters_name=topics.parameters,
        ),
        which=versions,
        tell=tell,
    )
    return report
