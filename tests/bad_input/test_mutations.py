"""Whatever bytes come in, nothing but a refusal comes out: sound input, mutated at random.

A table of cases holds what somebody has thought of; this is for the rest.
"""

import contextlib
import hashlib
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError, Message
from grade.v1.context_pb2 import Context
from grade.v1.decision_pb2 import Decision
from grade.v1.impression_pb2 import Impression
from grade.v1.parameters_pb2 import ParameterSnapshot
from grade.v1.refused_pb2 import Refused
from grade.v1.reward_group_pb2 import JoinRecord, RewardGroup

from policy import checkpoint
from policy.errors import BadInput, BoundaryError
from policy.schema import parse_schema
from policy.trainer import Trainer
from policy.trainer_settings import TrainerSettings
from serving.engine import Engine
from stream.codec import TICK_VALUE, encode
from stream.join import Cursor, Log, PartitionJoin, Record
from stream.join_records import Kind
from stream.redrive import WrongLine, from_line, mend, to_line
from stream.terms import first_terms
from tests.bad_input.messages import SCHEMA, conversion, decision, impression
from tests.bad_input.schema_files import SOUND
from tests.serving.parameters import EXAMPLE, made_context, made_snapshot

EXTREMES = (math.nan, math.inf, -math.inf, 0.0, -1.0, 5e-324, 3.4e38, -3.4e38, 1e-45, 0.5)
WHOLE = (0, 1, 7, 2**31 - 1)
TEXTS = ("", "\0", "x" * 2_000, "lamp", "click", "order", "r-0", "🛋", "-", "example")


def mutated(rng: Random, content: bytes) -> bytes:
    """Some bytes flipped, removed, repeated or put in."""
    found = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(len(found) + 1), rng.choice((1, 1, 2, 5, 40))
        match rng.randrange(4):
            case 0 if at < len(found):
                found[at] = rng.randrange(256)
            case 1:
                del found[at : at + length]
            case 2:
                found[at:at] = found[at : at + length]
            case _:
                found[at:at] = rng.randbytes(length)
    return bytes(found)


def twisted(rng: Random, message: Message) -> None:
    """A field set to something that its type allows and nobody means."""
    field: Any = rng.choice(list(message.DESCRIPTOR.fields))
    seen: Any = getattr(message, field.name)
    pick: Callable[[], Any] = {
        field.CPPTYPE_FLOAT: lambda: rng.choice(EXTREMES),
        field.CPPTYPE_DOUBLE: lambda: rng.choice((*EXTREMES, 1e308)),
        field.CPPTYPE_STRING: lambda: (
            rng.choice(TEXTS) if field.type != field.TYPE_BYTES else rng.randbytes(4)
        ),
        field.CPPTYPE_ENUM: lambda: rng.choice((0, 1, 2)),
    }.get(field.cpp_type, lambda: rng.choice(WHOLE))
    if field.cpp_type == field.CPPTYPE_MESSAGE:
        return
    if not field.is_repeated:
        setattr(message, field.name, pick())
    elif rng.random() < 0.3 or not seen:
        seen.append(pick())
    elif rng.random() < 0.3:
        del seen[rng.randrange(len(seen))]
    else:
        seen[rng.randrange(len(seen))] = pick()


def records(rng: Random, count: int) -> dict[Log, list[Record]]:
    """Both logs of one partition: sound ones, mutated bytes, and twisted fields."""
    logs: dict[Log, list[Record]] = {log: [] for log in Log}
    for number in range(count):
        request_id = f"r-{number}"
        for log in Log:
            decided = decision(request_id, holdout=rng.random() < 0.2)
            if rng.random() < 0.3:
                twisted(rng, decided)
            message = (
                impression(request_id, decided)
                if log is Log.IMPRESSIONS
                else conversion(request_id, item_id=rng.choice(("lamp", "sofa", "rug")))
            )
            if rng.random() < 0.3:
                twisted(rng, message)
            value = encode(message)
            if rng.random() < 0.3:
                value = mutated(rng, value)
            tick = rng.random() < 0.03
            at = len(logs[log])
            logs[log].append(Record(at, 1_000 + 10 * number, request_id.encode(), value, tick))
    for log, found in logs.items():
        found += [Record(len(found) + i, 10**7, None, TICK_VALUE, True) for i in range(2)]
        assert [each.offset for each in found] == list(range(len(found))), log
    return logs


@pytest.mark.parametrize("seed", range(4))
def test_no_record_stops_the_join_or_makes_a_reward_that_is_no_number(seed: int) -> None:
    logs = records(Random(seed), 250)
    join = PartitionJoin(first_terms(SCHEMA), partition=0, partitions=1)
    start = join.start_record(Cursor(0, 0), 1).value
    join.resume(start, [start], Cursor(0, 0))
    letters, progress = 0, []
    groups: list[RewardGroup] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for log in Log:
            step = join.feed(log, logs[log])
            letters += sum(output.kind is Kind.DEAD_LETTERS for output in step.side)
            for output in step.groups:
                groups.append(JoinRecord.FromString(output.value).group)
                rewards = groups[-1].rewards
                numbers = [*rewards.posterior, *rewards.prior, *rewards.format]
                assert all(map(math.isfinite, [*numbers, rewards.ideal, rewards.realised]))
            progress += step.progress
        trainer = Trainer(SCHEMA, TrainerSettings())
        trainer.step([group for group in groups if group.HasField("rewards")], slot=1)
    assert all(np.isfinite(tensor).all() for tensor in trainer.serving_parameters().values())
    counts = JoinRecord.FromString(progress[-1].value).progress.standing.counts
    assert letters > 100
    assert len(groups) > 50
    # The ticks stand at the frontier: what is before it, is decided.
    assert sum(getattr(counts, field.name) for field in counts.DESCRIPTOR.fields) == 2 * 250


def test_no_call_makes_an_error_of_another_kind() -> None:
    engine, rng = Engine(EXAMPLE, seed=0, members=4), Random(5)
    answered = 0
    for number in range(1_500):
        sent = made_context(number)
        twisted(rng, sent)
        value = mutated(rng, encode(sent)) if number % 2 else encode(sent)
        try:
            engine.sample(Context.FromString(value))
            answered += 1
        except (BadInput, DecodeError):
            pass
    assert answered > 100


def test_no_snapshot_makes_an_error_of_another_kind() -> None:
    engine, rng = Engine(EXAMPLE, seed=0, members=4), Random(6)
    sound, refused = made_snapshot(1), 0
    for number in range(400):
        snapshot = ParameterSnapshot()
        snapshot.CopyFrom(sound)
        if number % 2:
            made_snapshot_of(snapshot, mutated(rng, sound.parameters))
        else:
            twisted(rng, snapshot)
        try:
            engine.load(snapshot)
        except BadInput:
            refused += 1
    assert refused > 200


def made_snapshot_of(snapshot: ParameterSnapshot, parameters: bytes) -> None:
    """Other parameters, sealed as if they were meant."""
    snapshot.parameters = parameters
    snapshot.parameters_sha256 = hashlib.sha256(parameters).digest()


def test_no_schema_file_makes_an_error_of_another_kind() -> None:
    rng, refused = Random(7), 0
    for _ in range(1_500):
        text = mutated(rng, SOUND.encode()).decode(errors="replace")
        try:
            parse_schema(text)
        except BadInput:
            refused += 1
    assert refused > 500


def test_no_checkpoint_makes_an_error_of_another_kind(tmp_path: Path) -> None:
    rng = Random(8)
    tensors = {"a": np.arange(6.0).reshape(2, 3), "b": np.arange(3)}
    path = checkpoint.write(tmp_path, tensors, {"epoch": "1", "version": "1"}, keep=1)
    sound, refused = path.read_bytes(), 0
    for _ in range(500):
        path.write_bytes(mutated(rng, sound))
        try:
            checkpoint.load(path)
        except (BadInput, BoundaryError):
            refused += 1
    assert refused > 450


def test_no_mended_line_makes_an_error_of_another_kind() -> None:
    rng, sent = Random(9), 0
    letters = [
        Refused(topic=log.value, partition=0, offset=7, key=b"r", value=encode(message))
        for log, message in zip(Log, (impression("r"), conversion("r")), strict=True)
    ]
    assert Decision.FromString(
        Impression.FromString(letters[0].value).decision.payload
    ) == decision("r")
    for number in range(1_000):
        line = to_line(letters[number % 2])
        if number > 1:
            line = mutated(rng, line.encode()).decode(errors="replace")
        with contextlib.suppress(WrongLine):
            sent += mend(from_line(line), first_terms(SCHEMA)[1], 2).key == b"r"
    assert sent >= 2
