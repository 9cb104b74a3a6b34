"""Dead letters read, written as text that people can mend, and made records again.

A letter is a `Refused` record of the late, orphans or dead-letters topic. As text it is one JSON
object a line, with the message decoded as far as it decodes. What is sent back passes the same
validation as in the join, and carries a header that names the record that it stands for.
"""

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from grade.v1.conversion_pb2 import Conversion
from grade.v1.decision_pb2 import Decision
from grade.v1.impression_pb2 import Impression
from grade.v1.refused_pb2 import Reason, Refused
from kafka import TopicPartition

from policy.errors import StreamError, cut, quoted, reason_name
from stream.codec import REDRIVEN_HEADER, encode, partition_for
from stream.connection import (
    Connection,
    end_offsets,
    open_consumer,
    partitions_of,
    read_all,
)
from stream.join_records import Log, Record
from stream.terms import Terms
from stream.topics import LARGEST_EVENT_BYTES
from stream.validation import Refusal, read_conversion, read_impression

CLOCKS_MS: Final = 3_600_000
"""How far the brokers' clocks may be apart."""

_MESSAGES: Final[Mapping[str, type[Impression] | type[Conversion]]] = {
    Log.IMPRESSIONS.value: Impression,
    Log.CONVERSIONS.value: Conversion,
}
_PAYLOAD = "payload"

_Content = dict[str, Any]


class Source(NamedTuple):
    """The input record that a letter is about."""

    topic: str
    """Without prefix and version: impressions or conversions."""
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


class Mended(NamedTuple):
    """A record to be sent."""

    source: Source
    log: Log
    key: bytes
    value: bytes
    partition: int


class WrongLine(Exception):  # noqa: N818 - a verdict, not an error
    """A line that cannot be sent; `refusal` says why."""

    def __init__(self, reason: "Reason.ValueType", message: str) -> None:
        super().__init__(message)
        self.refusal = Refusal(reason, message)


def source_of(letter: Refused) -> Source:
    """The record that a letter is about."""
    return Source(letter.topic, letter.partition, letter.offset)


def read_letters(connection: Connection, topic: str) -> Iterator[Refused]:
    """Every letter of a topic once, however often an old owner has repeated it.

    Args:
        connection: how to reach Kafka.
        topic: full name of the late, orphans or dead-letters topic.

    Raises:
        StreamError: there is no such topic, or a record in it is not a letter.
        KafkaUnreachable: no broker answers.
    """
    with open_consumer(connection) as consumer:
        partitions = _partitions(consumer, topic)
        seen: set[Source] = set()
        for record in read_all(consumer, partitions):
            try:
                letter = Refused.FromString(record.value or b"")
            except DecodeError as error:
                raise StreamError(
                    f"{topic} partition {record.partition} offset {record.offset}: expected a "
                    f"Refused, seen {len(record.value)} bytes that are none: {error}"
                ) from error
            if source_of(letter) not in seen:
                seen.add(source_of(letter))
                yield letter


def decoded(letter: Refused) -> _Content | None:
    """What the record holds, as JSON-able values; None if its bytes are no message.

    The decision is decoded too where its bytes are one.
    """
    kind = _MESSAGES.get(letter.topic)
    if kind is None or not letter.value:
        return None
    try:
        message = kind.FromString(letter.value)
    except DecodeError:
        return None
    content = _as_json(message)
    if isinstance(message, Impression) and message.decision.payload:
        try:
            decision = Decision.FromString(message.decision.payload)
        except DecodeError:
            return content
        content["decision"][_PAYLOAD] = _as_json(decision)
    return content


def to_line(letter: Refused) -> str:
    """One line of JSON: where the record lies, why it is there, and what it holds."""
    content = decoded(letter)
    fields: _Content = {
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "time_ms": letter.time_ms,
        "reason": reason_name(letter.reason),
        "message": letter.message,
    }
    if content is None:
        fields["bytes"] = base64.b64encode(letter.value).decode()
    else:
        fields["content"] = content
    return json.dumps(fields, ensure_ascii=False)


def from_line(line: str) -> _Content:
    """Read a line.

    Raises:
        WrongLine: it is no JSON object, or does not say where its record comes from.
    """
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise WrongLine(
            Reason.REASON_UNDECODABLE, f"line: expected JSON, seen: {cut(str(error))}"
        ) from None
    if not isinstance(fields, dict):
        raise WrongLine(
            Reason.REASON_WRONG_TYPE, f"line: expected a JSON object, seen {quoted(fields)}"
        )
    for name, kind in (("topic", str), ("partition", int), ("offset", int)):
        seen = fields.get(name)
        if not isinstance(seen, kind) or isinstance(seen, bool):
            missing = name not in fields
            raise WrongLine(
                Reason.REASON_MISSING_FIELD if missing else Reason.REASON_WRONG_TYPE,
                f"{name}: expected it as it was exported, seen "
                f"{'none' if missing else quoted(seen)}",
            )
    if fields["topic"] not in _MESSAGES:
        raise WrongLine(
            Reason.REASON_OUT_OF_RANGE,
            f"topic: expected one of {', '.join(_MESSAGES)}, seen {quoted(fields['topic'])}",
        )
    return fields


def mend(fields: _Content, terms: Terms, partitions: int) -> Mended:
    """Make the record of a line, as the join will accept it.

    Args:
        fields: what `from_line` has read.
        terms: of the generation in force.
        partitions: partitions of the input topics.

    Raises:
        WrongLine: what is still wrong, in the join's own words.
    """
    log = Log(fields["topic"])
    kind = _MESSAGES[log.value]
    value = _value(kind, fields)
    try:
        key = kind.FromString(value).request_id.encode()
    except DecodeError:
        key = b""
    partition = partition_for(key, partitions)
    record = Record(fields["offset"], 0, key, value, False)
    place = terms.schema, record, partition, partitions
    max_bytes = min(terms.settings.max_record_bytes, LARGEST_EVENT_BYTES)
    verdict: Impression | Conversion | Refusal
    if log is Log.IMPRESSIONS:
        verdict = read_impression(*place, max_bytes=max_bytes, accepted=terms.accepted)
    else:
        verdict = read_conversion(*place, max_bytes=max_bytes)
    if isinstance(verdict, Refusal):
        raise WrongLine(*verdict)
    source = Source(log.value, fields["partition"], fields["offset"])
    return Mended(source, log, key, value, partition)


def already_sent(
    connection: Connection,
    topics: Iterable[str],
    since_ms: int | None,
    tell: Callable[[int], None] = lambda _: None,
) -> set[str]:
    """Sources that records of the input topics stand for, by their headers.

    Args:
        connection: how to reach Kafka.
        topics: full names of the input topics.
        since_ms: log time before which nothing was sent back; None reads from the beginning.
        tell: is told now and then how many records have been read.

    Raises:
        StreamError: there is no such topic.
        KafkaUnreachable: no broker answers.
    """
    found: set[str] = set()
    count = 0
    with open_consumer(connection) as consumer:
        for topic in topics:
            partitions = _partitions(consumer, topic)
            begin = None if since_ms is None else _offsets_at(consumer, partitions, since_ms)
            for record in read_all(consumer, partitions, starts=begin):
                found |= {
                    (value or b"").decode(errors="replace")
                    for name, value in record.headers
                    if name == REDRIVEN_HEADER
                }
                count += 1
                if count % 10_000 == 0:
                    tell(count)
    return found


def _offsets_at(
    consumer: Any, partitions: Sequence[TopicPartition], since_ms: int
) -> dict[TopicPartition, int]:
    ends = end_offsets(consumer, partitions)
    at = consumer.offsets_for_times(dict.fromkeys(partitions, max(0, since_ms - CLOCKS_MS)))
    return {each: at[each].offset if at.get(each) else ends[each] for each in partitions}


def _partitions(consumer: Any, topic: str) -> list[TopicPartition]:
    found = partitions_of(consumer, topic)
    if not found:
        raise StreamError(f"expected the topic {topic}, seen none of that name")
    return found


def _as_json(message: Any) -> _Content:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def _value(kind: type[Impression | Conversion], fields: _Content) -> bytes:
    content = fields.get("content")
    if content is None:
        return _bytes(fields)
    if not isinstance(content, dict):
        raise WrongLine(
            Reason.REASON_WRONG_TYPE, f"content: expected a JSON object, seen {quoted(content)}"
        )
    message = kind()
    decision = content.get("decision")
    if isinstance(decision, dict) and isinstance(decision.get(_PAYLOAD), dict):
        inner = _parsed(decision[_PAYLOAD], Decision(), "content.decision.payload")
        packed = base64.b64encode(encode(inner)).decode()
        content = {**content, "decision": {**decision, _PAYLOAD: packed}}
    return encode(_parsed(content, message, "content"))


def _bytes(fields: _Content) -> bytes:
    try:
        return base64.b64decode(fields["bytes"], validate=True)
    except KeyError:
        raise WrongLine(
            Reason.REASON_MISSING_FIELD, "content: expected it, or bytes, seen neither"
        ) from None
    except (TypeError, ValueError) as error:
        raise WrongLine(
            Reason.REASON_UNDECODABLE, f"bytes: expected base64, seen: {error}"
        ) from None


def _parsed(content: _Content, message: Any, where: str) -> Any:
    try:
        return json_format.ParseDict(content, message)
    except (json_format.ParseError, RecursionError, TypeError, ValueError) as error:
        raise WrongLine(
            Reason.REASON_WRONG_TYPE,
            f"{where}: expected the fields of {message.DESCRIPTOR.name}, "
            f"seen: {cut(' '.join(str(error).split()))}",
        ) from None
