"""The versions of one policy, recomputed from the reward groups and compared with the topics.

Also what the ledgers of the published versions say on their own: how many groups were applied, left
out, or applied twice. That needs no recomputation, so it holds whatever the settings are.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError, Message
from grade.v1.parameters_pb2 import Version

from policy.errors import LedgerGap, StreamError
from stream.applied_groups import follow_ledgers
from stream.codec import encode
from stream.differences import Difference, first_difference, shown
from stream.logs import Log, LogRecord
from stream.parameters import BEFORE_ALL, VersionId, parse_snapshot_key
from stream.version_chain import GenerationOf, Learned, VersionChain
from stream.version_range import VersionRange, parse_range

_Versions = Mapping[VersionId, list[tuple[LogRecord, Version]]]
_Snapshots = Mapping[VersionId, list[LogRecord]]


@dataclass(slots=True)
class VersionsReport:
    """What the comparison of the versions found."""

    versions: int = 0
    """Distinct versions in the versions topic."""
    versions_compared: int = 0
    """Records of the versions topic that were compared with a recomputed version."""
    snapshots_compared: int = 0
    """Records of the parameters topic that were compared with a recomputed snapshot."""
    groups_applied: int = 0
    """Groups that the published versions say they applied."""
    groups_lost: int = 0
    """Groups of the policy arm that the ledgers passed over, or that a version covers and did not
    apply. The trainer leaves out what is not finite; the join lets no such group pass."""
    groups_applied_twice: int = 0
    """Groups of the policy arm that two versions applied."""
    not_compared: list[str] = field(default_factory=list)
    """Sentences about what there was to compare and was not."""
    differences: list[Difference] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class VersionTopics:
    """What the topics around the learner hold, and their names."""

    reward_groups: Sequence[Log]
    """[partition]"""
    versions: Log
    parameters: Log
    reward_groups_name: str
    versions_name: str
    parameters_name: str


def reconcile_versions(
    generations: GenerationOf,
    policy: str,
    content: VersionTopics,
    *,
    which: str = "all",
    tell: Callable[[str], None] = lambda _: None,
) -> VersionsReport:
    """Recompute versions that were published and compare them byte for byte.

    A stretch of versions is recomputed from the first one on, as a version is made from the one
    before; compared is only the stretch.

    Args:
        generations: finds the policy's generations by number.
        policy: name of the policy.
        content: what the topics hold.
        which: the versions to compare; see `stream.version_range.parse_range`.
        tell: is told how far it has come.

    Raises:
        SettingsError: `which` names no versions.
    """
    report = VersionsReport()
    versions = _by_version(content.versions, report, content.versions_name, policy)
    snapshots = _snapshots(content.parameters, policy)
    report.versions = len(versions)
    applied = follow_ledgers(
        content.reward_groups, {id: records[0][1] for id, records in versions.items()}
    )
    report.groups_applied, report.groups_lost, report.groups_applied_twice = applied
    published = {*versions, *snapshots}
    stretch = parse_range(which, {id.epoch for id in published})
    wanted = {id for id in published if id in stretch}
    if len(wanted) < len(published):
        report.not_compared.append(
            f"{len(published - wanted):,} of {len(published):,} versions, outside of {which}"
        )
    recomputed: set[VersionId] = set()
    if wanted:
        try:
            chain = VersionChain(generations, len(content.reward_groups))
            for learned in _learn(chain, content.reward_groups):
                version = VersionId(learned.version.epoch, learned.version.version)
                if version in stretch:
                    recomputed.add(version)
                    _compare(content, versions, snapshots, version, learned, report)
                if version.version % 50 == 0:
                    tell(f"versions recomputed: {_name(version)}, up to {_name(max(wanted))}")
                if version >= max(wanted):
                    break
        except StreamError as error:
            report.differences.append(_broken(content, "record", error))
        except LedgerGap as error:
            report.differences.append(_broken(content, "ledger", error))
    _find_unexplained(content, versions, snapshots, wanted - recomputed, report)
    _find_missing(content, versions, snapshots, recomputed, report)
    _tell_deleted(content, versions, snapshots, recomputed, report)
    _check_stretch(content, stretch, published, recomputed, report)
    return report


def _learn(chain: VersionChain, logs: Sequence[Log]) -> Iterator[Learned]:
    """Feed the partitions so that none runs ahead of the others, and yield what is learned."""
    at = [0] * len(logs)
    yield from chain.learn()
    while left := [index for index, log in enumerate(logs) if at[index] < len(log.records)]:
        reached = chain.cutter.reached
        index = min(left, key=lambda each: reached[each])
        record = logs[index].records[at[index]]
        at[index] += 1
        yield from chain.feed(index, record.value, position=record.offset)


def _compare(
    content: VersionTopics,
    versions: _Versions,
    snapshots: _Snapshots,
    version: VersionId,
    learned: Learned,
    report: VersionsReport,
) -> None:
    for record, _ in versions.get(version, []):
        report.versions_compared += 1
        _compare_record(content.versions_name, record, version, learned.version, report)
    for record in snapshots.get(version, []):
        if record.value is not None:
            report.snapshots_compared += 1
            _compare_record(content.parameters_name, record, version, learned.snapshot, report)


def _compare_record(
    topic: str, record: LogRecord, version: VersionId, expected: Message, report: VersionsReport
) -> None:
    value = record.value or b""
    if encode(expected) == value:
        return
    try:
        path, wanted, seen = first_difference(expected, type(expected).FromString(value))
    except DecodeError:
        path, wanted, seen = "value", f"a {type(expected).__name__}", shown(value)
    where = f"{_name(version)}: {path}"
    report.differences.append(Difference(topic, 0, record.offset, where, wanted, seen))


def _find_unexplained(
    content: VersionTopics,
    versions: _Versions,
    snapshots: _Snapshots,
    unexplained: set[VersionId],
    report: VersionsReport,
) -> None:
    """Tell of versions in the topics that the reward groups do not yield."""
    for version in sorted(unexplained):
        places = [(content.versions_name, record) for record, _ in versions.get(version, [])[:1]]
        places += [(content.parameters_name, each) for each in snapshots.get(version, [])[:1]]
        for topic, record in places:
            report.differences.append(
                Difference(topic, 0, record.offset, _name(version), "none from these groups", "one")
            )


def _find_missing(
    content: VersionTopics,
    versions: _Versions,
    snapshots: _Snapshots,
    recomputed: set[VersionId],
    report: VersionsReport,
) -> None:
    """Find versions that are missing between others; the newest may still be on their way."""
    for topic, present, first in _kept(content, versions, snapshots):
        last = max(present, default=BEFORE_ALL)
        for version in sorted(recomputed - present):
            if first is not None and first <= version <= last:
                report.differences.append(Difference(topic, 0, None, _name(version), "one", "none"))


def _tell_deleted(
    content: VersionTopics,
    versions: _Versions,
    snapshots: _Snapshots,
    recomputed: set[VersionId],
    report: VersionsReport,
) -> None:
    """Tell of what cannot be compared any more."""
    # A tombstone's snapshot may still lie before it in the log, and then it was compared.
    compared = (("lineage", set(versions)), ("snapshots", set(snapshots)))
    kept = _kept(content, versions, snapshots)
    for (topic, _, first), (what, there) in zip(kept, compared, strict=True):
        deleted = [id for id in recomputed - there if first is None or id < first]
        if deleted:
            report.not_compared.append(
                f"the {what} of {len(deleted):,} versions ({_name(min(deleted))} to "
                f"{_name(max(deleted))}), which {topic} no longer has"
            )


def _kept(
    content: VersionTopics, versions: _Versions, snapshots: _Snapshots
) -> list[tuple[str, set[VersionId], VersionId | None]]:
    """(topic, versions that it has, the first that it must have) for lineage and snapshots.

    Retention takes lineage from the front, tombstones take snapshots from the front.
    """
    live = {id for id, records in snapshots.items() if records[-1].value is not None}
    whole = content.versions.head == 0 and bool(versions)
    first_lineage = BEFORE_ALL if whole else min(versions, default=None)
    return [
        (content.versions_name, set(versions), first_lineage),
        (content.parameters_name, live, min(live, default=None)),
    ]


def _check_stretch(
    content: VersionTopics,
    stretch: VersionRange,
    published: set[VersionId],
    recomputed: set[VersionId],
    report: VersionsReport,
) -> None:
    """Tell of ends of a stretch that there are no versions for."""
    for end in stretch:
        if end.version > 0 and end not in published | recomputed:
            report.not_compared.append(f"{_name(end)}, which {content.versions_name} does not have")


def _by_version(
    log: Log, report: VersionsReport, name: str, policy: str
) -> dict[VersionId, list[tuple[LogRecord, Version]]]:
    found: dict[VersionId, list[tuple[LogRecord, Version]]] = {}
    for record in log.records:
        if record.key != policy.encode():
            continue
        try:
            version = Version.FromString(record.value or b"")
        except DecodeError:
            seen = shown(record.value)
            report.differences.append(
                Difference(name, 0, record.offset, "value", "a Version", seen)
            )
            continue
        found.setdefault(VersionId(version.epoch, version.version), []).append((record, version))
    return found


def _snapshots(log: Log, policy: str) -> dict[VersionId, list[LogRecord]]:
    found: dict[VersionId, list[LogRecord]] = {}
    for record in log.records:
        version = parse_snapshot_key(record.key, policy)
        if version is not None:
            found.setdefault(version, []).append(record)
    # A version whose snapshot was compacted away has left only a tombstone: nothing to compare.
    return {id: records for id, records in found.items() if any(each.value for each in records)}


def _name(version: VersionId) -> str:
    return f"version {version.version} of epoch {version.epoch}"


def _broken(content: VersionTopics, what: str, error: Exception) -> Difference:
    return Difference(
        content.reward_groups_name, -1, None, what, "groups that a learner can follow", str(error)
    )
