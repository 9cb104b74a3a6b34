"""Slots worked out by hand, and that arrival order and restarts cannot change them."""

import hashlib
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from grade.v1.generation_pb2 import Generation
from grade.v1.reward_group_pb2 import (
    Boundary,
    JoinRecord,
    Loss,
    Progress,
    RewardGroup,
    Standing,
    Start,
)
from hypothesis import given
from hypothesis import strategies as st

from policy.errors import BoundaryError, LedgerGap, StreamError
from stream.codec import encode
from stream.slots import Names, SlotCutter

SLOT_MS = 250
DIGEST = b"settings"
LATEST = 4
"""Number of the last generation that has been begun."""


def definition(generation: int) -> Generation:
    return Generation(policy="p", generation=generation)


def names(generation: int) -> Names:
    if not 1 <= generation <= LATEST:
        raise BoundaryError(f"expected a generation up to {LATEST}, seen {generation}")
    sha256 = hashlib.sha256(encode(definition(generation))).digest()
    return Names("p", DIGEST + bytes([generation]), 1, sha256)


def cutter_of(partitions: int) -> SlotCutter:
    return SlotCutter(partitions, SLOT_MS, names)


def standing(prev: int, segment: int) -> Standing:
    return Standing(prev=prev, segment=segment)


def group(
    offset: int,
    prev: int,
    close: int,
    *,
    generation: int = 1,
    segment: int = 0,
    digest: bytes | None = None,
) -> bytes:
    return JoinRecord(
        group=RewardGroup(
            policy="p",
            offset=offset,
            close_time_ms=close,
            standing=standing(prev, segment),
            settings_digest=names(generation).settings_digest if digest is None else digest,
            computation=1,
            generation=generation,
        )
    ).SerializeToString()


def progress(
    prev: int, close: int, *, generation: int = 1, segment: int = 0, computation: int = 1
) -> bytes:
    return JoinRecord(
        progress=Progress(
            policy="p",
            standing=standing(prev, segment),
            close_time_ms=close,
            settings_digest=names(generation).settings_digest,
            computation=computation,
            generation=generation,
        )
    ).SerializeToString()


def boundary(
    prev: int,
    close: int,
    *,
    generation: int = 1,
    segment: int = 0,
    following: Generation | None = None,
) -> bytes:
    """The end of a generation."""
    return JoinRecord(
        boundary=Boundary(
            policy="p",
            offset=prev + 1,
            close_time_ms=close,
            standing=standing(prev, segment),
            settings_digest=names(generation).settings_digest,
            computation=1,
            generation=generation,
            next=following or definition(generation + 1),
        )
    ).SerializeToString()


def start(*, generation: int = 1, segment: int = 0, prev: int = -1, close: int = 0) -> bytes:
    """Where a segment begins; after the first with what was lost before it."""
    message = Start(
        policy="p",
        settings_digest=names(generation).settings_digest,
        computation=1,
        generation=generation,
        segment=segment,
    )
    if segment:
        message.loss.CopyFrom(Loss(impressions=3, prev=prev, close_time_ms=close))
    return JoinRecord(start=message).SerializeToString()


def cut(cutter: SlotCutter) -> list[tuple[int, list[tuple[int, int]]]]:
    return [
        (slot, [(each.close_time_ms, each.offset) for each in groups])
        for slot, groups in cutter.complete()
    ]


def test_a_slot_is_complete_once_every_partition_has_reached_its_end() -> None:
    cutter = cutter_of(2)
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


def test_another_thread_may_ask_how_many_groups_wait() -> None:
    """/health asks while the learner reads."""
    cutter, groups, interval = cutter_of(1), 20_000, sys.getswitchinterval()
    values = [group(n, n - 1, 0) for n in range(groups)]

    def ask() -> list[int]:
        seen = [0]
        while seen[-1] < groups:
            seen.append(cutter.waiting)
        return seen

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(1) as thread:
            asked = thread.submit(ask)
            for value in values:
                cutter.feed(0, value)
            seen = asked.result(60)
    finally:
        sys.setswitchinterval(interval)
    assert seen == sorted(seen)


def test_equal_close_times_are_ordered_by_partition_then_offset() -> None:
    cutter = cutter_of(2)
    cutter.feed(1, group(1, -1, 10))
    cutter.feed(1, group(2, 1, 10))
    cutter.feed(0, group(7, -1, 10))
    cutter.feed(0, group(9, 7, 10))
    cutter.feed(0, progress(9, 250))
    cutter.feed(1, progress(2, 250))
    assert cut(cutter) == [(0, [(10, 7), (10, 9), (10, 1), (10, 2)])]


def test_one_progress_record_can_complete_many_slots_and_empty_ones_are_passed_over() -> None:
    cutter = cutter_of(1)
    cutter.feed(0, group(0, -1, 0))
    cutter.feed(0, group(1, 0, 300))
    cutter.feed(0, group(2, 1, 2000))
    cutter.feed(0, progress(2, 9000))
    assert cut(cutter) == [(0, [(0, 0)]), (1, [(300, 1)]), (8, [(2000, 2)])]


def test_times_before_1970_fall_into_negative_slots() -> None:
    cutter = cutter_of(1)
    cutter.feed(0, group(0, -1, -1))
    cutter.feed(0, progress(0, 0))
    assert cut(cutter) == [(-1, [(-1, 0)])]


def test_repeats_and_older_records_of_a_zombie_are_skipped_and_counted() -> None:
    cutter = cutter_of(1)
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
    cutter = cutter_of(3)
    cutter.feed(2, group(4, -1, 10))
    with pytest.raises(LedgerGap, match=r"partition 2 offset 1: .* impression 4, seen 7"):
        cutter.feed(2, group(9, 7, 20))


def test_progress_beyond_the_ledger_is_a_gap() -> None:
    cutter = cutter_of(1)
    cutter.feed(0, group(4, -1, 10))
    cutter.feed(0, progress(4, 20))
    with pytest.raises(LedgerGap, match="impression 4, seen 5"):
        cutter.feed(0, progress(5, 30))


def test_the_first_group_must_be_the_first_impression() -> None:
    with pytest.raises(LedgerGap, match="impression -1, seen 3"):
        cutter_of(1).feed(0, group(4, 3, 10))


def test_a_record_of_other_settings_is_a_boundary() -> None:
    cutter = cutter_of(1)
    cutter.feed(0, start())
    with pytest.raises(BoundaryError, match=r"generation 1 to name .* settings 73657474696e, comp"):
        cutter.feed(0, group(0, -1, 10, digest=b"other"))
    with pytest.raises(BoundaryError, match=r"computation 1, seen .* computation 2"):
        cutter.feed(0, progress(-1, 10, computation=2))


@pytest.mark.parametrize("value", [None, b"", b"\xff\xff\xff"])
def test_what_is_no_join_record_stops_with_its_place(value: bytes | None) -> None:
    with pytest.raises(StreamError, match="partition 0 offset 17: expected"):
        cutter_of(1).feed(0, value, position=17)


def test_a_close_time_that_goes_back_contradicts_the_join() -> None:
    cutter = cutter_of(1)
    cutter.feed(0, progress(-1, 500))
    with pytest.raises(StreamError, match="expected a close time of at least 500, seen 499"):
        cutter.feed(0, group(0, -1, 499))


def test_a_group_of_a_learned_slot_contradicts_the_join() -> None:
    cutter = SlotCutter(1, SLOT_MS, names, ledger=[4], last_slot=2)
    with pytest.raises(StreamError, match="slot after 2, which has been learned, seen slot 2"):
        cutter.feed(0, group(5, 4, 749))


# --- where a generation ends ------------------------------------------------------------------


def cut_on(cutter: SlotCutter) -> list[tuple[int, int, list[tuple[int, int]]]]:
    """(generation, slot, groups) of every complete slot, going on in the next generations."""
    found = []
    while True:
        found += [(cutter.generation, *each) for each in cut(cutter)]
        if not cutter.ended:
            return found
        cutter.begin_next(slot_length(cutter.generation + 1))


def slot_length(generation: int) -> int:
    """Every generation has slots of its own length."""
    return SLOT_MS if generation == 1 else 100 * generation


def test_the_end_of_a_generation_completes_its_slots_and_the_next_begins_anew() -> None:
    """Slot 4 of 250 ms is [1000, 1250); slot 6 of 200 ms is [1200, 1400)."""
    cutter = cutter_of(2)
    cutter.feed(0, group(0, -1, 1000))
    cutter.feed(0, boundary(0, 1200))
    cutter.feed(0, group(2, 0, 1210, generation=2))
    cutter.feed(0, progress(2, 2000, generation=2))
    cutter.feed(1, group(0, -1, 1100))
    assert cut_on(cutter) == []
    assert cutter.waiting == 3  # one of them held back
    assert cutter.next_positions == (0, 0)
    cutter.feed(1, group(1, 0, 1300))
    assert cut_on(cutter) == [(1, 4, [(1000, 0), (1100, 0)])]
    assert cutter.next_positions == (1, 1)  # the boundary, and the group that waits
    assert cutter.ledger == (0, 0)
    cutter.feed(1, boundary(1, 1350))
    assert cut_on(cutter) == [(1, 5, [(1300, 1)])]
    assert (cutter.generation, cutter.last_slot, cutter.ledger) == (2, None, (0, 1))
    cutter.feed(1, progress(1, 1399, generation=2))
    assert cut_on(cutter) == []
    cutter.feed(1, group(5, 1, 1400, generation=2))
    assert cut_on(cutter) == [(2, 6, [(1210, 2)])]
    assert cutter.next_positions == (3, 4)


def test_one_partition_may_be_two_generations_ahead() -> None:
    cutter = cutter_of(2)
    for value in (
        boundary(-1, 100),
        group(2, -1, 150, generation=2),
        boundary(2, 200, generation=2),
        group(4, 2, 650, generation=3),
        progress(4, 3000, generation=3),
    ):
        cutter.feed(0, value)
    assert cutter.reached[0] == (3, 3000)
    for value in (boundary(-1, 120), boundary(-1, 200, generation=2)):
        cutter.feed(1, value)
    assert cut_on(cutter) == [(2, 0, [(150, 2)])]
    cutter.feed(1, progress(-1, 900, generation=3))
    assert cut_on(cutter) == [(3, 2, [(650, 4)])]


def test_an_old_owners_records_of_an_ended_generation_are_skipped() -> None:
    cutter = cutter_of(1)
    for value in (
        group(0, -1, 10),
        boundary(0, 100),
        group(0, -1, 10),
        progress(0, 90),
        boundary(0, 100),
        group(2, 0, 150, generation=2),
        boundary(0, 100),
        start(),
        progress(2, 1000, generation=2),
    ):
        cutter.feed(0, value)
    assert cut_on(cutter) == [(1, 0, [(10, 0)]), (2, 0, [(150, 2)])]
    assert cutter.repeats == 1


def test_what_contradicts_a_boundary_stops() -> None:
    cutter = cutter_of(1)
    cutter.feed(0, group(0, -1, 10))
    with pytest.raises(StreamError, match="of generation 1 in segment 0, seen generation 2"):
        cutter.feed(0, group(1, 0, 20, generation=2))
    with pytest.raises(LedgerGap, match="impression 0, seen 1"):
        cutter.feed(0, boundary(1, 100))
    forged = definition(2)
    forged.note = "forged"
    with pytest.raises(BoundaryError, match="generation 2 as the generations topic defines it"):
        cutter.feed(0, boundary(0, 100, following=forged))
    with pytest.raises(StreamError, match="to begin generation 2, seen 3"):
        cutter.feed(0, boundary(0, 100, following=definition(3)))
    cutter.feed(0, boundary(0, 100))
    with pytest.raises(StreamError, match="generation 2 in segment 0, seen generation 1"):
        cutter.feed(0, group(1, 0, 120))
    with pytest.raises(BoundaryError, match="up to 4, seen 0"):
        cutter.feed(0, JoinRecord(progress=Progress(policy="p")).SerializeToString())
    assert cut(cutter) == [(0, [(10, 0)])]
    with pytest.raises(ValueError, match="at least 1 ms"):
        cutter.begin_next(0)
    cutter.begin_next(100)
    with pytest.raises(ValueError, match="expected generation 2 to have ended"):
        cutter.begin_next(100)


# --- after an accepted loss -------------------------------------------------------------------


def test_a_start_after_a_loss_goes_on_with_the_ledger() -> None:
    cutter = cutter_of(1)
    for value in (
        start(),
        group(0, -1, 10),
        start(segment=1, prev=0, close=400),
        start(segment=1, prev=0, close=400),  # two new owners: the first counts
        progress(0, 900),  # the old owner goes on for a while
        group(5, 0, 950),
        group(9, 0, 410, segment=1),
        progress(9, 500, segment=1),
    ):
        cutter.feed(0, value)
    assert cut_on(cutter) == [(1, 0, [(10, 0)]), (1, 1, [(410, 9)])]
    assert cutter.repeats == 1
    assert cutter.segments == (1,)


def test_a_loss_that_leads_into_a_later_generation_ends_those_between() -> None:
    cutter = cutter_of(2)
    cutter.feed(0, group(0, -1, 10))
    cutter.feed(0, start(segment=1, prev=0, close=100, generation=3))
    cutter.feed(0, group(7, 0, 600, generation=3, segment=1))
    assert cut_on(cutter) == []
    for generation in (1, 2):
        cutter.feed(1, boundary(-1, 100 * generation, generation=generation))
    assert cut_on(cutter) == [(1, 0, [(10, 0)])]
    assert cutter.generation == 3
    cutter.feed(0, progress(7, 900, generation=3, segment=1))
    cutter.feed(1, progress(-1, 900, generation=3))
    assert cut_on(cutter) == [(3, 2, [(600, 7)])]


def test_a_join_that_began_in_a_later_generation() -> None:
    cutter = cutter_of(1)
    cutter.feed(0, start(generation=2))
    cutter.feed(0, start(generation=3))  # of two starts the first counts
    cutter.feed(0, group(4, -1, 10, generation=2))
    cutter.feed(0, progress(4, 900, generation=2))
    assert cut_on(cutter) == [(2, 0, [(10, 4)])]


def test_an_output_that_retention_emptied_may_begin_behind_the_ledger() -> None:
    """Its groups come again as far as the inputs reach; then new ones, chained among themselves."""
    cutter = SlotCutter(1, SLOT_MS, names, ledger=[7], next_positions=[40], last_slot=0)
    for value in (
        start(segment=60, prev=-1, close=-(2**63)),
        group(6, -1, 90, segment=60),
        group(7, 6, 95, segment=60),
        group(9, 7, 300, segment=60),
        progress(9, 900, segment=60),
    ):
        cutter.feed(0, value)
    assert cut_on(cutter) == [(1, 1, [(300, 9)])]
    assert cutter.repeats == 2
    other = SlotCutter(1, SLOT_MS, names, ledger=[7], next_positions=[40], last_slot=0)
    other.feed(0, start(segment=60, prev=-1, close=-(2**63)))
    other.feed(0, group(12, -1, 300, segment=60))
    other.feed(0, progress(12, 900, segment=60))
    assert cut_on(other) == [(1, 1, [(300, 12)])]
    with pytest.raises(LedgerGap, match="impression 12, seen 13"):
        other.feed(0, group(14, 13, 950, segment=60))


def test_a_loss_that_passes_over_groups_is_a_gap() -> None:
    cutter = cutter_of(1)
    cutter.feed(0, group(0, -1, 10))
    with pytest.raises(LedgerGap, match="impression 0, seen 4"):
        cutter.feed(0, start(segment=1, prev=4, close=400))
    with pytest.raises(StreamError, match="in segment 0, seen generation 1 in segment 1"):
        cutter.feed(0, group(2, 0, 20, segment=1))


# --- properties -------------------------------------------------------------------------------


@st.composite
def histories(draw: st.DrawFn) -> list[list[bytes]]:
    """A few partitions as the join writes them: with repeats, boundaries and accepted losses.

    At the end every partition is in the same generation.
    """
    partitions = draw(st.integers(1, 3))
    last = draw(st.integers(1, LATEST))
    history = []
    for _ in range(partitions):
        time, offset, prev, generation, segment = 0, 0, -1, 1, 0
        records = [start()]
        kinds = ["group", "progress", "repeat", "boundary", "loss"]
        for kind in draw(st.lists(st.sampled_from(kinds), max_size=12)):
            time += draw(st.integers(0, 300))
            if kind == "group":
                offset += draw(st.integers(1, 3))
                records.append(group(offset, prev, time, generation=generation, segment=segment))
                prev = offset
            elif kind == "progress":
                records.append(progress(prev, time, generation=generation, segment=segment))
            elif kind == "boundary" and generation < last:
                records.append(boundary(prev, time, generation=generation, segment=segment))
                generation += 1
                offset += 1
            elif kind == "loss":
                segment = len(records)
                generation = draw(st.integers(generation, last))
                records.append(start(generation=generation, segment=segment, prev=prev, close=time))
            else:
                records.append(draw(st.sampled_from(records)))
        for ending in range(generation, last):
            records.append(boundary(prev, time, generation=ending, segment=segment))
        records.append(progress(prev, 100_000, generation=last, segment=segment))
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
    sorted_in = cutter_of(len(history))
    for index, records in enumerate(history):
        for value in records:
            sorted_in.feed(index, value)
    expected = cut_on(sorted_in)

    mixed = cutter_of(len(history))
    seen = []
    for index, position in shuffled(data, history):
        mixed.feed(index, history[index][position])
        seen += cut_on(mixed)
    assert seen == expected
    assert mixed.ledger == sorted_in.ledger


@given(st.data())
def test_a_restart_at_any_point_yields_the_slots_that_no_restart_yields(
    data: st.DataObject,
) -> None:
    history = data.draw(histories())
    order = shuffled(data, history)
    whole = cutter_of(len(history))
    expected = []
    for index, position in order:
        whole.feed(index, history[index][position])
        expected += cut_on(whole)

    crash = data.draw(st.integers(0, len(order)))
    first = cutter_of(len(history))
    seen = []
    for index, position in order[:crash]:
        first.feed(index, history[index][position])
        seen += cut_on(first)
    second = SlotCutter(
        len(history),
        slot_length(first.generation),
        names,
        generation=first.generation,
        ledger=first.ledger,
        next_positions=first.next_positions,
        segments=first.segments,
        last_slot=first.last_slot,
    )
    for index, records in enumerate(history):
        for position in range(first.next_positions[index], len(records)):
            second.feed(index, records[position], position=position)
    seen += cut_on(second)
    assert seen == expected
    assert second.ledger == whole.ledger
    assert second.next_positions == whole.next_positions
