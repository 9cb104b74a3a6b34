"""What the ledgers of published versions say: which groups were applied, left out, applied twice.

Nothing is recomputed, so it holds whatever the settings are.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from google.protobuf.message import DecodeError
from grade.v1.parameters_pb2 import Version
from grade.v1.reward_group_pb2 import JoinRecord

from stream.logs import Log
from stream.parameters import BEFORE_ALL, VersionId
from stream.version_chain import TAKEN_OVER, in_policy_arm


class Applied(NamedTuple):
    """Numbers of groups of the policy arm."""

    applied: int
    """That the versions say they applied."""
    lost: int
    """That the ledgers passed over, or that a version covers and did not apply."""
    twice: int
    """That two versions applied."""


class _Group(NamedTuple):
    generation: int
    close_time_ms: int


def follow_ledgers(reward_groups: Sequence[Log], versions: Mapping[VersionId, Version]) -> Applied:
    """Count the groups that the chain of ledgers passed over or covered twice.

    A version covers the groups between its parent's ledger and its own; what it says it applied
    must be that many.

    Args:
        reward_groups: [partition] what the join wrote.
        versions: the lineage of every version that is known.
    """
    groups = [_policy_groups(log) for log in reward_groups]
    offsets = [sorted(of) for of in groups]
    applied = [-1] * len(groups)
    ledgers = {BEFORE_ALL: [-1] * len(groups)}
    count, lost, twice = 0, 0, 0
    for id in sorted(versions):
        version = versions[id]
        own = [-1] * len(groups)
        for each in version.ledger:
            if each.partition < len(own):
                own[each.partition] = each.offset
        covered = 0
        parent_id = VersionId(version.parent_epoch, version.parent)
        for index, parent in enumerate(ledgers.get(parent_id, applied)):
            covered += _between(offsets[index], parent, own[index])
            twice += _between(offsets[index], parent, min(own[index], applied[index]))
            lost += _between(offsets[index], applied[index], parent)
        count += version.groups
        lost += max(0, covered - version.groups)
        twice += max(0, version.groups - covered)
        ledgers[id] = own
        applied = [max(pair) for pair in zip(applied, own, strict=True)]
    if versions:
        last = versions[max(versions)]
        lost += sum(
            _must_be_applied(group, last) and offset > applied[index]
            for index, of in enumerate(groups)
            for offset, group in of.items()
        )
    return Applied(count, lost, twice)


def _must_be_applied(group: _Group, last: Version) -> bool:
    """Whether a group belongs to what the last version or those before have learned."""
    if group.generation != last.generation:
        return group.generation < last.generation
    return last.slot != TAKEN_OVER and group.close_time_ms // max(1, last.slot_ms) <= last.slot


def _between(offsets: Sequence[int], after: int, up_to: int) -> int:
    return max(0, bisect_right(offsets, up_to) - bisect_right(offsets, after))


def _policy_groups(log: Log) -> dict[int, _Group]:
    """Offset → group of the distinct groups of the policy arm.

    Left out is what an old owner wrote after another one had accepted a loss.
    """
    found: dict[int, _Group] = {}
    segment = 0
    for record in log.records:
        try:
            message = JoinRecord.FromString(record.value or b"")
        except DecodeError:
            continue
        segment = max(segment, message.start.segment)
        group = message.group
        if message.HasField("group") and group.standing.segment == segment and in_policy_arm(group):
            found.setdefault(group.offset, _Group(group.generation, group.close_time_ms))
    return found
