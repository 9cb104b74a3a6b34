"""Every broken record, mixed into sound traffic, through a real Kafka and a real `grade join`.

Topics carry the events' own time here, so that what is late is late without waiting for it.
"""

import time
import urllib.request
from collections import Counter
from typing import NamedTuple

import pytest
from grade.v1.refused_pb2 import Reason, Refused

from policy.errors import reason_name
from stream.codec import TICK_HEADER, TICK_VALUE, encode, partition_for
from stream.connection import Connection
from stream.generations import read_generations
from stream.join import Log
from stream.reconcile import ReconcileReport, TopicContent, reconcile
from stream.topics import Topics
from tests.bad_input.case import Case
from tests.bad_input.messages import SCHEMA, SCHEMA_TOML, conversion, decision, impression
from tests.bad_input.records import INVALID, PARTITIONS, UNJOINED, BrokenRecord
from tests.integration.join_process import JoinProcess
from tests.kafka import Produced, await_until, create_fresh, produce, read_topic

CASES = [*INVALID, *UNJOINED]
STEP_MS = 10


class Run(NamedTuple):
    """What is left when everything has been joined."""

    letters: dict[tuple[str, int, int], tuple[str, Refused]]
    """By topic, partition and offset of the refused record: the topic it lies in, and it."""
    sent: dict[str, tuple[str, int, int]]
    """Where the broken record of each case lies."""
    metrics: str
    report: ReconcileReport
    sound: int
    """Sound requests."""


def traffic(begin_ms: int) -> dict[Log, list[tuple[str, Produced]]]:
    """Per log: name of the case, or nothing, and the record, in the order of their times."""
    logs: dict[Log, list[tuple[str, Produced]]] = {log: [] for log in Log}

    def add(log: Log, name: str, record: Produced, at_ms: int) -> None:
        logs[log].append((name, record._replace(timestamp_ms=at_ms)))

    def sound(log: Log, request_id: str, value: bytes, at_ms: int) -> None:
        key = request_id.encode()
        add(log, "", Produced(value, key, partition_for(key, PARTITIONS)), at_ms)

    for number, case in enumerate(CASES):
        at_ms = begin_ms + number * STEP_MS
        good, bad = f"good-{number}", f"bad-{number}"
        decided = decision(good, holdout=number % 7 == 0)
        sound(Log.IMPRESSIONS, good, encode(impression(good, decided)), at_ms)
        sound(Log.CONVERSIONS, good, encode(conversion(good)), at_ms + 1)
        if case.reason in (Reason.REASON_ITEM_NOT_SHOWN, Reason.REASON_LATE):
            sound(Log.IMPRESSIONS, bad, encode(impression(bad)), at_ms)
        delay = 6_000 if case.reason == Reason.REASON_LATE else 2
        add(case.broken.log, case.name, case.broken.made(bad), at_ms + delay)
    end_ms = begin_ms + len(CASES) * STEP_MS + 60_000
    for log, found in logs.items():
        found.sort(key=lambda each: each[1].timestamp_ms or 0)
        for partition in range(PARTITIONS):
            add(log, "", Produced(TICK_VALUE, None, partition, headers=[TICK_HEADER]), end_ms)
    return logs


def finished(connection: Connection, topics: Topics, process: JoinProcess) -> bool:
    assert process.process.poll() is None, process.output
    written = sum(len(read_topic(connection, topic)) for topic in topics.refused)
    return written >= len(CASES)


@pytest.fixture(scope="module")
def run(broker: object, tmp_path_factory: pytest.TempPathFactory) -> Run:
    connection = Connection(broker.bootstrap_servers)  # type: ignore[attr-defined]  # a BrokerStatus
    folder = tmp_path_factory.mktemp("bad-input")
    (folder / "policy.toml").write_text(SCHEMA_TOML, encoding="utf-8")
    topics = create_fresh(connection, partitions=PARTITIONS, timestamps="event")
    begin_ms = time.time_ns() // 1_000_000 - 3_600_000
    sent: dict[str, tuple[str, int, int]] = {}
    for (log, records), topic in zip(traffic(begin_ms).items(), topics.inputs, strict=True):
        offsets = produce(connection, topic, [record for _, record in records])
        for (name, record), offset in zip(records, offsets, strict=True):
            if name:
                sent[name] = (log.value, record.partition, offset)
    environment = {
        "GRADE_SCHEMA_PATH": str(folder / "policy.toml"),
        "GRADE_BOOTSTRAP_SERVERS": connection.bootstrap_servers,
        "GRADE_TOPIC_PREFIX": topics.prefix,
        "GRADE_PARTITIONS": str(PARTITIONS),
        "GRADE_TIMESTAMPS": "event",
        "GRADE_JOIN_TICKS": "producer",
        "GRADE_JOIN_GROUP": f"{topics.prefix}-join",
    }
    process = JoinProcess(environment, folder / "join.log")
    try:
        process.await_healthy()
        await_until(lambda: finished(connection, topics, process), 60, "every broken record")
        await_until(lambda: joined(process) == len(CASES) + 2, 30, "every sound request")
        metrics = metrics_of(process)
        assert process.stop() == 0, process.output
    finally:
        process.kill()
    letters = {
        (letter.topic, letter.partition, letter.offset): (topic, letter)
        for topic in topics.refused
        for record in read_topic(connection, topic)
        if (letter := Refused.FromString(record.value))
    }
    report = reconcile(
        read_generations(connection, topics, SCHEMA.policy), TopicContent(connection, topics)
    )
    return Run(letters, sent, metrics, report, len(CASES) + 2)


def metrics_of(process: JoinProcess) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{process.admin_port}/metrics") as answer:
        return str(answer.read().decode())


def joined(process: JoinProcess) -> int:
    lines = metrics_of(process).splitlines()
    [line] = [line for line in lines if line.startswith("grade_join_groups_total ")]
    return round(float(line.split()[1]))


def test_everything_is_conserved_and_recomputed(run: Run) -> None:
    report = run.report
    assert report.unconserved == []
    assert [str(each) for each in report.differences] == []
    assert report.groups == run.sound
    # Conversions of the sound requests, but for the one that was late.
    assert report.conversions.used == len(CASES)
    broken = Counter(
        case.broken.log
        for case in CASES
        if case.reason not in (Reason.REASON_LATE, Reason.REASON_ORPHAN)
    )
    assert report.impressions.dead_letters == broken[Log.IMPRESSIONS]
    assert report.conversions.dead_letters == broken[Log.CONVERSIONS]
    assert report.conversions.late == report.conversions.orphans == 1
    assert report.impressions.open == report.conversions.open == 0
    assert report.impressions.ticks == report.conversions.ticks == PARTITIONS


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_broken_record_is_kept_with_its_reason(run: Run, case: Case[BrokenRecord]) -> None:
    topic, letter = run.letters[run.sent[case.name]]
    case.check(letter.reason, letter.message)
    wanted = {Reason.REASON_LATE: "late", Reason.REASON_ORPHAN: "orphans"}
    assert wanted.get(case.reason, "dead-letters") in topic
    made = case.broken.made(f"bad-{CASES.index(case)}")
    assert (letter.key, letter.value) == (made.key or b"", made.value or b"")


def test_nothing_else_was_refused(run: Run) -> None:
    assert set(run.letters) == set(run.sent.values())
    assert len(run.sent) == len(CASES)


def test_what_was_refused_is_counted_by_reason(run: Run) -> None:
    for reason, count in Counter(reason_name(case.reason) for case in CASES).items():
        assert f'grade_join_refused_total{{reason="{reason}"}} {float(count)}' in run.metrics
