"""Batches cut by log time: which reward groups belong to which slot, and when a slot is complete.

Pure: values of the reward-groups topic in, slots out; no Kafka, no clock. Slot k holds the groups
whose attribution window closed at a log time in [kS, (k+1)S). It is complete when, in every
partition, a group's close time or a progress record's time has reached (k+1)S: the join writes
close times in rising order, so nothing of slot k can follow. So slots are a function of the log's
content, whatever order the partitions arrive in, and a partition that stands still holds every slot
back.

The ledger, one impression offset per partition, turns a log that may repeat itself into groups that
are used exactly once: at or below it is a repeat; above it, the record's `prev` must be the ledger.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from google.protobuf.message import DecodeError
from grade.v1.reward_group_pb2 import JoinRecord, Progress, RewardGroup, Start

from policy.errors import BoundaryError, LedgerGap, StreamError


class Boundary(NamedTuple):
    """What must not change within a chain of versions; every record of the join names it."""

    policy: str
    settings_digest: bytes
    computation: int


class _Pending(NamedTuple):
    close_time_ms: int
    offset: int
    position: int
    group: RewardGroup


class _Partition:
    """How far one partition has been read and applied."""

    def __init__(self, ledger: int, position: int) -> None:
        self.applied = ledger
        self.ledger = ledger
        self.position = position
        self.reached_ms: int | None = None
        self.reached_at = position
        self.pending: deque[_Pending] = deque()


class SlotCutter:
    """Cuts the records of all partitions of the reward-groups topic into slots.

    Args:
        partitions: number of partitions of the topic, ≥ 1.
        slot_ms: length of a slot in milliseconds of log time, ≥ 1.
        ledger: [partition] offset of the last impression whose group was applied, -1 before the
            first; none applied where it is left out.
        next_positions: [partition] where reading begins in the topic; 0 where it is left out.
        last_slot: the last slot that was applied, or None.
        boundary: what earlier records named; the first record decides where it is None.

    Raises:
        ValueError: a number is out of range or a list has the wrong length.
    """

    def __init__(
        self,
        partitions: int,
        slot_ms: int,
        *,
        ledger: Sequence[int] | None = None,
        next_positions: Sequence[int] | None = None,
        last_slot: int | None = None,
        boundary: Boundary | None = None,
    ) -> None:
        if partitions < 1:
            raise ValueError(f"expected at least 1 partition, seen {partitions}")
        if slot_ms < 1:
            raise ValueError(f"expected a slot of at least 1 ms, seen {slot_ms}")
        ledger = [-1] * partitions if ledger is None else ledger
        next_positions = [0] * partitions if next_positions is None else next_positions
        if len(ledger) != partitions or len(next_positions) != partitions:
            raise ValueError(
                f"expected {partitions} ledgers and positions, "
                f"seen {len(ledger)} and {len(next_positions)}"
            )
        self._slot_ms = slot_ms
        self._partitions = [_Partition(*at) for at in zip(ledger, next_positions, strict=True)]
        self._last_slot = last_slot
        self._boundary = boundary
        self._repeats = 0

    @property
    def boundary(self) -> Boundary | None:
        """What every record so far named; None before the first."""
        return self._boundary

    @property
    def ledger(self) -> tuple[int, ...]:
        """[partition] offset of the last impression whose group left in a slot; -1 before any."""
        return tuple(partition.applied for partition in self._partitions)

    @property
    def last_slot(self) -> int | None:
        """The last slot that left."""
        return self._last_slot

    @property
    def next_positions(self) -> tuple[int, ...]:
        """[partition] where to read on, so that every group that has not left is read again.

        Where none is waiting, it is the record that reached furthest: it is needed to know that
        slots are complete.
        """
        return tuple(
            partition.pending[0].position if partition.pending else partition.reached_at
            for partition in self._partitions
        )

    @property
    def reached_ms(self) -> tuple[int | None, ...]:
        """[partition] log time before which every group has been read; None before the first."""
        return tuple(partition.reached_ms for partition in self._partitions)

    @property
    def repeats(self) -> int:
        """Groups that were read again and skipped."""
        return self._repeats

    @property
    def waiting(self) -> int:
        """Groups that were read and whose slot is not complete."""
        return sum(len(partition.pending) for partition in self._partitions)

    def feed(self, partition: int, value: bytes | None, *, position: int | None = None) -> None:
        """Read one record.

        Args:
            partition: its partition.
            value: its value, a serialized JoinRecord.
            position: its offset in the topic; counted on from the record before if left out.

        Raises:
            LedgerGap: groups are missing between the ledger and this record.
            BoundaryError: it was written under other settings, schema or computation.
            StreamError: it is not a JoinRecord, or contradicts an earlier one.
        """
        state = self._partitions[partition]
        at = state.position if position is None else position
        place = f"reward-groups partition {partition} offset {at}"
        record = _decode(value, place)
        if record.HasField("group"):
            self._check_boundary(record.group, place)
            self._feed_group(state, partition, record.group, at)
        elif record.HasField("progress"):
            self._check_boundary(record.progress, place)
            if record.progress.standing.prev > state.ledger:
                raise _gap(partition, at, state.ledger, record.progress.standing.prev)
            _reach(state, record.progress.close_time_ms, at)
        else:
            self._check_boundary(record.start, place)
        state.position = at + 1

    def _feed_group(self, state: _Partition, partition: int, group: RewardGroup, at: int) -> None:
        if group.offset <= state.ledger:
            self._repeats += 1
        else:
            if group.standing.prev != state.ledger:
                raise _gap(partition, at, state.ledger, group.standing.prev)
            if state.reached_ms is not None and group.close_time_ms < state.reached_ms:
                raise StreamError(
                    f"reward-groups partition {partition} offset {at}: expected a close time of at "
                    f"least {state.reached_ms}, seen {group.close_time_ms} for the group of "
                    f"impression {group.offset}"
                )
            slot = group.close_time_ms // self._slot_ms
            if self._last_slot is not None and slot <= self._last_slot:
                raise StreamError(
                    f"reward-groups partition {partition} offset {at}: expected a group of a slot "
                    f"after {self._last_slot}, which has been learned, seen slot {slot}"
                )
            state.ledger = group.offset
            state.pending.append(_Pending(group.close_time_ms, group.offset, at, group))
        _reach(state, group.close_time_ms, at)

    def complete(self) -> Iterator[tuple[int, list[RewardGroup]]]:
        """Yield the complete slots that hold groups, in their order, and forget their groups.

        Inside a slot the order is (close time, partition, offset). While a slot is being handled,
        `ledger` and `next_positions` are those after it.
        """
        reached = [partition.reached_ms for partition in self._partitions]
        times = [time for time in reached if time is not None]
        if len(times) < len(reached):
            return
        end = min(times) // self._slot_ms
        while True:
            heads = [each.pending[0].close_time_ms for each in self._partitions if each.pending]
            slot = min(heads) // self._slot_ms if heads else end
            if slot >= end:
                return
            yield slot, self._cut(slot)

    def _cut(self, slot: int) -> list[RewardGroup]:
        taken: list[tuple[int, int, int, RewardGroup]] = []
        for index, state in enumerate(self._partitions):
            while state.pending and state.pending[0].close_time_ms // self._slot_ms == slot:
                each = state.pending.popleft()
                taken.append((each.close_time_ms, index, each.offset, each.group))
                state.applied = each.offset
        taken.sort(key=lambda each: each[:3])
        self._last_slot = slot
        return [each[3] for each in taken]

    def _check_boundary(self, record: RewardGroup | Progress | Start, place: str) -> None:
        seen = Boundary(record.policy, record.settings_digest, record.computation)
        if self._boundary is None:
            self._boundary = seen
        elif seen != self._boundary:
            raise BoundaryError(
                f"{place}: expected records of {describe(self._boundary)}, seen {describe(seen)}; "
                "a change of settings or of the computation starts a new chain of versions"
            )


def describe(boundary: Boundary) -> str:
    """Say a boundary in words.

    >>> describe(Boundary("feed", bytes.fromhex("00aa11bb22cc33dd"), 1))
    "policy 'feed', settings 00aa11bb22cc, computation 1"
    """
    digest = boundary.settings_digest.hex()[:12] or "(empty)"
    return f"policy {boundary.policy!r}, settings {digest}, computation {boundary.computation}"


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
        raise StreamError(f"{place}: expected a group, progress or start, seen none of them")
    return record


def _reach(state: _Partition, close_time_ms: int, at: int) -> None:
    if state.reached_ms is None or close_time_ms > state.reached_ms:
        state.reached_ms = close_time_ms
        state.reached_at = at


def _gap(partition: int, at: int, expected: int, seen: int) -> LedgerGap:
    return LedgerGap(
        f"reward-groups partition {partition} offset {at}: expected the group before it to be of "
        f"impression {expected}, seen {seen}: groups are missing between them"
    )
