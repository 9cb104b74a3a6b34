"""A backlog of both input logs, as a ranking tier and its users would have written it.

Every request shows 10 of its candidates; the decision, drawn by the server's own engine, carries 8
members over 4 objectives. There is about one conversion per 10 impressions. What goes wrong in life
is there too: 1 % of the impressions and 5 % of the conversions come twice; of the conversions 5 %
are late, 3 % are orphans and 3 % come before their impression; 0.2 % of both cannot be used.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from grade.v1.context_pb2 import Context
from grade.v1.conversion_pb2 import Conversion
from grade.v1.impression_pb2 import Impression

from policy.schema import Schema, load_schema
from serving.engine import Engine
from stream.codec import TICK_VALUE, encode, partition_for
from stream.join import Cursor, PartitionJoin
from stream.join_records import JoinLimits, Log, Output, Record
from stream.terms import first_terms

BEGIN_MS: Final = 1_700_000_000_000
MEMBERS: Final = 8
ITEMS: Final = 10
CONVERSIONS_PER_REQUEST: Final = 0.1
PROGRESS_STEP_MS: Final = 250
_DECIDED_AT_ONCE: Final = 256


class Backlog(NamedTuple):
    """The records of all partitions."""

    logs: list[dict[Log, list[Record]]]
    """[partition] both logs in offset order; ticks at the end let every window close."""

    @property
    def records(self) -> int:
        """How many records there are."""
        return sum(len(log) for logs in self.logs for log in logs.values())


class _Event(NamedTuple):
    time_ms: int
    log: Log
    key: bytes
    value: bytes


@cache
def feed_schema() -> Schema:
    """The schema of `benchmarks/feed.toml`: 16 features, 4 objectives."""
    return load_schema(Path(__file__).with_name("feed.toml"))


def new_join(partition: int, partitions: int) -> tuple[PartitionJoin, Output]:
    """A join of one partition of the backlog, at its beginning, and the record that says so."""
    join = PartitionJoin(
        first_terms(feed_schema()),
        partition=partition,
        partitions=partitions,
        limits=JoinLimits(progress_step_ms=PROGRESS_STEP_MS),
    )
    head = Cursor(0, 0)
    start = join.start_record(head, 1)
    join.resume(start.value, [start.value], head)
    return join, start


def make_backlog(requests: int, *, rate: float, partitions: int, seed: int = 0) -> Backlog:
    """Make up what so many requests led to.

    Args:
        requests: how many.
        rate: of the requests, per second of log time.
        partitions: of both topics.
        seed: of the made-up world.
    """
    generator = np.random.default_rng(seed)
    events: list[_Event] = []
    for first in range(0, requests, _DECIDED_AT_ONCE):
        numbers = range(first, min(first + _DECIDED_AT_ONCE, requests))
        events += _impressions(numbers, rate, generator)
    events += _conversions(requests, rate, generator)
    events.sort(key=lambda event: event.time_ms)
    logs: list[dict[Log, list[Record]]] = [{log: [] for log in Log} for _ in range(partitions)]
    for event in events:
        log = logs[partition_for(event.key, partitions)][event.log]
        log.append(Record(len(log), event.time_ms, event.key, event.value, tick=False))
    _tick_to_the_end(logs, events[-1].time_ms)
    return Backlog(logs)


def _tick_to_the_end(logs: Sequence[dict[Log, list[Record]]], last_ms: int) -> None:
    """Two ticks: the first lets every window close, the second every conversion be decided."""
    settings = feed_schema()
    for add_ms in (settings.window_ms + 1, settings.window_ms + settings.late_ms + 1):
        for log in (log for pair in logs for log in pair.values()):
            log.append(Record(len(log), last_ms + add_ms, None, TICK_VALUE, tick=True))


def _impressions(numbers: range, rate: float, generator: np.random.Generator) -> list[_Event]:
    schema = feed_schema()
    features = generator.normal(size=(len(numbers), schema.n_features))
    contexts = [
        Context(
            policy=schema.policy,
            request_id=f"request-{number}",
            unit_id=f"unit-{number % 50_000}",
            features=row,
        )
        for number, row in zip(numbers, features.tolist(), strict=True)
    ]
    events = []
    responses = _engine().sample_batch(contexts)
    for number, context, response in zip(numbers, contexts, responses, strict=True):
        scores = generator.beta(2, 20, (ITEMS, schema.n_objectives))
        scores[:, -1] = generator.lognormal(3, 1, ITEMS)
        shown_at_ms = _time_of(number, rate)
        impression = Impression(
            policy=schema.policy,
            request_id=context.request_id,
            decision=response.decision,
            item_ids=_items(number),
            positions=range(ITEMS),
            scores=scores.ravel().tolist(),
            shown_at_ms=shown_at_ms,
        )
        fate = generator.random()
        key = context.request_id.encode()
        value = encode(impression) if fate > 0.002 else b"\xff not an impression"
        events.append(_Event(shown_at_ms, Log.IMPRESSIONS, key, value))
        if fate > 0.99:
            events.append(_Event(shown_at_ms + 300, Log.IMPRESSIONS, key, value))
    return events


def _conversions(requests: int, rate: float, generator: np.random.Generator) -> list[_Event]:
    schema = feed_schema()
    events = []
    for number in range(round(requests * CONVERSIONS_PER_REQUEST)):
        request = int(generator.integers(requests))
        fate = generator.random()
        delay_ms = int(generator.exponential(1_000)) % schema.window_ms
        item_id, request_id = _items(request)[int(generator.integers(ITEMS))], f"request-{request}"
        if fate < 0.05:
            delay_ms += schema.window_ms + 1
        elif fate < 0.08:
            request_id = f"never-shown-{number}"
        elif fate < 0.11:
            delay_ms = -200
        elif fate < 0.112:
            item_id = "never-shown"
        conversion = Conversion(
            policy=schema.policy,
            request_id=request_id,
            conversion_id=f"conversion-{number}",
            item_id=item_id,
            outcome="order" if generator.random() < 0.1 else "click",
            value=1.0,
            happened_at_ms=_time_of(request, rate) + delay_ms,
        )
        time_ms, key = conversion.happened_at_ms, request_id.encode()
        events.append(_Event(time_ms, Log.CONVERSIONS, key, encode(conversion)))
        if generator.random() < 0.05:
            events.append(events[-1]._replace(time_ms=time_ms + 100))
    return events


def _items(number: int) -> list[str]:
    return [f"item-{(number * 7 + place) % 100_000}" for place in range(ITEMS)]


def _time_of(number: int, rate: float) -> int:
    return BEGIN_MS + int(number * 1000 / rate)


@cache
def _engine() -> Engine:
    return Engine(feed_schema(), seed=0, members=MEMBERS)
