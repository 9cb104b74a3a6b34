"""A real `grade join` as a child process, traffic for it, and what it should have written."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from grade.v1.decision_pb2 import Decision
from grade.v1.reward_group_pb2 import JoinRecord, Start

from cli.system import free_ports
from monitor.watch import ask
from policy.schema import Schema
from stream.codec import encode, has_boundary_header, has_tick_header, partition_for
from stream.connection import Connection
from stream.generations import read_generations
from stream.join import Cursor, Kind, Log, PartitionJoin, Record
from stream.logs import Log as Partition
from stream.logs import read_logs
from stream.terms import Terms, first_terms, terms_of
from stream.topics import Topics
from tests.kafka import Produced, await_until, produce
from tests.stream.join_messages import valid_conversion, valid_impression

ROOT = Path(__file__).parent.parent.parent


def write_schema(folder: Path, window_s: float = 1.0) -> Path:
    """The tests' schema with a short window; late is twice as long."""
    text = (ROOT / "tests" / "example_schema.toml").read_text(encoding="utf-8")
    times = (("window_s", 5.0, window_s), ("early_s", 1.0, 0.2), ("late_s", 10.0, 2 * window_s))
    for name, was, now in times:
        assert f"{name} = {was}" in text
        text = text.replace(f"{name} = {was}", f"{name} = {now}")
    path = folder / f"policy-{window_s:g}.toml"
    path.write_text(text, encoding="utf-8")
    return path


def environment_of_join(
    connection: Connection, topics: Topics, schema_path: Path, **settings: str
) -> dict[str, str]:
    """Settings under which a worker, or another verb, finds the system.

    Args:
        connection: where Kafka is.
        topics: the join's topics, of two partitions.
        schema_path: the policy's schema.
        settings: further settings by their names.
    """
    return {
        "GRADE_SCHEMA_PATH": str(schema_path),
        "GRADE_BOOTSTRAP_SERVERS": connection.bootstrap_servers,
        "GRADE_TOPIC_PREFIX": topics.prefix,
        "GRADE_PARTITIONS": "2",
        "GRADE_JOIN_GROUP": f"{topics.prefix}-join",
        "GRADE_JOIN_SESSION_TIMEOUT_S": "6",
        **{f"GRADE_{key.upper()}": value for key, value in settings.items()},
    }


class JoinProcess:
    """A join worker: `python -m cli.main join`.

    Args:
        environment: its settings.
        log_path: receives its output.
        build: the module that is run; another one stands for another build.
        options: of `grade join`.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        log_path: Path,
        build: str = "cli.main",
        options: Sequence[str] = (),
    ) -> None:
        [self.admin_port] = free_ports(1)
        self._log = log_path.open("ab")
        self.log_path = log_path
        self.process = subprocess.Popen(
            [sys.executable, "-m", build, "join", *options],
            cwd=ROOT,
            env={**os.environ, **environment, "GRADE_JOIN_ADMIN_PORT": str(self.admin_port)},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )

    def health(self) -> dict[str, Any]:
        """Answer of /health; empty while there is none."""
        return ask(self.admin_port, "/health") or {}

    def await_healthy(self) -> None:
        """Wait until the worker has joined its group."""

        def healthy() -> bool:
            assert self.process.poll() is None, self.output
            return self.health().get("status") == "ok"

        await_until(healthy, 30.0, "the worker's health")

    @property
    def partitions(self) -> set[int]:
        """Partitions that the worker owns."""
        return {int(partition) for partition in self.health().get("partitions", {})}

    @property
    def output(self) -> str:
        """All that the worker has written to its terminal."""
        return self.log_path.read_text(encoding="utf-8")

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self, timeout_s: float = 20.0) -> int:
        """Wait for the end; returns the exit code."""
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()
        self._log.close()


@contextmanager
def running_join(
    connection: Connection,
    topics: Topics,
    folder: Path,
    name: str = "join",
    *,
    schema_path: Path | None = None,
    build: str = "cli.main",
    options: Sequence[str] = (),
    **settings: str,
) -> Iterator[JoinProcess]:
    """A worker that is killed at the end if it still runs.

    Args:
        connection: where Kafka is.
        topics: the join's topics, of two partitions.
        folder: for the schema and the worker's output.
        name: of the file that receives the output.
        schema_path: the policy's schema; the one of `write_schema` by default.
        build: as of `JoinProcess`.
        options: as of `JoinProcess`.
        settings: further settings by their names.
    """
    schema_path = schema_path or write_schema(folder)
    environment = environment_of_join(connection, topics, schema_path, **settings)
    process = JoinProcess(environment, folder / f"{name}.log", build, options)
    try:
        yield process
    finally:
        process.kill()


class Traffic:
    """Impressions and conversions of numbered requests.

    About one in three requests has a conversion, some of them twice, some of an item that was not
    shown; a few conversions have no impression, a few records are broken.
    """

    def __init__(
        self, connection: Connection, topics: Topics, schema: Schema, partitions: int = 2
    ) -> None:
        self._connection = connection
        self._topics = topics
        self._schema = schema
        self._partitions = partitions
        self._requests = 0

    @property
    def requests(self) -> int:
        """How many were sent, each of which becomes one group."""
        return self._requests

    @contextmanager
    def load(self) -> Iterator[None]:
        """Requests all the time, from a thread; meanwhile nobody else may send."""
        stop = threading.Event()

        def send() -> None:
            while not stop.wait(0.05):
                self.send(3)

        thread = threading.Thread(target=send)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def await_more(self, requests: int) -> None:
        """Wait until the load has brought so many further requests."""
        wanted = self._requests + requests
        await_until(lambda: self._requests >= wanted, 40.0, f"{requests} more requests")

    def send(self, requests: int) -> None:
        """Write the next requests: impressions first, then their conversions."""
        impressions, conversions = [], []
        for number in range(self._requests, self._requests + requests):
            name, rng = f"request-{number}", Random(number)
            shown = valid_impression(name, holdout=rng.random() < 0.1)
            decision = Decision.FromString(shown.decision.payload)
            decision.schema_digest = self._schema.digest
            shown.decision.payload = encode(decision)
            impressions.append(self._record(name, encode(shown)))
            if rng.random() < 0.1:
                impressions.append(impressions[-1])
            if rng.random() < 0.02:
                impressions.append(self._record(name, b"\xffbroken"))
            if rng.random() < 0.35:
                asked = f"nobody-{number}" if rng.random() < 0.1 else name
                item = "rug" if rng.random() < 0.1 else "sofa"
                bought = self._record(asked, encode(valid_conversion(asked, "c", item)))
                conversions += [bought] * (2 if rng.random() < 0.2 else 1)
        self._requests += requests
        produce(self._connection, self._topics.impressions, impressions)
        produce(self._connection, self._topics.conversions, conversions)

    def _record(self, request_id: str, value: bytes) -> Produced:
        key = request_id.encode()
        return Produced(value, key, partition_for(key, self._partitions))


class Written(NamedTuple):
    """What one partition's output topics hold, or what they should."""

    groups: list[bytes]
    """Groups and boundaries, distinct, in the order of their first appearance."""
    refused: set[tuple[Kind, bytes]]


class Joined(NamedTuple):
    """Comparison of one partition, from its last start record on."""

    expected: Written
    seen: Written
    repeats: int
    """Groups and boundaries that are in the topic a second time."""
    starts: list[Start]
    """Every start record in the topic."""
    open_groups: int
    progress: list[JoinRecord]
    """Since the last start record."""

    @property
    def conserved(self) -> bool:
        """Whether at every progress each record before `done` has exactly one fate."""
        head = self.starts[-1].head
        standings = [each.progress.standing for each in self.progress]
        return bool(standings) and all(
            (
                sum(value for field, value in s.counts.ListFields() if "impressions" in field.name),
                sum(value for field, value in s.counts.ListFields() if "conversions" in field.name),
            )
            == (
                s.done.impression_offset - head.impression_offset,
                s.done.conversion_offset - head.conversion_offset,
            )
            for s in standings
        )

    @property
    def boundaries(self) -> list[int]:
        """Numbers of the generations that begin in the output."""
        records = map(JoinRecord.FromString, self.seen.groups)
        return [each.boundary.next.generation for each in records if each.HasField("boundary")]


def compare(connection: Connection, topics: Topics, schema: Schema) -> list[Joined]:
    """For each partition, what the join has written and what a run in this process yields.

    Args:
        connection: where Kafka is.
        topics: the join's topics.
        schema: of the first generation.
    """
    names: dict[Log | Kind, str] = {
        **dict(zip(Log, topics.inputs, strict=True)),
        Kind.LATE: topics.late,
        Kind.ORPHANS: topics.orphans,
        Kind.DEAD_LETTERS: topics.dead_letters,
    }
    # The outputs first: what they hold follows from inputs that are read later.
    outputs = read_logs(connection, [topics.reward_groups])[topics.reward_groups]
    logs = read_logs(connection, list(names.values()))
    terms = terms_of(read_generations(connection, topics, schema.policy)) or first_terms(schema)
    found = []
    for partition, output in enumerate(outputs):
        values = [record.value or b"" for record in output.records]
        kinds = [JoinRecord.FromString(value).WhichOneof("kind") for value in values]
        starts = [n for n, kind in enumerate(kinds) if kind == "start"] or [0]
        groups = [
            value
            for number, value in enumerate(values)
            if number > starts[-1] and kinds[number] in ("group", "boundary")
        ]
        distinct = list(dict.fromkeys(groups))
        inputs = {log: _records(logs[names[log]][partition]) for log in Log}
        first = values[starts[-1]] if values else None
        core, expected = recompute(terms, partition, len(outputs), first, inputs)
        side = {
            (kind, record.value or b"")
            for kind in (Kind.LATE, Kind.ORPHANS, Kind.DEAD_LETTERS)
            for record in logs[names[kind]][partition].records
        }
        # After an accepted loss what was refused before it cannot be computed again.
        refused = side if len(starts) == 1 else side & expected.refused
        records = [JoinRecord.FromString(value) for value in values]
        found.append(
            Joined(
                expected,
                Written(distinct, refused),
                repeats=len(groups) - len(distinct),
                starts=[each.start for each in records if each.HasField("start")],
                open_groups=core.open_groups,
                progress=[each for each in records[starts[-1] :] if each.HasField("progress")],
            )
        )
    return found


def _records(log: Partition) -> list[Record]:
    return [
        Record(
            r.offset,
            r.timestamp_ms,
            r.key,
            r.value,
            has_tick_header(r.headers),
            has_boundary_header(r.headers),
        )
        for r in log.records
    ]


def recompute(
    terms: Mapping[int, Terms],
    partition: int,
    partitions: int,
    first: bytes | None,
    inputs: Mapping[Log, list[Record]],
) -> tuple[PartitionJoin, Written]:
    """Run the core over both logs of a partition, each in one batch.

    Args:
        terms: of every generation.
        partition: the partition.
        partitions: how many there are.
        first: the start record to begin at; None for the beginning of both logs.
        inputs: all records that the logs still have.
    """
    core = PartitionJoin(terms, partition=partition, partitions=partitions)
    start = first or core.start_record(Cursor(0, 0), 1).value
    head = JoinRecord.FromString(start).start.head
    core.resume(start, [start], Cursor(head.impression_offset, head.conversion_offset))
    groups: list[bytes] = []
    refused: set[tuple[Kind, bytes]] = set()
    for log in Log:
        step = core.feed(log, [r for r in inputs[log] if r.offset >= core.position(log)])
        groups += [each.value for each in step.groups]
        refused |= {(each.kind, each.value) for each in step.side}
    return core, Written(groups, refused)


def total_groups(found: Iterable[Joined]) -> int:
    """Distinct groups in the topic."""
    return sum(len(each.seen.groups) - len(each.boundaries) for each in found)
