"""A small world in memory: input logs, what the join and the learner make of them, all topics.

Logs are as Kafka would hold them, so that the tests of learner and reconcile can plant anything in
them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from grade.v1.conversion_pb2 import Conversion
from grade.v1.decision_pb2 import ARM_POLICY, Decision, SignedDecision
from grade.v1.generation_pb2 import Generation
from grade.v1.impression_pb2 import Impression

from policy.dirichlet import log_density, sample_weights
from policy.fusion import arm
from policy.schema import Schema, load_schema
from policy.trainer_settings import TrainerSettings
from stream.codec import BOUNDARY_HEADER, TICK_HEADER, TICK_VALUE, encode, partition_for
from stream.generations import definition
from stream.join import Cursor, Kind, Output, PartitionJoin, Record
from stream.join import Log as Side
from stream.logs import Log, LogRecord
from stream.parameters import VersionId, snapshot_key
from stream.reconcile import WholeContent
from stream.terms import schema_of, terms_of
from stream.topics import Topics
from stream.version_chain import Learned, VersionChain, by_number

SCHEMA: Schema = load_schema(Path(__file__).parent.parent / "example_schema.toml")
TRAINER = TrainerSettings(seed=7)
SLOT_MS = 250
TOPICS = Topics("grade")
BEGIN_MS = 1_700_000_000_000
MEMBERS = 4
ITEMS = 4

Generations = Mapping[int, Generation]


def generation(
    number: int = 1,
    *,
    schema: Schema = SCHEMA,
    trainer: TrainerSettings = TRAINER,
    slot_ms: int = SLOT_MS,
    accepted: Sequence[Schema] = (),
    initial_parameters: bytes = b"",
) -> Generation:
    """A generation as its topic has it."""
    made = definition(schema, trainer, slot_ms)
    made.generation = number
    made.accepted_schema_digests.extend(each.digest for each in accepted)
    made.initial_parameters = initial_parameters
    return made


FIRST: Generations = {1: generation()}
"""What is known of a policy that has had one generation."""


@dataclass(frozen=True)
class Begun:
    """A generation that begins in the middle of a world."""

    generation: Generation
    after: int
    """So many requests come before its boundary."""
    spread_ms: int = 130
    """Time from its boundary in one partition to that in the next."""

    def at_ms(self, partition: int, rate_ms: int) -> int:
        """When its boundary is written."""
        return BEGIN_MS + self.after * rate_ms + 1 + partition * self.spread_ms


def impression(random: Random, request: int, schema: Schema = SCHEMA) -> Impression:
    """An impression whose decision was drawn from a Dirichlet around the baseline."""
    request_id, unit_id = f"request-{request}", f"unit-{random.randrange(1000)}"
    alpha = 20 * schema.baseline()
    generator = np.random.default_rng(random.randrange(2**32))
    policy_arm = arm(schema, unit_id)
    decision = Decision(
        policy=schema.policy,
        request_id=request_id,
        unit_id=unit_id,
        epoch=1,
        version=1,
        schema_digest=schema.digest,
        arm=policy_arm,
        features=[random.gauss(0, 1) for _ in schema.features],
    )
    if policy_arm == ARM_POLICY:
        weights = sample_weights(generator, alpha, schema.floors(), MEMBERS)
        decision.alpha.extend(alpha.tolist())
        decision.weights.extend(weights.ravel().tolist())
        decision.log_densities.extend(log_density(weights, alpha, schema.floors()).tolist())
        decision.executed = random.randrange(MEMBERS)
    else:
        decision.weights.extend(schema.baseline().tolist())
    return Impression(
        policy=schema.policy,
        request_id=request_id,
        decision=SignedDecision(payload=encode(decision)),
        item_ids=[f"item-{item}" for item in range(ITEMS)],
        positions=list(range(ITEMS)),
        scores=[
            score
            for _ in range(ITEMS)
            for score in (
                random.uniform(*((0.01, 0.5), (0.001, 0.1), (1, 90))[number % 3])
                for number in range(schema.n_objectives)
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
    seed: int,
    requests: int,
    partitions: int,
    *,
    rate_ms: int = 40,
    begun: Sequence[Begun] = (),
) -> tuple[list[Log], list[Log]]:
    """Impressions and conversions with repeats, late ones, orphans, broken records and ticks.

    Args:
        seed: seed of the world.
        requests: number of requests.
        partitions: number of partitions.
        rate_ms: milliseconds between two requests.
        begun: generations that begin meanwhile; servers know their schema once the first boundary
            has been written.
    """
    random = Random(seed)
    events: list[tuple[int, int, bytes, bytes]] = []  # time, side, key, value
    for request in range(requests):
        at = BEGIN_MS + request * rate_ms
        key = f"request-{request}".encode()
        schema = next(
            (schema_of(each.generation) for each in reversed(begun) if at > each.at_ms(0, rate_ms)),
            SCHEMA,
        )
        shown = encode(impression(random, request, schema))
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
    records: list[tuple[int, int, int, bytes, bytes, tuple[tuple[str, bytes], ...]]] = [
        (at, side, partition_for(key, partitions), key, value, ())
        for at, side, key, value in events
    ]
    for each in begun:
        records += [
            (
                each.at_ms(partition, rate_ms),
                side,
                partition,
                b"",
                encode(each.generation),
                (BOUNDARY_HEADER,),
            )
            for partition in range(partitions)
            for side in (0, 1)
        ]
    records += [
        (at, side, partition, b"", TICK_VALUE, (TICK_HEADER,))
        for at in (end - SCHEMA.window_ms, end)
        for side in (0, 1)
        for partition in range(partitions)
    ]
    logs = ([Log(0, 0, []) for _ in range(partitions)], [Log(0, 0, []) for _ in range(partitions)])
    for at, side, partition, key, value, headers in sorted(records):
        log = logs[side][partition]
        key_or_none = None if TICK_HEADER in headers else key
        log.records.append(LogRecord(log.end, at, key_or_none, value, headers))
        logs[side][partition] = log._replace(end=log.end + 1)
    return logs


def log_of(records: Sequence[tuple[bytes | None, bytes | None]]) -> Log:
    """A log of keys and values, numbered from 0."""
    return Log(
        0,
        len(records),
        [LogRecord(at, BEGIN_MS, key, value) for at, (key, value) in enumerate(records)],
    )


def join_logs(
    impressions: list[Log],
    conversions: list[Log],
    *,
    generations: Generations = FIRST,
    chunk: int = 7,
) -> dict[Kind, list[Log]]:
    """What the join writes, per kind and partition, reading both logs in small turns."""
    partitions = len(impressions)
    outputs: dict[Kind, list[list[tuple[bytes | None, bytes | None]]]] = {
        kind: [[] for _ in range(partitions)] for kind in Kind
    }
    for partition in range(partitions):
        logs = {Side.IMPRESSIONS: impressions[partition], Side.CONVERSIONS: conversions[partition]}
        for output in join_partition(generations, logs, partition, partitions, chunk):
            outputs[output.kind][partition].append((output.key, output.value))
    return {kind: [log_of(records) for records in found] for kind, found in outputs.items()}


def join_partition(
    generations: Generations,
    logs: Mapping[Side, Log],
    partition: int,
    partitions: int,
    chunk: int = 7,
) -> Iterator[Output]:
    """What the join writes of one partition, the outputs of one turn after the other's."""
    join = PartitionJoin(terms_of(generations.values()), partition=partition, partitions=partitions)
    start = join.start_record(Cursor(0, 0), 1)
    yield start
    begin = join.resume(start.value, [start.value], Cursor(0, 0))
    yield from read_on(join, logs, dict(zip(Side, begin, strict=True)), chunk)


def read_on(
    join: PartitionJoin, logs: Mapping[Side, Log], at: dict[Side, int], chunk: int = 7
) -> Iterator[Output]:
    """What the join writes when it reads on from `at` to the end of both logs."""
    moved = True
    while moved:
        moved = False
        for side, log in logs.items():
            records = [
                Record(
                    each.offset,
                    each.timestamp_ms,
                    each.key,
                    each.value,
                    tick=TICK_HEADER in each.headers,
                    boundary=BOUNDARY_HEADER in each.headers,
                )
                for each in log.records[at[side] : at[side] + chunk]
            ]
            if records and join.readable(side):
                step = join.feed(side, records)
                at[side] += len(records)
                moved = True
                yield from [*step.side, *step.groups, *step.progress]


def new_chain(partitions: int, generations: Generations = FIRST) -> VersionChain:
    """A chain that has read nothing."""
    return VersionChain(by_number(generations), partitions)


def learn_logs(groups: list[Log], generations: Generations = FIRST) -> list[Learned]:
    """What the learner makes of the reward groups, one partition after the other."""
    chain = new_chain(len(groups), generations)
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
    first: Generation = FIRST[1],
    begun: Sequence[Begun] = (),
) -> WholeContent:
    """All topics after a run without any fault."""
    generations = {1: first, **{each.generation.generation: each.generation for each in begun}}
    impressions, conversions = input_logs(seed, requests, partitions, begun=begun)
    outputs = join_logs(impressions, conversions, generations=generations)
    versions, parameters = published_logs(learn_logs(outputs[Kind.REWARD_GROUPS], generations))
    return WholeContent(
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
