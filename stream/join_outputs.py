"""The records that the join writes, as bytes; equal content becomes equal bytes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from google.protobuf.message import DecodeError
from grade.v1.packed_pb2 import PackedJoinRecord, PackedRewardGroup
from grade.v1.refused_pb2 import Reason, Refused
from grade.v1.reward_group_pb2 import (
    Boundary,
    JoinRecord,
    Progress,
    RewardGroup,
    Standing,
    Start,
)

from policy.errors import BoundaryError, RetentionLost, StreamError
from policy.rewards import COMPUTATIONS, ClosedGroup
from stream.attribution import Crossing, Window
from stream.codec import encode
from stream.horizons import known
from stream.join_records import NEVER, Cursor, Kind, Log, Loss, Output, Record
from stream.terms import Terms
from stream.validation import shown

_Signed = RewardGroup | PackedRewardGroup | Progress | Boundary | Start


class Furthest(NamedTuple):
    """What a new owner goes on from."""

    standing: Standing
    prev: int
    """Offset of the last impression whose group has been written."""
    close_ms: int
    """Close time of the record."""


class LeavingGroup(NamedTuple):
    """A group on its way out."""

    record: PackedJoinRecord
    """Without rewards."""
    key: bytes
    closed: ClosedGroup | None
    """What its rewards are worked out from; None in the holdout arm."""


class Outputs:
    """Builds and reads the records of one output partition.

    Args:
        policy: name of the policy.
        terms: of every generation that is known; grows as boundaries are met.
        partition: the partition.
    """

    def __init__(self, policy: str, terms: Mapping[int, Terms], partition: int) -> None:
        self._policy = policy
        self._terms = terms
        self._partition = partition

    def start(self, head: Cursor, generation: int, loss: Loss | None) -> Output:
        """The first record of the partition (rule 14), or of what follows an accepted loss.

        Raises:
            BoundaryError: the generation is not known.
        """
        record = JoinRecord()
        start = record.start
        _sign(start, known(self._terms, generation))
        start.head.impression_offset, start.head.conversion_offset = head
        if loss is not None:
            start.segment = loss.segment
            start.loss.impressions, start.loss.conversions = loss.impressions, loss.conversions
            start.loss.prev, start.loss.close_time_ms = loss.prev, loss.close_time_ms
            done = start.loss.done
            done.impression_offset, done.conversion_offset = loss.done
        return Output(Kind.REWARD_GROUPS, b"", encode(record))

    def group(self, window: Window) -> LeavingGroup:
        """The group of an impression whose window has closed, without standing and rewards."""
        terms = window.terms
        record = PackedJoinRecord()
        group = record.group
        _sign(group, terms)
        group.offset = window.offset
        group.impression_time_ms = window.time_ms
        group.close_time_ms = window.close_ms
        group.impression = window.value
        for member in window.members:
            group.conversions.add(
                offset=member.record.offset, time_ms=member.time_ms, conversion=member.message
            )
        closed = _closed(window) if window.weights else None
        return LeavingGroup(record, window.request_id.encode(), closed)

    def finished(self, terms: Terms, groups: Sequence[LeavingGroup]) -> list[Output]:
        """Groups with their rewards, which are worked out together.

        Args:
            terms: of their generation.
            groups: as `group` returns them, in the order in which they are written.
        """
        closed = [each.closed for each in groups if each.closed is not None]
        computed = iter(COMPUTATIONS[terms.computation](terms.schema, closed))
        for each in groups:
            if each.closed is not None:
                each.record.group.rewards.CopyFrom(next(computed))
        return [Output(Kind.REWARD_GROUPS, each.key, encode(each.record)) for each in groups]

    def boundary(self, crossing: Crossing, record: JoinRecord) -> Output:
        """The last record of a generation.

        Args:
            crossing: the boundary.
            record: with nothing but its standing, to be completed.
        """
        boundary = record.boundary
        _sign(boundary, crossing.terms)
        boundary.offset = crossing.offset
        boundary.close_time_ms = crossing.close_ms
        boundary.next.CopyFrom(crossing.next)
        return Output(Kind.REWARD_GROUPS, b"", encode(record))

    def progress(self, terms: Terms, record: JoinRecord, close_ms: int) -> Output:
        """How far the join has come where no group says so.

        Args:
            terms: of the frontier's generation.
            record: with nothing but its standing, to be completed.
            close_ms: no later group closes before it.
        """
        progress = record.progress
        _sign(progress, terms)
        progress.close_time_ms = close_ms
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
            policy=self._policy,
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

    def latest(self, values: Sequence[bytes]) -> Furthest | Start:
        """What to go on from (rule 13): the furthest record of the latest segment.

        A paused old owner may have written an older record after it, or one of a segment that an
        accepted loss has ended. Where the segment has nothing but starts, the first of them counts.

        Args:
            values: of records in the order of the partition, at least one.

        Raises:
            BoundaryError: one was written under other settings, schema or computation, or in a
                generation that is not known.
            StreamError: a value is not a record of the join.
        """
        records = [self._decode(value) for value in values]
        segment = max(_segment(record) for record in records)
        best: Furthest | None = None
        first: Start | None = None
        for record in records:
            found = self._told(record)
            if _segment(record) < segment:
                continue
            if found is None:
                first = first or record.start
            elif best is None or _order(found.standing) > _order(best.standing):
                best = found
        latest = best or first
        assert latest is not None, "some record has the greatest segment"
        return latest

    def _told(self, record: JoinRecord) -> Furthest | None:
        """How far a record says that the join has come; None for a start."""
        if record.HasField("group"):
            group = record.group
            self._check_terms(group)
            return Furthest(group.standing, group.offset, group.close_time_ms)
        if record.HasField("progress"):
            progress = record.progress
            self._check_terms(progress)
            return Furthest(progress.standing, progress.standing.prev, progress.close_time_ms)
        if record.HasField("boundary"):
            boundary = record.boundary
            self._check_terms(boundary)
            return Furthest(boundary.standing, boundary.standing.prev, boundary.close_time_ms)
        self._check_terms(record.start)
        return None

    def loss(self, values: Sequence[bytes], head: Cursor, end: int) -> Loss:
        """What is given up by not going on from what `latest` finds; see `PartitionJoin.loss`."""
        if not values:
            return Loss(0, 0, -1, head, NEVER, end)
        latest = self.latest(values)
        if isinstance(latest, Furthest):
            at, prev, close_ms = latest.standing.done, latest.prev, latest.close_ms
            done = Cursor(at.impression_offset, at.conversion_offset)
        else:
            done, prev, close_ms = decided_before(latest), -1, NEVER
            if latest.HasField("loss"):
                prev, close_ms = latest.loss.prev, latest.loss.close_time_ms
        gone = [max(0, first - at) for first, at in zip(head, done, strict=True)]
        return Loss(gone[0], gone[1], prev, done, close_ms, end)

    @property
    def _place(self) -> str:
        return f"reward-groups partition {self._partition}"

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

    def _check_terms(self, record: _Signed) -> None:
        terms = self._terms.get(record.generation)
        seen = (record.policy, record.settings_digest, record.computation)
        if terms is None:
            numbers = ", ".join(map(str, sorted(self._terms)))
            raise BoundaryError(
                f"{self._place}: expected records of the generations that are known ({numbers}), "
                f"seen one of generation {record.generation}, {_signature(*seen)}"
            )
        expected = (self._policy, terms.digest, terms.computation)
        if seen != expected:
            raise BoundaryError(
                f"{self._place}: expected records of {_signature(*expected)} in generation "
                f"{terms.generation}, seen one of {_signature(*seen)}"
            )
        terms.require_computable()


def _closed(window: Window) -> ClosedGroup:
    if not window.members:
        return ClosedGroup(window.scores, window.weights)
    conversions = [member.message for member in window.members]
    return ClosedGroup(window.scores, window.weights, *window.shown, conversions)


def _sign(record: _Signed, terms: Terms) -> None:
    record.policy = terms.schema.policy
    record.settings_digest = terms.digest
    record.computation = terms.computation
    record.generation = terms.generation


def decided_before(start: Start) -> Cursor:
    """What lies before had been decided when a start was written, or will never be."""
    head = Cursor(start.head.impression_offset, start.head.conversion_offset)
    if not start.HasField("loss"):
        return head
    done = start.loss.done
    return Cursor(max(head[0], done.impression_offset), max(head[1], done.conversion_offset))


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


def _segment(record: JoinRecord) -> int:
    if record.HasField("start"):
        return record.start.segment
    kind = record.WhichOneof("kind")
    told: RewardGroup | Progress | Boundary = getattr(record, kind or "")
    return told.standing.segment


def _signature(policy: str, digest: bytes, computation: int) -> str:
    digits = digest.hex()[:12] or "(empty)"
    return f"policy {shown(policy)}, settings {digits}, computation {computation}"
