"""What was refused is shown, mended and sent back, against a real Kafka and a real join."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from grade.v1.decision_pb2 import Decision
from grade.v1.refused_pb2 import Reason, Refused
from grade.v1.reward_group_pb2 import JoinRecord
from typer.testing import CliRunner, Result

from cli.redrive import app
from policy.errors import BadInput, FileNotWritten, SettingsError, StreamError
from policy.schema import Schema, load_schema
from stream.codec import REDRIVEN_HEADER, encode, partition_for
from stream.connection import Connection
from stream.redrive import WrongLine, decoded, from_line, mend, to_line
from stream.terms import first_terms
from stream.topics import Topics
from tests.bad_input.messages import SCHEMA, conversion, decision, impression
from tests.integration.join_process import JoinProcess, running_join
from tests.kafka import Produced, await_until, create_fresh, produce, read_topic
from tests.operations.small_disk import small_disk
from tests.stream.join_messages import valid_conversion, valid_impression

PARTITIONS = 2


class Running(NamedTuple):
    connection: Connection
    topics: Topics
    schema: Schema
    process: JoinProcess
    environment: dict[str, str]

    def groups(self) -> list[JoinRecord]:
        """Reward groups that are there."""
        records = read_topic(self.connection, self.topics.reward_groups)
        found = [JoinRecord.FromString(record.value) for record in records]
        return [record for record in found if record.HasField("group")]

    def letters(self) -> int:
        return len(read_topic(self.connection, self.topics.dead_letters))


@pytest.fixture(scope="module")
def running(broker: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    connection = Connection(broker.bootstrap_servers)  # type: ignore[attr-defined]  # a BrokerStatus
    folder = tmp_path_factory.mktemp("redrive")
    topics = create_fresh(
        connection, partitions=PARTITIONS, window_ms=1_000, early_ms=200, late_ms=2_000
    )
    with running_join(connection, topics, folder) as process:
        schema = load_schema(folder / "policy-1.toml")
        shown = valid_impression("r-1")
        made = Decision.FromString(shown.decision.payload)
        made.schema_digest = schema.digest
        shown.decision.payload = encode(made)
        shown.positions[1] = 0  # wrong: a position twice
        clicked = valid_conversion("r-1")
        clicked.outcome = "clic"  # wrong: misspelt
        produce(connection, topics.impressions, [placed("r-1", encode(shown)), junk()])
        produce(connection, topics.conversions, [placed("r-1", encode(clicked)), junk()])
        process.await_healthy()
        environment = {
            "GRADE_SCHEMA_PATH": str(folder / "policy-1.toml"),
            "GRADE_BOOTSTRAP_SERVERS": connection.bootstrap_servers,
            "GRADE_TOPIC_PREFIX": topics.prefix,
        }
        found = Running(connection, topics, schema, process, environment)
        await_until(lambda: found.letters() == 4, 30, "the dead letters")
        yield found
        assert process.stop() == 0, process.output


def placed(request_id: str, value: bytes) -> Produced:
    key = request_id.encode()
    return Produced(value, key, partition_for(key, PARTITIONS))


def junk() -> Produced:
    return placed("r-2", b"\xff\xff no message")


Grade = Callable[..., Result]


@pytest.fixture
def grade(running: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Grade:
    """Runs `grade redrive` in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)

    def call(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(each) for each in arguments])

    return call


def test_dead_letters_are_listed_by_reason(grade: Grade) -> None:
    listed = grade("list")
    assert listed.exit_code == 0, listed.output
    for reason in ("undecodable", "repeated_item", "unknown_outcome"):
        assert reason in listed.output
    found = json.loads(grade("list", "--json", "--show", 1).output)
    assert {name: kind["records"] for name, kind in found.items()} == {
        "undecodable": 2,
        "repeated_item": 1,
        "unknown_outcome": 1,
    }
    outcome = found["unknown_outcome"]
    assert outcome["message"] == "outcome: expected one of click, order, seen 'clic'"
    assert outcome["first_ms"] == outcome["last_ms"] > 1_700_000_000_000
    [shown] = outcome["shown"]
    assert shown["content"]["outcome"] == "clic"
    [shown] = found["repeated_item"]["shown"]
    assert shown["content"]["decision"]["payload"]["alpha"] == [2.0, 1.0, 1.0]
    assert json.loads(grade("list", "--json", "--topic", "late").output) == {}


def test_the_content_of_dead_letters_is_shown(grade: Grade) -> None:
    shown = grade("list", "--show", 1, "--reason", "unknown_outcome").output
    assert '"outcome": "clic"' in shown
    assert "conversions partition" in shown
    junk_shown = grade("list", "--show", 2, "--reason", "undecodable").output
    assert "xff no message" in junk_shown


def test_mended_records_are_joined_and_sent_once(
    running: Running, grade: Grade, tmp_path: Path
) -> None:
    file = tmp_path / "broken.jsonl"
    exported = grade("export", file)
    assert exported.exit_code == 0, exported.output
    assert "4 records written" in exported.output
    again = grade("export", file)
    assert isinstance(again.exception, SettingsError)
    assert "expected a file that can be made, seen: File exists" in str(again.exception)

    unmended = grade("send", file)
    assert unmended.exit_code == 1
    assert "0 sent, 0 sent before, 4 still wrong" in unmended.output
    assert "unknown_outcome: outcome: expected one of click, order, seen 'clic'" in unmended.output
    assert "undecodable: value: expected Impression, seen 13 bytes" in unmended.output

    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    for line in lines:
        if line["reason"] == "unknown_outcome":
            line["content"]["outcome"] = "click"
        if line["reason"] == "repeated_item":
            line["content"]["positions"] = [0, 1]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    dry = grade("send", file, "--dry-run")
    assert dry.exit_code == 1
    assert "2 would be sent, 0 sent before, 2 still wrong" in dry.output
    assert running.groups() == []

    mended = [line for line in lines if line["reason"] != "undecodable"]
    file.write_text("".join(json.dumps(line) + "\n" for line in mended), encoding="utf-8")
    sent = grade("send", file)
    assert sent.exit_code == 0, sent.output
    assert "2 sent, 0 sent before, 0 still wrong" in sent.output
    await_until(lambda: len(running.groups()) == 1, 30, "the mended group")
    [record] = running.groups()
    assert list(record.group.impression.positions) == [0, 1]
    assert [each.conversion.outcome for each in record.group.conversions] == ["click"]
    headers = {
        name: value
        for topic in running.topics.inputs
        for each in read_topic(running.connection, topic)
        for name, value in each.headers
        if name == REDRIVEN_HEADER
    }
    outcome = next(line for line in mended if line["reason"] == "unknown_outcome")
    assert headers[REDRIVEN_HEADER].decode() == (
        f"conversions/{outcome['partition']}/{outcome['offset']}"
    )

    twice = grade("send", file)
    assert twice.exit_code == 0
    assert "0 sent, 2 sent before, 0 still wrong" in twice.output
    # The conversion alone a second time is a duplicate: nothing comes of it.
    file.write_text(json.dumps(outcome) + "\n", encoding="utf-8")
    assert "1 sent, 0 sent before" in grade("send", file, "--again").output
    assert running.letters() == 4


def test_a_full_disk_leaves_no_half_of_an_export(grade: Grade, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 1) as disk:
        file = disk.folder / "broken.jsonl"
        disk.fill([os.getpid()])
        refused = grade("export", file)
        disk.free()
        assert isinstance(refused.exception, FileNotWritten)
        assert not file.exists()
        assert grade("export", file).exit_code == 0


def test_the_command_ends_with_a_sentence(running: Running, grade: Grade, tmp_path: Path) -> None:
    for arguments, said in (
        (("send", tmp_path / "missing.jsonl"), "expected a file that `grade redrive export` wrote"),
        (("list", "--reason", "bad"), "--reason: expected one of late, orphan"),
    ):
        refused = grade(*arguments)
        assert isinstance(refused.exception, BadInput)
        assert said in str(refused.exception)
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\n")
    assert "expected UTF-8 text" in str(grade("send", tmp_path / "bytes.jsonl").exception)


def test_history_is_not_sent_back(
    running: Running, grade: Grade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADE_TIMESTAMPS", "event")
    refused = grade("send", tmp_path / "any.jsonl")
    assert isinstance(refused.exception, SettingsError)
    assert "timestamps: expected 'broker'" in str(refused.exception)


def test_topics_that_are_not_there_are_named(grade: Grade, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADE_TOPIC_PREFIX", "nobody")
    refused = grade("list")
    assert isinstance(refused.exception, StreamError)
    assert "expected the topic nobody.dead-letters.v1" in str(refused.exception)


def test_the_verb_says_its_limits(grade: Grade) -> None:
    assert "takes the time of its arrival" in " ".join(grade("send", "--help").output.split())


# --- lines, without Kafka ---


def letter(topic: str, value: bytes) -> Refused:
    return Refused(
        topic=topic, partition=1, offset=7, time_ms=1, value=value, reason=Reason.REASON_WRONG_KEY
    )


@pytest.mark.parametrize(
    ("topic", "value"),
    [
        ("impressions", encode(impression("r"))),
        ("impressions", encode(impression("r", decision("r", holdout=True)))),
        ("conversions", encode(conversion("r"))),
    ],
)
def test_a_line_holds_every_bit_of_a_message(topic: str, value: bytes) -> None:
    line = to_line(letter(topic, value))
    mended = mend(from_line(line), first_terms(SCHEMA)[1], PARTITIONS)
    assert mended.value == value
    assert mended.key == b"r"
    assert mended.partition == partition_for(b"r", PARTITIONS)
    assert str(mended.source) == f"{topic}/1/7"


def test_a_decision_that_does_not_decode_stays_bytes() -> None:
    broken = impression("r")
    broken.decision.payload = b"\xff\xff"
    found = letter("impressions", encode(broken))
    content: Any = decoded(found)
    assert content["decision"]["payload"] == "//8="
    with pytest.raises(WrongLine) as wrong:
        mend(from_line(to_line(found)), first_terms(SCHEMA)[1], PARTITIONS)
    assert wrong.value.refusal.reason == Reason.REASON_DECISION_UNDECODABLE


SOUND_LINE = json.loads(to_line(letter("conversions", encode(conversion("r")))))


@pytest.mark.parametrize(
    ("line", "reason", "said"),
    [
        ("{", Reason.REASON_UNDECODABLE, "line: expected JSON"),
        ("[" * 100_000, Reason.REASON_UNDECODABLE, "line: expected JSON"),
        ("[1]", Reason.REASON_WRONG_TYPE, "expected a JSON object, seen [1]"),
        ("{}", Reason.REASON_MISSING_FIELD, "topic: expected it as it was exported, seen none"),
        (
            json.dumps({**SOUND_LINE, "partition": True}),
            Reason.REASON_WRONG_TYPE,
            "partition: expected it as it was exported, seen True",
        ),
        (
            json.dumps({**SOUND_LINE, "topic": "reward-groups"}),
            Reason.REASON_OUT_OF_RANGE,
            "topic: expected one of impressions, conversions, seen 'reward-groups'",
        ),
        (
            json.dumps({**SOUND_LINE, "content": {**SOUND_LINE["content"], "colour": 1}}),
            Reason.REASON_WRONG_TYPE,
            'content: expected the fields of Conversion, seen: Message type "grade.v1.Conv',
        ),
        (
            json.dumps({**SOUND_LINE, "content": {**SOUND_LINE["content"], "value": "much"}}),
            Reason.REASON_WRONG_TYPE,
            "content: expected the fields of Conversion",
        ),
        (
            json.dumps({**SOUND_LINE, "content": [1]}),
            Reason.REASON_WRONG_TYPE,
            "content: expected a JSON object, seen [1]",
        ),
        (
            json.dumps({k: v for k, v in SOUND_LINE.items() if k != "content"}),
            Reason.REASON_MISSING_FIELD,
            "content: expected it, or bytes, seen neither",
        ),
        (
            json.dumps({**SOUND_LINE, "content": None, "bytes": "%%%"}),
            Reason.REASON_UNDECODABLE,
            "bytes: expected base64",
        ),
        (
            json.dumps({**SOUND_LINE, "content": {**SOUND_LINE["content"], "outcome": "wink"}}),
            Reason.REASON_UNKNOWN_OUTCOME,
            "outcome: expected one of click, order, seen 'wink'",
        ),
    ],
)
def test_a_line_that_is_still_wrong_says_why(line: str, reason: int, said: str) -> None:
    with pytest.raises(WrongLine) as wrong:
        mend(from_line(line), first_terms(SCHEMA)[1], PARTITIONS)
    assert wrong.value.refusal.reason == reason
    assert said in wrong.value.refusal.message
