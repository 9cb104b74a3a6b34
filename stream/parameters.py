"""Publishing versions: what the topics hold, comparing with it, adding to it, tombstones.

A version is two records: its lineage in the versions topic, then its snapshot in the parameters
topic, so that a snapshot that is served has its lineage. What is already there is compared, never
written again: so a learner that starts behind its own topics proves that it makes the same bytes.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import structlog
from google.protobuf.message import DecodeError
from grade.v1.parameters_pb2 import ParameterSnapshot, Version

from policy.errors import StreamError
from stream.codec import encode
from stream.connection import Connection, close_producer
from stream.logs import LogRecord, read_logs
from stream.topics import Topics
from stream.version_chain import Learned

log = structlog.get_logger(__name__)

ACKNOWLEDGE_S = 60.0
"""Longer than a producer takes to give a record up by itself (`delivery_timeout_ms`)."""

CLOSE_S = 5.0


class VersionId(NamedTuple):
    """Names a version; ordered as versions follow each other."""

    epoch: int
    version: int


BEFORE_ALL = VersionId(0, 0)


@dataclass
class Published:
    """What the topics hold of one policy."""

    versions: dict[VersionId, bytes] = field(default_factory=dict)
    """sha256 of the lineage records, of those that may have to be compared."""
    snapshots: dict[VersionId, bytes] = field(default_factory=dict)
    """sha256 of the snapshot records, of those that may have to be compared."""
    last_version: VersionId = BEFORE_ALL
    """Last version whose lineage is there."""
    last_snapshot: VersionId = BEFORE_ALL
    """Last version whose snapshot is or was there."""
    live: deque[VersionId] = field(default_factory=deque)
    """Versions whose snapshot is there and has no tombstone, in rising order."""

    @property
    def complete_up_to(self) -> VersionId:
        """Last version that is there with lineage and snapshot."""
        return min(self.last_version, self.last_snapshot)


def snapshot_key(policy: str, version: VersionId) -> bytes:
    """Key of a record of the parameters topic.

    >>> snapshot_key("feed", VersionId(1, 42))
    b'feed/1/42'
    """
    return f"{policy}/{version.epoch}/{version.version}".encode()


def parse_snapshot_key(key: bytes | None, policy: str) -> VersionId | None:
    """The version that a key of the parameters topic names; None if it is not this policy's.

    >>> parse_snapshot_key(b"feed/1/42", "feed")
    VersionId(epoch=1, version=42)
    """
    name, _, rest = (key or b"").decode(errors="replace").partition(f"{policy}/")
    epoch, _, version = rest.partition("/")
    if name or not (epoch.isdecimal() and version.isdecimal()):
        return None
    return VersionId(int(epoch), int(version))


def summarise(
    policy: str,
    versions: Iterable[LogRecord],
    snapshots: Iterable[LogRecord],
    *,
    above: VersionId = BEFORE_ALL,
    whole: bool = False,
) -> Published:
    """What records of the versions and parameters topics say about one policy.

    Anybody can write to them. A lineage counts only if it continues those before it: the next
    version of the epoch or the first of the next one; a snapshot only if it is what its lineage
    says. Others are logged and left alone: those who serve refuse them, and they must not keep the
    learner from publishing.

    Args:
        policy: whose versions to look at.
        versions: records of the versions topic.
        snapshots: records of the parameters topic.
        above: nothing up to this version will be compared, so it isn't kept in memory.
        whole: whether nothing of the versions topic has been deleted: then it begins with the first
            version.

    Raises:
        StreamError: two records of one version differ.
    """
    published = Published()
    parameters: dict[VersionId, bytes] = {}
    for record in versions:
        if record.key != policy.encode():
            continue
        lineage = _lineage(record.value)
        version = VersionId(lineage.epoch, lineage.version)
        expected = _following(published.last_version, whole=whole)
        follows = version in parameters or version in expected or not expected
        if version.version < 1 or not follows:
            log.warning(
                "lineage_ignored",
                offset=record.offset,
                seen=version,
                expected=expected,
                reason="it does not continue the versions before it",
            )
            continue
        parameters[version] = lineage.parameters_sha256
        published.last_version = max(published.last_version, version)
        if version > above:
            _remember(published.versions, version, record, "versions")
    live = set()
    for record in snapshots:
        found = parse_snapshot_key(record.key, policy)
        if found is None:
            continue
        unlike = _unlike_lineage(record.value, found, parameters)
        if unlike is not None:
            log.warning("snapshot_ignored", offset=record.offset, **found._asdict(), reason=unlike)
            continue
        published.last_snapshot = max(published.last_snapshot, found)
        if record.value is None:
            live.discard(found)
            continue
        live.add(found)
        if found > above:
            _remember(published.snapshots, found, record, "parameters")
    published.live.extend(sorted(live))
    return published


def _following(last: VersionId, *, whole: bool) -> tuple[VersionId, ...]:
    """The versions that can come after the last one; empty if any can."""
    if last > BEFORE_ALL:
        return VersionId(last.epoch, last.version + 1), VersionId(last.epoch + 1, 1)
    return (VersionId(1, 1),) if whole else ()


def _lineage(value: bytes | None) -> Version:
    """The lineage that a record holds; one of version 0, which there is not, if it holds none."""
    try:
        return Version.FromString(value or b"")
    except DecodeError:
        return Version()


def _unlike_lineage(
    value: bytes | None, version: VersionId, parameters: Mapping[VersionId, bytes]
) -> str | None:
    """Why a record under a version's key is not that version's; None if it is.

    Args:
        value: the record's value; None is a tombstone.
        version: what its key names.
        parameters: version → sha256 of the parameters, by the versions topic.
    """
    expected = parameters.get(version)
    if expected is None:
        return "expected a version of the versions topic, seen none of that number there"
    if value is None:
        return None
    try:
        snapshot = ParameterSnapshot.FromString(value)
    except DecodeError as error:
        return f"expected a snapshot, seen {len(value)} bytes that are none: {error}"
    named = VersionId(snapshot.epoch, snapshot.version)
    if named != version:
        return f"expected the version of the key, seen {named.version} of epoch {named.epoch}"
    if snapshot.parameters_sha256 != expected:
        seen = snapshot.parameters_sha256.hex()
        return f"expected parameters of sha256 {expected.hex()}, seen {seen}"
    return None


def _remember(
    known: dict[VersionId, bytes], version: VersionId, record: LogRecord, topic: str
) -> None:
    digest = hashlib.sha256(record.value or b"").digest()
    if known.setdefault(version, digest) != digest:
        raise StreamError(
            f"{topic} offset {record.offset}: expected version {version.version} of epoch "
            f"{version.epoch} as it was written before, sha256 {known[version].hex()}, "
            f"seen {digest.hex()}"
        )


def read_published(
    connection: Connection, topics: Topics, policy: str, *, above: VersionId = BEFORE_ALL
) -> Published:
    """Read the versions and the parameters topic; arguments and errors as in `summarise`."""
    # Snapshots first: those that another learner adds meanwhile have their lineage then.
    logs = read_logs(connection, [topics.parameters, topics.versions])
    return summarise(
        policy,
        (record for log in logs[topics.versions] for record in log.records),
        (record for log in logs[topics.parameters] for record in log.records),
        above=above,
        whole=all(log.head == 0 for log in logs[topics.versions]),
    )


class Publisher:
    """Adds versions to the topics.

    Args:
        topics: names of the topics.
        policy: whose versions are published.
        published: what the topics hold; kept up to date.
        keep: snapshots that stay in the parameters topic; older ones get tombstones.
        open_producer: makes a kafka-python producer with acks=all; called again after a failure.
    """

    def __init__(
        self,
        topics: Topics,
        policy: str,
        published: Published,
        *,
        keep: int,
        open_producer: Callable[[], Any],
    ) -> None:
        if keep < 1:
            raise ValueError(f"expected at least 1 snapshot to be kept, seen {keep}")
        self._topics = topics
        self._policy = policy
        self._published = published
        self._keep = keep
        self._open_producer = open_producer
        self._producer: Any = None

    def publish(self, batch: Sequence[Learned]) -> int:
        """Compare what is there, write what is not, wait until Kafka has confirmed all of it.

        Safe to call again with the same versions after a failure: what was written twice is equal.

        Returns:
            How many of the versions were new to the topics.

        Raises:
            StreamError: a version in the topics is not the one that was learned.
            KafkaError: Kafka did not confirm in time.
        """
        published = self._published
        new_versions, new_snapshots = [], []
        for learned in batch:
            version = VersionId(learned.version.epoch, learned.version.version)
            lineage, snapshot = encode(learned.version), encode(learned.snapshot)
            if version > published.last_version:
                new_versions.append((version, lineage))
            else:
                _compare(published.versions, version, lineage, self._topics.versions)
            if version > published.last_snapshot:
                new_snapshots.append((version, snapshot))
            else:
                _compare(published.snapshots, version, snapshot, self._topics.parameters)
        self._write(new_versions, new_snapshots)
        return len({version for version, _ in new_versions + new_snapshots})

    def _write(
        self,
        versions: Sequence[tuple[VersionId, bytes]],
        snapshots: Sequence[tuple[VersionId, bytes]],
    ) -> None:
        published = self._published
        live = [*published.live, *(version for version, _ in snapshots)]
        expired, live = live[: -self._keep], live[-self._keep :]
        records: list[tuple[str, bytes, bytes | None]] = [
            *((self._topics.versions, self._policy.encode(), value) for _, value in versions),
        ]
        self._send(records)
        records = [
            (self._topics.parameters, snapshot_key(self._policy, version), value)
            for version, value in snapshots
        ]
        records += [
            (self._topics.parameters, snapshot_key(self._policy, version), None)
            for version in expired
        ]
        self._send(records)
        if versions:
            published.last_version = versions[-1][0]
        if snapshots:
            published.last_snapshot = snapshots[-1][0]
        published.live = deque(live)

    def _send(self, records: Sequence[tuple[str, bytes, bytes | None]]) -> None:
        if not records:
            return
        if self._producer is None:
            self._producer = self._open_producer()
        try:
            futures = [
                self._producer.send(topic, key=key, value=value, partition=0)
                for topic, key, value in records
            ]
            for future in futures:
                future.get(timeout=ACKNOWLEDGE_S)
        except Exception:
            # An idempotent producer that gave a record up can't go on; the next try opens another.
            self.close()
            raise

    def close(self) -> None:
        """Close the producer; publishing again opens another."""
        if self._producer is not None:
            producer, self._producer = self._producer, None
            # Nothing is under way any more: every record has been confirmed or given up.
            close_producer(producer, CLOSE_S)


def _compare(known: dict[VersionId, bytes], version: VersionId, value: bytes, topic: str) -> None:
    """Compare a version with its record in a topic, once."""
    seen = known.pop(version, None)
    digest = hashlib.sha256(value).digest()
    if seen is not None and seen != digest:
        raise StreamError(
            f"{topic}: expected version {version.version} of epoch {version.epoch} to be what the "
            f"log yields, sha256 {digest.hex()}, seen sha256 {seen.hex()}: other settings, another "
            "build or another type of CPU made it; `grade reconcile` names the fields"
        )
