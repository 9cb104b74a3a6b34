"""`grade redrive`: show what the join refused, write it out to be mended, send it back."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from grade.v1.refused_pb2 import Reason, Refused
from kafka.errors import KafkaError
from rich.console import Console
from rich.table import Table

from cli.policy_option import PolicyName, load_policy_settings
from cli.settings import Settings
from policy.errors import DataError, FileNotWritten, SettingsError, StreamError, cut, reason_name
from policy.schema import Schema, load_schema
from stream.codec import REDRIVEN_HEADER
from stream.connection import (
    Connection,
    close_producer,
    open_consumer,
    open_producer,
    partitions_of,
)
from stream.generations import read_generations
from stream.redrive import (
    Mended,
    WrongLine,
    already_sent,
    decoded,
    from_line,
    mend,
    read_letters,
    to_line,
)
from stream.terms import Terms, first_terms, read_terms
from stream.topics import Topics

app = typer.Typer(help="Show what was refused, mend it and send it back.", no_args_is_help=True)

_CONFIRM_S = 60.0


class LetterTopic(Enum):
    """Where records lie that are in no reward group."""

    DEAD_LETTERS = "dead-letters"
    LATE = "late"
    ORPHANS = "orphans"


Where = Annotated[LetterTopic, typer.Option("--topic", help="Which of the three topics to read.")]
Wanted = Annotated[
    str | None, typer.Option("--reason", help="Only this reason, as `list` calls it.")
]


@dataclass(slots=True)
class _Kind:
    """Letters of one reason."""

    sample: str
    count: int = 0
    first_ms: int = 2**63 - 1
    last_ms: int = 0
    shown: list[Refused] = field(default_factory=list)

    def add(self, letter: Refused, show: int) -> None:
        self.count += 1
        self.first_ms = min(self.first_ms, letter.time_ms)
        self.last_ms = max(self.last_ms, letter.time_ms)
        if len(self.shown) < show:
            self.shown.append(letter)


@app.command(name="list")
def list_letters(
    policy: PolicyName = None,
    topic: Where = LetterTopic.DEAD_LETTERS,
    reason: Wanted = None,
    show: Annotated[
        int, typer.Option(min=0, help="Show so many records of each reason with their content.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Count the refused records by reason, with their first and last log time and a message."""
    kinds: dict[str, _Kind] = {}
    for letter in _letters(load_policy_settings(policy), topic, reason):
        name = reason_name(letter.reason)
        kinds.setdefault(name, _Kind(letter.message)).add(letter, show)
    if as_json:
        typer.echo(json.dumps(_as_json(kinds), indent=2, ensure_ascii=False))
        return
    console = Console()
    table = Table(title=topic.value)
    for name in ("reason", "records", "first (UTC)", "last (UTC)"):
        table.add_column(name, no_wrap=True, justify="right" if name == "records" else "left")
    table.add_column("a message", overflow="fold")
    for name, kind in sorted(kinds.items(), key=lambda each: -each[1].count):
        first, last = _time(kind.first_ms), _time(kind.last_ms)
        table.add_row(name, f"{kind.count:,}", first, last, cut(kind.sample))
    console.print(table)
    for kind in kinds.values():
        for letter in kind.shown:
            _show(console, letter)


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="File to write; must not be there yet.")],
    policy: PolicyName = None,
    topic: Where = LetterTopic.DEAD_LETTERS,
    reason: Wanted = None,
) -> None:
    """Write the refused records to a file, one editable JSON object a line.

    `content` is the message with its decision, field by field; where the bytes are no message they
    stand in `bytes` (base64) instead, to be replaced by a `content` of your own. topic, partition
    and offset say which record it was: leave them as they are. Fields that this build does not know
    are not written.
    """
    letters = _letters(load_policy_settings(policy), topic, reason)
    try:
        out = file.open("xb")
    except (OSError, ValueError) as error:
        seen = getattr(error, "strerror", None) or str(error)
        raise SettingsError(
            f"{file}: expected a file that can be made, seen: {seen}", Reason.REASON_UNAVAILABLE
        ) from None
    count = size = 0
    try:
        with out:
            for letter in letters:
                line = f"{to_line(letter)}\n".encode()
                size += len(line)
                out.write(line)
                count += 1
    except BaseException as error:
        file.unlink(missing_ok=True)  # half of it would look like all of it
        if isinstance(error, OSError):
            raise FileNotWritten(file, size, error.strerror or str(error)) from error
        raise
    typer.echo(f"{count:,} records written to {file}; mend them, then: grade redrive send {file}")


@app.command()
def send(
    file: Annotated[Path, typer.Argument(help="What `export` has written, mended.")],
    policy: PolicyName = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be sent and what is wrong.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Send what was sent back before a second time.")
    ] = False,
) -> None:
    """Send mended records to the topic that they came from, with the right key and partition.

    Every line passes the join's own checks first; one that is still wrong is named and not sent.
    A line whose record was sent back before, by the header grade-redriven of what lies in the
    topic, is skipped. Exits with 1 if a line was wrong.

    A record takes the time of its arrival, as every record does. So a conversion is joined only if
    an impression of its request arrives within the attribution window of it: send the impression
    back too, in the same file. A request whose impression was joined before becomes a second
    group. And what was valid before (late, orphan, item_not_shown) is a duplicate until late
    horizon and early allowance have passed, unless you give it a new conversion_id.
    """
    settings = load_policy_settings(policy)
    if settings.timestamps == "event":
        raise SettingsError(
            "timestamps: expected 'broker' to send records back, seen 'event': a record of today "
            "would end every window of a history; mend the data folder and replay it",
            Reason.REASON_INCONSISTENT,
        )
    schema = load_schema(settings.schema_path)
    topics = Topics(settings.topic_prefix)
    connection = Connection(settings.bootstrap_servers, client_id="grade-redrive")
    terms = _terms(connection, topics, schema)
    partitions = _partitions(connection, topics)
    sound: dict[str, Mended] = {}
    wrong, times = 0, []
    for number, line in _lines(file):
        try:
            fields = from_line(line)
            mended = mend(fields, terms, partitions)
            if str(mended.source) in sound:
                raise WrongLine(
                    Reason.REASON_REPEATED_ITEM,
                    f"source: expected once, seen {mended.source} again",
                )
        except WrongLine as error:
            wrong += 1
            name = reason_name(error.refusal.reason)
            typer.echo(f"{file} line {number}: {name}: {error.refusal.message}", err=True)
            continue
        sound[str(mended.source)] = mended
        times.append(fields.get("time_ms"))
    skipped: set[str] = set()
    if sound and not again:
        skipped = _sent_before(connection, topics, times) & sound.keys()
    wanted = [mended for source, mended in sound.items() if source not in skipped]
    if not dry_run:
        _send(connection, topics, wanted)
    verb = "would be sent" if dry_run else "sent"
    typer.echo(f"{len(wanted):,} {verb}, {len(skipped):,} sent before, {wrong:,} still wrong")
    if wrong:
        raise typer.Exit(1)


def _letters(settings: Settings, topic: LetterTopic, reason: str | None) -> Iterator[Refused]:
    names = [reason_name(number) for number in Reason.values()]
    if reason is not None and reason not in names:
        raise SettingsError(f"--reason: expected one of {', '.join(names[1:])}, seen {reason!r}")
    topics = Topics(settings.topic_prefix)
    full = {
        LetterTopic.DEAD_LETTERS: topics.dead_letters,
        LetterTopic.LATE: topics.late,
        LetterTopic.ORPHANS: topics.orphans,
    }[topic]
    connection = Connection(settings.bootstrap_servers, client_id="grade-redrive")
    with Console(stderr=True).status(f"reading {full}") as status:
        for count, letter in enumerate(read_letters(connection, full), 1):
            if count % 1_000 == 0:
                status.update(f"reading {full}: {count:,} records")
            if reason in (None, reason_name(letter.reason)):
                yield letter


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, line
    except OSError as error:
        raise DataError(
            f"{file}: expected a file that `grade redrive export` wrote, seen: {error.strerror}",
            Reason.REASON_UNAVAILABLE,
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file}: expected UTF-8 text, seen: {error}", Reason.REASON_UNDECODABLE
        ) from None


def _partitions(connection: Connection, topics: Topics) -> int:
    with open_consumer(connection) as consumer:
        counts = {topic: len(partitions_of(consumer, topic)) for topic in topics.inputs}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise StreamError(f"expected the input topics with equal partitions, seen {counts}")
    return next(iter(counts.values()))


def _terms(connection: Connection, topics: Topics, schema: Schema) -> Terms:
    """By what the join judges a record that arrives now."""
    generations = read_generations(connection, topics, schema.policy)
    if not generations:
        return first_terms(schema)[1]
    return read_terms(generations[-1])


def _sent_before(connection: Connection, topics: Topics, times: list[object]) -> set[str]:
    """What was sent back since the first of the records was logged, or at any time."""
    known = [time_ms for time_ms in times if type(time_ms) is int]
    since_ms = min(known) if known and len(known) == len(times) else None
    with Console(stderr=True).status("looking for records that were sent before") as status:
        return already_sent(
            connection,
            topics.inputs,
            since_ms,
            lambda count: status.update(f"looking for records that were sent before: {count:,}"),
        )


def _send(connection: Connection, topics: Topics, wanted: list[Mended]) -> None:
    """Write records, impressions first, and wait until all are confirmed."""
    if not wanted:
        return
    by_log = dict(zip(("impressions", "conversions"), topics.inputs, strict=True))
    wanted = sorted(wanted, key=lambda mended: mended.log.value != "impressions")
    confirmed = 0
    producer = open_producer(connection)
    try:
        sending = [
            producer.send(
                by_log[mended.log.value],
                mended.value,
                key=mended.key,
                partition=mended.partition,
                headers=[(REDRIVEN_HEADER, str(mended.source).encode())],
            )
            for mended in wanted
        ]
        with Console(stderr=True).status("sending") as status:
            for each in sending:
                each.get(_CONFIRM_S)
                confirmed += 1
                if confirmed % 1_000 == 0:
                    status.update(f"sending: {confirmed:,} of {len(wanted):,} confirmed")
    except KafkaError as error:
        raise StreamError(
            f"expected Kafka to confirm {len(wanted):,} records, seen {confirmed:,} and then: "
            f"{error}; run the same command again, it skips what was sent"
        ) from error
    finally:
        close_producer(producer)


def _show(console: Console, letter: Refused) -> None:
    place = f"{letter.topic} partition {letter.partition} offset {letter.offset}"
    console.rule(f"{reason_name(letter.reason)}: {place}", align="left")
    console.print(letter.message, markup=False, highlight=False, soft_wrap=True)
    content = decoded(letter)
    if content is None:
        key, value = cut(repr(letter.key)), cut(repr(letter.value))
        console.print(f"key {key}, value {value}", markup=False, highlight=False, soft_wrap=True)
    else:
        text = json.dumps(content, indent=2, ensure_ascii=False)
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def _as_json(kinds: dict[str, _Kind]) -> dict[str, object]:
    return {
        name: {
            "records": kind.count,
            "first_ms": kind.first_ms,
            "last_ms": kind.last_ms,
            "message": kind.sample,
            "shown": [json.loads(to_line(letter)) for letter in kind.shown],
        }
        for name, kind in kinds.items()
    }


def _time(time_ms: int) -> str:
    try:
        return datetime.fromtimestamp(time_ms / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M")
    except (OverflowError, ValueError):  # beyond the year 9999
        return f"{time_ms} ms"
