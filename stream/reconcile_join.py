"""One partition of the join, recomputed from its input logs and compared with what was written.

An output partition has one segment, or, where losses of inputs were accepted, several: each begins
at its start record, with empty tables and counts of zero, and is recomputed from there alone. Of a
segment whose inputs are gone nothing can be said; the report names it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from google.protobuf.message import DecodeError, Message
from grade.v1.refused_pb2 import Refused
from grade.v1.reward_group_pb2 import Boundary, JoinRecord, Progress, RewardGroup, Start

from policy.errors import RetentionLost
from stream.codec import encode, is_tick
from stream.differences import Difference, first_difference, shown
from stream.join import Cursor, Kind
from stream.join import Log as Side
from stream.logs import Log, LogRecord
from stream.reconcile_segment import NO_FATES, Fates, PartitionContent, Segment, SourceId
from stream.terms import Terms

__all__ = ["NO_FATES", "Fates", "PartitionContent", "PartitionReport", "reconcile_partition"]

_M = TypeVar("_M", bound=Message)


@dataclass(slots=True)
class PartitionReport:
    """What the comparison of one partition found."""

    impressions: Fates = NO_FATES
    conversions: Fates = NO_FATES
    groups: int = 0
    """Distinct groups in the topic."""
    repeats: int = 0
    """Group records that repeat an earlier one."""
    unconserved: list[str] = field(default_factory=list)
    """Sentences about sums that do not add up."""
    differences: list[Difference] = field(default_factory=list)
    not_compared: list[str] = field(default_factory=list)
    """Sentences about what retention has made impossible to check."""
    losses: list[str] = field(default_factory=list)
    """Sentences about inputs that were given up undecided, by an operator's leave."""


def reconcile_partition(
    terms: Mapping[int, Terms],
    content: PartitionContent,
    names: dict[Kind, str],
    *,
    partition: int,
    partitions: int,
) -> PartitionReport:
    """Recompute one partition and compare byte for byte.

    What lies before `done` of the furthest record in the output must be there; what lies after it
    may not have been written yet, but if it is there it must be equal.

    Args:
        terms: of every generation that has begun.
        content: what the topics hold.
        names: the topic's name by kind of output, for messages.
        partition: the partition.
        partitions: how many there are.

    Raises:
        RetentionLost: retention has deleted the beginning of the groups, or input records that
            they were made from, and no later segment is whole.
        BoundaryError: this build lacks the computation of a generation.
        OffsetGap: an input log has holes.
    """
    report = PartitionReport()
    comparison = _Comparison(content, names, partition, report)
    output = content.reward_groups
    starts = comparison.starts()
    if output.head == 0 and not _begins_with_start(output):
        if output.records:
            comparison.differ(
                names[Kind.REWARD_GROUPS],
                output.records[0],
                "kind",
                "the partition's start record",
                "another record first",
            )
        report.impressions = _all_open(content.impressions)
        report.conversions = _all_open(content.conversions)
        return report
    for start in starts.values():
        comparison.tell_loss(start)
    whole = comparison.find_whole(starts)
    for number in whole:
        later = [each for each in starts if each > number]
        following = starts[later[0]] if later else None
        comparison.segments[number] = Segment(
            terms, starts[number], following, content, partition, partitions
        )
    comparison.compare_groups()
    comparison.compare_refused()
    comparison.find_missing()
    comparison.conserve()
    return report


class _Comparison:
    """The outputs of one partition against their recomputation."""

    def __init__(
        self,
        content: PartitionContent,
        names: dict[Kind, str],
        partition: int,
        report: PartitionReport,
    ) -> None:
        self._content = content
        self._names = names
        self._partition = partition
        self._report = report
        self._whole = True
        self.segments: dict[int, Segment] = {}
        """Those that can be recomputed, by number, rising."""

    # --- segments ---

    def starts(self) -> dict[int, Start]:
        """The start records by their segment, in order; the first of a segment counts."""
        found: dict[int, Start] = {}
        for record in self._content.reward_groups.records:
            message = _decode(JoinRecord, record.value)
            if message is not None and message.HasField("start"):
                found.setdefault(message.start.segment, message.start)
        return dict(sorted(found.items()))

    def find_whole(self, starts: Mapping[int, Start]) -> list[int]:
        """The segments whose inputs are all there; says what cannot be compared.

        Raises:
            RetentionLost: there is none.
        """
        groups = self._content.reward_groups
        heads = Cursor(self._content.impressions.head, self._content.conversions.head)
        reasons = []
        if groups.head:
            reasons.append(
                f"partition {self._partition} cannot be checked before offset {groups.head} of "
                f"{self._names[Kind.REWARD_GROUPS]}: expected its start record at offset 0, seen "
                f"that retention has deleted the first {groups.head} records"
            )
        whole = []
        for number, start in starts.items():
            gone = [
                f"{head - offset} records of the {side.value} from offset {offset}"
                for side, head, offset in zip(
                    Side,
                    heads,
                    (start.head.impression_offset, start.head.conversion_offset),
                    strict=True,
                )
                if head > offset
            ]
            if not gone:
                whole.append(number)
                continue
            reasons.append(
                f"partition {self._partition} cannot be checked before offset "
                f"{heads.impression_offset} of the impressions and {heads.conversion_offset} of "
                f"the conversions: expected the inputs from the start record on, seen that "
                f"retention has deleted {' and '.join(gone)}"
            )
        if not whole:
            raise RetentionLost(f"{'; '.join(reasons)}: so it cannot be checked at all")
        self._whole = not reasons
        self._report.not_compared += reasons
        return whole

    def tell_loss(self, start: Start) -> None:
        """Say what was given up at a start, and check its sum."""
        if not start.HasField("loss"):
            return
        loss = start.loss
        self._report.losses.append(
            f"partition {self._partition}: {loss.impressions} impressions and {loss.conversions} "
            f"conversions were given up before offset {start.head.impression_offset} of the "
            f"impressions and {start.head.conversion_offset} of the conversions"
        )
        for what, seen, head, done in (
            (
                "impressions",
                loss.impressions,
                start.head.impression_offset,
                loss.done.impression_offset,
            ),
            (
                "conversions",
                loss.conversions,
                start.head.conversion_offset,
                loss.done.conversion_offset,
            ),
        ):
            if seen != max(0, head - done):
                self._report.differences.append(
                    Difference(
                        self._names[Kind.REWARD_GROUPS],
                        self._partition,
                        None,
                        f"start of segment {start.segment}: loss.{what}",
                        str(max(0, head - done)),
                        str(seen),
                    )
                )

    # --- records ---

    def compare_groups(self) -> None:
        """Compare every record of the reward-groups partition."""
        topic, report = self._names[Kind.REWARD_GROUPS], self._report
        grouped: set[tuple[int, int]] = set()
        for record in self._content.reward_groups.records:
            message = _decode(JoinRecord, record.value)
            if message is None or message.WhichOneof("kind") is None:
                self.differ(topic, record, "value", "a JoinRecord", shown(record.value))
                continue
            if message.HasField("start"):
                continue
            told = _told(message)
            if isinstance(told, RewardGroup):
                report.repeats += (told.standing.segment, told.offset) in grouped
                grouped.add((told.standing.segment, told.offset))
            segment = self.segments.get(told.standing.segment)
            if segment is not None:
                self._compare_told(topic, record, message, told, segment)
            elif self._whole:
                self.differ(
                    topic, record, "standing.segment", "that of a start", str(told.standing.segment)
                )
        report.groups = len({offset for _, offset in grouped})

    def _compare_told(
        self,
        topic: str,
        record: LogRecord,
        message: JoinRecord,
        told: RewardGroup | Boundary | Progress,
        segment: Segment,
    ) -> None:
        segment.reach(told.standing)
        if isinstance(told, Progress):
            expected = JoinRecord(progress=segment.progress.of(told))
            if encode(expected) != record.value:
                self.differ(topic, record, *first_difference(expected, message))
            return
        what = "boundary" if isinstance(told, Boundary) else "group"
        if isinstance(told, RewardGroup):
            segment.grouped.add(told.offset)
            segment.joined.update(each.offset for each in told.conversions)
        else:
            segment.crossed.add(told.offset)
        output = segment.leaving.get(told.offset)
        if output is None:
            self.differ(topic, record, f"{what} of impression {told.offset}", "none", "one")
        elif record.value != output.value:
            wanted = JoinRecord.FromString(output.value)
            self.differ(topic, record, *first_difference(wanted, message))
        elif (record.key or b"") != output.key:
            self.differ(topic, record, "key", shown(output.key), shown(record.key))

    def compare_refused(self) -> None:
        """Compare every late conversion, orphan and dead letter."""
        for kind, log in self._content.refused.items():
            for record in log.records:
                message = _decode(Refused, record.value)
                if message is None:
                    self.differ(
                        self._names[kind], record, "value", "a Refused", shown(record.value)
                    )
                else:
                    self._compare_refused(kind, record, message)

    def _compare_refused(self, kind: Kind, record: LogRecord, message: Refused) -> None:
        """It does not say which segment it is of: it must be as one of them has it."""
        source = SourceId(kind, message.topic, message.offset)
        expected = [
            (segment, segment.side[source])
            for segment in self.segments.values()
            if source in segment.side
        ]
        equal = [
            segment
            for segment, output in expected
            if record.value == output.value and (record.key or b"") == output.key
        ]
        for segment in equal:
            segment.refused.add(source)
        if equal or not self._whole:
            # Of a segment that cannot be recomputed; what is missing in another is found below.
            return
        if not expected:
            what = f"record for {message.topic} offset {message.offset}"
            self.differ(self._names[kind], record, what, "none", "one")
            return
        segment, output = expected[-1]
        segment.refused.add(source)
        if record.value != output.value:
            wanted = Refused.FromString(output.value)
            self.differ(self._names[kind], record, *first_difference(wanted, message))
        else:
            self.differ(self._names[kind], record, "key", shown(output.key), shown(record.key))

    # --- what is not there ---

    def find_missing(self) -> None:
        """Find what lies before the furthest record's `done` and was not written."""
        for segment in self.segments.values():
            for offset, what in segment.missing_groups():
                self.differ(
                    self._names[Kind.REWARD_GROUPS],
                    None,
                    f"{what} of impression {offset}",
                    "one",
                    "none",
                )
            for source in segment.missing_refused():
                what = f"record for {source.topic} offset {source.offset}"
                self.differ(self._names[source.kind], None, what, "one", "none")

    def conserve(self) -> None:
        """Count what became of every input record, and check that the sums add up to `done`."""
        report = self._report
        for segment in self.segments.values():
            impressions, conversions = segment.conserve(report.unconserved)
            report.impressions += impressions
            report.conversions += conversions

    def differ(
        self, topic: str, record: LogRecord | None, field: str, expected: str, seen: str
    ) -> None:
        """Note a difference."""
        offset = None if record is None else record.offset
        self._report.differences.append(
            Difference(topic, self._partition, offset, field, expected, seen)
        )


def _begins_with_start(output: Log) -> bool:
    first = _decode(JoinRecord, output.records[0].value) if output.records else None
    return first is not None and first.HasField("start")


def _told(message: JoinRecord) -> RewardGroup | Boundary | Progress:
    kind = message.WhichOneof("kind")
    assert kind in ("group", "boundary", "progress")
    told: RewardGroup | Boundary | Progress = getattr(message, kind)
    return told


def _all_open(log: Log) -> Fates:
    ticks = sum(is_tick(each.headers, each.value) for each in log.records)
    read = log.end - log.head
    return Fates(read, 0, 0, 0, 0, 0, ticks, read - ticks)


def _decode(kind: type[_M], value: bytes | None) -> _M | None:
    try:
        return None if value is None else kind.FromString(value)
    except DecodeError:
        return None
