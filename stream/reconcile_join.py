"""One partition of the join, recomputed from its input logs and compared with what was written."""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from google.protobuf.message import DecodeError, Message
from grade.v1.refused_pb2 import Refused
from grade.v1.reward_group_pb2 import Cursor as CursorMessage
from grade.v1.reward_group_pb2 import JoinRecord, Standing

from policy.errors import RetentionLost
from policy.schema import Schema
from stream.codec import encode, has_tick_header, is_tick
from stream.differences import Difference, first_difference, shown
from stream.expected_progress import ExpectedProgress, FateOffsets
from stream.join import Cursor, JoinSettings, Kind, Output, PartitionJoin, Record
from stream.join import Log as Side
from stream.logs import Log, LogRecord

_CHUNK = 2_000

_M = TypeVar("_M", bound=Message)


@dataclass(frozen=True, slots=True)
class PartitionContent:
    """Everything that the topics hold of one partition."""

    impressions: Log
    conversions: Log
    reward_groups: Log
    refused: dict[Kind, Log]
    """The side outputs by kind: late, orphans, dead letters."""


@dataclass(frozen=True, slots=True)
class Fates:
    """Where the records of one input log ended, over distinct source offsets."""

    read: int
    used: int
    """Impressions: in a reward group of their own. Conversions: members of one."""
    late: int
    orphans: int
    duplicates: int
    dead_letters: int
    ticks: int
    open: int
    """Read and not decided at the furthest frontier."""

    def __add__(self, other: "Fates") -> "Fates":
        return Fates(
            *(getattr(self, name) + getattr(other, name) for name in Fates.__dataclass_fields__)
        )


NO_FATES = Fates(0, 0, 0, 0, 0, 0, 0, 0)


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


class SourceId(NamedTuple):
    """Where a side output came from."""

    kind: Kind
    topic: str
    offset: int


@dataclass(slots=True)
class _Recomputed:
    groups: dict[int, Output] = field(default_factory=dict)
    side: dict[SourceId, Output] = field(default_factory=dict)


@dataclass(slots=True)
class _Seen:
    """Distinct source offsets that the topics hold, and the furthest record of the join."""

    grouped: set[int] = field(default_factory=set)
    joined: set[int] = field(default_factory=set)
    side: set[SourceId] = field(default_factory=set)
    furthest: Standing | None = None


def reconcile_partition(
    schema: Schema,
    settings: JoinSettings,
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
        schema: the policy's schema.
        settings: the join's settings.
        content: what the topics hold.
        names: the topic's name by kind of output, for messages.
        partition: the partition.
        partitions: how many there are.

    Raises:
        RetentionLost: retention has deleted the beginning of the groups, or input records that
            they were made from.
        OffsetGap: an input log has holes.
    """
    report = PartitionReport()
    output = content.reward_groups
    if output.head:
        raise RetentionLost(
            f"partition {partition} cannot be checked before offset {output.head} of "
            f"{names[Kind.REWARD_GROUPS]}, and so not at all: expected its start record at offset "
            f"0, seen that retention has deleted the first {output.head} records"
        )
    start = output.records[0] if output.records else None
    if start is None or start.value is None or not _is_start(start.value):
        if start is not None:
            report.differences.append(
                Difference(
                    names[Kind.REWARD_GROUPS],
                    partition,
                    start.offset,
                    "kind",
                    "the partition's start record",
                    "another record first",
                )
            )
        report.impressions = _all_open(content.impressions)
        report.conversions = _all_open(content.conversions)
        return report
    join = PartitionJoin(schema, settings, partition=partition, partitions=partitions)
    heads = Cursor(content.impressions.head, content.conversions.head)
    try:
        begin = join.resume(start.value, [start.value], heads)
    except RetentionLost as error:
        raise RetentionLost(
            f"partition {partition} cannot be checked before offset {heads.impression_offset} of "
            f"the impressions and {heads.conversion_offset} of the conversions, and so not at all: "
            f"{error}"
        ) from error
    recomputed = _recompute(join, begin, content)
    comparison = _Comparison(settings, content, names, partition, begin, recomputed, report)
    comparison.compare_groups()
    comparison.compare_refused()
    comparison.find_missing()
    comparison.conserve()
    return report


def _recompute(join: PartitionJoin, begin: Cursor, content: PartitionContent) -> _Recomputed:
    found = _Recomputed()
    waiting = {
        Side.IMPRESSIONS: _records(content.impressions, begin.impression_offset),
        Side.CONVERSIONS: _records(content.conversions, begin.conversion_offset),
    }
    at = dict.fromkeys(waiting, 0)
    moved = True
    while moved:
        moved = False
        for side, records in waiting.items():
            if at[side] < len(records) and join.readable(side):
                step = join.feed(side, records[at[side] : at[side] + _CHUNK])
                at[side] += _CHUNK
                moved = True
                for output in step.groups:
                    group = JoinRecord.FromString(output.value).group
                    found.groups[group.offset] = output
                for output in step.side:
                    refused = Refused.FromString(output.value)
                    found.side[SourceId(output.kind, refused.topic, refused.offset)] = output
    return found


class _Comparison:
    """The outputs of one partition against their recomputation."""

    def __init__(
        self,
        settings: JoinSettings,
        content: PartitionContent,
        names: dict[Kind, str],
        partition: int,
        begin: Cursor,
        recomputed: _Recomputed,
        report: PartitionReport,
    ) -> None:
        self._content = content
        self._names = names
        self._partition = partition
        self._begin = begin
        self._recomputed = recomputed
        self._report = report
        self._seen = _Seen()
        self._progress = _expected_progress(settings, content, begin, recomputed)

    def compare_groups(self) -> None:
        """Compare every record of the reward-groups partition."""
        topic, report, seen = self._names[Kind.REWARD_GROUPS], self._report, self._seen
        for record in self._content.reward_groups.records:
            message = _decode(JoinRecord, record.value)
            if message is None or message.WhichOneof("kind") is None:
                self._differ(topic, record, "value", "a JoinRecord", shown(record.value))
            elif message.HasField("group"):
                group = message.group
                if group.offset in seen.grouped:
                    report.repeats += 1
                seen.grouped.add(group.offset)
                seen.joined.update(each.offset for each in group.conversions)
                self._reach(group.standing)
                expected = self._recomputed.groups.get(group.offset)
                what = f"group of impression {group.offset}"
                self._compare(topic, record, what, expected, message)
            elif message.HasField("progress"):
                self._reach(message.progress.standing)
                self._compare_progress(topic, record, message)
        report.groups = len(seen.grouped)

    def _compare_progress(self, topic: str, record: LogRecord, message: JoinRecord) -> None:
        expected = JoinRecord(progress=self._progress.of(message.progress))
        if encode(expected) != record.value:
            path, wanted, found = first_difference(expected, message)
            self._differ(topic, record, path, wanted, found)

    def compare_refused(self) -> None:
        """Compare every late conversion, orphan and dead letter."""
        for kind, log in self._content.refused.items():
            for record in log.records:
                message = _decode(Refused, record.value)
                if message is None:
                    self._differ(
                        self._names[kind], record, "value", "a Refused", shown(record.value)
                    )
                    continue
                source = SourceId(kind, message.topic, message.offset)
                self._seen.side.add(source)
                expected = self._recomputed.side.get(source)
                what = f"record for {message.topic} offset {message.offset}"
                self._compare(self._names[kind], record, what, expected, message)

    def find_missing(self) -> None:
        """Find what lies before the furthest record's `done` and was not written."""
        done = self._seen.furthest.done if self._seen.furthest is not None else CursorMessage()
        for offset in sorted(self._recomputed.groups.keys() - self._seen.grouped):
            if offset < done.impression_offset:
                self._differ(
                    self._names[Kind.REWARD_GROUPS],
                    None,
                    f"group of impression {offset}",
                    "one",
                    "none",
                )
        ends = {
            Side.IMPRESSIONS.value: done.impression_offset,
            Side.CONVERSIONS.value: done.conversion_offset,
        }
        missing = self._recomputed.side.keys() - self._seen.side
        for source in sorted(missing, key=lambda each: (each.kind.name, each.topic, each.offset)):
            if source.offset < ends[source.topic]:
                what = f"record for {source.topic} offset {source.offset}"
                self._differ(self._names[source.kind], None, what, "one", "none")

    def conserve(self) -> None:
        """Count what became of every input record, and check that the sums add up to `done`."""
        seen, begin = self._seen, self._begin
        standing = seen.furthest or Standing(
            done=CursorMessage(
                impression_offset=begin.impression_offset, conversion_offset=begin.conversion_offset
            )
        )
        counts, done = standing.counts, standing.done
        sides = {kind: [each for each in seen.side if each.kind is kind] for kind in Kind}
        dead = sides[Kind.DEAD_LETTERS]
        impressions = {
            "used": sorted(seen.grouped),
            "dead_letters": _offsets(dead, Side.IMPRESSIONS),
            "ticks": _ticks(self._content.impressions, begin.impression_offset),
        }
        conversions = {
            "used": sorted(seen.joined),
            "late": _offsets(sides[Kind.LATE], Side.CONVERSIONS),
            "orphans": _offsets(sides[Kind.ORPHANS], Side.CONVERSIONS),
            "dead_letters": _offsets(dead, Side.CONVERSIONS),
            "ticks": _ticks(self._content.conversions, begin.conversion_offset),
        }
        self._report.impressions = self._fates(
            "impressions",
            impressions,
            counts.impressions_duplicate,
            (begin.impression_offset, done.impression_offset, self._content.impressions.end),
        )
        self._report.conversions = self._fates(
            "conversions",
            conversions,
            counts.conversions_duplicate,
            (begin.conversion_offset, done.conversion_offset, self._content.conversions.end),
        )

    def _fates(
        self,
        what: str,
        found: dict[str, list[int]],
        duplicates: int,
        limits: tuple[int, int, int],
    ) -> Fates:
        begin, done, end = limits
        decided = {name: bisect_left(offsets, done) for name, offsets in found.items()}
        total = sum(decided.values()) + duplicates
        if total != done - begin:
            self._report.unconserved.append(
                f"partition {self._partition}: expected the {done - begin} {what} from offset "
                f"{begin} to {done} to have a fate each, seen {total}: {decided}, "
                f"duplicates {duplicates}"
            )
        counted = {name: len(offsets) for name, offsets in found.items()}
        left = end - begin - sum(counted.values()) - duplicates
        if left < 0:
            self._report.unconserved.append(
                f"partition {self._partition}: expected no more fates than the {end - begin} {what}"
                f" that were read, seen {-left} too many: {counted}, duplicates {duplicates}"
            )
        return Fates(
            read=end - begin,
            used=counted["used"],
            late=counted.get("late", 0),
            orphans=counted.get("orphans", 0),
            duplicates=duplicates,
            dead_letters=counted["dead_letters"],
            ticks=counted["ticks"],
            open=max(left, 0),
        )

    def _reach(self, standing: Standing) -> None:
        if self._seen.furthest is None or _order(standing) > _order(self._seen.furthest):
            self._seen.furthest = standing

    def _compare(
        self, topic: str, record: LogRecord, what: str, expected: Output | None, message: Message
    ) -> None:
        if expected is None:
            self._differ(topic, record, what, "none", "one")
        elif record.value != expected.value:
            wanted = type(message).FromString(expected.value)
            path, left, right = first_difference(wanted, message)
            self._differ(topic, record, path, left, right)
        elif (record.key or b"") != (expected.key or b""):
            self._differ(topic, record, "key", shown(expected.key), shown(record.key))

    def _differ(
        self, topic: str, record: LogRecord | None, field: str, expected: str, seen: str
    ) -> None:
        offset = None if record is None else record.offset
        self._report.differences.append(
            Difference(topic, self._partition, offset, field, expected, seen)
        )


def _expected_progress(
    settings: JoinSettings, content: PartitionContent, begin: Cursor, recomputed: _Recomputed
) -> ExpectedProgress:
    kinds = {kind: [each for each in recomputed.side if each.kind is kind] for kind in Kind}
    members = [
        each.offset
        for output in recomputed.groups.values()
        for each in JoinRecord.FromString(output.value).group.conversions
    ]
    return ExpectedProgress(
        settings,
        content.impressions,
        content.conversions,
        begin,
        FateOffsets(
            used=sorted(recomputed.groups),
            dead=_offsets(kinds[Kind.DEAD_LETTERS], Side.IMPRESSIONS),
            ticks=_ticks(content.impressions, begin.impression_offset),
        ),
        FateOffsets(
            used=sorted(members),
            dead=_offsets(kinds[Kind.DEAD_LETTERS], Side.CONVERSIONS),
            ticks=_ticks(content.conversions, begin.conversion_offset),
            late=_offsets(kinds[Kind.LATE], Side.CONVERSIONS),
            orphans=_offsets(kinds[Kind.ORPHANS], Side.CONVERSIONS),
        ),
    )


def _records(log: Log, begin: int) -> list[Record]:
    return [
        Record(each.offset, each.timestamp_ms, each.key, each.value, has_tick_header(each.headers))
        for each in log.records
        if each.offset >= begin
    ]


def _ticks(log: Log, begin: int) -> list[int]:
    return [
        each.offset
        for each in log.records
        if each.offset >= begin and is_tick(each.headers, each.value)
    ]


def _offsets(sources: Iterable[SourceId], side: Side) -> list[int]:
    return sorted(each.offset for each in sources if each.topic == side.value)


def _all_open(log: Log) -> Fates:
    ticks = len(_ticks(log, log.head))
    read = log.end - log.head
    return Fates(read, 0, 0, 0, 0, 0, ticks, read - ticks)


def _order(standing: Standing) -> tuple[int, int, int]:
    done = standing.done
    return standing.frontier_ms, done.impression_offset, done.conversion_offset


def _is_start(value: bytes) -> bool:
    message = _decode(JoinRecord, value)
    return message is not None and message.HasField("start")


def _decode(kind: type[_M], value: bytes | None) -> _M | None:
    try:
        return None if value is None else kind.FromString(value)
    except DecodeError:
        return None
