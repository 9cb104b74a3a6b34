"""The join's rules 13 to 16 (design §3): new owners, and what is refused.

Window W = 100 ms, early allowance E = 10 ms, late horizon L = 200 ms; so D = 110 ms, D_c = 210 ms.
"""

import pytest
from grade.v1.reward_group_pb2 import Counts, JoinRecord
from grade.v1.reward_group_pb2 import Cursor as CursorMessage

from policy.errors import BoundaryError, OffsetGap, RetentionLost, SettingsError, StreamError
from policy.rewards import COMPUTATION
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
from stream.terms import first_terms
from tests.stream.join_messages import SCHEMA
from tests.stream.join_partition import SETTINGS, TERMS, Partition, standing

# --- rules 13 and 14 ---


def test_a_new_owner_goes_on_within_one_instant() -> None:
    """Three groups of the same time; the tail ends with the first of them."""
    partition = Partition()
    for request_id in ("r1", "r2", "r3"):
        partition.show(1_000, request_id)
    partition.click(1_050, "r2")
    partition.tick(1_101)
    written = [output for output in partition.main if output.key]
    assert len(written) == 3

    partition.main = partition.main[:1] + written[:1]
    assert partition.crash() == Cursor(0, 0)
    partition.read(Log.IMPRESSIONS)
    assert partition.join.open_groups == 2
    partition.read(Log.CONVERSIONS)
    assert [output for output in partition.main if output.key] == written
    assert [group.standing.prev for group in partition.groups] == [-1, 0, 1]

    assert partition.crash(tail=3) == Cursor(0, 0)
    partition.read(Log.IMPRESSIONS)
    assert partition.join.open_groups == 0
    partition.read(Log.CONVERSIONS)
    assert [output for output in partition.main if output.key] == written


def test_a_new_owner_counts_on_and_writes_nothing_twice() -> None:
    """The frontier is 1200 when it comes: what lies before is not told again."""
    partition = Partition()
    partition.show(1_000, "r1")
    partition.append(Log.IMPRESSIONS, 1_000, b"r1", b"\xff")
    partition.click(1_010, "r1")
    partition.click(1_010, "r0")
    partition.tick(1_200)
    partition.tick_conversions(1_300)
    assert partition.progress[-1].standing.frontier_ms == 1_200
    main, side = list(partition.main), list(partition.side)
    assert partition.crash() == Cursor(0, 0)
    partition.read(Log.IMPRESSIONS)
    partition.read(Log.CONVERSIONS)
    assert (partition.main, partition.side) == (main, side)
    assert partition.join.open_groups == 0

    duplicate = partition.show(1_205, "r2")
    assert duplicate == 3
    partition.click(1_300, "r1", "c2")
    partition.tick(1_500)
    assert [group.offset for group in partition.groups] == [0, 3]
    assert partition.groups[-1].standing.prev == 0
    counts = partition.progress[-1].standing.counts
    assert counts == Counts(
        impressions_grouped=2,
        impressions_dead=1,
        impressions_ticks=1,
        conversions_joined=1,
        conversions_orphan=2,
        conversions_ticks=2,
    )


def test_a_new_owner_knows_what_was_shown_before_the_frontier() -> None:
    """At the frontier 1050 the conversions up to 1040 are done; those after it may be members of
    the group at 1000, which has left, and are counted without writing it again."""
    partition = Partition()
    partition.show(1_000, "r1")
    partition.tick_impressions(2_000)
    for number in range(5):
        partition.click(1_010 + 20 * number, "r1", f"c{number}")
    partition.tick_conversions(1_150)
    assert partition.progress[-1].standing.frontier_ms == 1_050
    assert partition.progress[-1].standing.counts.conversions_joined == 2
    partition.crash()
    partition.read(Log.IMPRESSIONS)
    partition.read(Log.CONVERSIONS)
    partition.tick_conversions(2_000)
    assert len(partition.groups) == 1
    assert not partition.side
    assert partition.progress[-1].standing.counts.conversions_joined == 5
    assert partition.progress[-1].standing.counts.conversions_late == 0


def test_the_furthest_record_of_the_tail_is_obeyed() -> None:
    """A paused owner wrote an older record after it."""
    partition = Partition()
    partition.tick(1_000)
    partition.tick(1_200)
    old, new = partition.main[1:]
    assert standing(old).frontier_ms < standing(new).frontier_ms
    partition.main = [partition.main[0], old, new, old]
    partition.crash(tail=2)
    partition.read(Log.IMPRESSIONS)
    partition.read(Log.CONVERSIONS)
    assert partition.main[4:] == []


def test_an_empty_partition_begins_at_the_heads_that_the_first_start_names() -> None:
    partition = Partition()
    join = partition.new_owner()
    first, second = join.start_record(Cursor(3, 5), 1), join.start_record(Cursor(4, 6), 1)
    assert first == Output(Kind.REWARD_GROUPS, b"", first.value)
    assert join.resume(first.value, [first.value, second.value], Cursor(3, 5)) == Cursor(3, 5)
    assert (join.position(Log.IMPRESSIONS), join.position(Log.CONVERSIONS)) == (3, 5)
    step = join.feed(Log.IMPRESSIONS, [Record(3, 1_000, None, b"", tick=True)])
    assert step == ([], [], [])
    step = join.feed(Log.CONVERSIONS, [Record(5, 1_100, None, b"", tick=True)])
    [progress] = step.progress
    assert standing(progress).done == CursorMessage(impression_offset=3, conversion_offset=5)
    assert standing(progress).rewind == CursorMessage(impression_offset=3, conversion_offset=5)


def test_nothing_is_read_before_the_output_has_been() -> None:
    join = PartitionJoin(TERMS, partition=0, partitions=1)
    with pytest.raises(StreamError, match="expected resume"):
        join.feed(Log.IMPRESSIONS, [Record(0, 1_000, None, b"", tick=True)])


# --- refusals ---


def test_retention_is_refused_with_the_numbers() -> None:
    join = PartitionJoin(TERMS, partition=0, partitions=1)
    start = join.start_record(Cursor(3, 5), 1).value
    with pytest.raises(
        RetentionLost,
        match=r"conversions: expected to read from offset 5, seen 9 .*: 4 records are lost",
    ):
        join.resume(start, [start], Cursor(3, 9))


@pytest.mark.parametrize(("log", "head"), [("impressions", (1, 0)), ("conversions", (0, 1))])
def test_retention_may_not_reach_the_rewind(log: str, head: tuple[int, int]) -> None:
    partition = Partition()
    partition.show(1_000)
    partition.click(1_000)
    partition.tick(1_101)
    values = [output.value for output in partition.main]
    with pytest.raises(RetentionLost, match=f"{log}: expected to read from offset 0, seen 1"):
        partition.new_owner().resume(values[0], values[-1:], Cursor(*head))


@pytest.mark.parametrize(
    "settings",
    [
        JoinSettings(window_ms=101, early_ms=10, late_ms=200),
        JoinSettings(window_ms=100, early_ms=11, late_ms=200),
        JoinSettings(window_ms=100, early_ms=10, late_ms=201),
    ],
)
def test_records_of_other_settings_are_a_boundary(settings: JoinSettings) -> None:
    partition = Partition()
    partition.show(1_000)
    partition.tick(1_101)
    values = [output.value for output in partition.main]
    for tail in ([], values[1:2], values[-1:]):
        owner = PartitionJoin(first_terms(SCHEMA, settings), partition=0, partitions=1)
        with pytest.raises(BoundaryError, match="expected records of policy 'example', settings"):
            owner.resume(values[0], tail, Cursor(0, 0))


def test_another_computation_is_a_boundary() -> None:
    join = PartitionJoin(TERMS, partition=0, partitions=1)
    start = JoinRecord.FromString(join.start_record(Cursor(0, 0), 1).value)
    start.start.computation += 1
    with pytest.raises(BoundaryError, match=f"computation {COMPUTATION + 1}"):
        join.resume(encode(start), [], Cursor(0, 0))


@pytest.mark.parametrize("value", [b"\xff\xff", b""])
def test_a_foreign_record_in_the_output_is_refused(value: bytes) -> None:
    join = PartitionJoin(TERMS, partition=0, partitions=1)
    with pytest.raises(StreamError, match=f"expected a JoinRecord, seen {len(value)} bytes"):
        join.resume(value, [], Cursor(0, 0))


@pytest.mark.parametrize("offsets", [[1], [0, 2], [0, 0], [0, 1, 3]])
def test_a_gap_is_refused_and_nothing_is_read(offsets: list[int]) -> None:
    partition = Partition()
    records = [Record(offset, 1_000, None, b"", tick=True) for offset in offsets]
    with pytest.raises(OffsetGap) as gap:
        partition.join.feed(Log.IMPRESSIONS, records)
    expected = next(i for i, offset in enumerate(offsets) if offset != i)
    assert (gap.value.expected, gap.value.seen) == (expected, offsets[expected])
    assert partition.join.position(Log.IMPRESSIONS) == 0
    good = [Record(offset, 1_000, None, b"", tick=True) for offset in range(4)]
    partition.join.feed(Log.IMPRESSIONS, good)
    assert partition.join.position(Log.IMPRESSIONS) == 4


def test_another_log_than_the_one_that_was_joined_is_noticed() -> None:
    """The first record at the rewind must be later than A - (E + L + D)."""
    partition = Partition()
    partition.tick(1_000)
    partition.tick(2_000)
    cursor = partition.crash()
    assert cursor == Cursor(1, 1)
    with pytest.raises(StreamError, match="impressions: expected a time above 1580 ms at the rew"):
        partition.join.feed(Log.IMPRESSIONS, [Record(1, 1_500, None, b"", tick=True)])


def test_nothing_happens_without_records() -> None:
    partition = Partition()
    assert partition.join.feed(Log.IMPRESSIONS, []) == ([], [], [])
    assert partition.join.idle


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"window_ms": 0}, "window_ms: expected at least 1, seen 0"),
        ({"early_ms": -1}, "early_ms: expected at least 0, seen -1"),
        ({"late_ms": 99}, "late_ms: expected 100 to 210, seen 99"),
        ({"late_ms": 211}, "late_ms: expected 100 to 210, seen 211"),
        ({"max_record_bytes": 0}, "max_record_bytes: expected at least 1, seen 0"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, int], said: str) -> None:
    settings = {"window_ms": 100, "early_ms": 10, "late_ms": 200}
    with pytest.raises(SettingsError, match=said):
        JoinSettings(**(settings | change))


@pytest.mark.parametrize("name", ["max_open_groups", "progress_step_ms"])
def test_limits_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=f"{name}: expected at least 1, seen 0"):
        JoinLimits(**{name: 0})


def test_the_digest_knows_what_decides() -> None:
    def digest(**change: int) -> bytes:
        settings = {"window_ms": 100, "early_ms": 10, "late_ms": 200}
        return JoinSettings(**(settings | change)).digest(SCHEMA.digest)

    assert digest() == digest()
    others = [digest(window_ms=110), digest(early_ms=0), digest(late_ms=150)]
    others.append(digest(max_record_bytes=1))
    assert len({digest(), *others, SETTINGS.digest(b"other schema")}) == 6
