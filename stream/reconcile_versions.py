"""The versions of one policy, recomputed from the reward groups and compared with the topics.

Also what the ledgers of the published versions say on their own: how many groups were applied, left
out, or applied twice. That needs no recomputation, so it holds whatever the settings are.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import DecodeError, Message
from grade.v1.parameters_pb2 import Version
from grade.v1.reward_group_pb2 import JoinRecord, RewardGroup

from policy.errors import LedgerGap, StreamError
from policy.schema import Schema
from policy.trainer_settings import TrainerSettings
from stream.codec import encode
from stream.differences import Difference, first_difference, shown
from stream.logs import Log, LogRecord
from stream.parameters import VersionId, parse_snapshot_key
from stream.version_chain import Learned, VersionChain, in_policy_arm


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
    schema: Schema,
    settings: TrainerSettings,
    content: VersionTopics,
    *,
    slot_ms: int,
    epoch: int = 1,
    tell: Callable[[str], None] = lambda _: None,
) -> VersionsReport:
    """Recompute every version that was published and compare byte for byte.

    Args:
        schema: the policy's schema.
        settings: how the learner learned.
        content: what the topics hold.
        slot_ms: length of a slot in milliseconds.
        epoch: epoch of the versions.
        tell: is told how far it has come.
    """
    report = VersionsReport()
    versions = _by_version(content.versions, report, content.versions_name, schema.policy)
    snapshots = _snapshots(content.parameters, schema.policy)
    report.versions = len(versions)
    _follow_ledgers(content, versions, slot_ms, report)
    last = max((id for id in (*versions, *snapshots) if id.epoch == epoch), default=None)
    chain = VersionChain(schema, settings, len(content.reward_groups), slot_ms, epoch)
    recomputed: set[VersionId] = set()
    if last is not None:
        try:
            for learned in _learn(chain, content.reward_groups):
                version = VersionId(epoch, learned.version.version)
                recomputed.add(version)
                _compare(content, versions, snapshots, version, learned, report)
                if version.version % 50 == 0:
                    tell(f"versions recomputed: {version.version} of {last.version}")
                if version >= last:
                    break
        except StreamError as error:
            report.differences.append(_broken(content, "record", error))
        except LedgerGap as error:
            report.differences.append(_broken(content, "ledger", error))
    _find_unexplained(content, versions, snapshots, recomputed, report)
    _find_missing(content, versions, snapshots, recomputed, report)
    return report


def _learn(chain: VersionChain, logs: Sequence[Log]) -> Any:
    """Feed the partitions so that none runs ahead of the others, and yield what is learned."""
    at = [0] * len(logs)
    while True:
        reached = chain.cutter.reached_ms
        left = [index for index, log in enumerate(logs) if at[index] < len(log.records)]
        if not left:
            return
        index = min(left, key=lambda each: (reached[each] is not None, reached[each] or 0))
        record = logs[index].records[at[index]]
        at[index] += 1
        yield from chain.feed(index, record.value, position=record.offset)


def _compare(
    content: VersionTopics,
    versions: Mapping[VersionId, list[tuple[LogRecord, Version]]],
    snapshots: Mapping[VersionId, list[LogRecord]],
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
    where = f"version {version.version} of epoch {version.epoch}: {path}"
    report.differences.append(Difference(topic, 0, record.offset, where, wanted, seen))


def _find_unexplained(
    content: VersionTopics,
    versions: Mapping[VersionId, list[tuple[LogRecord, Version]]],
    snapshots: Mapping[VersionId, list[LogRecord]],
    recomputed: set[VersionId],
    report: VersionsReport,
) -> None:
    """Find versions in the topics that the reward groups do not yield."""
    found = [(content.versions_name, id, records[0][0]) for id, records in versions.items()]
    found += [(content.parameters_name, id, records[0]) for id, records in snapshots.items()]
    for topic, version, record in found:
        if version not in recomputed:
            what = f"version {version.version} of epoch {version.epoch}"
            report.differences.append(
                Difference(topic, 0, record.offset, what, "none from these groups", "one")
            )


def _find_missing(
    content: VersionTopics,
    versions: Mapping[VersionId, list[tuple[LogRecord, Version]]],
    snapshots: Mapping[VersionId, list[LogRecord]],
    recomputed: set[VersionId],
    report: VersionsReport,
) -> None:
    """Find versions that are missing between others; the newest may still be on their way."""
    live = {id for id, records in snapshots.items() if records[-1].value is not None}
    for topic, present in ((content.versions_name, set(versions)), (content.parameters_name, live)):
        # Retention takes lineage from the front, tombstones take snapshots from the front.
        whole = topic == content.versions_name and content.versions.head == 0
        first = min(recomputed, default=None) if whole else min(present, default=None)
        last = max(present, default=None)
        if first is None or last is None:
            continue
        for version in sorted(recomputed - present):
            if first <= version <= last:
                what = f"version {version.version} of epoch {version.epoch}"
                report.differences.append(Difference(topic, 0, None, what, "one", "none"))


def _follow_ledgers(
    content: VersionTopics,
    versions: Mapping[VersionId, list[tuple[LogRecord, Version]]],
    slot_ms: int,
    report: VersionsReport,
) -> None:
    """Count the groups that the chain of ledgers passed over or covered twice.

    A version covers the groups between its parent's ledger and its own; what it says it applied
    must be that many.
    """
    groups = [_policy_groups(log) for log in content.reward_groups]
    offsets = [sorted(of) for of in groups]
    applied = [-1] * len(groups)
    ledgers = {0: [-1] * len(groups)}
    slot = None
    for id in sorted(versions):
        version = versions[id][0][1]
        own = [-1] * len(groups)
        for each in version.ledger:
            if each.partition < len(own):
                own[each.partition] = each.offset
        covered = 0
        for index, parent in enumerate(ledgers.get(version.parent, applied)):
            covered += _between(offsets[index], parent, own[index])
            report.groups_applied_twice += _between(
                offsets[index], parent, min(own[index], applied[index])
            )
            report.groups_lost += _between(offsets[index], applied[index], parent)
        report.groups_applied += version.groups
        report.groups_lost += max(0, covered - version.groups)
        report.groups_applied_twice += max(0, version.groups - covered)
        ledgers[version.version] = own
        applied = [max(pair) for pair in zip(applied, own, strict=True)]
        slot = version.slot
    if slot is not None:
        for index, of in enumerate(groups):
            report.groups_lost += sum(
                1
                for offset, close in of.items()
                if close // slot_ms <= slot and offset > applied[index]
            )


def _between(offsets: Sequence[int], after: int, up_to: int) -> int:
    return max(0, bisect_right(offsets, up_to) - bisect_right(offsets, after))


def _policy_groups(log: Log) -> dict[int, int]:
    """Offset → close time of the distinct groups of the policy arm."""
    found: dict[int, int] = {}
    for record in log.records:
        group = _group(record)
        if group is not None and in_policy_arm(group):
            found.setdefault(group.offset, group.close_time_ms)
    return found


def _group(record: LogRecord) -> RewardGroup | None:
    try:
        message = JoinRecord.FromString(record.value or b"")
    except DecodeError:
        return None
    return message.group if message.HasField("group") else None


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


def _broken(content: VersionTopics, what: str, error: Exception) -> Difference:
    return Difference(
        content.reward_groups_name, -1, None, what, "groups that a learner can follow", str(error)
    )
