"""The lineage of one policy as the topics tell it: versions from the newest backwards, snapshots.

The versions topic is kept long, so it is read from its end in growing pieces, and no further back
than what was asked for.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from google.protobuf.message import DecodeError
from grade.v1.parameters_pb2 import ParameterSnapshot, Version
from grade.v1.refused_pb2 import Reason
from kafka import KafkaConsumer, TopicPartition

from policy.errors import SettingsError, TopicError
from stream.connection import (
    Connection,
    KafkaUnreachable,
    end_offsets,
    head_offsets,
    open_consumer,
    partitions_of,
)
from stream.logs import LogRecord, read_logs
from stream.parameters import BEFORE_ALL, VersionId, parse_snapshot_key
from stream.topics import Topics

FIRST_PIECE = 2_000
"""Records of the versions topic that are read first; each further piece has twice as many."""

_EMPTY_POLLS = 150
_POLL_MS = 200


class Recorded(NamedTuple):
    """One version as the versions topic has it."""

    id: VersionId
    version: Version
    offset: int
    """In the versions topic."""
    timestamp_ms: int
    """When its lineage was written, milliseconds since 1970 UTC."""


class Covered(NamedTuple):
    """The impressions of one partition that a version learned from."""

    partition: int
    after: int
    """Offset of the last impression that its parent had learned from, -1 for none."""
    up_to: int
    """Offset of the last impression that it learned from itself, -1 for none."""


@dataclass
class Lineage:
    """The newest versions of one policy."""

    policy: str
    versions: dict[VersionId, Recorded] = field(default_factory=dict)
    """In rising order; the first record of a version counts."""
    complete: bool = False
    """Whether they go back to the first record that the topic still has."""
    problems: list[str] = field(default_factory=list)
    """Records that are not what they should be, in words."""

    def parent_of(self, version: Version) -> Version | None:
        """The version that it was learned from; None if that is the baseline or not known."""
        found = self.versions.get(parent_id(version))
        return found.version if found else None

    def covered(self, version: Version) -> list[Covered] | None:
        """What a version learned from, by partition; None if its parent is not known."""
        if parent_id(version) == BEFORE_ALL:
            before: dict[int, int] = {}
        else:
            parent = self.parent_of(version)
            if parent is None:
                return None
            before = {each.partition: each.offset for each in parent.ledger}
        return [
            Covered(each.partition, before.get(each.partition, -1), each.offset)
            for each in version.ledger
        ]

    def find(self, name: str) -> Recorded:
        """The version of a name, `epoch:version` or a version of the newest epoch.

        Raises:
            SettingsError: the name is not one, or there is no such version.
        """
        wanted = self.named(name)
        if wanted is None or wanted not in self.versions:
            raise SettingsError(
                f"version: expected one of policy {self.policy!r}, of which the versions topic "
                f"has {self.range()}, seen {name}",
                Reason.REASON_UNAVAILABLE,
            )
        return self.versions[wanted]

    def named(self, name: str) -> VersionId | None:
        """What a name means here; None if it names no epoch and no version is known.

        Raises:
            SettingsError: it is neither `epoch:version` nor a version.
        """
        epoch, colon, version = name.rpartition(":")
        if not version.isdecimal() or (colon and not epoch.isdecimal()):
            raise SettingsError(
                f"version: expected epoch:version or a version, such as 1:42 or 42, seen {name!r}",
                Reason.REASON_BAD_NAME,
            )
        if colon:
            return VersionId(int(epoch), int(version))
        return VersionId(max(self.versions).epoch, int(version)) if self.versions else None

    def range(self) -> str:
        """What versions there are, in words, by epoch."""
        if not self.versions:
            return "none"
        epochs: dict[int, list[int]] = {}
        for each in self.versions:
            epochs.setdefault(each.epoch, []).append(each.version)
        return ", ".join(
            f"{epoch}:{of[0]} to {epoch}:{of[-1]}" if len(of) > 1 else f"{epoch}:{of[0]}"
            for epoch, of in epochs.items()
        )

    def steps(self, first: VersionId, last: VersionId) -> list[Version] | None:
        """The versions after `first` up to `last`, each learned from the one before.

        Returns:
            None if `last` does not come from `first`, as far as is known.
        """
        found: list[Version] = []
        at = last
        while at > first and at in self.versions:
            found.append(self.versions[at].version)
            at = parent_id(found[-1])
        return found[::-1] if at == first else None


def parent_id(version: Version) -> VersionId:
    """The version that a version was learned from; 0 of epoch 0 is the declared baseline."""
    if version.parent == 0:
        return BEFORE_ALL
    # Where the parent's epoch is not said it is the version's own.
    return VersionId(version.parent_epoch or version.epoch, version.parent)


def read_lineage(
    connection: Connection,
    topics: Topics,
    policy: str,
    enough: Callable[[Lineage], bool] = lambda _: False,
) -> Lineage:
    """Read the versions of a policy, from the newest back.

    Args:
        connection: how to reach Kafka.
        topics: names of the topics.
        policy: whose versions.
        enough: whether to read no further back; asked after each piece.

    Raises:
        TopicError: there is no versions topic.
        KafkaUnreachable: no broker answers, or reading stands still.
    """
    lineage = Lineage(policy)
    with open_consumer(connection) as consumer:
        partitions = partitions_of(consumer, topics.versions)
        if len(partitions) != 1:
            raise TopicError(
                f"{topics.versions}: expected 1 partition, seen {len(partitions)}; "
                "`grade topics create` makes the topic"
            )
        (partition,) = partitions
        head = head_offsets(consumer, partitions)[partition]
        end = end_offsets(consumer, partitions)[partition]
        size, records = FIRST_PIECE, list[LogRecord]()
        while True:
            begin = max(head, end - size)
            records = [*_read(consumer, partition, begin, end), *records]
            end, size = begin, size * 2
            lineage = summarise_lineage(policy, records)
            lineage.complete = begin <= head
            if lineage.complete or (lineage.versions and enough(lineage)):
                return lineage


def summarise_lineage(policy: str, records: Sequence[LogRecord]) -> Lineage:
    """What records of the versions topic say about one policy.

    Args:
        policy: whose versions.
        records: in the order of their offsets.
    """
    lineage = Lineage(policy)
    found: dict[VersionId, Recorded] = {}
    values: dict[VersionId, bytes] = {}
    for record in records:
        if record.key != policy.encode() or record.value is None:
            continue
        try:
            version = Version.FromString(record.value)
        except DecodeError:
            lineage.problems.append(
                f"versions offset {record.offset}: expected the lineage of a version, seen "
                f"{len(record.value)} bytes that are none"
            )
            continue
        id = VersionId(version.epoch, version.version)
        if values.setdefault(id, record.value) != record.value:
            lineage.problems.append(
                f"versions offset {record.offset}: expected {name_of(id)} as it was written "
                "before, seen another record of it"
            )
        found.setdefault(id, Recorded(id, version, record.offset, record.timestamp_ms))
    lineage.versions = {id: found[id] for id in sorted(found)}
    return lineage


def read_snapshots(
    connection: Connection, topics: Topics, policy: str
) -> dict[VersionId, ParameterSnapshot]:
    """The snapshots of a policy that the parameters topic still has.

    Raises:
        TopicError: there is no parameters topic.
        KafkaUnreachable: no broker answers, or reading stands still.
    """
    (log,) = read_logs(connection, [topics.parameters])[topics.parameters]
    return live_snapshots(policy, log.records)


def live_snapshots(policy: str, records: Sequence[LogRecord]) -> dict[VersionId, ParameterSnapshot]:
    """The snapshots of a policy that no tombstone has removed and that are what their keys say.

    Args:
        policy: whose snapshots.
        records: of the parameters topic, in the order of their offsets.
    """
    found: dict[VersionId, ParameterSnapshot] = {}
    for record in records:
        id = parse_snapshot_key(record.key, policy)
        if id is None:
            continue
        if record.value is None:
            found.pop(id, None)
            continue
        try:
            snapshot = ParameterSnapshot.FromString(record.value)
        except DecodeError:
            continue  # servers refuse, count and name it
        genuine = hashlib.sha256(snapshot.parameters).digest() == snapshot.parameters_sha256
        if genuine and VersionId(snapshot.epoch, snapshot.version) == id:
            found[id] = snapshot
    return found


def is_of(snapshot: ParameterSnapshot | None, version: Version) -> bool:
    """Whether a snapshot has the parameters that the lineage of a version names."""
    return snapshot is not None and snapshot.parameters_sha256 == version.parameters_sha256


def name_of(id: VersionId) -> str:
    """How people write a version.

    >>> name_of(VersionId(1, 42))
    '1:42'
    """
    return f"{id.epoch}:{id.version}"


def _read(
    consumer: KafkaConsumer, partition: TopicPartition, begin: int, end: int
) -> Iterator[LogRecord]:
    """The records of a partition from offset `begin` to before `end`."""
    consumer.assign([partition])
    consumer.seek(partition, begin)
    empty = 0
    while consumer.position(partition) < end:
        records = consumer.poll(timeout_ms=_POLL_MS).get(partition, [])
        empty = 0 if records else empty + 1
        if empty > _EMPTY_POLLS:
            raise KafkaUnreachable(
                f"{partition.topic}: expected records up to offset {end}, seen none for "
                f"{_EMPTY_POLLS * _POLL_MS / 1000:g} s"
            )
        for each in records:
            if each.offset < end:
                yield LogRecord(each.offset, each.timestamp, each.key, each.value, each.headers)
