"""One partition of the join, driven record by record."""

from collections.abc import Mapping

from grade.v1.generation_pb2 import Generation
from grade.v1.refused_pb2 import Reason, Refused
from grade.v1.reward_group_pb2 import Boundary, JoinRecord, Progress, RewardGroup, Standing

from stream.codec import encode
from stream.join import (
    Cursor,
    JoinLimits,
    JoinSettings,
    Kind,
    Log,
    Output,
    PartitionJoin,
    Record,
)
from stream.terms import Terms, first_terms
from tests.stream.join_messages import SCHEMA, valid_conversion, valid_impression

SETTINGS = JoinSettings(window_ms=100, early_ms=10, late_ms=200)
TERMS = first_terms(SCHEMA, SETTINGS)
LIMITS = JoinLimits(progress_step_ms=50)


class Partition:
    """One partition and its owner: append a record, the owner reads it at once."""

    def __init__(
        self,
        terms: Mapping[int, Terms] = TERMS,
        *,
        limits: JoinLimits = LIMITS,
        batch: bool = False,
    ) -> None:
        self.terms = terms
        self.limits = limits
        self.logs: dict[Log, list[Record]] = {log: [] for log in Log}
        self.main: list[Output] = []
        self.side: list[Output] = []
        self.batch = batch
        self.join = self.new_owner()
        start = self.join.start_record(Cursor(0, 0), 1)
        self.main.append(start)
        assert self.join.resume(start.value, [start.value], Cursor(0, 0)) == Cursor(0, 0)

    def new_owner(self) -> PartitionJoin:
        return PartitionJoin(self.terms, partition=0, partitions=1, limits=self.limits)

    def append(self, log: Log, time_ms: int, key: bytes | None, value: bytes | None) -> int:
        """Append a record; a tick if key and value are None. Returns its offset."""
        offset = len(self.logs[log])
        tick = key is None and value is None
        self.logs[log].append(Record(offset, time_ms, key, b"" if tick else value, tick))
        if not self.batch:
            self.read(log)
        return offset

    def begin(self, log: Log, time_ms: int, generation: Generation) -> int:
        """Append the boundary of a generation."""
        offset = len(self.logs[log])
        record = Record(offset, time_ms, b"", encode(generation), tick=False, boundary=True)
        self.logs[log].append(record)
        if not self.batch:
            self.read(log)
        return offset

    def show(self, time_ms: int, request_id: str = "r1", *, holdout: bool = False) -> int:
        value = encode(valid_impression(request_id, holdout=holdout))
        return self.append(Log.IMPRESSIONS, time_ms, request_id.encode(), value)

    def click(
        self, time_ms: int, request_id: str = "r1", name: str = "c1", item_id: str = "lamp"
    ) -> int:
        value = encode(valid_conversion(request_id, name, item_id))
        return self.append(Log.CONVERSIONS, time_ms, request_id.encode(), value)

    def tick(self, time_ms: int) -> None:
        """A tick in both logs."""
        self.tick_impressions(time_ms)
        self.tick_conversions(time_ms)

    def tick_impressions(self, time_ms: int) -> None:
        self.append(Log.IMPRESSIONS, time_ms, None, None)

    def tick_conversions(self, time_ms: int) -> None:
        self.append(Log.CONVERSIONS, time_ms, None, None)

    def read(self, log: Log) -> None:
        """Let the owner read all that it has not read of a log, as one batch."""
        step = self.join.feed(log, self.logs[log][self.join.position(log) :])
        self.side += step.side
        self.main += step.groups
        self.main += step.progress

    def crash(self, tail: int = 1) -> Cursor:
        """A new owner takes over, having seen so many of the last records."""
        self.join = self.new_owner()
        values = [output.value for output in self.main]
        return self.join.resume(values[0], values[-tail:], Cursor(0, 0))

    @property
    def records(self) -> list[JoinRecord]:
        return [JoinRecord.FromString(output.value) for output in self.main]

    @property
    def groups(self) -> list[RewardGroup]:
        return [record.group for record in self.records if record.HasField("group")]

    @property
    def progress(self) -> list[Progress]:
        return [record.progress for record in self.records if record.HasField("progress")]

    @property
    def boundaries(self) -> list[Boundary]:
        return [record.boundary for record in self.records if record.HasField("boundary")]

    @property
    def members(self) -> dict[int, list[int]]:
        """Impression offset → conversion offsets."""
        return {g.offset: [c.offset for c in g.conversions] for g in self.groups}

    @property
    def refused(self) -> list[tuple[Kind, str, int, str]]:
        """Kind, log, offset, reason."""
        found = []
        for output in self.side:
            refused = Refused.FromString(output.value)
            name = Reason.Name(refused.reason).removeprefix("REASON_")
            found.append((output.kind, refused.topic, refused.offset, name))
        return found


def standing(output: Output) -> Standing:
    record = JoinRecord.FromString(output.value)
    kind = record.WhichOneof("kind")
    assert kind in ("group", "progress", "boundary")
    told: RewardGroup | Progress | Boundary = getattr(record, kind)
    return told.standing
