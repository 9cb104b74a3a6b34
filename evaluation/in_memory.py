"""The closed loop in one process: the cores of server, join and learner, without Kafka or gRPC.

The same code as in the processes, called in turn. Records get the offsets that Kafka would give
them, so a replay in memory and one through Kafka make the same parameters, bit for bit.
"""

from collections import Counter, deque
from collections.abc import Sequence
from typing import Final

from google.protobuf.message import Message
from grade.v1.context_pb2 import Context
from grade.v1.conversion_pb2 import Conversion
from grade.v1.impression_pb2 import Impression
from grade.v1.parameters_pb2 import ParameterSnapshot, Version
from grade.v1.policy_service_pb2 import SampleResponse

from policy.schema import Schema
from policy.trainer_settings import TrainerSettings
from serving.engine import Engine
from stream.codec import TICK_VALUE, encode, partition_for
from stream.generations import definition
from stream.join import Cursor, JoinLimits, Kind, Log, Output, PartitionJoin, Record
from stream.terms import terms_of
from stream.version_chain import VersionChain

_BATCH: Final = 500


class MemoryLoop:
    """Serve, log, join, learn, swap.

    Time passes only by `tick`: what was logged before it is joined, the slots that are complete are
    learned, and the newest version serves from then on.

    Args:
        schema: the policy's schema.
        seed: of the server's draws.
        members: weight vectors per sampled group.
        trainer: how to learn.
        partitions: partitions of the event topics.
        slot_ms: length of a slot in milliseconds.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        seed: int,
        members: int,
        trainer: TrainerSettings,
        partitions: int,
        slot_ms: int,
    ) -> None:
        first = definition(schema, trainer, slot_ms)
        first.generation = 1
        generations, terms = {1: first}, terms_of([first])
        limits = JoinLimits(progress_step_ms=slot_ms)
        self.engine = Engine(schema, seed=seed, members=members)
        self.versions: list[Version] = []
        """Lineage of every version, in order."""
        self.snapshot: ParameterSnapshot | None = None
        """The version that serves; None for the baseline."""
        self.refused: Counter[Kind] = Counter()
        """Records that were late, orphans or dead letters."""
        self._chain = VersionChain(generations.__getitem__, partitions)
        self._partitions = [
            _Partition(PartitionJoin(terms, partition=each, partitions=partitions, limits=limits))
            for each in range(partitions)
        ]
        for each, partition in enumerate(self._partitions):
            self._chain.read(each, partition.start.value)

    def serve(self, context: Context) -> SampleResponse:
        """Weights for one request."""
        return self.engine.sample(context)

    def serve_batch(self, contexts: Sequence[Context]) -> Sequence[SampleResponse]:
        """Weights for many requests; the same as one by one."""
        return self.engine.sample_batch(contexts)

    def impression(self, impression: Impression, time_ms: int) -> None:
        """Log what was shown at a log time in milliseconds."""
        self._append(Log.IMPRESSIONS, impression.request_id, impression, time_ms)

    def conversion(self, conversion: Conversion, time_ms: int) -> None:
        """Log what a user did, at a log time in milliseconds."""
        self._append(Log.CONVERSIONS, conversion.request_id, conversion, time_ms)

    def tick(self, time_ms: int) -> list[Version]:
        """Let time pass.

        Args:
            time_ms: log time before which no event will follow.

        Returns:
            the versions that were learned; the last one serves.
        """
        for number, partition in enumerate(self._partitions):
            for log in Log:
                partition.append(log, time_ms, None, TICK_VALUE, tick=True)
            for output in partition.join_all():
                if output.kind is Kind.REWARD_GROUPS:
                    self._chain.read(number, output.value)
                else:
                    self.refused[output.kind] += 1
        learned = list(self._chain.learn())
        if learned:
            self.snapshot = learned[-1].snapshot
            self.engine.swap(self.engine.load(self.snapshot))
            self.versions.extend(each.version for each in learned)
        return [each.version for each in learned]

    def _append(self, log: Log, request_id: str, event: Message, time_ms: int) -> None:
        key = request_id.encode("utf-8")
        partition = self._partitions[partition_for(key, len(self._partitions))]
        partition.append(log, time_ms, key, encode(event), tick=False)


class _Partition:
    """Both logs of one partition, as far as they have not been read, and their join."""

    def __init__(self, join: PartitionJoin) -> None:
        head = Cursor(0, 0)
        self.start = join.start_record(head, 1)
        join.resume(self.start.value, [self.start.value], head)
        self._join = join
        self._waiting: dict[Log, deque[Record]] = {log: deque() for log in Log}
        self._next = dict.fromkeys(Log, 0)

    def append(
        self, log: Log, time_ms: int, key: bytes | None, value: bytes, *, tick: bool
    ) -> None:
        """Write a record at the end of a log."""
        self._waiting[log].append(Record(self._next[log], time_ms, key, value, tick))
        self._next[log] += 1

    def join_all(self) -> list[Output]:
        """Read both logs to their ends; what is to be written, in order."""
        written: list[Output] = []
        while any(self._waiting.values()):
            for log, waiting in self._waiting.items():
                if waiting and self._join.readable(log):
                    batch = [waiting.popleft() for _ in range(min(len(waiting), _BATCH))]
                    step = self._join.feed(log, batch)
                    written += [*step.side, *step.groups, *step.progress]
        return written
