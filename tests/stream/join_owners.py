"""Owners of one partition that come, crash, linger and go, around the real core.

Nothing here stands in for Kafka's behaviour but two facts: what was appended stays, in order, and
both input logs are the same for whoever reads them.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random

from grade.v1.refused_pb2 import Refused
from grade.v1.reward_group_pb2 import Boundary, JoinRecord, Progress, RewardGroup, Standing

from stream.join import Cursor, Kind, Log, Output, PartitionJoin
from tests.stream.join_histories import History
from tests.stream.join_oracle import NOTHING_BEFORE, Oracle

BEFORE_ALL = (NOTHING_BEFORE, -1)


@dataclass
class OutputPartition:
    """What was written: the reward groups' partition, and the side topics' together."""

    main: list[Output] = field(default_factory=list)
    sides: list[Output] = field(default_factory=list)

    def append(self, output: Output) -> None:
        """Write one record."""
        (self.main if output.kind is Kind.REWARD_GROUPS else self.sides).append(output)

    def records(self) -> list[JoinRecord]:
        """The reward groups' partition, decoded."""
        return [JoinRecord.FromString(output.value) for output in self.main]

    def refused(self) -> list[Refused]:
        """The side topics, decoded."""
        return [Refused.FromString(output.value) for output in self.sides]


class Promises(OutputPartition):
    """An output partition that checks, at every write, that what a record says is done is written.

    That is what makes a crash after it harmless: nobody will look at those inputs again.
    """

    def __init__(self, oracle: Oracle) -> None:
        super().__init__()
        self._sides = (oracle.impression_sides(), oracle.conversion_sides())
        leaving = [group.impression for group in oracle.groups()]
        leaving += [crossing.impression for crossing, _ in oracle.boundaries()]
        self._groups = {oracle.impressions[each].offset for each in leaving}
        self._written: tuple[set[int], set[int], set[int]] = (set(), set(), set())

    def append(self, output: Output) -> None:
        """Write one record, after checking what it says."""
        super().append(output)
        if output.kind is not Kind.REWARD_GROUPS:
            refused = Refused.FromString(output.value)
            log = 0 if refused.topic.startswith("impressions") else 1
            self._written[log].add(refused.offset)
            return
        record = JoinRecord.FromString(output.value)
        if record.HasField("group"):
            self._written[2].add(record.group.offset)
        if record.HasField("boundary"):
            self._written[2].add(record.boundary.offset)
        if record.WhichOneof("kind") == "start":
            return
        done = standing(record).done
        needed = (
            _before(self._sides[0], done.impression_offset),
            _before(self._sides[1], done.conversion_offset),
            _before(self._groups, done.impression_offset),
        )
        for need, written in zip(needed, self._written, strict=True):
            assert need <= written, f"{sorted(need - written)} not written before {record}"


def standing(record: JoinRecord) -> Standing:
    """The standing of a group, a boundary or a progress record."""
    kind = record.WhichOneof("kind")
    assert kind in ("group", "boundary", "progress")
    told: RewardGroup | Boundary | Progress = getattr(record, kind)
    return told.standing


def order(standing: Standing) -> tuple[int, int]:
    """What makes one standing further than another."""
    return standing.frontier_ms, standing.done.impression_offset


def new_join(history: History, known: int | None = None) -> PartitionJoin:
    """A new core that knows so many of a history's generations; all by default."""
    terms = {n: each for n, each in history.terms.items() if known is None or n <= known}
    return PartitionJoin(
        terms,
        partition=history.partition,
        partitions=history.partitions,
        limits=history.limits,
    )


class Owner:
    """A process that owns the partition, or believes so; it acts one effect at a time.

    Args:
        history: the input logs.
        output: where it writes.
        rng: cuts its batches and chooses which log it reads next.
        heads: first offset that retention has left in each log; the logs' own if None.
    """

    def __init__(
        self,
        history: History,
        output: OutputPartition,
        rng: Random,
        heads: dict[Log, int] | None = None,
    ) -> None:
        self.join = new_join(history, 1)
        self.history = history
        self.output = output
        self.rng = rng
        self.records = history.records
        self.heads = heads or history.heads
        self.unwritten: deque[Output] = deque()
        self.resumed = False
        self.furthest = BEFORE_ALL
        self.largest_batch = rng.choice([1, 3, 10, 50])

    def act(self) -> bool:
        """Write one record, or resume, or read one batch; False if there is nothing to do."""
        if self.unwritten:
            self.output.append(self.unwritten.popleft())
            return True
        if self.resumed:
            return self._read()
        if self.output.main:
            self.resume(tail=self.rng.choice([1, 2, 5, 100]))
        else:
            self.unwritten.append(self.join.start_record(self.head, 1))
        return True

    def run(self) -> None:
        """Act until there is nothing left to do."""
        while self.act():
            pass

    def resume(self, tail: int) -> None:
        """Take over from what has been written, seeing only so many of the last records."""
        values = [output.value for output in self.output.main]
        seen = [JoinRecord.FromString(value) for value in values[-tail:]]
        told = [standing(record) for record in seen if not record.HasField("start")]
        # Whoever comes when nothing has been told may know no generation but the first.
        self.join = new_join(self.history, None if told else self.rng.choice([None, 1]))
        # Once retention has deleted the start, the first record is another.
        first = values[-tail:][0] if told and self.rng.random() < 0.1 else values[0]
        cursor = self.join.resume(first, values[-tail:], self.head)
        assert cursor == Cursor(*(self.join.position(log) for log in Log))
        self.furthest = max(map(order, told), default=BEFORE_ALL)
        self.resumed = True

    def unread(self, log: Log) -> int:
        """How many records of a log it has not read yet."""
        return self.history.heads[log] + len(self.records[log]) - self.join.position(log)

    def feed(self, log: Log, size: int) -> None:
        """Read so many records of a log; what follows from them is still to be written."""
        position = self.join.position(log)
        assert position >= self.heads[log], "reads what retention has deleted"
        start = position - self.history.heads[log]
        step = self.join.feed(log, self.records[log][start : start + size])
        assert all(output.kind is not Kind.REWARD_GROUPS for output in step.side)
        assert all(o.kind is Kind.REWARD_GROUPS for o in (*step.groups, *step.progress))
        for output in (*step.groups, *step.progress):
            frontier = order(standing(JoinRecord.FromString(output.value)))
            assert frontier > self.furthest, "writes what it has seen written"
            self.furthest = frontier
        self.unwritten.extend((*step.side, *step.groups, *step.progress))
        readable = [other for other in Log if self.join.readable(other)]
        assert readable, "both logs are paused"

    @property
    def head(self) -> Cursor:
        """First offsets still in the logs."""
        return Cursor(self.heads[Log.IMPRESSIONS], self.heads[Log.CONVERSIONS])

    def _read(self) -> bool:
        logs = [log for log in Log if self.unread(log) and self.join.readable(log)]
        if not logs:
            return False
        log = self.rng.choice(logs)
        self.feed(log, self.rng.randint(1, self.largest_batch))
        return True


def run_with_crashes(history: History, output: OutputPartition, rng: Random) -> int:
    """Join a history under owners that crash between any two effects, and zombies among them.

    A zombie is an owner that was paused, does not know that it has been replaced, and writes on.

    Returns:
        how many owners there were before the one that finished.
    """
    owner = Owner(history, output, rng)
    zombies: list[tuple[Owner, int]] = []
    crashes = 0
    patience = rng.choice([2, 10, 40])
    while True:
        if crashes < 8 and rng.random() < 1 / patience:
            if rng.random() < 0.5:
                zombies.append((owner, rng.randint(1, 30)))
            owner = Owner(history, output, rng)
            crashes += 1
        if zombies and rng.random() < 0.5:
            zombie, left = zombies.pop(rng.randrange(len(zombies)))
            if left and zombie.act():
                zombies.append((zombie, left - 1))
        elif not owner.act():
            break
    for zombie, left in zombies:
        for _ in range(left):
            zombie.act()
    return crashes


def _before(offsets: Iterable[int], end: int) -> set[int]:
    return {offset for offset in offsets if offset < end}
