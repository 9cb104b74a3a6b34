"""One segment of an output partition, recomputed from the inputs, and what is known of it."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from grade.v1.generation_pb2 import Generation
from grade.v1.refused_pb2 import Refused
from grade.v1.reward_group_pb2 import Cursor as CursorMessage
from grade.v1.reward_group_pb2 import JoinRecord, Standing, Start

from stream.codec import encode, has_boundary_header, has_tick_header, is_tick
from stream.expected_progress import ExpectedProgress, FateOffsets, SegmentLog
from stream.join import Cursor, Kind, Output, PartitionJoin, Record, Step
from stream.join import Log as Side
from stream.join_outputs import decided_before
from stream.logs import Log
from stream.terms import Terms
from stream.validation import read_boundary

_CHUNK = 2_000


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
    """Boundaries of generations included."""
    open: int
    """Read and not decided at the furthest frontier."""

    def __add__(self, other: "Fates") -> "Fates":
        return Fates(
            *(getattr(self, name) + getattr(other, name) for name in Fates.__dataclass_fields__)
        )


NO_FATES = Fates(0, 0, 0, 0, 0, 0, 0, 0)


class SourceId(NamedTuple):
    """Where a side output came from."""

    kind: Kind
    topic: str
    offset: int


class Segment:
    """What one segment must hold, by its recomputation, and what of it has been seen.

    Args:
        terms: of every generation that has begun.
        start: the record that it begins at; its inputs must be there.
        following: the start of the segment after it, or None.
        content: what the topics hold.
        partition: the partition.
        partitions: how many there are.
    """

    def __init__(
        self,
        terms: Mapping[int, Terms],
        start: Start,
        following: Start | None,
        content: PartitionContent,
        partition: int,
        partitions: int,
    ) -> None:
        self._content = content
        self._partition = partition
        self._live = decided_before(start)
        self._last = following is None
        self.leaving: dict[int, Output] = {}
        """By impression offset: every group and every boundary."""
        self.side: dict[SourceId, Output] = {}
        self._members: list[int] = []
        self._rejoined: list[int] = []
        self._boundaries: set[int] = set()
        known = self._recompute(terms, start, partition, partitions)
        self.grouped: set[int] = set()
        self.crossed: set[int] = set()
        self.joined: set[int] = set()
        self.refused: set[SourceId] = set()
        self._furthest: Standing | None = None
        self._ticks = {
            Side.IMPRESSIONS: self._find_ticks(content.impressions, Side.IMPRESSIONS),
            Side.CONVERSIONS: self._find_ticks(content.conversions, Side.CONVERSIONS),
        }
        self.progress = self._expected_progress(known, start)

    def reach(self, standing: Standing) -> None:
        """Note how far a record says that the join has come."""
        if self._furthest is None or _order(standing) > _order(self._furthest):
            self._furthest = standing

    def missing_groups(self) -> Iterator[tuple[int, str]]:
        """Offset and kind of every group and boundary before `done` that has not been seen."""
        done = self._reached().done.impression_offset
        for offset in sorted(self.leaving.keys() - self.grouped - self.crossed):
            if offset < done:
                yield offset, "boundary" if offset in self._boundaries else "group"

    def missing_refused(self) -> Iterator[SourceId]:
        """Every side output before `done` that has not been seen."""
        done = self._reached().done
        ends = {
            Side.IMPRESSIONS.value: done.impression_offset,
            Side.CONVERSIONS.value: done.conversion_offset,
        }
        missing = self.side.keys() - self.refused
        for source in sorted(missing, key=lambda each: (each.kind.name, each.topic, each.offset)):
            if source.offset < ends[source.topic]:
                yield source

    def conserve(self, unconserved: list[str]) -> tuple[Fates, Fates]:
        """Count what became of every input record.

        Args:
            unconserved: gets a sentence for every sum that does not add up.

        Returns:
            the impressions' fates and the conversions'.
        """
        counts, done = self._reached().counts, self._reached().done
        dead = [each for each in self.refused if each.kind is Kind.DEAD_LETTERS]
        impressions = {
            "used": sorted(self.grouped),
            "dead_letters": _offsets(dead, Side.IMPRESSIONS),
            "ticks": self._ticks[Side.IMPRESSIONS],
        }
        conversions = {
            "used": sorted(self.joined.union(self._rejoined)),
            "late": _offsets(self._refused(Kind.LATE), Side.CONVERSIONS),
            "orphans": _offsets(self._refused(Kind.ORPHANS), Side.CONVERSIONS),
            "dead_letters": _offsets(dead, Side.CONVERSIONS),
            "ticks": self._ticks[Side.CONVERSIONS],
        }
        return (
            self._fates(
                "impressions",
                impressions,
                counts.impressions_duplicate,
                (self._live[0], done.impression_offset, self._content.impressions.end),
                unconserved,
            ),
            self._fates(
                "conversions",
                conversions,
                counts.conversions_duplicate,
                (self._live[1], done.conversion_offset, self._content.conversions.end),
                unconserved,
            ),
        )

    def _fates(
        self,
        what: str,
        found: dict[str, list[int]],
        duplicates: int,
        limits: tuple[int, int, int],
        unconserved: list[str],
    ) -> Fates:
        begin, done, end = limits
        decided = {name: bisect_left(offsets, done) for name, offsets in found.items()}
        total = sum(decided.values()) + duplicates
        if total != done - begin:
            unconserved.append(
                f"partition {self._partition}: expected the {done - begin} {what} from offset "
                f"{begin} to {done} to have a fate each, seen {total}: {decided}, "
                f"duplicates {duplicates}"
            )
        counted = {name: len(offsets) for name, offsets in found.items()}
        if not self._last:
            # What this segment has not decided is the next one's.
            counted, end = decided, done
        left = end - begin - sum(counted.values()) - duplicates
        if left < 0:
            unconserved.append(
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

    # --- recomputing ---

    def _recompute(
        self, terms: Mapping[int, Terms], start: Start, partition: int, partitions: int
    ) -> Mapping[int, Terms]:
        """Join it anew; returns the terms of every generation that was met."""
        join = PartitionJoin(terms, partition=partition, partitions=partitions)
        for step in _run(join, start, self._content):
            for output in step.groups:
                self._keep(output)
            for output in step.side:
                refused = Refused.FromString(output.value)
                self.side[SourceId(output.kind, refused.topic, refused.offset)] = output
        head = Cursor(start.head.impression_offset, start.head.conversion_offset)
        if self._live != head:
            join = PartitionJoin(terms, partition=partition, partitions=partitions)
            self._rejoined = self._find_rejoined(join, start)
        return join.terms

    def _find_rejoined(self, join: PartitionJoin, start: Start) -> list[int]:
        """Conversions from `live` on that belong to groups before it.

        The segment before has written these groups, members and all; here the conversions are only
        counted. So the groups are made once more, as if nothing had been decided.
        """
        anew = Start()
        anew.CopyFrom(start)
        anew.loss.done.CopyFrom(start.head)
        found = []
        for step in _run(join, anew, self._content):
            for output in step.groups:
                group = JoinRecord.FromString(output.value).group
                if group.offset < self._live.impression_offset:
                    found += [each.offset for each in group.conversions]
        return [offset for offset in found if offset >= self._live.conversion_offset]

    def _keep(self, output: Output) -> None:
        record = JoinRecord.FromString(output.value)
        if record.HasField("boundary"):
            self._boundaries.add(record.boundary.offset)
            self.leaving[record.boundary.offset] = output
        else:
            self._members += [each.offset for each in record.group.conversions]
            self.leaving[record.group.offset] = output

    def _expected_progress(self, terms: Mapping[int, Terms], start: Start) -> ExpectedProgress:
        dead = [each for each in self.side if each.kind is Kind.DEAD_LETTERS]
        kinds = {kind: [each for each in self.side if each.kind is kind] for kind in Kind}
        return ExpectedProgress(
            terms,
            start,
            SegmentLog(
                self._content.impressions,
                start.head.impression_offset,
                self._live.impression_offset,
                _begun(self._content.impressions, start.head.impression_offset, start),
                FateOffsets(
                    used=sorted(self.leaving.keys() - self._boundaries),
                    dead=_offsets(dead, Side.IMPRESSIONS),
                    ticks=self._ticks[Side.IMPRESSIONS],
                ),
            ),
            SegmentLog(
                self._content.conversions,
                start.head.conversion_offset,
                self._live.conversion_offset,
                _begun(self._content.conversions, start.head.conversion_offset, start),
                FateOffsets(
                    used=sorted([*self._members, *self._rejoined]),
                    dead=_offsets(dead, Side.CONVERSIONS),
                    ticks=self._ticks[Side.CONVERSIONS],
                    late=_offsets(kinds[Kind.LATE], Side.CONVERSIONS),
                    orphans=_offsets(kinds[Kind.ORPHANS], Side.CONVERSIONS),
                ),
            ),
        )

    def _find_ticks(self, log: Log, side: Side) -> list[int]:
        """Offsets of the ticks and of the boundaries that are no dead letters."""
        live = self._live[0] if side is Side.IMPRESSIONS else self._live[1]
        dead = {
            each.offset
            for each in self.side
            if each.kind is Kind.DEAD_LETTERS and each.topic == side.value
        }
        return [
            each.offset
            for each in log.records
            if each.offset >= live
            and (
                is_tick(each.headers, each.value)
                or (has_boundary_header(each.headers) and each.offset not in dead)
            )
        ]

    def _reached(self) -> Standing:
        return self._furthest or Standing(
            done=CursorMessage(
                impression_offset=self._live.impression_offset,
                conversion_offset=self._live.conversion_offset,
            )
        )

    def _refused(self, kind: Kind) -> list[SourceId]:
        return [each for each in self.refused if each.kind is kind]


def _run(join: PartitionJoin, start: Start, content: PartitionContent) -> Iterator[Step]:
    """Read both logs to their ends, from a start on."""
    value = encode(JoinRecord(start=start))
    heads = Cursor(content.impressions.head, content.conversions.head)
    begin = join.resume(value, [value], heads)
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
                yield join.feed(side, records[at[side] : at[side] + _CHUNK])
                at[side] += _CHUNK
                moved = True


def _records(log: Log, begin: int) -> list[Record]:
    return [
        Record(
            each.offset,
            each.timestamp_ms,
            each.key,
            each.value,
            has_tick_header(each.headers),
            has_boundary_header(each.headers),
        )
        for each in log.records
        if each.offset >= begin
    ]


def _begun(log: Log, begin: int, start: Start) -> list[tuple[int, int]]:
    """Offset and generation of every boundary that begins one."""
    found: list[tuple[int, int]] = []
    current = start.generation
    for record in _records(log, begin):
        if record.boundary and not (record.tick and not record.value):
            generation = read_boundary(record, start.policy)
            if isinstance(generation, Generation) and generation.generation == current + 1:
                current += 1
                found.append((record.offset, current))
    return found


def _offsets(sources: Iterable[SourceId], side: Side) -> list[int]:
    return sorted(each.offset for each in sources if each.topic == side.value)


def _order(standing: Standing) -> tuple[int, int, int]:
    done = standing.done
    return standing.frontier_ms, done.impression_offset, done.conversion_offset
