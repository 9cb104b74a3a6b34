"""Slots worked out by hand, and that arrival order and restarts cannot change them."""

from collections.abc import Sequence

import pytest
from grade.v1.reward_group_pb2 import JoinRecord, Progress, RewardGroup, Standing, Start
from hypothesis import given
from hypothesis import strategies as st

from policy.errors import BoundaryError, LedgerGap, StreamError
from stream.slots import SlotCutter

SLOT_MS = 250
DIGEST = b"settings"


def group(offset: int, prev: int, close: int, *, digest: bytes = DIGEST) -> bytes:
    return JoinRecord(
        group=RewardGroup(
            policy="p",
            offset=offset,
            close_time_ms=close,
            standing=Standing(prev=prev),
            settings_digest=digest,
            computation=1,
        )
    ).SerializeToString()


def progress(prev: int, close: int, *, computation: int = 1) -> bytes:
    return JoinRecord(
        progress=Progress(
            policy="p",
            standing=Standing(prev=prev),
            close_time_ms=close,
            settings_digest=DIGEST,
            computation=computation,
        )
    ).SerializeToString()


def start() -> bytes:
    return JoinRecord(
        start=Start(policy="p", settings_digest=DIGEST, computation=1)
    ).SerializeToString()


def cut(cutter: SlotCutter) -> list[tuple[int, list[tuple[int, int]]]]:
    return [
        (slot, [(each.close_time_ms, each.offset) for each in groups])
        for slot, groups in cutter.complete()
    ]


def test_a_slot_is_complete_once_every_partition_has_reached_its_end() -> None:
    cutter = SlotCutter(2, SLOT_MS)
    cutter.feed(0, start())
    cutter.feed(0, group(3, -1, 1000))  # first of slot 4 = [1000, 1250)
    cutter.feed(0, group(5, 3, 1249))
    cutter.feed(0, group(6, 5, 1250))  # slot 5, and reaches the end of slot 4
    assert cut(cutter) == []  # partition 1 has said nothing
    cutter.feed(1, start())
    cutter.feed(1, group(0, -1, 1100))
    assert cut(cutter) == []
    cutter.feed(1, progress(0, 1249))
    assert cut(cutter) == []
    cutter.feed(1, progress(0, 1250))
    assert cut(cutter) == [(4, [(1000, 3), (1100, 0), (1249, 5)])]
    assert cutter.ledger == (5, 0)
    assert cutter.last_slot == 4
    assert cutter.waiting == 1
    # partition 0 is read again from the waiting group, its 4th record; partition 1 from the
    # progress record that reached furthest, its 4th
    assert cutter.next_positions == (3, 3)


def test_equal_close_times_are_ordered_by_partition_then_offset() -> None:
    cutter = SlotCutter(2, SLOT_MS)
    cutter.feed(1, group(1, -1, 10))
    cutter.feed(1, group(2, 1, 10))
    cutter.feed(0, group(7, -1, 10))
    cutter.feed(0, group(9, 7, 10))
    cutter.feed(0, progress(9, 250))
    cutter.feed(1, progress(2, 250))
    assert cut(cutter) == [(0, [(10, 7), (10, 9), (10, 1), (10, 2)])]


def test_one_progress_record_can_complete_many_slots_and_empty_ones_are_passed_over() -> None:
    cutter = SlotCutter(1, SLOT_MS)
    cutter.feed(0, group(0, -1, 0))
    cutter.feed(0, group(1, 0, 300))
    cutter.feed(0, group(2, 1, 2000))
    cutter.feed(0, progress(2, 9000))
    assert cut(cutter) == [(0, [(0, 0)]), (1, [(300, 1)]), (8, [(2000, 2)])]


def test_times_before_1970_fall_into_negative_slots() -> None:
    cutter = SlotCutter(1, SLOT_MS)
    cutter.feed(0, group(0, -1, -1))
    cutter.feed(0, progress(0, 0))
    assert cut(cutter) == [(-1, [(-1, 0)])]


def test_repeats_and_older_records_of_a_zombie_are_skipped_and_counted() -> None:
    cutter = SlotCutter(1, SLOT_MS)
    for value in (
        start(),
        group(0, -1, 10),
        group(1, 0, 20),
        group(0, -1, 10),
        progress(0, 15),
        start(),
        group(1, 0, 20),
        group(4, 1, 30),
        progress(4, 250),
    ):
        cutter.feed(0, value)
    assert cut(cutter) == [(0, [(10, 0), (20, 1), (30, 4)])]
    assert cutter.repeats == 2
    cutter.feed(0, group(1, 0, 20))  # after its slot has left
    assert cut(cutter) == []
    assert cutter.repeats == 3


def test_a_group_that_skips_another_is_a_gap() -> None:
    cutter = SlotCutter(3, SLOT_MS)
    cutter.feed(2, group(4, -1, 10))
    with pytest.raises(LedgerGap, match=r"partition 2 offset 1: .* impression 4, seen 7"):
        cutter.feed(2, group(9, 7, 20))


def test_progress_beyond_the_ledger_is_a_gap() -> None:
    cutter = SlotCutter(1, SLOT_MS)
    cutter.feed(0, group(4, -1, 10))
    cutter.feed(0, progress(4, 20))
    with pytest.raises(LedgerGap, match="impression 4, seen 5"):
        cutter.feed(0, progress(5, 30))


def test_the_first_group_must_be_the_first_impression() -> None:
    with pytest.raises(LedgerGap, match="impression -1, seen 3"):
        SlotCutter(1, SLOT_MS).feed(0, group(4, 3, 10))


def test_a_record_of_other_settings_is_a_boundary() -> None:
    cutter = SlotCutter(1, SLOT_MS)
    cutter.feed(0, start())
    with pytest.raises(BoundaryError, match="new chain of versions"):
        cutter.feed(0, group(0, -1, 10, digest=b"other"))
    with pytest.raises(BoundaryError, match=r"computation 1, seen .* computation 2"):
        cutter.feed(0, progress(-1, 10, computation=2))


@pytest.mark.parametrize("value", [None, b"", b"\xff\xff\xff"])
def test_what_is_no_join_record_stops_with_its_place(value: bytes | None) -> None:
    with pytest.raises(StreamError, match="partition 0 offset 17: expected"):
        SlotCutter(1, SLOT_MS).feed(0, value, position=17)


def test_a_close_time_that_goes_back_contradicts_the_join() -> None:
    cutter = SlotCutter(1, SLOT_MS)
    cutter.feed(0, progress(-1, 500))
    with pytest.raises(StreamError, match="expected a close time of at least 500, seen 499"):
        cutter.feed(0, group(0, -1, 499))


def test_a_group_of_a_learned_slot_contradicts_the_join() -> None:
    cutter = SlotCutter(1, SLOT_MS, ledger=[4], last_slot=2)
    with pytest.raises(StreamError, match="slot after 2, which has been learned, seen slot 2"):
        cutter.feed(0, group(5, 4, 749))


# --- properties -------------------------------------------------------------------------------


@st.composite
def histories(draw: st.DrawFn) -> list[list[bytes]]:
    """A few partitions of groups and progress as the join writes them, with repeats."""
    partitions = draw(st.integers(1, 3))
    history = []
    for _ in range(partitions):
        time, offset, prev = 0, 0, -1
        records = [start()]
        for kind in draw(st.lists(st.sampled_from(["group", "progress", "repeat"]), max_size=12)):
            time += draw(st.integers(0, 300))
            if kind == "group":
                offset += draw(st.integers(1, 3))
                records.append(group(offset, prev, time))
                prev = offset
            elif kind == "progress":
                records.append(progress(prev, time))
            else:
                records.append(draw(st.sampled_from(records)))
        records.append(progress(prev, 100_000))
        history.append(records)
    return history


def shuffled(data: st.DataObject, history: Sequence[list[bytes]]) -> list[tuple[int, int]]:
    """(partition, position) of every record: each partition in its order, partitions mixed."""
    marks = [index for index, records in enumerate(history) for _ in records]
    order = data.draw(st.permutations(marks))
    positions = [0] * len(history)
    result = []
    for index in order:
        result.append((index, positions[index]))
        positions[index] += 1
    return result


@given(st.data())
def test_arrival_order_of_the_partitions_does_not_matter(data: st.DataObject) -> None:
    history = data.draw(histories())
    sorted_in = SlotCutter(len(history), SLOT_MS)
    for index, records in enumerate(history):
        for value in records:
            sorted_in.feed(index, value)
    expected = cut(sorted_in)

    mixed = SlotCutter(len(history), SLOT_MS)
    seen = []
    for index, position in shuffled(data, history):
        mixed.feed(index, history[index][position])
        seen += cut(mixed)
    assert seen == expected
    assert mixed.ledger == sorted_in.ledger


@given(st.data())
def test_a_restart_at_any_point_yields_the_slots_that_no_restart_yields(
    data: st.DataObject,
) -> None:
    history = data.draw(histories())
    order = shuffled(data, history)
    whole = SlotCutter(len(history), SLOT_MS)
    expected = []
    for index, position in order:
        whole.feed(index, history[index][position])
        expected += cut(whole)

    crash = data.draw(st.integers(0, len(order)))
    first = SlotCutter(len(history), SLOT_MS)
    seen = []
    for index, position in order[:crash]:
        first.feed(index, history[index][position])
        seen += cut(first)
    second = SlotCutter(
        len(history),
        SLOT_MS,
        ledger=first.ledger,
        next_positions=first.next_positions,
        last_slot=first.last_slot,
        boundary=first.boundary,
    )
    for index, records in enumerate(history):
        for position in range(first.next_positions[index], len(records)):
            second.feed(index, records[position], position=position)
    seen += cut(second)
    assert seen == expected
    assert second.ledger == whole.ledger
    assert second.next_positions == whole.next_positions
