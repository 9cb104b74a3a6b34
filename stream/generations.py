"""What join and learner go by, and since when: the topic of a policy's generations.

A generation is a stretch of a policy's life under one schema, one computation and one set of
settings. The first process of a new system begins the first one; every later one is begun by
`begin`, which writes it to the topic and then a boundary record into every partition of both input
logs (docs/decisions/0004-generations.md). Nothing else begins one: a process whose own settings
say something else stops (`require_current`).
"""

import json
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import structlog
from google.protobuf.message import DecodeError
from grade.v1.generation_pb2 import Generation, Setting
from kafka import TopicPartition

from policy.errors import BoundaryError, StreamError
from policy.rewards import COMPUTATION
from policy.schema import Schema
from policy.trainer_settings import TrainerSettings, named_settings
from stream.boundaries import append, missing, write_missing
from stream.codec import BOUNDARY_HEADER, encode, has_boundary_header
from stream.connection import Connection
from stream.generation_changes import ABSENT, Change, decide_alike, schema_changes, value_changes
from stream.logs import read_logs
from stream.terms import MAX_RECORD_BYTES_SETTING
from stream.terms import schema_of as schema_of
from stream.terms import settings_of as settings_of
from stream.topics import LARGEST_EVENT_BYTES, Topics

log = structlog.get_logger(__name__)

BEGIN_COMMAND = "grade generation begin"

_COMPUTATIONS = ("computation", "learn_computation")
"""What a newer build has more of: it goes on with an older one until a generation begins with its
own; an older build cannot go on with a newer one."""


# --- what a generation says ---


def generation_of(schema: Schema, settings: Mapping[str, object], computation: int) -> Generation:
    """The definition that a process's own schema and settings give; number 0, as none has begun.

    Args:
        schema: the policy's schema.
        settings: every other setting that decides what is written, by name; values that JSON knows.
        computation: version of the reward computation.

    Raises:
        ValueError: a value has no JSON.
    """
    return Generation(
        policy=schema.policy,
        schema_toml=schema.toml,
        schema_digest=schema.digest,
        accepted_schema_digests=[schema.digest],
        computation=computation,
        settings=[
            Setting(name=name, value=json.dumps(settings[name], allow_nan=False, sort_keys=True))
            for name in sorted(settings)
        ],
    )


def definition(schema: Schema, trainer: TrainerSettings, slot_ms: int) -> Generation:
    """The definition by which this build joins and learns; number 0, as none has begun.

    Args:
        schema: the policy's schema.
        trainer: how to learn.
        slot_ms: length of a slot in milliseconds of log time.
    """
    settings: dict[str, object] = {
        MAX_RECORD_BYTES_SETTING: LARGEST_EVENT_BYTES,
        "learn_slot_ms": slot_ms,
        **named_settings(trainer),
    }
    return generation_of(schema, settings, COMPUTATION)


def changes(old: Generation, new: Generation) -> list[Change]:
    """What two generations have differently: places of the schema, the computation, settings.

    The note, the time and the parameters that learning starts from define nothing.

    Raises:
        BoundaryError: this build cannot read one of the schemas.
    """
    found = list(schema_changes(schema_of(old), schema_of(new)))
    found += value_changes({"computation": old.computation}, {"computation": new.computation})
    return [*found, *value_changes(settings_of(old), settings_of(new))]


def require_current(generations: Sequence[Generation], wanted: Generation) -> Generation:
    """Refuse to work by other settings than those of the latest generation.

    A build that knows a newer computation than the generation's goes on by the generation's.

    Args:
        generations: of the policy, rising; at least one.
        wanted: what the process's own settings say.

    Returns:
        The latest generation.

    Raises:
        BoundaryError: naming each setting that differs, what the generation has, what was seen,
            and the command that begins a generation.
    """
    current = generations[-1]
    where = f"generation {current.generation}"
    sentences = []
    for name, old, new in changes(current, wanted):
        if name not in _COMPUTATIONS or ABSENT in (old, new):
            sentences.append(f"{name}: expected {old} as in {where}, seen {new}")
        elif int(new) < int(old):
            raise BoundaryError(
                f"{name}: expected {old} as in {where}, seen {new}, the newest that this build "
                "has: start a newer build"
            )
    if sentences:
        raise BoundaryError(
            "\n".join(sentences)
            + f"\nput back what {where} has, or let the change take effect by `{BEGIN_COMMAND}`"
        )
    return current


# --- the topic ---


def read_generations(connection: Connection, topics: Topics, policy: str) -> list[Generation]:
    """Every generation of a policy, numbers rising from 1; empty if none has begun.

    A record counts if its number is one above the last that counts. So of several of one number the
    first does, and two processes that begin the same number at once obey the same one.

    Raises:
        StreamError: the first records have been deleted.
        TopicError: there is no such topic.
        KafkaUnreachable: no broker answers.
    """
    return [each.generation for each in _read(connection, topics, policy)]


def ensure_first(connection: Connection, topics: Topics, wanted: Generation) -> list[Generation]:
    """Begin the first generation of a policy that has none yet.

    Args:
        connection: where Kafka is.
        topics: names of the topics.
        wanted: what the process's own settings say.

    Returns:
        Every generation of the policy, at least one. The first need not be `wanted`: another
        process may have been quicker.

    Raises:
        StreamError: as `read_generations`.
        KafkaUnreachable: no broker answers.
    """
    found = read_generations(connection, topics, wanted.policy)
    if found:
        return found
    _append(connection, topics, _numbered(wanted, [], "first start", b""))
    return read_generations(connection, topics, wanted.policy)


def begin(
    connection: Connection,
    topics: Topics,
    wanted: Generation,
    *,
    partitions: int,
    note: str = "",
    initial_parameters: bytes = b"",
) -> Generation:
    """Begin the next generation, or complete the latest one if it says the same already.

    First the generation's own record, then a boundary record in every partition of the impressions,
    and when these are acknowledged in every partition of the conversions. If this ends in the
    middle, the next call completes it.

    Args:
        connection: where Kafka is.
        topics: names of the topics; the broker stamps their records.
        wanted: the definition; its number, accepted digests, note and time are set here.
        partitions: partitions of the event topics.
        note: why, for people.
        initial_parameters: serving tensors that learning starts from, a safetensors file; empty:
            what has been learned so far.

    Returns:
        The generation that is the latest now, as the topic has it.

    Raises:
        BoundaryError: somebody else has begun another generation at the same time, or it is larger
            than an input record may be.
        StreamError: as `read_generations`.
        KafkaUnreachable: no broker answers.
    """
    found = _read(connection, topics, wanted.policy)
    if found:
        # One that was left half begun would be missing before the next one's boundary.
        _complete(connection, topics, found[-1], partitions)
        latest = found[-1].generation
        unchanged = not changes(latest, wanted)
        if unchanged and initial_parameters in (b"", latest.initial_parameters):
            return latest
    known = [each.generation for each in found]
    proposed = _numbered(wanted, known, note, initial_parameters)
    _append(connection, topics, proposed)
    begun = _read(connection, topics, wanted.policy)[len(known)]
    if encode(begun.generation) != encode(proposed):
        raise BoundaryError(
            f"expected to begin generation {proposed.generation}, seen that somebody else has "
            f"begun it at the same time ({begun.generation.note or 'without a note'}): look at "
            "`grade generation list` and begin again"
        )
    _complete(connection, topics, begun, partitions)
    return begun.generation


def missing_boundaries(
    connection: Connection, topics: Topics, policy: str, *, partitions: int
) -> list[TopicPartition]:
    """The partitions of the inputs in which the latest generation's boundary is missing.

    None if `begin` came to its end, nor for a first generation, which has no boundary.

    Args:
        connection: where Kafka is.
        topics: names of the topics.
        policy: name of the policy.
        partitions: partitions of the event topics.

    Raises:
        StreamError: as `read_generations`.
        KafkaUnreachable: no broker answers.
    """
    found = _read(connection, topics, policy)
    if not found or found[-1].complete:
        return []
    latest = found[-1]
    return missing(connection, topics, latest.generation, latest.time_ms, partitions)


class _Begun(NamedTuple):
    """A generation as its topic has it."""

    generation: Generation
    time_ms: int
    """Time of its record, milliseconds since 1970 UTC by the broker."""
    complete: bool
    """Whether its boundaries are in every partition: then its record is there again, marked, so
    that nobody has to look for them in the inputs, where retention will delete them."""


def _read(connection: Connection, topics: Topics, policy: str) -> list[_Begun]:
    [written] = read_logs(connection, [topics.generations])[topics.generations]
    if written.head > 0:
        raise StreamError(
            f"{topics.generations}: expected its records from offset 0, seen {written.head} as the "
            "first that is left: what join and learner went by is unknown without them"
        )
    found: list[_Begun] = []
    for record in written.records:
        if record.key != policy.encode():
            continue
        generation = _decoded(record.value)
        number = generation.generation if generation.policy == policy else 0
        if number == len(found) + 1:
            found.append(_Begun(generation, record.timestamp_ms, complete=number == 1))
        elif 0 < number <= len(found):
            if has_boundary_header(record.headers):
                found[number - 1] = found[number - 1]._replace(complete=True)
        else:
            log.warning(
                "not_a_generation",
                offset=record.offset,
                expected=f"at most generation {len(found) + 1} of {policy}",
                seen=f"{number} of {generation.policy or 'nobody'}",
            )
    return found


def _decoded(value: bytes | None) -> Generation:
    """A record's generation; an empty one, whose number none has, if it is something else."""
    try:
        return Generation.FromString(value or b"")
    except DecodeError:
        return Generation()


def _numbered(
    wanted: Generation, known: Sequence[Generation], note: str, initial_parameters: bytes
) -> Generation:
    """The definition as the generation after the known ones."""
    schema = schema_of(wanted)
    alike = [each.schema_digest for each in known if decide_alike(schema_of(each), schema)]
    proposed = Generation()
    proposed.CopyFrom(wanted)
    proposed.generation = len(known) + 1
    del proposed.accepted_schema_digests[:]
    proposed.accepted_schema_digests.extend(dict.fromkeys([wanted.schema_digest, *alike]))
    proposed.note = note
    proposed.initial_parameters = initial_parameters
    proposed.begun_at_ms = time.time_ns() // 1_000_000
    size = proposed.ByteSize()
    if size > LARGEST_EVENT_BYTES:
        raise BoundaryError(
            f"generation {proposed.generation}: expected at most {LARGEST_EVENT_BYTES} bytes, as "
            f"the inputs take it, seen {size}, of which the schema has {len(proposed.schema_toml)} "
            f"and the initial parameters {len(initial_parameters)}"
        )
    return proposed


def _append(
    connection: Connection,
    topics: Topics,
    generation: Generation,
    headers: Sequence[tuple[str, bytes]] = (),
) -> None:
    place = TopicPartition(topics.generations, 0)
    append(connection, [place], generation.policy.encode(), encode(generation), headers)


def _complete(connection: Connection, topics: Topics, begun: _Begun, partitions: int) -> None:
    """Write the boundaries that are missing, and that all of them are there."""
    if not begun.complete:
        write_missing(connection, topics, begun.generation, begun.time_ms, partitions)
        _append(connection, topics, begun.generation, [BOUNDARY_HEADER])
