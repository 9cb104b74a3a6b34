"""Groups per second that one core learns from: serialized records in, versions out.

The backlog of `benchmarks/backlog.py` is joined in memory; what the join wrote goes, in the order
of close times and by as many records as a poll brings, through the `VersionChain` of `grade learn`:
decoding, slots, steps, state and parameters of every version. Kafka and the checkpoint's file are
left out.

"Served only" leaves out the steps on groups drawn anew; those cost about the same per version,
however many groups it learns from. A slot of 2,000 groups is what 8,000 requests/s make, one of 75
what 300 requests/s make. CPU seconds count, not wall time, and the best of several rounds.
"""

import gc
import time
from collections.abc import Sequence
from typing import NamedTuple

from grade.v1.reward_group_pb2 import JoinRecord

from benchmarks.backlog import Backlog, feed_schema, make_backlog, new_join
from policy.trainer_settings import TrainerSettings
from stream.generations import definition
from stream.join import Kind, Output
from stream.version_chain import VersionChain, by_number

PARTITIONS = 4
SLOT_MS = 250
LARGEST_FEED = 500
POLLED = 500
"""Records of a poll, as kafka-python's default is."""
SERVED_ONLY = TrainerSettings(fresh_steps=0, replay_steps=0)
LARGE_RATE, SMALL_RATE = 8_000.0, 300.0
"""Requests per second of log time; a quarter of it is a slot's groups."""


class Joined(NamedTuple):
    """One record of the reward-groups topic."""

    partition: int
    value: bytes


def run(full: bool) -> dict[str, float]:
    """Measure slots of about 2,000 and of about 75 groups."""
    return measure(large=40_000 if full else 16_000, small=9_000 if full else 3_000, rounds=5)


def measure(*, large: int, small: int, rounds: int) -> dict[str, float]:
    """Measure backlogs of some length.

    Args:
        large: requests of the one with large slots.
        small: requests of the one with small slots.
        rounds: how often; the best counts.
    """
    many = joined_records(make_backlog(large, rate=LARGE_RATE, partitions=PARTITIONS))
    few = joined_records(make_backlog(small, rate=SMALL_RATE, partitions=PARTITIONS))
    figures = {
        "groups_per_s": (many, SERVED_ONLY),
        "groups_per_s_all_steps": (many, TrainerSettings()),
        "groups_per_s_small_slots": (few, SERVED_ONLY),
        "groups_per_s_small_slots_all_steps": (few, TrainerSettings()),
    }
    best = dict.fromkeys(figures, 0.0)
    gc.collect()
    gc.freeze()  # the records in memory are the benchmark's, not the learner's
    try:
        for _ in range(rounds):
            for name, (records, settings) in figures.items():
                best[name] = max(best[name], _groups_per_cpu_s(records, settings))
    finally:
        gc.unfreeze()
    return best


def joined_records(backlog: Backlog) -> list[Joined]:
    """What the join makes of a backlog, as the learner would read it: in the order of time."""
    written = [
        Joined(partition, output.value)
        for partition in range(len(backlog.logs))
        for output in _join(backlog, partition)
        if output.kind is Kind.REWARD_GROUPS
    ]
    return sorted(written, key=lambda joined: _close_time_ms(joined.value))


def _join(backlog: Backlog, partition: int) -> list[Output]:
    join, start = new_join(partition, len(backlog.logs))
    logs, written = backlog.logs[partition], [start]
    while any(join.position(log) < len(records) for log, records in logs.items()):
        for log, records in logs.items():
            at = join.position(log)
            if at < len(records) and join.readable(log):
                step = join.feed(log, records[at : at + LARGEST_FEED])
                written += [*step.groups, *step.progress]
    return written


def _close_time_ms(value: bytes) -> int:
    record = JoinRecord.FromString(value)
    if record.HasField("group"):
        return record.group.close_time_ms
    return record.progress.close_time_ms  # 0 of a start


def _groups_per_cpu_s(records: Sequence[Joined], settings: TrainerSettings) -> float:
    first = definition(feed_schema(), settings, SLOT_MS)
    first.generation = 1
    chain = VersionChain(by_number({1: first}), PARTITIONS)
    began_s, groups = time.process_time(), 0
    for at in range(0, len(records), POLLED):
        for partition, value in records[at : at + POLLED]:
            chain.read(partition, value)
        for learned in chain.learn():
            groups += learned.version.groups
    return groups / (time.process_time() - began_s)
