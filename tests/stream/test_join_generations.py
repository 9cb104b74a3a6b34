"""The join across boundaries and accepted losses, with results worked out by hand.

Generation 1: W = 100 ms, E = 10 ms, L = 200 ms, so D = 110 ms and D_c = 210 ms.
"""

from collections.abc import Mapping, Sequence

import pytest
from grade.v1.generation_pb2 import Generation
from grade.v1.reward_group_pb2 import Cursor as CursorMessage
from grade.v1.reward_group_pb2 import JoinRecord, Rewards

from policy.errors import BoundaryError, RetentionLost, StreamError
from policy.rewards import COMPUTATIONS, ClosedGroup
from policy.schema import Schema
from stream.codec import encode
from stream.join import Cursor, Kind, Log, Loss, PartitionJoin, Record
from stream.join_records import NEVER
from stream.terms import Terms, terms_of
from tests.stream.join_generations import Definition, definition_as_read, generation
from tests.stream.join_messages import valid_conversion
from tests.stream.join_partition import Partition, standing

FIRST = Definition(1, 100, 10, 200)
SHORTER = Definition(2, 20, 10, 40)
LONGER = Definition(2, 300, 50, 600)


def terms(*definitions: Definition) -> dict[int, Terms]:
    return {each.number: definition_as_read(each) for each in definitions}


def partition_of(*, batch: bool = False) -> Partition:
    """A partition whose owner knows the first generation only."""
    return Partition(terms(FIRST), batch=batch)


def begin(partition: Partition, time_ms: int, definition: Definition) -> None:
    """Write a boundary into both logs."""
    for log in Log:
        partition.begin(log, time_ms, generation(definition))


def kinds(partition: Partition) -> list[str | None]:
    return [record.WhichOneof("kind") for record in partition.records]


# --- closing ---


def test_a_shorter_window_closes_no_group_before_those_of_the_generation_before() -> None:
    """T_b = 1050 + 100. The window of 1060 ends at 1080, its group leaves behind the boundary."""
    partition = partition_of()
    partition.show(1_000, "r1")
    begin(partition, 1_050, SHORTER)
    partition.show(1_060, "r2")
    partition.show(1_140, "r3")
    partition.click(1_080, "r2", "in")
    partition.click(1_081, "r2", "late")
    partition.tick_conversions(1_150)
    assert [group.offset for group in partition.groups] == [0]
    assert not partition.boundaries
    partition.tick_conversions(1_151)
    assert [group.offset for group in partition.groups] == [0, 2]
    partition.tick(1_161)
    assert [each for each in kinds(partition) if each != "progress"] == [
        "start",
        "group",
        "boundary",
        "group",
        "group",
    ]
    assert [group.close_time_ms for group in partition.groups] == [1_100, 1_150, 1_160]
    assert [group.generation for group in partition.groups] == [1, 2, 2]
    assert [group.standing.prev for group in partition.groups] == [-1, 0, 2]
    assert [len(group.conversions) for group in partition.groups] == [0, 1, 0]
    assert partition.refused == [(Kind.LATE, "conversions", 2, "LATE")]

    [boundary] = partition.boundaries
    old, new = partition.terms[1], definition_as_read(SHORTER)
    assert (boundary.policy, boundary.offset, boundary.close_time_ms) == ("example", 1, 1_150)
    assert (boundary.generation, boundary.settings_digest) == (1, old.digest)
    assert boundary.next == generation(SHORTER)
    assert (boundary.standing.frontier_ms, boundary.standing.prev) == (1_050, 0)
    assert boundary.standing.done == CursorMessage(impression_offset=2)
    assert boundary.standing.counts.impressions_ticks == 1
    assert [group.settings_digest for group in partition.groups] == [old.digest, *[new.digest] * 2]
    closes = [p.close_time_ms for p in partition.progress]
    assert closes == sorted(closes)


def test_progress_goes_by_the_generation_at_the_frontier() -> None:
    """W is 100 up to the boundary at 1050, then 20, but nothing closes before 1150."""
    partition = partition_of()
    partition.tick(1_000)
    begin(partition, 1_050, SHORTER)
    partition.tick_impressions(5_000)
    for time_ms in (1_149, 1_150, 1_151, 1_190, 1_220):
        partition.tick_conversions(time_ms)
    told = [
        (p.standing.frontier_ms, p.close_time_ms, p.generation)
        for p in partition.progress
        if p.standing.frontier_ms > 1_000
    ]
    # ct = 1149 and 1150: A = ct - 100; 1151: the boundary leaves; 1190 is no news in steps of 50.
    assert told == [(1_049, 1_149, 1), (1_050, 1_150, 1), (1_200, 1_220, 2)]
    assert partition.boundaries[0].close_time_ms == 1_150


def test_a_longer_window_holds_progress_back() -> None:
    """Behind the boundary at 1050, A = ct - 300 is told only once it is beyond the boundary."""
    partition = partition_of()
    partition.tick(1_000)
    begin(partition, 1_050, LONGER)
    partition.tick_impressions(5_000)
    for time_ms in (1_151, 1_300, 1_350, 1_351, 1_401):
        partition.tick_conversions(time_ms)
    told = [(p.standing.frontier_ms, p.close_time_ms) for p in partition.progress]
    assert [each for each in told if each[0] > 1_000] == [(1_051, 1_351), (1_101, 1_401)]


def test_two_boundaries_at_once_leave_one_behind_the_other() -> None:
    third = Definition(3, 5, 0, 5)
    partition = partition_of()
    partition.show(1_000, "r1")
    begin(partition, 1_010, SHORTER)
    begin(partition, 1_010, third)
    partition.show(1_010, "r2")
    partition.tick_conversions(1_110)
    assert kinds(partition)[-1] == "group"
    partition.tick_conversions(1_111)
    assert [b.close_time_ms for b in partition.boundaries] == [1_110, 1_110]
    assert [b.next.generation for b in partition.boundaries] == [2, 3]
    assert [(g.close_time_ms, g.generation) for g in partition.groups] == [(1_100, 1), (1_110, 3)]


# --- which terms ---


def test_a_conversion_is_joined_by_the_window_of_its_impression() -> None:
    """Of 100 ms, though at the conversion it is 20."""
    partition = partition_of()
    partition.show(1_000)
    begin(partition, 1_020, SHORTER)
    partition.click(1_100, name="c1")
    partition.click(1_101, name="c2")
    partition.tick(2_000)
    assert partition.members == {0: [1]}
    assert partition.refused == [(Kind.LATE, "conversions", 2, "LATE")]


@pytest.mark.parametrize(
    ("time_ms", "fate"), [(1_060, "joined"), (1_061, "LATE"), (1_081, "ORPHAN")]
)
def test_late_goes_by_the_impressions_generation(time_ms: int, fate: str) -> None:
    """The impression at 1040 is of the second one: W = 20, L = 40."""
    partition = partition_of()
    partition.begin(Log.IMPRESSIONS, 1_030, generation(SHORTER))
    partition.show(1_040)
    partition.click(time_ms)
    partition.tick(2_000)
    seen = [reason for _, _, _, reason in partition.refused] or ["joined"]
    assert seen == [fate]


def test_a_longer_early_allowance_helps_what_was_logged_under_it() -> None:
    """E grows from 10 to 50, for conversions from 950 on: for a = 990 that is t > 940."""
    partition = partition_of()
    partition.tick_impressions(890)
    partition.begin(Log.IMPRESSIONS, 900, generation(LONGER))
    partition.click(945, name="c1")
    partition.begin(Log.CONVERSIONS, 946, generation(LONGER))
    partition.click(946, name="c2")
    assert partition.refused == []
    partition.show(990)
    partition.tick(5_000)
    assert partition.members == {2: [2]}
    assert partition.refused == [(Kind.ORPHANS, "conversions", 0, "ORPHAN")]


def test_a_conversion_waits_as_long_as_its_own_generation_allows() -> None:
    partition = partition_of()
    partition.click(1_000, "r1")
    partition.begin(Log.CONVERSIONS, 1_000, generation(Definition(2, 100, 0, 200)))
    partition.click(1_000, "r2")
    partition.tick_impressions(1_000)
    assert [offset for _, _, offset, _ in partition.refused] == [2]
    partition.tick_impressions(1_009)
    assert len(partition.refused) == 1
    partition.tick_impressions(1_010)
    assert [offset for _, _, offset, _ in partition.refused] == [2, 0]


def test_of_two_windows_the_earlier_one_gets_the_conversion() -> None:
    """D is 30 behind the boundary: 1040 is no repeat of 1000, whose window is open up to 1100."""
    partition = partition_of()
    partition.show(1_000)
    begin(partition, 1_010, SHORTER)
    partition.show(1_040)
    partition.click(1_050)
    partition.tick(2_000)
    assert partition.members == {0: [1], 2: []}


@pytest.mark.parametrize(
    ("definition", "again", "repeated"),
    [
        (LONGER, 1_110, True),
        (LONGER, 1_111, False),
        (SHORTER, 1_030, True),
        (SHORTER, 1_031, False),
    ],
)
def test_repeats_over_a_boundary_go_by_the_shorter_d(
    definition: Definition, again: int, repeated: bool
) -> None:
    """D = 110 before, 350 or 30 behind."""
    partition = partition_of()
    partition.show(1_000)
    begin(partition, 1_005, definition)
    partition.show(again)
    partition.tick(9_000)
    assert len(partition.groups) == (1 if repeated else 2)


@pytest.mark.parametrize(
    ("definition", "again", "repeated"),
    [
        (LONGER, 1_210, True),
        (LONGER, 1_211, False),
        (SHORTER, 1_050, True),
        (SHORTER, 1_051, False),
    ],
)
def test_repeated_conversions_over_a_boundary_go_by_the_shorter_d_c(
    definition: Definition, again: int, repeated: bool
) -> None:
    """D_c = 210 before, 650 or 50 behind."""
    partition = partition_of()
    partition.tick_impressions(9_000)
    partition.click(1_000)
    begin(partition, 1_005, definition)
    partition.click(again)
    assert len(partition.refused) == (1 if repeated else 2)


def test_the_volume_of_a_request_goes_by_the_shorter_d_c() -> None:
    """Two records of largest size fit within D_c; behind the boundary D_c = 50 counts for all."""
    size = len(encode(valid_conversion("r1", "c0"))) + len("r1")
    assert 2 * (size - 2 + 32) <= 4 * size < 3 * (size - 2 + 32)
    first, second = FIRST._replace(max_record_bytes=size), SHORTER._replace(max_record_bytes=size)
    partition = Partition(terms(first))
    partition.tick_impressions(9_000)
    partition.click(1_000, name="c0")
    partition.click(1_000, name="c1")
    partition.click(1_000, name="c2")
    partition.begin(Log.CONVERSIONS, 1_010, generation(second))
    partition.click(1_050, name="c3")
    partition.click(1_051, name="c4")
    assert [reason for _, _, _, reason in partition.refused] == [
        "ORPHAN",
        "ORPHAN",
        "TOO_LARGE",
        "TOO_LARGE",
        "ORPHAN",
    ]


def test_an_outcome_that_the_impressions_generation_does_not_know_is_a_dead_letter() -> None:
    partition = partition_of()
    partition.show(1_000, "r1")
    begin(partition, 1_001, Definition(2, 100, 10, 200, outcomes="many"))
    partition.show(1_002, "r2")
    for request_id in ("r1", "r2"):
        liked = valid_conversion(request_id, "c1")
        liked.outcome = "like"
        partition.append(Log.CONVERSIONS, 1_010, request_id.encode(), encode(liked))
    partition.tick(2_000)
    assert partition.members == {0: [], 2: [2]}
    assert partition.refused == [(Kind.DEAD_LETTERS, "conversions", 1, "UNKNOWN_OUTCOME")]
    assert partition.groups[1].rewards.realised == 0.5


def test_decisions_of_another_schema_are_taken_only_where_it_decides_alike() -> None:
    partition = partition_of()
    partition.show(1_000, "r1")
    begin(partition, 1_001, Definition(2, 100, 10, 200, objectives=2))
    partition.show(1_002, "r2")
    partition.tick(2_000)
    assert [group.offset for group in partition.groups] == [0]
    assert partition.refused == [(Kind.DEAD_LETTERS, "impressions", 2, "UNKNOWN_SCHEMA")]


# --- boundary records ---


def test_a_boundary_that_comes_again_is_a_tick() -> None:
    partition = partition_of()
    begin(partition, 1_000, SHORTER)
    begin(partition, 1_010, SHORTER)
    begin(partition, 1_020, FIRST)
    partition.tick(3_000)
    assert len(partition.boundaries) == 1
    counts = partition.progress[-1].standing.counts
    assert (counts.impressions_ticks, counts.conversions_ticks) == (3, 3)
    assert not partition.side
    assert [partition.join.generation(log) for log in Log] == [2, 2]


@pytest.mark.parametrize("log", list(Log))
def test_a_boundary_is_missing_before_another(log: Log) -> None:
    partition = partition_of()
    with pytest.raises(
        StreamError,
        match=rf"{log.value} partition 0 offset 0: expected the boundary of generation 2 before "
        r"the next one, seen that of generation 3",
    ):
        partition.begin(log, 1_000, generation(Definition(3, 20, 10, 40)))


def test_a_boundary_must_say_what_was_begun() -> None:
    partition = Partition(terms(FIRST, SHORTER))
    with pytest.raises(StreamError, match="expected the boundary of generation 2 as it was begun"):
        partition.begin(Log.IMPRESSIONS, 1_000, generation(LONGER))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "NULL_VALUE"),
        (b"", "NULL_VALUE"),
        (b"\xff\xff", "UNDECODABLE"),
        (encode(Generation(policy="other", generation=2)), "UNKNOWN_POLICY"),
    ],
)
@pytest.mark.parametrize("log", list(Log))
def test_a_broken_boundary_is_a_dead_letter(log: Log, value: bytes | None, reason: str) -> None:
    partition = partition_of()
    partition.logs[log].append(Record(0, 1_000, b"", value, tick=False, boundary=True))
    partition.read(log)
    assert partition.refused == [(Kind.DEAD_LETTERS, log.value, 0, reason)]
    assert partition.join.generation(log) == 1


@pytest.mark.parametrize("log", list(Log))
def test_a_build_without_the_computation_stops_at_the_boundary(log: Log) -> None:
    partition = partition_of()
    with pytest.raises(
        BoundaryError, match=r"computation that this build has .*, seen 99: start a"
    ):
        partition.begin(log, 1_000, generation(SHORTER._replace(computation=99)))


def test_a_known_generation_that_cannot_be_computed_is_no_matter_before_its_boundary() -> None:
    known = terms_of([generation(FIRST), generation(SHORTER._replace(computation=99))])
    partition = Partition(known)
    partition.show(1_000)
    partition.tick(1_101)
    assert len(partition.groups) == 1
    join = partition.new_owner()
    start = join.start_record(Cursor(0, 0), 2).value
    with pytest.raises(BoundaryError, match="start a newer build"):
        join.resume(start, [start], Cursor(0, 0))


def test_a_generation_is_computed_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def another(schema: Schema, groups: Sequence[ClosedGroup]) -> list[Rewards]:
        return [Rewards(realised=-7) for _ in groups]

    both: Mapping[int, object] = {**COMPUTATIONS, 99: another}
    monkeypatch.setattr("stream.terms.COMPUTATIONS", both)
    monkeypatch.setattr("stream.join_outputs.COMPUTATIONS", both)
    partition = partition_of()
    partition.show(1_000, "r1")
    begin(partition, 1_000, SHORTER._replace(computation=99))
    partition.show(1_000, "r2")
    partition.tick(2_000)
    assert [group.computation for group in partition.groups] == [1, 99]
    assert [group.rewards.realised for group in partition.groups] == [0, -7]
    assert partition.boundaries[0].computation == 1


# --- new owners ---


def crossing() -> Partition:
    """Groups before and behind a boundary, progress between."""
    partition = partition_of()
    for number in range(6):
        partition.tick(700 + 50 * number)
    partition.show(1_000, "r1")
    partition.click(1_001, "r1")
    begin(partition, 1_010, SHORTER)
    partition.show(1_010, "r2")
    partition.click(1_011, "r2")
    for number in range(12):
        partition.tick(1_020 + 50 * number)
    return partition


def test_a_new_owner_goes_on_before_at_and_behind_the_boundary() -> None:
    """Whatever was written last, what it writes is what would have been written."""
    whole = crossing()
    at = kinds(whole).index("boundary")
    assert "progress" in kinds(whole)[:at]
    assert "progress" in kinds(whole)[at:]
    known = {output.value for output in whole.main}
    leaving = [each.value for each in whole.main if standing_of(each.value) != "progress"]
    for written in range(1, len(whole.main)):
        partition = Partition(terms(FIRST, SHORTER))
        partition.logs = whole.logs
        partition.main = whole.main[:written]
        values = [output.value for output in partition.main]
        partition.join = partition.new_owner()
        partition.join.resume(values[0], values[-1:], Cursor(0, 0))
        for log in Log:
            partition.read(log)
        seen = [output.value for output in partition.main]
        assert [each for each in seen if standing_of(each) != "progress"] == leaving
        assert seen[-1] == whole.main[-1].value
        # Read as one batch it tells progress less often, but nothing else.
        assert set(seen) <= known


def standing_of(value: bytes) -> str | None:
    return JoinRecord.FromString(value).WhichOneof("kind")


def test_what_a_new_owner_must_read_gets_shorter_with_the_horizons() -> None:
    """E + L + D = 320 counts until both rewinds are behind the boundary at 1000, then 40.

    Ticks come every 50 ms in both logs. At A = 1300 the impressions are needed from behind 980 on,
    so from the tick of 1000, which lies before the boundary. At A = 1330 that is 1010: behind it.
    """
    partition = partition_of()
    for number in range(7):
        partition.tick(700 + 50 * number)
    begin(partition, 1_000, Definition(2, 20, 0, 20))
    for number in range(1, 13):
        partition.tick(1_000 + 50 * number)
    told = {p.standing.frontier_ms: p.standing for p in partition.progress}
    assert told[1_280].rewind.impression_offset == 6
    assert told[1_280].rewind_impression_time_ms == 950
    assert told[1_280].rewind_impression_generation == 1
    assert told[1_280].rewind_conversion_generation == 2
    assert told[1_330].rewind_impression_generation == 2
    # 1330 - 40: the first behind is the tick of 1300; for conversions 1330 - 20, the tick of 1350.
    assert told[1_330].rewind_impression_time_ms == 1_250
    assert told[1_330].rewind_conversion_time_ms == 1_300


def test_a_generation_that_is_not_known_is_refused_by_name() -> None:
    whole = crossing()
    values = [output.value for output in whole.main]
    join = PartitionJoin(terms(FIRST), partition=0, partitions=1)
    with pytest.raises(BoundaryError, match=r"generations that are known \(1\), seen one of .* 2"):
        join.resume(values[0], values[-1:], Cursor(0, 0))


# --- accepted losses ---


def losing() -> Partition:
    """One group written, one impression open; the inputs up to it are gone."""
    partition = partition_of()
    partition.show(1_000, "r1")
    partition.click(1_010, "r1")
    partition.tick(1_150)
    partition.show(1_160, "r2")
    partition.show(1_170, "r3")
    partition.click(1_175, "r3")
    return partition


def test_what_is_lost_is_counted_from_what_was_done() -> None:
    """Done: impressions before the tick at offset 1, conversions up to 1040, so before offset 1."""
    partition = losing()
    values = [output.value for output in partition.main]
    assert standing(partition.main[-1]).frontier_ms == 1_050
    head = Cursor(3, 2)
    join = partition.new_owner()
    with pytest.raises(RetentionLost, match="impressions: expected to read from offset 0, seen 3"):
        join.resume(values[0], values, head)
    loss = join.loss(values, head, end=len(values))
    assert loss == Loss(
        impressions=2,
        conversions=1,
        prev=0,
        done=Cursor(1, 1),
        close_time_ms=1_150,
        segment=len(values),
    )


def accept(partition: Partition, head: Cursor, generation: int = 1) -> None:
    """A new owner accepts the loss and goes on."""
    values = [output.value for output in partition.main]
    loss = partition.new_owner().loss(values, head, end=len(values))
    start = partition.new_owner().start_record(head, generation, loss)
    partition.main.append(start)
    partition.join = partition.new_owner()
    assert partition.join.resume(values[0], [*values, start.value], head) == head
    for log in Log:
        partition.read(log)


def test_an_accepted_loss_begins_anew_behind_it() -> None:
    partition = losing()
    end = len(partition.main)
    accept(partition, Cursor(3, 2))
    partition.tick(1_400)
    [_, start] = [each.start for each in partition.records if each.HasField("start")]
    assert (start.segment, start.generation) == (end, 1)
    assert start.head == CursorMessage(impression_offset=3, conversion_offset=2)
    first, second = partition.groups
    assert (second.offset, second.standing.prev) == (3, 0)
    assert [each.offset for each in second.conversions] == [2]
    assert second.standing.segment == end
    assert second.standing.least_close_time_ms == 1_150
    assert second.standing.counts.impressions_grouped == 1
    assert first.standing.counts.impressions_grouped == 1
    assert partition.refused == []


def test_nothing_closes_before_what_had_closed() -> None:
    """W = 20 behind the loss, and a clock that went back: 1230 would close at 1250."""
    partition = losing()
    partition.terms = terms(FIRST, SHORTER)
    partition.tick(1_261)
    assert [group.close_time_ms for group in partition.groups] == [1_100, 1_260]
    partition.show(1_230, "r4")
    accept(partition, Cursor(5, 4), generation=2)
    before = len(partition.main)
    partition.tick(1_260)
    assert len(partition.main) == before, "no group and no progress"
    partition.tick(1_261)
    assert [group.close_time_ms for group in partition.groups] == [1_100, 1_260, 1_260]
    assert partition.groups[-1].standing.prev == 2


def test_what_was_decided_is_remembered_and_not_written_again() -> None:
    """The logs reach back before `done`, but not to the rewind: r1 is known, and not lost."""
    partition = partition_of()
    partition.tick(500)
    partition.show(1_000, "r1")
    partition.click(1_010, "r1", "c1")
    partition.tick_conversions(1_101)
    assert kinds(partition) == ["start", "progress", "progress", "group"]
    partition.show(1_105, "r1")
    head = Cursor(1, 1)
    values = [output.value for output in partition.main]
    assert partition.new_owner().loss(values, head, end=9)[:2] == (0, 0)
    accept(partition, head)
    partition.tick(2_000)
    # The repeat at 1105 is one all the same, and c1 is a member of the group that is written: it
    # was not done at A = 1000, as t > A - 10.
    assert [group.offset for group in partition.groups] == [1]
    counts = standing(partition.main[-1]).counts
    assert (counts.impressions_grouped, counts.impressions_duplicate) == (0, 1)
    assert counts.conversions_joined == 1
    assert not partition.side


def test_an_old_owners_records_behind_the_start_are_not_obeyed() -> None:
    """Though they are further than all that the new segment has."""
    partition = losing()
    old = partition.join
    zombie = old.feed(Log.CONVERSIONS, [Record(3, 1_300, None, b"", tick=True)])
    assert zombie.groups
    values = [output.value for output in partition.main]
    head = Cursor(3, 2)
    loss = partition.new_owner().loss(values, head, end=len(values))
    start = partition.new_owner().start_record(head, 1, loss).value
    late = [output.value for output in (*zombie.groups, *zombie.progress)]
    assert partition.new_owner().resume(values[0], [*values, start, *late], head) == head
    assert partition.new_owner().resume(values[0], [start, *late], head) == head


def test_of_two_owners_who_accept_the_same_loss_the_first_counts() -> None:
    partition = losing()
    values = [output.value for output in partition.main]
    starts = []
    for head in (Cursor(3, 2), Cursor(4, 2)):
        loss = partition.new_owner().loss(values, head, end=len(values))
        starts.append(partition.new_owner().start_record(head, 1, loss).value)
    join = partition.new_owner()
    assert join.resume(values[0], [*values, *starts], Cursor(3, 2)) == Cursor(3, 2)
    with pytest.raises(RetentionLost, match="expected to read from offset 3, seen 4"):
        partition.new_owner().resume(values[0], [*values, *starts], Cursor(4, 2))


def test_of_an_output_that_retention_emptied_nothing_is_known() -> None:
    join = partition_of().new_owner()
    assert join.loss([], Cursor(7, 8), end=40) == Loss(0, 0, -1, Cursor(7, 8), NEVER, 40)
