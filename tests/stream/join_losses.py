"""Owners of a partition whose inputs retention deletes under their eyes, with leave to go on."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from grade.v1.reward_group_pb2 import JoinRecord, Start

from policy.errors import RetentionLost
from stream.join import Cursor, Log, Output
from tests.stream.join_checks import Expected, is_start
from tests.stream.join_histories import History
from tests.stream.join_oracle import NOTHING_BEFORE, Beginning, Oracle, Side
from tests.stream.join_owners import BEFORE_ALL, OutputPartition, Owner, new_join, order, standing


class AcceptingOwner(Owner):
    """An owner that writes a new start where records that it needs are gone."""

    def resume(self, tail: int) -> None:
        """Take over, or accept the loss; it sees what hides no start, as TAIL_RECORDS are many."""
        tail = 100
        values = [output.value for output in self.output.main]
        seen = [JoinRecord.FromString(value) for value in (values[0], *values[-tail:])]
        self.join = new_join(self.history)
        try:
            cursor = self.join.resume(values[0], values[-tail:], self.head)
        except RetentionLost:
            loss = self.join.loss([values[0], *values[-tail:]], self.head, len(values))
            self.unwritten.append(self.join.start_record(self.head, self._generation(), loss))
            return
        assert cursor == Cursor(*(self.join.position(log) for log in Log))
        segment = max(map(segment_of, seen))
        told = [standing(each) for each in seen if not each.HasField("start")]
        told = [each for each in told if each.segment == segment]
        self.furthest = max(map(order, told), default=BEFORE_ALL)
        self.resumed = True

    def _generation(self) -> int:
        """The latest generation, or the greater one in force at the heads."""
        oracle = Oracle(self.history.horizons, self.history.impressions, self.history.conversions)
        at = [self.heads[log] - self.history.heads[log] for log in Log]
        in_force = max(oracle.impression_generations[at[0]], oracle.conversion_generations[at[1]])
        return self.rng.choice([in_force, len(self.history.definitions)])

    def _read(self) -> bool:
        if any(self.join.position(log) < self.heads[log] for log in Log):
            return False
        return super()._read()


@dataclass(frozen=True)
class Segment:
    """What was written from one start on, and the oracle of what had to be."""

    start: Start
    oracle: Oracle
    records: list[Output]


def run_with_losses(history: History, output: OutputPartition, rng: Random) -> None:
    """Join a history under owners that crash and accept losses, and zombies among them."""
    heads = dict(history.heads)
    ends = {log: history.heads[log] + len(records) for log, records in history.records.items()}
    owner = AcceptingOwner(history, output, rng, heads)
    zombies: list[Owner] = []
    left = rng.randint(0, 60)
    losses, patience = rng.choice([1, 2, 3]), rng.choice([5, 20, 40])
    while True:
        if losses and output.main and rng.random() < 1 / patience:
            losses -= 1
            # Up to where it has been read and somewhat further, but never the closing tick.
            for log in Log:
                least = min(max(heads[log], owner.join.position(log) - 5), ends[log] - 1)
                heads[log] = rng.randint(least, min(least + 12, ends[log] - 1))
            if rng.random() < 0.7:
                zombies.append(owner)
            owner = AcceptingOwner(history, output, rng, heads)
        if zombies and left and rng.random() < 0.3:
            left -= 1
            rng.choice(zombies).act()
        elif not owner.act():
            if [owner.unread(log) for log in Log] == [0, 0]:
                break
            zombies.append(owner)
            owner = AcceptingOwner(history, output, rng, heads)
    for zombie in zombies:
        for _ in range(rng.randint(0, 5)):
            zombie.act()


def segments_of(history: History, output: OutputPartition) -> list[Segment]:
    """What was written, by segment, each with the oracle of both logs from its start on."""
    starts: dict[int, Start] = {}
    for record in output.records():
        if record.HasField("start"):
            starts.setdefault(record.start.segment, record.start)
    return [
        Segment(
            start,
            _oracle(history, start),
            [
                each
                for each, record in zip(output.main, output.records(), strict=True)
                if not is_start(each) and segment_of(record) == number
            ],
        )
        for number, start in sorted(starts.items())
    ]


def segment_of(record: JoinRecord) -> int:
    """Number of the start that a record counts from."""
    return record.start.segment if record.HasField("start") else standing(record).segment


def check_losses(history: History, output: OutputPartition) -> None:
    """Every segment is what its start and the logs yield; the last one is complete."""
    segments = segments_of(history, output)
    assert [each.start.segment for each in segments] == sorted(
        {segment_of(r) for r in output.records()}
    )
    sides: dict[tuple[str, int], set[Side]] = {}
    for at, segment in enumerate(segments):
        expected = Expected(history, segment.oracle)
        if at:
            check_start(segment.start, segments[:at])
        if at == len(segments) - 1:
            expected.check_main(segment.records)
        else:
            expected.check_records(segment.records)
        for source, side in expected.sides.items():
            sides.setdefault(source, set()).add(side)
    told = set()
    for refused in output.refused():
        identity = (refused.topic, refused.offset)
        seen = (refused.reason, refused.time_ms, refused.impression_offset)
        assert seen in {(s.reason, s.time_ms, s.impression_offset) for s in sides[identity]}
        told.add((identity, seen))
    for source, side in Expected(history, segments[-1].oracle).sides.items():
        assert (source, (side.reason, side.time_ms, side.impression_offset)) in told


def check_start(start: Start, before: list[Segment]) -> None:
    """A loss names what some record before it said, and counts from there.

    Mostly a record of the segment just before, but a zombie's may hide that one.
    """
    loss, head = start.loss, start.head
    assert start.HasField("loss")
    assert loss.impressions == max(0, head.impression_offset - loss.done.impression_offset)
    assert loss.conversions == max(0, head.conversion_offset - loss.done.conversion_offset)
    said = [each for segment in before for each in _said(segment)]
    done = loss.done.impression_offset, loss.done.conversion_offset
    assert (done, loss.prev, loss.close_time_ms) in said


def _said(segment: Segment) -> Iterator[tuple[tuple[int, int], int, int]]:
    """What start and records of a segment say: done, prev for the next group, close time."""
    head, beginning = segment.start.head, segment.oracle.beginning
    live = (
        max(head.impression_offset, beginning.done[0]),
        max(head.conversion_offset, beginning.done[1]),
    )
    yield live, beginning.prev, beginning.least_close_ms
    for output in segment.records:
        record = JoinRecord.FromString(output.value)
        told, prev = standing(record), standing(record).prev
        if record.HasField("group"):
            prev, close = record.group.offset, record.group.close_time_ms
        elif record.HasField("boundary"):
            close = record.boundary.close_time_ms
        else:
            close = record.progress.close_time_ms
        yield (told.done.impression_offset, told.done.conversion_offset), prev, close


def _oracle(history: History, start: Start) -> Oracle:
    head, loss = start.head, start.loss
    beginning = Beginning(start.generation)
    if start.HasField("loss"):
        beginning = Beginning(
            start.generation,
            (loss.done.impression_offset, loss.done.conversion_offset),
            loss.prev,
            loss.close_time_ms,
            start.segment,
        )
    else:
        assert loss.close_time_ms == 0
        assert beginning.least_close_ms == NOTHING_BEFORE
    return Oracle(
        history.horizons,
        [each for each in history.impressions if each.offset >= head.impression_offset],
        [each for each in history.conversions if each.offset >= head.conversion_offset],
        beginning,
    )
