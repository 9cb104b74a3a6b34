"""One join worker with full work beside two that only pass the same records on.

The backlog of `benchmarks/backlog.py` is written to a real Kafka beforehand, in event time. Then,
one after the other: `grade join` as it is in production, every record validated, joined, rewarded,
written and acknowledged; a plain Faust agent, `async for event: await out.send()`; aiokafka alone,
`getmany` to `send_batch`, idempotent and acknowledged as the join's outputs are. A worker's clocks
run from its first record to its last output; the join is watched from outside, ten times a second.

In several rounds, since a machine is never quiet; the medians are told.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.backlog import Backlog, feed_schema, make_backlog
from benchmarks.processes import cpu_s, free_port
from monitor.watch import ask
from policy.errors import GradeError
from stream.broker import LocalBroker
from stream.codec import TICK_HEADER
from stream.connection import Connection, open_admin, open_producer
from stream.join_records import Log
from stream.topics import TopicPlan, Topics, create

PARTITIONS = 4
RATE = 1_000.0
"""Requests per second of log time."""
PATIENCE_S = 300.0
POLL_S = 0.1


class Work(NamedTuple):
    """What a worker did."""

    records: int
    wall_s: float
    cpu_s: float

    @property
    def per_s(self) -> float:
        """Records per second of wall time."""
        return self.records / self.wall_s

    @property
    def cpu_s_per_100k(self) -> float:
        """CPU seconds per 100,000 records."""
        return self.cpu_s / self.records * 1e5


def run(full: bool) -> dict[str, float]:
    """Measure with a backlog of 30,000 requests, or 100,000 in full."""
    return measure(requests=100_000 if full else 30_000, rounds=5 if full else 3)


def measure(*, requests: int, rounds: int) -> dict[str, float]:
    """Measure all three on a broker of their own.

    Args:
        requests: length of the backlog.
        rounds: how often; every round has a fresh backlog.
    """
    with tempfile.TemporaryDirectory(prefix="grade-bench-") as name:
        folder = Path(name)
        broker = LocalBroker(folder / "kafka", start_timeout_s=120.0)
        try:
            servers = broker.up().bootstrap_servers
            return measure_on(servers, folder, requests=requests, rounds=rounds)
        finally:
            broker.down()


def measure_on(servers: str, folder: Path, *, requests: int, rounds: int) -> dict[str, float]:
    """Measure all three on a running broker.

    Args:
        servers: host:port of the broker.
        folder: for the worker's log.
        requests: length of the backlog; Faust passes a quarter of it on.
        rounds: how often; every round has a fresh backlog.
    """
    backlog = make_backlog(requests, rate=RATE, partitions=PARTITIONS)
    found: dict[str, list[Work]] = {"grade": [], "faust": [], "aiokafka": []}
    for _ in range(rounds):
        topics = Topics(f"bench-{uuid.uuid4().hex[:8]}")
        _write(Connection(servers), topics, backlog)
        found["grade"].append(_join(servers, topics, backlog, folder))
        part = backlog.records // 4
        found["faust"].append(_pass_on("faust", servers, topics, part))
        found["aiokafka"].append(_pass_on("aiokafka", servers, topics, backlog.records))
    return _figures(found)


def _figures(found: Mapping[str, list[Work]]) -> dict[str, float]:
    per_s = {who: statistics.median(each.per_s for each in works) for who, works in found.items()}
    cpu = {
        who: statistics.median(each.cpu_s_per_100k for each in works)
        for who, works in found.items()
    }
    return {
        "records_per_s": per_s["grade"],
        "cpu_s_per_100k": cpu["grade"],
        "vs_faust": per_s["grade"] / per_s["faust"],
        "vs_aiokafka": per_s["grade"] / per_s["aiokafka"],
        "faust_records_per_s": per_s["faust"],
        "faust_cpu_s_per_100k": cpu["faust"],
        "vs_faust_cpu": cpu["faust"] / cpu["grade"],
        "aiokafka_records_per_s": per_s["aiokafka"],
        "aiokafka_cpu_s_per_100k": cpu["aiokafka"],
    }


def passed_topic(topics: Topics) -> str:
    """Where the records are passed on to."""
    return f"{topics.prefix}.passed"


def _write(connection: Connection, topics: Topics, backlog: Backlog) -> None:
    """Create the topics and write the backlog."""
    schema = feed_schema()
    times = schema.window_ms, schema.early_ms, schema.late_ms
    create(connection, TopicPlan(topics, PARTITIONS, *times, timestamps="event"))
    with open_admin(connection) as admin:
        wanted = {passed_topic(topics): {"num_partitions": PARTITIONS}}
        admin.create_topics(wanted, wait_for_metadata=True)
    topic_of = dict(zip(Log, topics.inputs, strict=True))
    with open_producer(connection) as producer:
        for partition, logs in enumerate(backlog.logs):
            for log, records in logs.items():
                for record in records:
                    producer.send(
                        topic_of[log],
                        record.value,
                        key=record.key,
                        headers=[TICK_HEADER] if record.tick else None,
                        partition=partition,
                        timestamp_ms=record.timestamp_ms,
                    )
        producer.flush(60)


def _join(servers: str, topics: Topics, backlog: Backlog, folder: Path) -> Work:
    """Let a worker join the whole backlog, watched from outside."""
    log, deadline = folder / "join.log", time.monotonic() + PATIENCE_S
    with _worker(servers, topics, folder, log) as (process, port):
        before = _Seen(0, 0, time.monotonic(), 0.0)
        while True:
            seen = _Seen.of(process.pid, port)
            if not seen.read:
                before = seen
            elif seen.read == backlog.records and not seen.unfinished:
                return Work(seen.read, seen.wall_s - before.wall_s, seen.cpu_s - before.cpu_s)
            if process.poll() is not None or time.monotonic() > deadline:
                raise GradeError(
                    f"grade join: expected to read {backlog.records} records, seen {seen.read}; "
                    f"the end of its log:\n{log.read_text(encoding='utf-8')[-2000:]}"
                )
            time.sleep(POLL_S)  # watching another process


class _Seen(NamedTuple):
    """A worker at one moment."""

    read: int
    unfinished: int
    """Groups that have not left, and steps that have not been acknowledged."""
    wall_s: float
    cpu_s: float

    @classmethod
    def of(cls, pid: int, port: int) -> "_Seen":
        """Ask a worker how far it is; the clocks are read afterwards."""
        owned = (ask(port, "/health") or {}).get("partitions", {}).values()
        read = sum(sum(each["positions"].values()) for each in owned)
        unfinished = sum(each["open_groups"] + each["unwritten_steps"] for each in owned)
        return cls(read, unfinished, time.monotonic(), cpu_s(pid))


@contextmanager
def _worker(
    servers: str, topics: Topics, folder: Path, log_file: Path
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A worker as it runs in production; the process and its admin port."""
    port = free_port()
    settings = {
        "SCHEMA_PATH": str(Path(__file__).with_name("feed.toml")),
        "DATA_DIR": str(folder),
        "BOOTSTRAP_SERVERS": servers,
        "TOPIC_PREFIX": topics.prefix,
        "PARTITIONS": str(PARTITIONS),
        "TIMESTAMPS": "event",
        "JOIN_TICKS": "producer",
        "JOIN_GROUP": topics.prefix,
        "JOIN_ADMIN_PORT": str(port),
    }
    environment = {**os.environ, **{f"GRADE_{name}": value for name, value in settings.items()}}
    command = [sys.executable, "-m", "cli.main", "join"]
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            yield process, port
        finally:
            process.terminate()
            process.wait(30)


def _pass_on(how: str, servers: str, topics: Topics, records: int) -> Work:
    """Let a process of `benchmarks/pass_on.py` pass records on."""
    command = [sys.executable, "-m", "benchmarks.pass_on", how, servers, topics.prefix]
    done = subprocess.run(
        [*command, str(PARTITIONS), str(records)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise GradeError(f"{how}: expected exit code 0, seen {done.returncode}:\n{done.stderr}")
    return Work(**json.loads(done.stdout.splitlines()[-1]))
