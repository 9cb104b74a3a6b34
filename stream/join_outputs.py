"""The records that the join writes, as bytes; equal content becomes equal bytes."""

from collections.abc import Sequence

from google.protobuf.message import DecodeError
from grade.v1.decision_pb2 import ARM_HOLDOUT, Decision
from grade.v1.refused_pb2 import Reason, Refused
from grade.v1.reward_group_pb2 import JoinRecord, Progress, RewardGroup, Standing, Start

from policy.errors import BoundaryError, RetentionLost, StreamError
from policy.rewards import COMPUTATION, ClosedGroup, rewards_of
from policy.schema import Schema
from stream.attribution import Window
from stream.codec import encode
from stream.join_records import Cursor, JoinSettings, Kind, Log, Output, Record
from stream.validation import shown


class Outputs:
    """Builds and reads the records of one output partition.

    Args:
        schema: the policy's schema.
        settings: the join's settings; records name their digest.
        partition: the partition.
    """

    def __init__(self, schema: Schema, settings: JoinSettings, partition: int) -> None:
        self._schema = schema
        self._window_ms = settings.window_ms
        self._partition = partition
        self._digest = settings.digest(schema.digest)

    def start(self, head: Cursor) -> Output:
        """The first record of the partition (rule 14)."""
        record = JoinRecord()
        start = record.start
        self._sign(start)
        start.head.impression_offset, start.head.conversion_offset = head
        return Output(Kind.REWARD_GROUPS, b"", encode(record))

    def group(self, window: Window, standing: Standing) -> JoinRecord:
        """The group of an impression whose window has closed, without its rewards."""
        record = JoinRecord()
        group = record.group
        self._sign(group)
        group.offset = window.offset
        group.impression_time_ms = window.time_ms
        group.close_time_ms = window.time_ms + self._window_ms
        group.standing.CopyFrom(standing)
        group.impression.MergeFromString(window.value)
        for member in window.members:
            group.conversions.add(
                offset=member.record.offset, time_ms=member.time_ms, conversion=member.message
            )
        return record

    def finished(self, records: Sequence[JoinRecord]) -> list[Output]:
        """Groups with their rewards, which are worked out together.

        Args:
            records: as `group` returns them, in the order in which they are written.
        """
        rewarded, closed = [], []
        for record in records:
            impression = record.group.impression
            decision = Decision.FromString(impression.decision.payload)
            if decision.arm != ARM_HOLDOUT:
                conversions = [member.conversion for member in record.group.conversions]
                rewarded.append(record.group)
                closed.append(ClosedGroup(impression, decision.weights[:], conversions))
        for group, rewards in zip(rewarded, rewards_of(self._schema, closed), strict=True):
            group.rewards.CopyFrom(rewards)
        return [
            Output(Kind.REWARD_GROUPS, record.group.impression.request_id.encode(), encode(record))
            for record in records
        ]

    def progress(self, standing: Standing) -> Output:
        """How far the join has come where no group says so."""
        record = JoinRecord()
        progress = record.progress
        self._sign(progress)
        progress.standing.CopyFrom(standing)
        progress.close_time_ms = standing.frontier_ms + self._window_ms
        return Output(Kind.REWARD_GROUPS, b"", encode(record))

    def refused(
        self,
        kind: Kind,
        log: Log,
        record: Record,
        time_ms: int,
        reason: "Reason.ValueType",
        message: str,
        impression_offset: int = -1,
    ) -> Output:
        """An input record that is in no group, and why."""
        key = record.key or b""
        refused = Refused(
            policy=self._schema.policy,
            reason=reason,
            message=message,
            topic=log.value,
            partition=self._partition,
            offset=record.offset,
            time_ms=time_ms,
            key=key,
            value=record.value or b"",
            impression_offset=impression_offset,
        )
        return Output(kind, key, encode(refused))

    def start_head(self, first: bytes) -> Cursor:
        """Where the partition's first record, a start, says that the inputs began.

        Raises:
            BoundaryError: it was written under other settings, schema or computation.
            StreamError: it is no start record.
        """
        record = self._decode(first)
        if not record.HasField("start"):
            raise StreamError(f"{self._place}: expected a start record first, seen another")
        self._check_boundary(record.start)
        return Cursor(record.start.head.impression_offset, record.start.head.conversion_offset)

    def furthest(self, values: Sequence[bytes]) -> tuple[Standing, int] | None:
        """The furthest of some groups and progress records, and the last group's offset at it.

        A zombie may have written an older record after it (rule 13). Starts count for nothing.

        Raises:
            BoundaryError: one was written under other settings, schema or computation.
            StreamError: a value is not a record of the join.
        """
        best: tuple[Standing, int] | None = None
        for value in values:
            record = self._decode(value)
            if record.HasField("group"):
                self._check_boundary(record.group)
                found = record.group.standing, record.group.offset
            elif record.HasField("progress"):
                self._check_boundary(record.progress)
                found = record.progress.standing, record.progress.standing.prev
            else:
                continue
            if best is None or _order(found[0]) > _order(best[0]):
                best = found
        return best

    @property
    def _place(self) -> str:
        return f"reward-groups partition {self._partition}"

    def _sign(self, record: RewardGroup | Progress | Start) -> None:
        record.policy = self._schema.policy
        record.settings_digest = self._digest
        record.computation = COMPUTATION

    def _decode(self, value: bytes) -> JoinRecord:
        try:
            record = JoinRecord.FromString(value)
        except DecodeError:
            record = JoinRecord()
        if record.WhichOneof("kind") is None:
            raise StreamError(
                f"{self._place}: expected a JoinRecord, seen {len(value)} bytes that are none: "
                f"{shown(value[:32])}"
            )
        return record

    def _check_boundary(self, record: RewardGroup | Progress | Start) -> None:
        expected = (self._schema.policy, self._digest, COMPUTATION)
        seen = (record.policy, record.settings_digest, record.computation)
        if seen != expected:
            raise BoundaryError(
                f"{self._place}: expected records of {_boundary(*expected)}, seen one of "
                f"{_boundary(*seen)}"
            )


def check_retained(needed: Cursor, head: Cursor) -> None:
    """Refuse if the logs no longer reach back to where reading has to begin (rule 15).

    Args:
        needed: where reading has to begin.
        head: first offsets that are still in both logs.

    Raises:
        RetentionLost: with the numbers.
    """
    for log, offset, first in zip(Log, needed, head, strict=True):
        if first > offset:
            raise RetentionLost(
                f"{log.value}: expected to read from offset {offset}, seen {first} as the first "
                f"that retention has left: {first - offset} records are lost"
            )


def _order(standing: Standing) -> tuple[int, int]:
    return standing.frontier_ms, standing.done.impression_offset


def _boundary(policy: str, digest: bytes, computation: int) -> str:
    digits = digest.hex()[:12] or "(empty)"
    return f"policy {shown(policy)}, settings {digits}, computation {computation}"
