"""The join against its brute-force oracle: random histories, interleavings, crashes and zombies.

`JOIN_HISTORIES=20000 pytest tests/stream/test_join_property.py -k seeded` runs as many histories as
one likes; a failure names its seed.
"""

import os
from random import Random

import pytest
from grade.v1.refused_pb2 import Reason
from grade.v1.reward_group_pb2 import Boundary, JoinRecord, Progress, RewardGroup
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policy.errors import OffsetGap
from stream.join import Log
from tests.stream.join_checks import Expected
from tests.stream.join_histories import History, random_history, tick
from tests.stream.join_losses import check_losses, run_with_losses, segments_of
from tests.stream.join_oracle import Fate, Oracle
from tests.stream.join_owners import (
    OutputPartition,
    Owner,
    Promises,
    run_with_crashes,
    standing,
)

HISTORIES = int(os.environ.get("JOIN_HISTORIES", "200"))

randoms = st.randoms(use_true_random=False)
property_test = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.large_base_example,
    ],
)


def oracle_of(
    history: History, impressions: int | None = None, conversions: int | None = None
) -> Oracle:
    """The oracle of both logs, or of so many first records of each."""
    return Oracle(
        history.horizons, history.impressions[:impressions], history.conversions[:conversions]
    )


def joined(history: History, rng: Random) -> OutputPartition:
    """One owner's output, checked promise by promise."""
    output = Promises(oracle_of(history))
    owner = Owner(history, output, rng)
    owner.run()
    assert [owner.unread(log) for log in Log] == [0, 0], "paused for ever"
    return output


def check_one_owner(history: History, rng: Random) -> None:
    output = joined(history, rng)
    expected = Expected(history)
    expected.check(output)
    offsets = [r.group.offset for r in output.records() if r.WhichOneof("kind") == "group"]
    assert offsets == sorted(set(offsets)), "one owner repeats nothing"
    refused = [(r.topic, r.offset) for r in output.refused()]
    assert len(refused) == len(set(refused)), "one owner repeats nothing"


def check_crashes(history: History, rng: Random) -> int:
    output = Promises(oracle_of(history))
    crashes = run_with_crashes(history, output, rng)
    Expected(history).check(output)
    return crashes


@property_test
@given(randoms)
def test_one_owner_agrees_with_the_oracle(rng: Random) -> None:
    check_one_owner(random_history(rng), rng)


@property_test
@given(randoms)
def test_owners_that_crash_and_zombies_agree_with_the_oracle(rng: Random) -> None:
    check_crashes(random_history(rng), rng)


@property_test
@given(randoms)
def test_owners_that_accept_losses_agree_with_the_oracle(rng: Random) -> None:
    check_accepted_losses(random_history(rng), rng)


def check_accepted_losses(history: History, rng: Random) -> int:
    output = OutputPartition()
    run_with_losses(history, output, rng)
    check_losses(history, output)
    return len(segments_of(history, output)) - 1


def test_seeded_histories_agree_with_the_oracle() -> None:
    crashes = losses = 0
    for seed in range(HISTORIES):
        history = random_history(Random(seed))
        try:
            check_one_owner(history, Random(seed))
            crashes += check_crashes(history, Random(seed))
            losses += check_accepted_losses(history, Random(seed))
        except Exception as error:
            error.add_note(f"seed {seed}\n{history!r}")
            raise
    assert crashes > HISTORIES / 2, "the histories have to crash to mean something"
    assert losses > HISTORIES / 4, "records have to be lost to mean something"


@property_test
@given(randoms)
def test_interleaving_changes_no_byte(rng: Random) -> None:
    history = random_history(rng)
    first, second = joined(history, rng), joined(history, rng)

    def groups(output: OutputPartition) -> list[bytes]:
        return [
            o.value
            for o, record in zip(output.main, output.records(), strict=True)
            if record.WhichOneof("kind") in ("group", "boundary")
        ]

    def progress(output: OutputPartition) -> dict[int, bytes]:
        return {
            record.progress.standing.frontier_ms: o.value
            for o, record in zip(output.main, output.records(), strict=True)
            if record.WhichOneof("kind") == "progress"
        }

    assert groups(first) == groups(second)
    assert {o.value for o in first.sides} == {o.value for o in second.sides}
    both = progress(first).keys() & progress(second).keys()
    assert [progress(first)[a] for a in both] == [progress(second)[a] for a in both]


@property_test
@given(randoms)
def test_every_prefix_agrees_with_the_oracle(rng: Random) -> None:
    """What is decidable is written at once, and progress is told exactly when a step is passed."""
    history = random_history(rng)
    output = OutputPartition()
    owner = Owner(history, output, rng)
    last_frontier: int | None = None
    for _ in iter(owner.act, False):
        if owner.unwritten or not owner.resumed:
            continue
        read = {log: owner.join.position(log) - history.heads[log] for log in Log}
        oracle = oracle_of(history, read[Log.IMPRESSIONS], read[Log.CONVERSIONS])
        expected = Expected(history, oracle)
        written = [
            o.value
            for o, r in zip(output.main, output.records(), strict=True)
            if r.WhichOneof("kind") in ("group", "boundary")
        ]
        assert written == list(expected.leaving.values())
        # A conversion of an item that was not shown may wait for its group to close.
        refused = {(r.topic.split(".")[0], r.offset) for r in output.refused()}
        late = {k for k, s in expected.sides.items() if s.reason == Reason.REASON_ITEM_NOT_SHOWN}
        assert expected.sides.keys() - late <= refused <= expected.sides.keys()
        assert owner.join.open_groups == oracle.impression_fates.count(Fate.OPEN)
        fates = oracle.impression_fates + oracle.conversion_fates
        if owner.join.idle:
            assert Fate.OPEN not in fates
        last_frontier = check_pausing_and_progress(owner, oracle, last_frontier)


def check_pausing_and_progress(owner: Owner, oracle: Oracle, last: int | None) -> int | None:
    """Rules 7 and 8 after one batch; returns the frontier that has been told."""
    limits = owner.history.limits
    open_groups = oracle.impression_fates.count(Fate.OPEN)
    assert owner.join.readable(Log.IMPRESSIONS) == (open_groups < limits.max_open_groups)
    check_conversions_pause(owner, oracle)
    records = [r for r in owner.output.records() if not r.HasField("start")]
    told = [standing(r).frontier_ms for r in records]
    assert told == sorted(told)
    frontier = oracle.frontier()
    if frontier is None:
        assert not told
        return None
    progress = [
        r.progress.standing.frontier_ms for r in owner.output.records() if r.HasField("progress")
    ]
    # What was told before this batch, and what left with it.
    closes = [close(r) for r in records if not r.HasField("progress")]
    known = [standing(r).frontier_ms for r in records if not r.HasField("progress")]
    if last is not None:
        known.append(last)
        closes.append(oracle.progress_close(last))
    step = limits.progress_step_ms
    news = not known or frontier > max(known)
    due = news and (not known or oracle.progress_close(frontier) // step > max(closes) // step)
    # A frontier that a longer window has thrown back may have been told long before.
    assert (frontier in progress) == due or (last is not None and frontier <= last)
    return max(told, default=None)


def check_conversions_pause(owner: Owner, oracle: Oracle) -> None:
    """Conversions wait while they are ahead of all that can be open."""
    it = max(oracle.impression_times, default=None)
    ct = max(oracle.conversion_times, default=None)
    current = owner.join.generation(Log.IMPRESSIONS)
    closes = [each.close_time_ms for each in oracle.crossings]
    if it is not None:
        closes.append(it + oracle.terms[current].window)
    assert owner.join.readable(Log.CONVERSIONS) == (ct is None or any(ct <= c for c in closes))


def close(record: JoinRecord) -> int:
    """Close time of a record."""
    kind = record.WhichOneof("kind")
    assert kind in ("group", "boundary", "progress")
    told: RewardGroup | Boundary | Progress = getattr(record, kind)
    return told.close_time_ms


@property_test
@given(randoms)
def test_a_gap_loses_nothing(rng: Random) -> None:
    """Records that were skipped or come again are refused, and reading on gives the whole."""
    history = random_history(rng)
    output = OutputPartition()
    owner = Owner(history, output, rng)
    while owner.act():
        log = rng.choice(list(Log))
        if not owner.resumed or owner.unread(log) < 3:
            continue
        read, rest = owner.records[log][: position(owner, log)], owner.records[log]
        rest = rest[len(read) :]
        batches = [rest[1:2], [rest[0], rest[2]], [rest[0], rest[0]]]
        if read:
            batches.append([read[-1], rest[0]])
        batch = rng.choice(batches)
        before = owner.join.position(log)
        with pytest.raises(OffsetGap) as gap:
            owner.join.feed(log, batch)
        assert owner.join.position(log) == before
        offsets = [record.offset for record in batch]
        expected = before if offsets[0] != before else before + 1
        assert (gap.value.expected, gap.value.seen) == (expected, offsets[expected - before])
    Expected(history).check(output)


@property_test
@given(randoms)
def test_one_log_is_always_readable(rng: Random) -> None:
    """With ticks that come as time goes by, pausing never stops the join (rule 7)."""
    history = random_history(rng)
    # Without its closing ticks; what closes the groups are ticks that come one by one.
    owner = Owner(history, OutputPartition(), rng)
    while not owner.resumed:
        owner.act()
    logs = {log: records[:-1] for log, records in history.records.items()}
    stamps = [record.timestamp_ms for records in logs.values() for record in records]
    now = max(stamps, default=0)
    end = now + 100
    while now < end or any(position(owner, log) < len(logs[log]) for log in Log):
        readable = [log for log in Log if owner.join.readable(log)]
        assert readable, "both logs are paused"
        unread = [log for log in readable if position(owner, log) < len(logs[log])]
        log = rng.choice(unread or readable)
        if not unread:
            now += rng.randint(1, 3)
            logs[log].append(tick(owner.join.position(log), now))
            assert now < end + 1_000, "a log is paused for ever"
        size = rng.randint(1, owner.largest_batch)
        owner.join.feed(log, logs[log][position(owner, log) :][:size])


def position(owner: Owner, log: Log) -> int:
    """How many records of a log an owner has read."""
    return owner.join.position(log) - owner.history.heads[log]
