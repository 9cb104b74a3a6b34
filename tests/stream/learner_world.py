"""A small world in memory: input logs, what the join and the learner make of them, all topics.

Logs are as Kafka would hold them, so that the tests of learner and reconcile can plant anything in
them.
"""

from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
from grade.v1.conversion_pb2 import Conversion
from grade.v1.decision_pb2 import ARM_POLICY, Decision, SignedDecision
from grade.v1.impression_pb2 import Impression

from policy.dirichlet import log_density, sample_weights
from policy.fusion import arm
from policy.schema import Schema, load_schema
from policy.trainer_settings import TrainerSettings
from stream.codec import TICK_HEADER, TICK_VALUE, encode, partition_for
from stream.join import Cursor, JoinSettings, Kind, PartitionJoin, Record
from stream.join import Log as Side
from stream.logs import Log, LogRecord
from stream.parameters import VersionId, snapshot_key
from stream.reconcile import Content, ReconcileSettings
from stream.topics import Topics
from stream.version_chain import Learned, VersionChain

SCHEMA: Schema = load_schema(Path(__file__).parent.parent / "example_schema.toml")
JOIN = JoinSettings(window_ms=SCHEMA.window_ms, early_ms=SCHEMA.early_ms, late_ms=SCHEMA.late_ms)
TRAINER = TrainerSettings(seed=7)
SLOT_MS = 250
SETTINGS = ReconcileSettings(join=JOIN, trainer=TRAINER, slot_ms=SLOT_MS)
TOPICS = Topics("grade")
BEGIN_MS = 1_700_000_000_000
MEMBERS = 4
ITEMS = 4


def impression(random: Random, request: int) -> Impression:
    """An impression whose decision was drawn from a Dirichlet around the baseline."""
    request_id, unit_id = f"request-{request}", f"unit-{random.randrange(1000)}"
    alpha = 20 * SCHEMA.baseline()
    generator = np.random.default_rng(random.randrange(2**32))
    policy_arm = arm(SCHEMA, unit_id)
    decision = Decision(
        policy=SCHEMA.policy,
        request_id=request_id,
        unit_id=unit_id,
        epoch=1,
        version=1,
        schema_digest=SCHEMA.digest,
        arm=policy_arm,
        features=[random.gauss(0, 1) for _ in SCHEMA.features],
    )
    if policy_arm == ARM_POLICY:
        weights = sample_weights(generator, alpha, SCHEMA.floors(), MEMBERS)
        decision.alpha.extend(alpha.tolist())
        decision.weights.extend(weights.ravel().tolist())
        decision.log_densities.extend(log_density(weights, alpha, SCHEMA.floors()).tolist())
        decision.executed = random.randrange(MEMBERS)
    else:
        decision.weights.extend(SCHEMA.baseline().tolist())
    return Impression(
        policy=SCHEMA.policy,
        request_id=request_id,
        decision=SignedDecision(payload=encode(decision)),
        item_ids=[f"item-{item}" for item in range(ITEMS)],
        positions=list(range(ITEMS)),
        scores=[
            score
            for _ in range(ITEMS)
            for score in (
                random.uniform(0.01, 0.5),
                random.uniform(0.001, 0.1),
                random.uniform(1, 90),
            )
        ],
        shown_at_ms=BEGIN_MS,
    )


def conversion(random: Random, request: int, number: int) -> Conversion:
    """A click or an order on one of the items."""
    return Conversion(
        policy=SCHEMA.policy,
        request_id=f"request-{request}",
        conversion_id=f"conversion-{number}",
        item_id=f"item-{random.randrange(ITEMS)}",
        outcome=random.choice(["click", "order"]),
        value=1.0,
        happened_at_ms=BEGIN_MS,
    )


def input_logs(
    seed: int, requests: int, partitions: int, *, rate_ms: int = 40
) -> tuple[list[Log], list[Log]]:
    """Impressions and conversions with repeats, late ones, orphans, broken records and ticks.

    Args:
        seed: seed of the world.
        requests: number of requests.
        partitions: number of partitions.
        rate_ms: milliseconds between two requests.
    """
    random = Random(seed)
    events: list[tuple[int, int, bytes, bytes]] = []  # time, side, key, value
    for request in range(requests):
        at = BEGIN_MS + request * rate_ms
        key = f"request-{request}".encode()
        shown = encode(impression(random, request))
        events.append((at, 0, key, shown))
        if random.random() < 0.05:
            events.append((at + 300, 0, key, shown))
        for number in range(random.choice([0, 0, 1, 2])):
            delay = random.choice([-200, 100, 1500, 4900, SCHEMA.window_ms + 700])
            value = encode(conversion(random, request, number))
            events.append((at + delay, 1, key, value))
            if random.random() < 0.1:
                events.append((at + delay + 50, 1, key, value))
    for number in range(max(1, requests // 20)):
        at = BEGIN_MS + random.randrange(requests * rate_ms)
        broken, orphan = f"broken-{number}".encode(), requests + number
        events.append((at, random.randrange(2), broken, b"\xff not a message"))
        key = f"request-{orphan}".encode()
        events.append((at, 1, key, encode(conversion(random, orphan, 0))))
    end = BEGIN_MS + requests * rate_ms + SCHEMA.late_ms + SCHEMA.window_ms + 3 * SLOT_MS
    logs = ([Log(0, 0, []) for _ in range(partitions)], [Log(0, 0, []) for _ in range(partitions)])
    for at, number, key, value in sorted(events):
        _append(logs[number], partition_for(key, partitions), at, key, value)
    for at in (end - SCHEMA.window_ms, end):
        for side in logs:
            for partition in range(partitions):
                _append(side, partition, at, None, TICK_VALUE, tick=True)
    return logs


def _append(
    side: list[Log],
    partition: int,
    at: int,
    key: bytes | None,
    value: bytes | None,
    *,
    tick: bool = False,
) -> None:
    head, end, records = side[partition]
    records.append(LogRecord(end, at, key, value, [TICK_HEADER] if tick else ()))
    side[partition] = Log(head, end + 1, records)


def log_of(records: Sequence[tuple[bytes | None, bytes | None]]) -> Log:
    """A log of keys and values, numbered from 0."""
    return Log(
        0,
        len(records),
        [LogRecord(at, BEGIN_MS, key, value) for at, (key, value) in enumerate(records)],
    )


def join_logs(
    impressions: list[Log], conversions: list[Log], *, chunk: int = 7
) -> dict[Kind, list[Log]]:
    """What the join writes, per kind and partition, reading both logs in small turns."""
    partitions = len(impressions)
    outputs: dict[Kind, list[list[tuple[bytes | None, bytes | None]]]] = {
        kind: [[] for _ in range(partitions)] for kind in Kind
    }
    for partition in range(partitions):
        join = PartitionJoin(SCHEMA, JOIN, partition=partition, partitions=partitions)
        start = join.start_record(Cursor(0, 0))
        outputs[start.kind][partition].append((start.key, start.value))
        at = dict(zip(Side, join.resume(start.value, [start.value], Cursor(0, 0)), strict=True))
        logs = {Side.IMPRESSIONS: impressions[partition], Side.CONVERSIONS: conversions[partition]}
        moved = True
        while moved:
            moved = False
            for side, log in logs.items():
                records = [
                    Record(each.offset, each.timestamp_ms, each.key, each.value, bool(each.headers))
                    for each in log.records[at[side] : at[side] + chunk]
                ]
                if records and join.readable(side):
                    step = join.feed(side, records)
                    at[side] += len(records)
                    moved = True
                    for output in [*step.side, *step.groups, *step.progress]:
                        outputs[output.kind][partition].append((output.key, output.value))
    return {kind: [log_of(records) for records in found] for kind, found in outputs.items()}


def learn_logs(groups: list[Log], trainer: TrainerSettings = TRAINER) -> list[Learned]:
    """What the learner makes of the reward groups, one partition after the other."""
    chain = VersionChain(SCHEMA, trainer, len(groups), SLOT_MS)
    return [
        learned
        for partition, log in enumerate(groups)
        for record in log.records
        for learned in chain.feed(partition, record.value, position=record.offset)
    ]


def published_logs(learned: list[Learned]) -> tuple[Log, Log]:
    """The versions and the parameters topic."""
    versions = [(SCHEMA.policy.encode(), encode(each.version)) for each in learned]
    snapshots = [
        (
            snapshot_key(SCHEMA.policy, VersionId(each.version.epoch, each.version.version)),
            encode(each.snapshot),
        )
        for each in learned
    ]
    return log_of(versions), log_of(snapshots)


def content(
    seed: int = 1,
    requests: int = 60,
    partitions: int = 2,
    trainer: TrainerSettings = TRAINER,
) -> Content:
    """All topics after a run without any fault."""
    impressions, conversions = input_logs(seed, requests, partitions)
    outputs = join_logs(impressions, conversions)
    versions, parameters = published_logs(learn_logs(outputs[Kind.REWARD_GROUPS], trainer))
    return Content(
        TOPICS,
        impressions=impressions,
        conversions=conversions,
        reward_groups=outputs[Kind.REWARD_GROUPS],
        late=outputs[Kind.LATE],
        orphans=outputs[Kind.ORPHANS],
        dead_letters=outputs[Kind.DEAD_LETTERS],
        versions=versions,
        parameters=parameters,
    )


def changed(log: Log, at: int, **fields: object) -> Log:
    """The log with fields of its record number `at` replaced."""
    records = list(log.records)
    records[at] = records[at]._replace(**fields)  # type: ignore[arg-type] # any of its fields
    return Log(log.head, log.end, records)


def without(log: Log, at: int) -> Log:
    """The log as if its record number `at` had never been written."""
    return log_of(
        [(each.key, each.value) for number, each in enumerate(log.records) if number != at]
    )


def with_another(log: Log, key: bytes | None, value: bytes | None) -> Log:
    """The log with one more record at its end."""
    return log_of([*((each.key, each.value) for each in log.records), (key, value)])


def put(logs: Sequence[Log], partition: int, log: Log) -> list[Log]:
    """The partitions' logs with one replaced."""
    return [log if number == partition else each for number, each in enumerate(logs)]
