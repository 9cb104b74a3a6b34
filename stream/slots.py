"""Batches cut by log time: which reward groups belong to which slot, and when a slot is complete.

Pure: values of the reward-groups topic in, slots out; no Kafka, no clock. Slot k holds the groups
whose attribution window closed at a log time in [kS, (k+1)S). It is complete when, in every
partition, a group's close time or a progress record's time has reached (k+1)S, or the generation
has ended: the join writes close times in rising order, so nothing of slot k can follow. So slots
are a function of the log's content, whatever order the partitions arrive in, and a partition that
stands still holds every slot back.

A generation has ended when it has ended in every partition. What follows its end in one partition
waits until then: slots of the next generation begin anew, with their own length.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import NamedTuple

from google.protobuf.message import DecodeError
from grade.v1.reward_group_pb2 import Boundary, JoinRecord, Progress, RewardGroup, Start

from policy.errors import BoundaryError, StreamError
from stream.codec import encode
from stream.group_ledger import PartitionLedger


class Names(NamedTuple):
    """What every record of the join names in one generation, and the generation's definition."""

    policy: str
    settings_digest: bytes
    computation: int
    definition: bytes
    """sha256 of its Generation."""


class SlotCutter:
    """Cuts the records of all partitions of the reward-groups topic into slots.

    Args:
        partitions: number of partitions of the topic, ≥ 1.
        slot_ms: length of a slot in milliseconds of log time, ≥ 1.
        names: what the records of a generation name; raises BoundaryError for an unknown one.
        generation: the one whose slots are cut.
        ledger: [partition] offset of the last impression whose group was applied, -1 before the
            first; none applied where it is left out.
        next_positions: [partition] where reading begins in the topic; 0 where it is left out.
        segments: [partition] which start record is in force there; 0 where it is left out.
        last_slot: the last slot of the generation that was applied, or None.

    Raises:
        ValueError: a number is out of range or a list has the wrong length.
    """

    def __init__(
        self,
        partitions: int,
        slot_ms: int,
        names: Callable[[int], Names],
        *,
        generation: int = 1,
        ledger: Sequence[int] | None = None,
        next_positions: Sequence[int] | None = None,
        segments: Sequence[int] | None = None,
        last_slot: int | None = None,
    ) -> None:
        if partitions < 1:
            raise ValueError(f"expected at least 1 partition, seen {partitions}")
        ledger = [-1] * partitions if ledger is None else ledger
        next_positions = [0] * partitions if next_positions is None else next_positions
        segments = [0] * partitions if segments is None else segments
        lengths = [len(ledger), len(next_positions), len(segments)]
        if lengths != [partitions] * 3:
            raise ValueError(
                f"expected {partitions} ledgers, positions and segments, seen {lengths}"
            )
        self._slot_ms = _checked(slot_ms)
        self._names = names
        self._generation = generation
        self._partitions = [
            PartitionLedger(generation, *at)
            for at in zip(ledger, next_positions, segments, strict=True)
        ]
        self._last_slot = last_slot

    @property
    def generation(self) -> int:
        """The generation whose slots are cut."""
        return self._generation

    @property
    def ledger(self) -> tuple[int, ...]:
        """[partition] offset of the last impression whose group left in a slot; -1 before any."""
        return tuple(partition.applied for partition in self._partitions)

    @property
    def last_slot(self) -> int | None:
        """The last slot of the generation that left."""
        return self._last_slot

    @property
    def next_positions(self) -> tuple[int, ...]:
        """[partition] where to read on, so that all that has not left is read again."""
        return tuple(partition.next_position for partition in self._partitions)

    @property
    def segments(self) -> tuple[int, ...]:
        """[partition] which start record is in force at `next_positions`."""
        return tuple(partition.next_segment for partition in self._partitions)

    @property
    def reached(self) -> tuple[tuple[int, float], ...]:
        """[partition] the generation that reading has come to, and the log time before which every
        group has been read; minus infinity before the first."""
        return tuple(
            (each.generation, -math.inf if each.reached_ms is None else each.reached_ms)
            for each in self._partitions
        )

    @property
    def repeats(self) -> int:
        """Groups that were read again and skipped."""
        return sum(partition.repeats for partition in self._partitions)

    @property
    def waiting(self) -> int:
        """Groups that were read and whose slot is not complete; any thread may ask."""
        return sum(partition.waiting for partition in self._partitions)

    def feed(self, partition: int, value: bytes | None, *, position: int | None = None) -> None:
        """Read one record.

        Args:
            partition: its partition.
            value: its value, a serialized JoinRecord.
            position: its offset in the topic; counted on from the record before if left out.

        Raises:
            LedgerGap: groups are missing between the ledger and this record.
            BoundaryError: it was written under other settings, schema or computation than its
                generation has, or begins another generation than the one of that number.
            StreamError: it is not a JoinRecord, or contradicts an earlier one.
        """
        state = self._partitions[partition]
        at = state.position if position is None else position
        place = f"reward-groups partition {partition} offset {at}"
        record = _decode(value, place)
        self._check_names(_kind(record), place)
        if record.HasField("boundary"):
            self._check_next(record.boundary, place)
        waiting = len(state.pending)
        state.feed(record, at, place)
        if len(state.pending) > waiting:
            self._check_slot(state, place)

    def _check_slot(self, state: PartitionLedger, place: str) -> None:
        """Refuse a group that has come after its slot was learned."""
        slot = state.pending[-1].close_time_ms // self._slot_ms
        learning = state.generation == self._generation
        if learning and self._last_slot is not None and slot <= self._last_slot:
            raise StreamError(
                f"{place}: expected a group of a slot after {self._last_slot}, which has been "
                f"learned, seen slot {slot}"
            )

    def _check_next(self, boundary: Boundary, place: str) -> None:
        number = boundary.next.generation
        if number != boundary.generation + 1:
            raise StreamError(
                f"{place}: expected the boundary of generation {boundary.generation} to begin "
                f"generation {boundary.generation + 1}, seen {number}"
            )
        expected = self._names(number).definition
        seen = hashlib.sha256(encode(boundary.next)).digest()
        if seen != expected:
            raise BoundaryError(
                f"{place}: expected generation {number} as the generations topic defines it, "
                f"sha256 {expected.hex()[:12]}, seen sha256 {seen.hex()[:12]}"
            )

    def complete(self) -> Iterator[tuple[int, list[RewardGroup]]]:
        """Yield the complete slots that hold groups, in their order, and forget their groups.

        Inside a slot the order is (close time, partition, offset). While a slot is being handled,
        `ledger` and `next_positions` are those after it.
        """
        end = min(self._end(partition) for partition in self._partitions)
        while True:
            heads = [
                each.pending[0].close_time_ms
                for each in self._partitions
                if each.pending and not each.at_end
            ]
            slot = min(heads) // self._slot_ms if heads and end > -math.inf else math.inf
            if slot >= end:
                return
            yield int(slot), self._cut(int(slot))

    def _end(self, state: PartitionLedger) -> float:
        """The first slot that the partition can still add to."""
        if state.generation > self._generation:
            return math.inf
        return -math.inf if state.reached_ms is None else state.reached_ms // self._slot_ms

    def _cut(self, slot: int) -> list[RewardGroup]:
        taken: list[tuple[int, int, int, RewardGroup]] = []
        for index, state in enumerate(self._partitions):
            while state.pending and not state.at_end:
                if state.pending[0].close_time_ms // self._slot_ms != slot:
                    break
                close_time_ms, offset, *_, group = state.take()
                assert group is not None, "the generation has not ended"
                taken.append((close_time_ms, index, offset, group))
        taken.sort(key=itemgetter(0, 1, 2))
        self._last_slot = slot
        return [each[3] for each in taken]

    @property
    def ended(self) -> bool:
        """Whether every slot of the generation has left and the next one can begin."""
        return all(partition.at_end for partition in self._partitions)

    def begin_next(self, slot_ms: int) -> None:
        """Cut the slots of the next generation from here on.

        Args:
            slot_ms: length of its slots in milliseconds of log time, ≥ 1.

        Raises:
            ValueError: the generation has not ended, or the length is out of range.
        """
        if not self.ended:
            raise ValueError(f"expected generation {self._generation} to have ended")
        self._slot_ms = _checked(slot_ms)
        for state in self._partitions:
            state.take()
        self._generation += 1
        self._last_slot = None

    def _check_names(self, record: RewardGroup | Progress | Boundary | Start, place: str) -> None:
        expected = self._names(record.generation)
        signature = record.policy, record.settings_digest, record.computation
        if signature != expected[:3]:
            seen = Names(*signature, expected.definition)
            raise BoundaryError(
                f"{place}: expected records of generation {record.generation} to name "
                f"{describe(expected)}, seen {describe(seen)}"
            )


def describe(names: Names) -> str:
    """Say in words what records name.

    >>> describe(Names("feed", bytes.fromhex("00aa11bb22cc33dd"), 1, b""))
    "policy 'feed', settings 00aa11bb22cc, computation 1"
    """
    digest = names.settings_digest.hex()[:12] or "(empty)"
    return f"policy {names.policy!r}, settings {digest}, computation {names.computation}"


def _checked(slot_ms: int) -> int:
    if slot_ms < 1:
        raise ValueError(f"expected a slot of at least 1 ms, seen {slot_ms}")
    return slot_ms


def _decode(value: bytes | None, place: str) -> JoinRecord:
    if value is None:
        raise StreamError(f"{place}: expected a JoinRecord, seen no value")
    try:
        record = JoinRecord.FromString(value)
    except DecodeError as error:
        raise StreamError(
            f"{place}: expected a JoinRecord, seen {len(value)} bytes that are none: {error}"
        ) from error
    if record.WhichOneof("kind") is None:
        raise StreamError(
            f"{place}: expected a group, progress, boundary or start, seen none of them"
        )
    return record


def _kind(record: JoinRecord) -> RewardGroup | Progress | Boundary | Start:
    if record.HasField("group"):
        return record.group
    if record.HasField("progress"):
        return record.progress
    return record.boundary if record.HasField("boundary") else record.start
