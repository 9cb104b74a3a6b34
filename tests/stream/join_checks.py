"""What the output of a join must be, from the oracle's knowledge of both logs."""

from functools import cached_property

import numpy as np
from grade.v1.decision_pb2 import ARM_HOLDOUT, Decision
from grade.v1.refused_pb2 import Refused
from grade.v1.reward_group_pb2 import (
    Boundary,
    JoinedConversion,
    JoinRecord,
    Progress,
    RewardGroup,
    Standing,
)

from policy.rewards import group_rewards
from stream.codec import encode
from stream.join import Kind, Output
from stream.terms import Terms
from tests.stream.join_generations import SCHEMA, generation
from tests.stream.join_histories import History
from tests.stream.join_oracle import Crossing, Fate, Group, Oracle, Side
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
        oracle: of what was read of them; of all by default.
    """

    def __init__(self, history: History, oracle: Oracle | None = None) -> None:
        self.history = history
        self.oracle = oracle or Oracle(history.horizons, history.impressions, history.conversions)

    @cached_property
    def leaving(self) -> dict[int, bytes]:
        """Impression offset to the record of a group or boundary, in their order."""
        impressions = self.oracle.impressions
        found = {impressions[each.impression].offset: each for each in self.oracle.groups()}
        records = {offset: self._group(group) for offset, group in found.items()}
        for crossing, told in self.oracle.boundaries():
            records[impressions[crossing.impression].offset] = self._boundary(crossing, told)
        return dict(sorted(records.items()))

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
        terms = self.history.terms[self.oracle.progress_generation(frontier)]
        record = Progress(
            policy=SCHEMA.policy,
            standing=self.oracle.progress_standing(frontier),
            close_time_ms=self.oracle.progress_close(frontier),
            settings_digest=terms.digest,
            computation=terms.computation,
            generation=terms.generation,
        )
        return encode(JoinRecord(progress=record))

    def check(self, output: OutputPartition) -> None:
        """Everything is written that must be, nothing else, and repeats are byte-identical."""
        self.check_main([value for value in output.main if not is_start(value)])
        self.check_sides(output, complete=True)

    def check_main(self, records: list[Output]) -> None:
        """The same of the reward groups' partition, its starts left out."""
        self.check_records(records)
        seen = [output.value for output in records if not _is_progress(output)]
        assert list(dict.fromkeys(seen)) == list(self.leaving.values())
        check_chain(records, self.oracle.beginning.prev)

    def check_records(self, records: list[Output]) -> None:
        """Every record of the partition is one that the oracle knows, byte for byte."""
        for output in records:
            record = JoinRecord.FromString(output.value)
            expected: bytes | None
            if record.HasField("group"):
                expected = self.leaving.get(record.group.offset)
                assert output.key == record.group.impression.request_id.encode()
            elif record.HasField("boundary"):
                expected = self.leaving.get(record.boundary.offset)
                assert output.key == b""
            else:
                expected = self.progress(record.progress.standing.frontier_ms)
                assert output.key == b""
            assert expected is not None, f"a group that must not be: {record}"
            assert output.value == expected, (
                f"expected {JoinRecord.FromString(expected)}, seen {record}"
            )
            self._check_conserved(record)

    def _check_conserved(self, record: JoinRecord) -> None:
        """The counts add up to the records before `done`: nothing is open there."""
        done, counts = standing(record).done, standing(record).counts
        first = self.oracle.impressions[0].offset, self.oracle.conversions[0].offset
        begin = tuple(map(max, first, self.oracle.beginning.done))
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
        assert impressions == done.impression_offset - begin[0]
        assert conversions == done.conversion_offset - begin[1]

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
        entry = self.oracle.impressions[group.impression]
        assert entry.message is not None
        terms = self._terms_at(group.impression)
        decision = Decision.FromString(entry.message.decision.payload)
        joined = [
            JoinedConversion(
                offset=self.oracle.conversions[member].offset,
                time_ms=self.oracle.conversion_times[member],
                conversion=self.oracle.conversions[member].message,
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
            settings_digest=terms.digest,
            computation=terms.computation,
            generation=terms.generation,
        )
        if decision.arm != ARM_HOLDOUT:
            weights = np.array(decision.weights, dtype=np.float32)
            weights = weights.reshape(-1, terms.schema.n_objectives)
            conversions = [member.conversion for member in joined]
            rewards = group_rewards(terms.schema, entry.message, weights, conversions)
            record.rewards.CopyFrom(rewards)
        return encode(JoinRecord(group=record))

    def _boundary(self, crossing: Crossing, told: Standing) -> bytes:
        terms = self._terms_at(crossing.impression)
        record = Boundary(
            policy=SCHEMA.policy,
            offset=self.oracle.impressions[crossing.impression].offset,
            standing=told,
            close_time_ms=crossing.close_time_ms,
            settings_digest=terms.digest,
            computation=terms.computation,
            generation=terms.generation,
            next=generation(self.history.definitions[crossing.begins - 1]),
        )
        return encode(JoinRecord(boundary=record))

    def _terms_at(self, impression: int) -> Terms:
        return self.history.terms[self.oracle.impression_generations[impression]]


def check_chain(records: list[Output], ledger: int = -1) -> None:
    """No gap for a learner that skips repeats (design: what follows from the rules)."""
    for output in records:
        record = JoinRecord.FromString(output.value)
        if not record.HasField("group"):
            assert standing(record).prev <= ledger, "a group is missing before this"
        elif record.group.offset > ledger:
            assert record.group.standing.prev == ledger, "a group is missing before a group"
            ledger = record.group.offset


def is_start(output: Output) -> bool:
    """Whether a record says where its segment begins."""
    return JoinRecord.FromString(output.value).HasField("start")


def _is_progress(output: Output) -> bool:
    return JoinRecord.FromString(output.value).HasField("progress")
