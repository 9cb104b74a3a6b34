"""The join's rules 1 to 12 (design §3) one by one, with results worked out by hand.

Window W = 100 ms, early allowance E = 10 ms, late horizon L = 200 ms; so D = 110 ms, D_c = 210 ms.
"""

import numpy as np
import pytest
from grade.v1.refused_pb2 import Reason, Refused
from grade.v1.reward_group_pb2 import Counts, JoinRecord, Standing
from grade.v1.reward_group_pb2 import Cursor as CursorMessage

from policy.rewards import COMPUTATION, group_rewards
from stream.codec import encode
from stream.join import JoinLimits, JoinSettings, Kind, Log, Output, Record
from stream.join_records import NEVER
from stream.terms import first_terms
from tests.stream.join_messages import SCHEMA, valid_conversion, valid_impression
from tests.stream.join_partition import SETTINGS, Partition

# --- a group ---


def test_a_group_holds_what_its_window_brought() -> None:
    partition = Partition()
    partition.show(1_000)
    partition.click(1_040, name="c1")
    partition.click(1_100, name="c2", item_id="sofa")
    assert partition.join.open_groups == 1
    assert not partition.groups
    partition.tick_conversions(1_101)
    assert partition.join.open_groups == 0

    [output] = [output for output in partition.main if output.key]
    assert (output.kind, output.key) == (Kind.REWARD_GROUPS, b"r1")
    expected = JoinRecord()
    group = expected.group
    group.policy = "example"
    group.offset = 0
    group.impression_time_ms = 1_000
    group.close_time_ms = 1_100
    group.standing.CopyFrom(
        Standing(
            frontier_ms=1_000,
            prev=-1,
            done=CursorMessage(impression_offset=1, conversion_offset=0),
            rewind=CursorMessage(),
            rewind_impression_time_ms=NEVER,
            rewind_conversion_time_ms=NEVER,
            rewind_impression_generation=1,
            rewind_conversion_generation=1,
            counts=Counts(impressions_grouped=1),
        )
    )
    group.impression.CopyFrom(valid_impression())
    conversions = [valid_conversion(), valid_conversion("r1", "c2", "sofa")]
    group.conversions.add(offset=0, time_ms=1_040, conversion=conversions[0])
    group.conversions.add(offset=1, time_ms=1_100, conversion=conversions[1])
    weights = np.array([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]], dtype=np.float32)
    group.rewards.CopyFrom(group_rewards(SCHEMA, valid_impression(), weights, conversions))
    group.settings_digest = SETTINGS.digest(SCHEMA.digest)
    group.computation = COMPUTATION
    group.generation = 1
    assert JoinRecord.FromString(output.value) == expected
    assert output.value == encode(expected)


def test_a_group_of_the_holdout_arm_has_no_rewards() -> None:
    partition = Partition()
    partition.show(1_000, "r1", holdout=True)
    partition.show(1_000, "r2")
    partition.tick(1_101)
    assert [group.HasField("rewards") for group in partition.groups] == [False, True]


def test_a_group_leaves_only_after_its_window() -> None:
    """Rule 6: ct > a + W; at ct = a + W a conversion with t = a + W may follow."""
    partition = Partition()
    partition.show(1_000)
    partition.tick_conversions(1_100)
    assert not partition.groups
    late_member = partition.click(1_100)
    assert not partition.groups
    partition.tick_conversions(1_101)
    assert partition.members == {0: [late_member]}


def test_groups_leave_in_the_order_of_their_impressions() -> None:
    partition = Partition()
    for offset in range(4):
        assert partition.show(1_000 + offset // 2, f"r{offset}") == offset
    partition.tick(2_000)
    assert [group.offset for group in partition.groups] == [0, 1, 2, 3]
    assert [group.standing.prev for group in partition.groups] == [-1, 0, 1, 2]
    assert [group.close_time_ms for group in partition.groups] == [1_100, 1_100, 1_101, 1_101]


def test_an_impression_that_is_read_after_its_window_leaves_at_once() -> None:
    partition = Partition()
    partition.tick_impressions(900)
    partition.click(995)
    partition.tick_conversions(1_200)
    partition.show(1_000)
    assert partition.members == {1: [0]}


# --- rule 1 ---


def test_time_is_the_running_maximum_over_every_record() -> None:
    """Ticks and broken records move it; a record stamped earlier has the time reached so far."""
    partition = Partition()
    partition.append(Log.IMPRESSIONS, 1_000, b"r0", b"\xff")
    partition.show(950)
    partition.tick_conversions(1_000)
    partition.click(900)
    partition.tick_conversions(1_101)
    [group] = partition.groups
    assert (group.offset, group.impression_time_ms, group.close_time_ms) == (1, 1_000, 1_100)
    assert [(c.offset, c.time_ms) for c in group.conversions] == [(1, 1_000)]
    [dead] = [Refused.FromString(output.value) for output in partition.side]
    assert (dead.topic, dead.offset, dead.time_ms) == ("impressions", 0, 1_000)


# --- rules 2 and 3 ---


def test_a_repeated_impression_is_a_duplicate_up_to_d() -> None:
    partition = Partition()
    partition.show(1_000)
    partition.show(1_110)
    partition.show(1_221)
    partition.tick(2_000)
    assert [group.offset for group in partition.groups] == [0, 2]
    assert partition.progress[-1].standing.counts.impressions_duplicate == 1
    assert not partition.side


def test_a_duplicate_makes_duplicates() -> None:
    """Rule 2 asks for an earlier valid impression, accepted or not."""
    partition = Partition()
    partition.show(1_000)
    partition.show(1_100)
    partition.show(1_205)
    partition.show(1_316)
    partition.tick(2_000)
    assert [group.offset for group in partition.groups] == [0, 3]
    assert partition.progress[-1].standing.counts.impressions_duplicate == 2


def test_a_broken_impression_makes_no_duplicates() -> None:
    partition = Partition()
    impression = valid_impression()
    impression.scores[0] = float("nan")
    partition.append(Log.IMPRESSIONS, 1_000, b"r1", encode(impression))
    partition.show(1_001)
    partition.tick(2_000)
    assert [group.offset for group in partition.groups] == [1]


def test_a_repeated_conversion_is_a_duplicate_up_to_d_c() -> None:
    partition = Partition()
    partition.tick_impressions(5_000)
    for time_ms in (1_000, 1_210, 1_421):
        partition.click(time_ms)
    partition.tick(6_000)
    assert [offset for _, _, offset, _ in partition.refused] == [0, 2]
    counts = partition.progress[-1].standing.counts
    assert (counts.conversions_orphan, counts.conversions_duplicate) == (2, 1)


def test_equal_conversion_ids_of_two_requests_are_no_duplicates() -> None:
    partition = Partition()
    partition.show(1_000, "r1")
    partition.show(1_000, "r2")
    partition.click(1_010, "r1", "c1")
    partition.click(1_010, "r2", "c1")
    partition.tick(1_101)
    assert partition.members == {0: [0], 1: [1]}


# --- rules 4 and 5 ---


@pytest.mark.parametrize(
    ("time_ms", "fate"),
    [
        (990, "ORPHAN"),
        (991, "joined"),
        (1_000, "joined"),
        (1_100, "joined"),
        (1_101, "LATE"),
        (1_200, "LATE"),
        (1_201, "ORPHAN"),
    ],
)
@pytest.mark.parametrize("conversion_first", [True, False])
def test_what_a_conversion_becomes(time_ms: int, fate: str, conversion_first: bool) -> None:
    """a = 1000: joined in (990, 1100], late in (1100, 1200], whichever is read first."""
    partition = Partition()
    if conversion_first:
        partition.click(time_ms)
        partition.show(1_000)
    else:
        partition.show(1_000)
        partition.click(time_ms)
    partition.tick(2_000)
    if fate == "joined":
        assert partition.members == {0: [0]}
        assert partition.refused == []
    else:
        assert partition.members == {0: []}
        kind = Kind.LATE if fate == "LATE" else Kind.ORPHANS
        assert partition.refused == [(kind, "conversions", 0, fate)]
        [output] = partition.side
        refused = Refused.FromString(output.value)
        assert refused.impression_offset == (0 if fate == "LATE" else -1)
        assert (refused.key, refused.time_ms) == (b"r1", time_ms)
        assert refused.value == encode(valid_conversion())
        assert output.key == b"r1"


def test_a_conversion_waits_until_no_impression_can_follow() -> None:
    """At t = 1000 an impression with a < 1010 may still own it."""
    partition = Partition()
    partition.click(1_000)
    assert not partition.join.idle
    partition.tick_impressions(1_009)
    assert partition.refused == []
    partition.tick_impressions(1_010)
    assert partition.refused == [(Kind.ORPHANS, "conversions", 0, "ORPHAN")]
    assert partition.join.idle


def test_a_late_conversion_of_one_impression_may_belong_to_the_next() -> None:
    """t = 1105 is late for a = 1000 and early for a = 1111: joined goes first."""
    partition = Partition()
    partition.show(1_000)
    partition.click(1_105)
    assert partition.refused == []
    partition.show(1_111)
    partition.tick(2_000)
    assert partition.members == {0: [], 1: [0]}
    assert partition.refused == []


def test_members_are_in_the_order_of_the_conversion_log() -> None:
    partition = Partition()
    partition.click(995, name="c1")
    partition.click(999, name="c2")
    partition.show(1_000)
    partition.click(1_000, name="c3")
    partition.tick(2_000)
    assert partition.members == {0: [0, 1, 2]}


def test_a_conversion_of_an_item_that_was_not_shown_is_a_dead_letter() -> None:
    partition = Partition()
    partition.show(1_000)
    partition.click(1_010, name="c1", item_id="table")
    partition.click(1_020, name="c1", item_id="lamp")
    partition.tick(2_000)
    assert partition.members == {0: []}
    assert partition.refused == [(Kind.DEAD_LETTERS, "conversions", 0, "ITEM_NOT_SHOWN")]
    assert Refused.FromString(partition.side[0].value).message == (
        "item_id: expected one of the 2 items of impression 0 ('lamp', 'sofa'), seen 'table'"
    )
    counts = partition.progress[-1].standing.counts
    assert (counts.conversions_dead, counts.conversions_duplicate) == (1, 1)


def test_a_record_that_cannot_be_read_is_a_dead_letter_with_its_bytes() -> None:
    partition = Partition()
    partition.append(Log.CONVERSIONS, 1_000, b"k", b"\xff\xff")
    [output] = partition.side
    assert (output.kind, output.key) == (Kind.DEAD_LETTERS, b"k")
    assert Refused.FromString(output.value) == Refused(
        policy="example",
        reason=Reason.REASON_UNDECODABLE,
        message=r"value: expected Conversion, seen 2 bytes that are none: b'\xff\xff'",
        topic="conversions",
        partition=0,
        offset=0,
        time_ms=1_000,
        key=b"k",
        value=b"\xff\xff",
        impression_offset=-1,
    )


def test_a_tick_with_a_value_is_a_dead_letter() -> None:
    partition = Partition()
    partition.logs[Log.IMPRESSIONS].append(Record(0, 1_000, None, b"x", tick=True))
    partition.read(Log.IMPRESSIONS)
    assert partition.refused == [(Kind.DEAD_LETTERS, "impressions", 0, "HEADER_MISMATCH")]


def test_one_request_cannot_make_a_group_of_any_size() -> None:
    """Conversions of one request may have 4 × 200 bytes within D_c, framing of 32 included."""
    settings = JoinSettings(window_ms=100, early_ms=10, late_ms=200, max_record_bytes=200)
    size = len(encode(valid_conversion("r1", "c00"))) + 32
    fitting = 800 // size
    partition = Partition(first_terms(SCHEMA, settings))
    partition.tick_impressions(900)
    for number in range(fitting + 2):
        partition.click(1_000, "r1", f"c{number:02d}")
    partition.click(1_211, "r1", "c99")
    partition.tick_impressions(2_000)
    reasons = {offset: reason for _, _, offset, reason in partition.refused}
    assert [o for o, reason in reasons.items() if reason == "TOO_LARGE"] == [fitting, fitting + 1]
    assert reasons[fitting + 2] == "ORPHAN"


# --- rule 7 ---


def test_pausing_cannot_deadlock() -> None:
    """With conversions paused from it + E on, ct = 1011 and one open group would stop both."""
    partition = Partition(limits=JoinLimits(max_open_groups=1))
    assert partition.join.readable(Log.IMPRESSIONS)
    assert partition.join.readable(Log.CONVERSIONS)
    partition.show(1_000)
    partition.tick_conversions(1_011)
    assert not partition.join.readable(Log.IMPRESSIONS)
    assert partition.join.readable(Log.CONVERSIONS)
    partition.tick_conversions(1_100)
    assert not partition.join.readable(Log.IMPRESSIONS)
    assert partition.join.readable(Log.CONVERSIONS)
    partition.tick_conversions(1_101)
    assert partition.join.readable(Log.IMPRESSIONS)
    assert not partition.join.readable(Log.CONVERSIONS)


def test_conversions_wait_for_the_first_impression() -> None:
    partition = Partition()
    partition.click(1_000)
    assert partition.join.readable(Log.IMPRESSIONS)
    assert not partition.join.readable(Log.CONVERSIONS)


# --- rules 8 to 11 ---


def test_progress_names_a_frontier_and_what_lies_before_it() -> None:
    """it = 1100, ct = 1300: A = min(1300 - 100, 1100) = 1100.

    `done`: the first impression record with a ≥ 1100 is the tick at offset 1; the first conversion
    with t > 1090 is the tick at offset 2. Rewinds: a > 1100 - (10 + 200 + 110) = 780, and
    t > 1100 - (10 + 210) = 880: the conversion of 880 lies before it.
    """
    partition = Partition(batch=True)
    partition.show(1_000)
    partition.tick_impressions(1_100)
    partition.read(Log.IMPRESSIONS)
    partition.click(880, name="c1")
    partition.click(1_090, name="c2")
    partition.tick_conversions(1_300)
    partition.read(Log.CONVERSIONS)
    assert [record.WhichOneof("kind") for record in partition.records] == [
        "start",
        "group",
        "progress",
    ]
    expected = JoinRecord()
    progress = expected.progress
    progress.policy = "example"
    progress.close_time_ms = 1_200
    progress.settings_digest = SETTINGS.digest(SCHEMA.digest)
    progress.computation = COMPUTATION
    progress.generation = 1
    progress.standing.CopyFrom(
        Standing(
            frontier_ms=1_100,
            prev=0,
            done=CursorMessage(impression_offset=1, conversion_offset=2),
            rewind=CursorMessage(impression_offset=0, conversion_offset=1),
            rewind_impression_time_ms=NEVER,
            rewind_conversion_time_ms=880,
            rewind_impression_generation=1,
            rewind_conversion_generation=1,
            counts=Counts(impressions_grouped=1, conversions_joined=1, conversions_orphan=1),
        )
    )
    assert partition.records[-1] == expected
    assert partition.main[-1] == Output(Kind.REWARD_GROUPS, b"", encode(expected))


def test_progress_comes_once_per_step_of_log_time() -> None:
    """A + W crosses a multiple of 50 at 1100, 1150 and 1200; a group counts as progress."""
    partition = Partition()
    partition.tick_impressions(5_000)
    for time_ms in (1_101, 1_120, 1_149, 1_150, 1_199, 1_230, 1_249):
        partition.tick_conversions(time_ms)
    assert [p.close_time_ms for p in partition.progress] == [1_101, 1_150, 1_230]
    assert [p.standing.frontier_ms for p in partition.progress] == [1_001, 1_050, 1_130]
    assert [p.standing.done.impression_offset for p in partition.progress] == [0, 0, 0]


def test_progress_is_no_news_after_a_group_of_the_same_step() -> None:
    partition = Partition()
    partition.tick_impressions(990)
    partition.tick_conversions(1_000)
    partition.show(1_010)
    partition.tick_impressions(2_000)
    before = len(partition.progress)
    partition.tick_conversions(1_120)
    assert len(partition.groups) == 1
    assert len(partition.progress) == before, "1110 and 1120 lie in the same 50 ms"


def test_the_frontier_waits_for_the_log_that_is_behind() -> None:
    partition = Partition()
    partition.tick_impressions(1_000)
    partition.tick_conversions(9_000)
    assert [p.standing.frontier_ms for p in partition.progress] == [1_000]


def test_side_outputs_come_before_groups_before_progress() -> None:
    partition = Partition(batch=True)
    partition.show(1_000)
    partition.tick_impressions(2_000)
    partition.read(Log.IMPRESSIONS)
    partition.click(1_500)
    partition.tick_conversions(3_000)
    step = partition.join.feed(Log.CONVERSIONS, partition.logs[Log.CONVERSIONS])
    assert [output.kind for output in step.side] == [Kind.ORPHANS]
    kinds = [
        JoinRecord.FromString(output.value).WhichOneof("kind")
        for output in (*step.groups, *step.progress)
    ]
    assert kinds == ["group", "progress"]
