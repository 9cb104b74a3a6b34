"""What the output of a join must be, from the oracle's knowledge of both logs."""

from collections.abc import Iterable
from functools import cached_property

import numpy as np
from grade.v1.decision_pb2 import ARM_HOLDOUT, Decision
from grade.v1.refused_pb2 import Refused
from grade.v1.reward_group_pb2 import JoinedConversion, JoinRecord, Progress, RewardGroup

from policy.rewards import COMPUTATION, group_rewards
from stream.codec import encode
from stream.join import Kind, Output
from tests.stream.join_histories import SCHEMA, History
from tests.stream.join_oracle import Fate, Group, Oracle, Side
from tests.stream.join_owners import OutputPartition, standing

KIND_OF_FATE = {
    Fate.DEAD: Kind.DEAD_LETTERS,
    Fate.LATE: Kind.LATE,
    Fate.ORPHAN: Kind.ORPHANS,
}


class Expected:
    """The outputs that two logs must lead to.

    Args:
        history: both logs, closed by ticks that decide everything.
        digest: the settings' digest, as the start record names it.
    """

    def __init__(self, history: History, digest: bytes, oracle: Oracle | None = None) -> None:
        self.history = history
        self.digest = digest
        self.oracle = oracle or Oracle(history.horizons, history.impressions, history.conversions)

    @cached_property
    def groups(self) -> list[bytes]:
        """The groups' records in their order."""
        return [self._group(group) for group in self.oracle.groups()]

    @cached_property
    def sides(self) -> dict[tuple[str, int], Side]:
        """Log's name and offset to side output."""
        oracle = self.oracle
        sides = {
            ("impressions", offset): side for offset, side in oracle.impression_sides().items()
        }
        for offset, side in oracle.conversion_sides().items():
            sides["conversions", offset] = side
        return sides

    def progress(self, frontier: int) -> bytes:
        """The record of progress up to a frontier."""
        record = Progress(
            policy=SCHEMA.policy,
            standing=self.oracle.progress_standing(frontier),
            close_time_ms=frontier + self.history.settings.window_ms,
            settings_digest=self.digest,
            computation=COMPUTATION,
        )
        return encode(JoinRecord(progress=record))

    def check(self, output: OutputPartition) -> None:
        """Everything is written that must be, nothing else, and repeats are byte-identical."""
        records = [value for value in output.main if not _is_start(value)]
        self.check_records(records)
        assert _distinct(_kind(value, "group") for value in records) == self.groups
        self.check_sides(output, complete=True)
        check_chain(records)

    def check_records(self, records: list[Output]) -> None:
        """Every record of the partition is one that the oracle knows, byte for byte."""
        groups = {JoinRecord.FromString(value).group.offset: value for value in self.groups}
        for output in records:
            record = JoinRecord.FromString(output.value)
            if record.WhichOneof("kind") == "group":
                expected = groups.get(record.group.offset)
                assert output.key == record.group.impression.request_id.encode()
            else:
                expected = self.progress(record.progress.standing.frontier_ms)
            assert expected is not None, f"a group that must not be: {record}"
            assert output.value == expected, (
                f"expected {JoinRecord.FromString(expected)}, seen {record}"
            )
            check_conserved(record, self.history)

    def check_sides(self, output: OutputPartition, *, complete: bool) -> None:
        """Every side output is right; if complete, none is missing."""
        seen: dict[tuple[str, int], bytes] = {}
        for written, refused in zip(output.sides, output.refused(), strict=True):
            identity = (refused.topic.split(".")[0], refused.offset)
            assert seen.setdefault(identity, written.value) == written.value, "repeat differs"
            assert identity in self.sides, f"must not be a side output: {refused}"
            self._check_side(written, refused, self.sides[identity])
        if complete:
            assert seen.keys() == self.sides.keys()

    def _check_side(self, written: Output, refused: Refused, side: Side) -> None:
        history = self.history
        log = history.impressions if refused.topic.startswith("imp") else history.conversions
        entry = log[refused.offset - log[0].offset]
        told = (refused.reason, refused.time_ms, refused.impression_offset)
        assert told == (side.reason, side.time_ms, side.impression_offset), refused
        assert written.kind is KIND_OF_FATE[side.fate], refused
        assert (refused.policy, refused.partition) == (SCHEMA.policy, history.partition)
        assert (refused.key, refused.value) == (entry.key or b"", entry.value or b"")
        assert written.key == (entry.key or b"")
        assert refused.message

    def _group(self, group: Group) -> bytes:
        entry = self.history.impressions[group.impression]
        assert entry.message is not None
        decision = Decision.FromString(entry.message.decision.payload)
        joined = [
            JoinedConversion(
                offset=self.history.conversions[member].offset,
                time_ms=self.oracle.conversion_times[member],
                conversion=self.history.conversions[member].message,
            )
            for member in group.members
        ]
        record = RewardGroup(
            policy=SCHEMA.policy,
            offset=entry.offset,
            impression_time_ms=group.time_ms,
            close_time_ms=group.close_time_ms,
            standing=group.standing,
            impression=entry.message,
            conversions=joined,
            settings_digest=self.digest,
            computation=COMPUTATION,
        )
        if decision.arm != ARM_HOLDOUT:
            weights = np.array(decision.weights, dtype=np.float32)
            weights = weights.reshape(-1, SCHEMA.n_objectives)
            conversions = [member.conversion for member in joined]
            record.rewards.CopyFrom(group_rewards(SCHEMA, entry.message, weights, conversions))
        return encode(JoinRecord(group=record))


def check_chain(records: list[Output]) -> None:
    """No gap for a learner that skips repeats (design: what follows from the rules)."""
    ledger = -1
    for output in records:
        record = JoinRecord.FromString(output.value)
        if record.WhichOneof("kind") == "progress":
            assert record.progress.standing.prev <= ledger, "a group is missing before progress"
        elif record.group.offset > ledger:
            assert record.group.standing.prev == ledger, "a group is missing before a group"
            ledger = record.group.offset


def check_conserved(record: JoinRecord, history: History) -> None:
    """The counts add up to the records before `done`: nothing is open there."""
    done, counts = standing(record).done, standing(record).counts
    impressions = (
        counts.impressions_grouped
        + counts.impressions_duplicate
        + counts.impressions_dead
        + counts.impressions_ticks
    )
    conversions = (
        counts.conversions_joined
        + counts.conversions_late
        + counts.conversions_orphan
        + counts.conversions_duplicate
        + counts.conversions_dead
        + counts.conversions_ticks
    )
    assert impressions == done.impression_offset - history.impressions[0].offset
    assert conversions == done.conversion_offset - history.conversions[0].offset


def _is_start(output: Output) -> bool:
    return JoinRecord.FromString(output.value).WhichOneof("kind") == "start"


def _kind(output: Output, kind: str) -> bytes | None:
    """The record if it is of a kind."""
    is_kind = JoinRecord.FromString(output.value).WhichOneof("kind") == kind
    return output.value if is_kind else None


def _distinct(values: Iterable[bytes | None]) -> list[bytes]:
    """The records without their repeats, in the order of their first appearance."""
    return list(dict.fromkeys(value for value in values if value is not None))
