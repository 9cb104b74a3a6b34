"""Versions as a function of the log: arrival order, restarts and repeats cannot change a byte."""

import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
from grade.v1.decision_pb2 import ARM_HOLDOUT, ARM_POLICY, Decision
from grade.v1.reward_group_pb2 import JoinRecord
from safetensors.numpy import load

from policy import checkpoint
from policy.errors import BoundaryError, CheckpointRefused
from policy.trainer import Trainer
from stream.codec import encode
from stream.join import Kind
from stream.logs import Log
from stream.version_chain import ChainState, GenerationOf, Learned, VersionChain, by_number
from tests.stream import learner_world as world
from tests.stream.learner_world import SCHEMA, SLOT_MS, TRAINER

PARTITIONS = 2
FIND = by_number(world.FIRST)


@pytest.fixture(scope="module")
def groups() -> list[Log]:
    return world.join_logs(*world.input_logs(3, 60, PARTITIONS))[Kind.REWARD_GROUPS]


@pytest.fixture(scope="module")
def learned(groups: list[Log]) -> list[Learned]:
    return world.learn_logs(groups)


def fresh() -> VersionChain:
    return world.new_chain(PARTITIONS)


def as_bytes(versions: list[Learned]) -> list[tuple[bytes, bytes]]:
    return [(encode(each.version), encode(each.snapshot)) for each in versions]


def by_slot(groups: list[Log]) -> dict[int, list[tuple[int, int, bool]]]:
    """Slot → (partition, offset, whether in the policy arm), worked out from the log directly."""
    found: dict[int, list[tuple[int, int, bool]]] = {}
    for partition, log in enumerate(groups):
        for record in log.records:
            group = JoinRecord.FromString(record.value or b"").group
            if group.policy:
                decision = Decision.FromString(group.impression.decision.payload)
                found.setdefault(group.close_time_ms // SLOT_MS, []).append(
                    (partition, group.offset, decision.arm == ARM_POLICY)
                )
    return found


def test_every_slot_with_a_policy_group_makes_one_version(
    groups: list[Log], learned: list[Learned]
) -> None:
    slots = by_slot(groups)
    expected = sorted(slot for slot, found in slots.items() if any(arm for *_, arm in found))
    assert [each.slot for each in learned] == expected
    assert len(expected) > 5
    ledger = [-1] * PARTITIONS
    for number, each in enumerate(learned, start=1):
        version, snapshot = each.version, each.snapshot
        for slot in sorted(slots):
            if slot <= each.slot:
                for partition, offset, _ in slots[slot]:
                    ledger[partition] = max(ledger[partition], offset)
        assert (version.epoch, version.version, version.parent) == (1, number, number - 1)
        assert version.parent_epoch == (1 if number > 1 else 0)
        assert version.generation == snapshot.generation == 1
        assert [(entry.partition, entry.offset) for entry in version.ledger] == [*enumerate(ledger)]
        assert version.groups == sum(arm for *_, arm in slots[each.slot])
        assert version.policy == snapshot.policy == "example"
        assert (snapshot.epoch, snapshot.version, snapshot.parent) == (1, number, number - 1)
        assert snapshot.slot == version.slot == each.slot
        assert snapshot.slot_ms == version.slot_ms == SLOT_MS
        assert snapshot.schema_digest == SCHEMA.digest
        assert snapshot.parameters_sha256 == hashlib.sha256(snapshot.parameters).digest()
        assert version.parameters_sha256 == snapshot.parameters_sha256


def test_a_slot_of_the_holdout_alone_makes_no_version_and_is_passed_in_the_ledger(
    groups: list[Log], learned: list[Learned]
) -> None:
    """Turn a slot's groups into holdout groups: the others' numbers close up."""
    target = learned[2].slot
    changed = []
    for log in groups:
        records = []
        for record in log.records:
            message = JoinRecord.FromString(record.value or b"")
            if message.HasField("group") and message.group.close_time_ms // SLOT_MS == target:
                decision = Decision.FromString(message.group.impression.decision.payload)
                decision.arm = ARM_HOLDOUT
                message.group.impression.decision.payload = encode(decision)
                message.group.ClearField("rewards")
            records.append((record.key, encode(message)))
        changed.append(world.log_of(records))
    versions = world.learn_logs(changed)
    assert [each.slot for each in versions] == [
        each.slot for each in learned if each.slot != target
    ]
    assert as_bytes(versions[:2]) == as_bytes(learned[:2])
    assert list(versions[2].version.ledger) == list(learned[3].version.ledger)
    assert versions[2].version.version == 3


def test_the_snapshot_holds_what_the_trainer_serves(groups: list[Log]) -> None:
    chain = fresh()
    for partition, log in enumerate(groups):
        for record in log.records:
            chain.read(partition, record.value)
    steps = chain.learn()
    first = next(steps)
    state = {
        name.removeprefix("trainer."): array
        for name, array in chain.state().tensors.items()
        if name.startswith("trainer.")
    }
    served = Trainer.restore(SCHEMA, TRAINER, state).serving_parameters()
    found = load(first.snapshot.parameters)
    assert found.keys() == served.keys()
    for name, array in served.items():
        np.testing.assert_array_equal(found[name], array)


def test_arrival_order_of_the_partitions_does_not_change_a_byte(
    groups: list[Log], learned: list[Learned]
) -> None:
    order = [index for index, log in enumerate(groups) for _ in log.records]
    random.Random(5).shuffle(order)
    chain, at, found = fresh(), [0] * PARTITIONS, []
    for index in order:
        found += chain.feed(index, groups[index].records[at[index]].value)
        at[index] += 1
    assert as_bytes(found) == as_bytes(learned)


def test_repeats_do_not_change_a_byte(groups: list[Log], learned: list[Learned]) -> None:
    chain, found = fresh(), []
    for index, log in enumerate(groups):
        for at, record in enumerate(log.records):
            found += chain.feed(index, record.value)
            found += chain.feed(index, log.records[at // 2].value)
    assert as_bytes(found) == as_bytes(learned)
    assert chain.cutter.repeats > 0


@pytest.mark.parametrize("stop_after", [1, 4, 7])
def test_a_restart_from_a_checkpoint_does_not_change_a_byte(
    groups: list[Log], learned: list[Learned], tmp_path: Path, stop_after: int
) -> None:
    chain = fresh()
    for partition, log in enumerate(groups):
        for record in log.records:
            chain.read(partition, record.value, position=record.offset)
    found = []
    for each in chain.learn():
        found.append(each)
        if len(found) == stop_after:
            break
    state = chain.state()
    path = checkpoint.write(tmp_path, state.tensors, state.metadata, keep=1)
    restored = VersionChain.restore(FIND, PARTITIONS, ChainState(*checkpoint.load(path)))
    assert restored.version == stop_after
    assert restored.latest is not None
    assert as_bytes([restored.latest]) == as_bytes(found[-1:])
    again = restored.state()
    assert again.metadata == state.metadata
    assert again.tensors.keys() == state.tensors.keys()
    for partition, begin in enumerate(restored.cutter.next_positions):
        for record in groups[partition].records[begin:]:
            found += restored.feed(partition, record.value, position=record.offset)
    assert as_bytes(found) == as_bytes(learned)


@pytest.mark.parametrize(
    ("find", "partitions", "sentence"),
    [
        (FIND, 3, "partitions: expected 3, seen 2 in the checkpoint of generation 1"),
        (by_number({1: world.generation(slot_ms=500)}), 2, "generation_sha256: expected"),
        (by_number({}), 2, "expected generation 1 among those of the generations topic"),
    ],
)
def test_a_state_of_another_system_is_refused(
    find: GenerationOf, partitions: int, sentence: str
) -> None:
    with pytest.raises(BoundaryError) as error:
        VersionChain.restore(find, partitions, fresh().state())
    assert sentence in str(error.value)


def test_an_incomplete_state_is_refused(groups: list[Log]) -> None:
    chain = fresh()
    for partition, log in enumerate(groups):
        for record in log.records:
            chain.feed(partition, record.value)
    tensors, metadata = chain.state()
    arguments = (FIND, PARTITIONS)
    for name in ("layout", "ledger", "generation", "next_positions", "segments"):
        less = {key: value for key, value in metadata.items() if key != name}
        with pytest.raises(CheckpointRefused, match=name):
            VersionChain.restore(*arguments, ChainState(tensors, less))
    for name in ("published.version", next(iter(tensors))):
        fewer = {key: value for key, value in tensors.items() if key != name}
        with pytest.raises(CheckpointRefused):
            VersionChain.restore(*arguments, ChainState(fewer, metadata))
    with pytest.raises(CheckpointRefused):
        VersionChain.restore(*arguments, ChainState(tensors, metadata | {"ledger": "[1]"}))
    for name in ("published.version", "published.snapshot"):
        broken = tensors | {name: np.full(9, 0xFF, dtype=np.uint8)}
        with pytest.raises(CheckpointRefused, match="DecodeError"):
            VersionChain.restore(*arguments, ChainState(broken, metadata))


def test_records_of_another_policy_are_refused(groups: list[Log]) -> None:
    message = JoinRecord.FromString(groups[0].records[0].value or b"")
    message.start.policy = "another"
    with pytest.raises(BoundaryError, match=r"policy 'example', .* seen policy 'another'"):
        fresh().feed(0, encode(message))
