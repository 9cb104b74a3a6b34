"""The chain of versions across generations: nothing lost, nothing learned twice, any restart."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from grade.v1.decision_pb2 import Decision
from grade.v1.parameters_pb2 import Version
from grade.v1.reward_group_pb2 import JoinRecord
from safetensors.numpy import load, save

from policy.adoption import adopt_parameters
from policy.errors import BoundaryError
from policy.initial import initial_parameters
from policy.schema import Schema, parse_schema
from stream.codec import BOUNDARY_HEADER, encode
from stream.join import Cursor, Kind, Output, PartitionJoin
from stream.join import Log as Side
from stream.logs import Log
from stream.terms import terms_of
from stream.version_chain import Learned, VersionChain, by_number, in_policy_arm
from tests.stream import learner_world as world
from tests.stream.learner_world import SCHEMA, TRAINER, Begun

PARTITIONS = 2


def changed_schema(window_s: float) -> Schema:
    """A feature and an objective fewer, another of each more."""
    text = SCHEMA.toml.replace('"age_days", "past_click_rate"', '"past_click_rate", "weekend"')
    objectives = text[text.index("[[objectives]]") : text.index("[[outcomes]]")]
    price = objectives[objectives.rindex("[[objectives]]") :]
    text = text.replace(price, price.replace("price", "quality"))
    text = text.replace('objective = "price"', 'objective = "quality"')
    return parse_schema(text.replace("window_s = 5.0", f"window_s = {window_s}"))


OTHER = changed_schema(5.0)
LONGER = changed_schema(7.0)
BEGUN = (
    Begun(
        world.generation(
            2, schema=OTHER, trainer=replace(TRAINER, seed=9, static_rate=0.05), slot_ms=400
        ),
        after=35,
    ),
    Begun(world.generation(3, schema=LONGER, slot_ms=400, accepted=[OTHER]), after=70),
)
GENERATIONS = {**world.FIRST, **{each.generation.generation: each.generation for each in BEGUN}}


@pytest.fixture(scope="module")
def groups() -> list[Log]:
    logs = world.input_logs(3, 100, PARTITIONS, begun=BEGUN)
    return world.join_logs(*logs, generations=GENERATIONS)[Kind.REWARD_GROUPS]


@pytest.fixture(scope="module")
def learned(groups: list[Log]) -> list[Learned]:
    return world.learn_logs(groups, GENERATIONS)


def as_bytes(versions: Sequence[Learned]) -> list[tuple[bytes, bytes]]:
    return [(encode(each.version), encode(each.snapshot)) for each in versions]


def shuffled(groups: Sequence[Log], seed: int) -> list[int]:
    """The partition of every record, in some order of arrival."""
    order = [index for index, log in enumerate(groups) for _ in log.records]
    random.Random(seed).shuffle(order)
    return order


def messages(log: Log) -> Iterator[JoinRecord]:
    for record in log.records:
        yield JoinRecord.FromString(record.value or b"")


def test_every_generation_has_an_epoch_that_begins_with_what_was_taken_over(
    learned: list[Learned],
) -> None:
    epochs = {number: [e for e in learned if e.version.epoch == number] for number in (1, 2, 3)}
    assert [len(found) > 4 for found in epochs.values()] == [True] * 3
    assert [*epochs[1], *epochs[2], *epochs[3]] == learned
    slots = {1: 250, 2: 400, 3: 400}
    for number, found in epochs.items():
        for at, each in enumerate(found, start=1):
            for made in (each.version, each.snapshot):
                assert (made.epoch, made.version, made.generation) == (number, at, number)
                assert made.slot_ms == slots[number]
                before = epochs[number][at - 2] if at > 1 else None
                if before is None and number > 1:
                    before = epochs[number - 1][-1]
                expected = (0, 0) if before is None else before.version
                if isinstance(expected, Version):
                    expected = (expected.epoch, expected.version)
                assert (made.parent_epoch, made.parent) == expected
        if number > 1:
            taken = found[0]
            assert (taken.slot, taken.version.slot, taken.version.groups) == (-1, -1, 0)
            assert taken.version.ledger == epochs[number - 1][-1].version.ledger
        own = [each.slot for each in found[number > 1 :]]
        assert own == sorted(set(own))
        assert all(each.version.groups > 0 for each in found[number > 1 :])
    assert [each.snapshot.schema_digest for each in (epochs[n][0] for n in (1, 2, 3))] == [
        SCHEMA.digest,
        OTHER.digest,
        LONGER.digest,
    ]


def test_what_is_taken_over_is_what_adoption_says(learned: list[Learned]) -> None:
    first = [each.version.epoch for each in learned].index(2)
    before, after = (load(learned[at].snapshot.parameters) for at in (first - 1, first))
    expected = adopt_parameters(before, SCHEMA, OTHER)
    assert {name: each.tobytes() for name, each in after.items()} == {
        name: each.tobytes() for name, each in expected.items()
    }
    third = [each.version.epoch for each in learned].index(3)
    # A longer window alone: nothing of what is served changes.
    assert learned[third].snapshot.parameters == learned[third - 1].snapshot.parameters


def test_every_group_is_learned_once_and_in_its_own_generation(
    groups: list[Log], learned: list[Learned]
) -> None:
    for number in (1, 2, 3):
        written = sum(
            1
            for log in groups
            for message in messages(log)
            if message.HasField("group")
            and message.group.generation == number
            and in_policy_arm(message.group)
        )
        applied = sum(each.version.groups for each in learned if each.version.generation == number)
        # The last slots are not complete.
        assert applied == written if number < 3 else 0 < applied <= written
    schemas = {1: SCHEMA, 2: OTHER, 3: LONGER}
    for log in groups:
        for message in messages(log):
            if message.HasField("group"):
                decision = Decision.FromString(message.group.impression.decision.payload)
                wide = schemas[message.group.generation]
                assert len(decision.features) == wide.n_features


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_partitions_may_cross_at_any_moment(
    groups: list[Log], learned: list[Learned], seed: int
) -> None:
    chain, at, found = world.new_chain(PARTITIONS, GENERATIONS), [0] * PARTITIONS, []
    for index in shuffled(groups, seed):
        found += chain.feed(index, groups[index].records[at[index]].value)
        at[index] += 1
    assert as_bytes(found) == as_bytes(learned)


@pytest.mark.parametrize("order", ["one after the other", "mixed"])
def test_a_restart_at_every_record_and_every_version_changes_nothing(
    groups: list[Log], learned: list[Learned], order: str
) -> None:
    """Before, in the middle of, and after each crossing."""
    mixed = shuffled(groups, 4)
    chain, at, found = world.new_chain(PARTITIONS, GENERATIONS), [0] * PARTITIONS, []
    for index in mixed if order == "mixed" else sorted(mixed):
        at[index] += 1
        while True:
            state = chain.state()
            chain = VersionChain.restore(by_number(GENERATIONS), PARTITIONS, state)
            again = chain.state()
            assert again.metadata == state.metadata
            for partition, begin in enumerate(chain.cutter.next_positions):
                for record in groups[partition].records[begin : at[partition]]:
                    chain.read(partition, record.value, position=record.offset)
            each = next(chain.learn(), None)
            if each is None:
                break
            found.append(each)
    assert as_bytes(found) == as_bytes(learned)


def test_a_generation_that_nobody_knows_stops_at_its_boundary(groups: list[Log]) -> None:
    known = {number: GENERATIONS[number] for number in (1, 2)}
    chain = world.new_chain(1, known)
    found: list[Learned] = []

    def go_on() -> None:
        for record in groups[0].records:
            found.extend(chain.feed(0, record.value, position=record.offset))

    with pytest.raises(BoundaryError, match=r"generation 3 among .* seen \[1, 2\]"):
        go_on()
    assert found[-1].version.epoch == 2


def test_a_definition_other_than_the_joins_stops(groups: list[Log]) -> None:
    noted = world.generation(2, schema=OTHER)
    with pytest.raises(BoundaryError, match="generation 2 as the generations topic defines it"):
        world.learn_logs(groups, {**GENERATIONS, 2: noted})


def test_a_computation_that_this_build_lacks_stops_when_learning_gets_there() -> None:
    newer = world.generation(2, schema=OTHER)
    next(each for each in newer.settings if each.name == "learn_computation").value = "7"
    known = {**world.FIRST, 2: newer}
    logs = world.input_logs(3, 60, 1, begun=[replace(BEGUN[0], generation=newer)])
    groups = world.join_logs(*logs, generations=known)[Kind.REWARD_GROUPS]
    with pytest.raises(
        BoundaryError, match=r"generation 2: learn_computation: expected 3.* seen 7"
    ):
        world.learn_logs(groups, known)


# --- where learning starts --------------------------------------------------------------------


def given(schema: Schema) -> tuple[dict[str, np.ndarray], bytes]:
    """Parameters as from a file: another static part, features measured, the gate half open."""
    tensors = initial_parameters(schema, seed=3)
    tensors["static_logits"] = tensors["static_logits"] + [1.0, -1.0, 0.0]
    tensors["feature_mean"] = np.array([12.0, 30.0, 0.1])
    tensors["feature_scale"] = np.array([6.0, 20.0, 0.05])
    tensors["gate"] = np.array([0.5])
    return tensors, save(dict(sorted(tensors.items())))


def test_a_first_generation_may_start_from_a_file() -> None:
    tensors, file = given(SCHEMA)
    generations = {1: world.generation(initial_parameters=file)}
    chain = world.new_chain(PARTITIONS, generations)
    (first,) = chain.learn()
    assert (first.version.epoch, first.version.version, first.version.groups) == (1, 1, 0)
    assert (first.version.parent_epoch, first.version.parent, first.slot) == (0, 0, -1)
    assert first.version.gate == 0.5
    assert first.snapshot.parameters == file
    assert list(chain.learn()) == []
    restored = VersionChain.restore(by_number(generations), PARTITIONS, chain.state())
    assert list(restored.learn()) == []
    assert restored.version == 1
    groups = world.join_logs(*world.input_logs(3, 40, PARTITIONS), generations=generations)
    learned = world.learn_logs(groups[Kind.REWARD_GROUPS], generations)
    assert as_bytes(learned[:1]) == as_bytes([first])
    assert (learned[1].version.parent_epoch, learned[1].version.parent) == (1, 1)
    later = load(learned[-1].snapshot.parameters)
    assert later["gate"][0] == 0.5
    # The features' statistics go on from the file's; they do not begin anew.
    assert later["feature_mean"][1] > 15
    assert later["feature_mean"][1] < tensors["feature_mean"][1]


def test_a_later_generation_may_start_from_a_file() -> None:
    _, file = given(SCHEMA)
    begun = Begun(world.generation(2, initial_parameters=file), after=20)
    known = {**world.FIRST, 2: begun.generation}
    logs = world.input_logs(3, 40, PARTITIONS, begun=[begun])
    learned = world.learn_logs(world.join_logs(*logs, generations=known)[Kind.REWARD_GROUPS], known)
    first = next(each for each in learned if each.version.epoch == 2)
    assert first.snapshot.parameters == file
    assert first.version.parent_epoch == 1


def test_a_file_of_another_shape_is_refused() -> None:
    for file, seen in (
        (given(SCHEMA)[1][:-8], "safetensors file, seen:"),
        (
            save(
                adopt_parameters(given(SCHEMA)[0], SCHEMA, changed_schema(5.0)) | {"x": np.ones(1)}
            ),
            ": x: expected none, seen",
        ),
        (save(given(SCHEMA)[0] | {"gate": np.array([np.nan])}), "finite numbers, seen others in"),
    ):
        with pytest.raises(BoundaryError, match=seen):
            world.new_chain(1, {1: world.generation(initial_parameters=file)})


# --- after an accepted loss -------------------------------------------------------------------


def boundary_of(log: Log, generation: int) -> int:
    """Offset of a generation's boundary in an input log."""
    at = [each.offset for each in log.records if BOUNDARY_HEADER in each.headers]
    return at[generation - 2]


def with_loss(logs: dict[Side, Log], head: Cursor, generation: int) -> list[Output]:
    """What the join writes when its worker dies after a quarter and retention takes all up to head.

    The new owner accepts the loss.
    """
    early = {side: log._replace(records=log.records[: log.end // 4]) for side, log in logs.items()}
    written = list(world.join_partition(GENERATIONS, early, 0, 1))
    values = [each.value for each in written if each.kind is Kind.REWARD_GROUPS]
    join = PartitionJoin(terms_of(GENERATIONS.values()), partition=0, partitions=1)
    loss = join.loss([values[0], *values[-10:]], head, len(values))
    start = join.start_record(head, generation, loss)
    begin = join.resume(start.value, [start.value], head)
    at = dict(zip(Side, begin, strict=True))
    return [*written, start, *world.read_on(join, logs, at)]


@pytest.mark.parametrize("generation", [1, 2])
def test_learning_goes_on_after_an_accepted_loss(generation: int) -> None:
    """What is lost lies in the first generation, or reaches into the second."""
    ((impressions,), (conversions,)) = world.input_logs(3, 100, 1, rate_ms=300, begun=BEGUN)
    logs = {Side.IMPRESSIONS: impressions, Side.CONVERSIONS: conversions}
    past = 8 if generation == 2 else -3
    head = Cursor(*(boundary_of(log, 2) + past for log in logs.values()))
    outputs = [
        each for each in with_loss(logs, head, generation) if each.kind is Kind.REWARD_GROUPS
    ]
    log = world.log_of([(each.key, each.value) for each in outputs])
    starts = [message.start for message in messages(log) if message.HasField("start")]
    assert [each.generation for each in starts] == [1, generation]
    assert [each.HasField("loss") for each in starts] == [False, True]
    learned = world.learn_logs([log], GENERATIONS)
    assert {each.version.epoch for each in learned} == {1, 2, 3}
    written = {
        message.group.offset
        for message in messages(log)
        if message.HasField("group") and in_policy_arm(message.group)
    }
    applied = sum(each.version.groups for each in learned)
    assert len(written) - 5 < applied <= len(written), "but for the last slot"
    chain, found = world.new_chain(1, GENERATIONS), []
    for at, record in enumerate(log.records, start=1):
        found += chain.feed(0, record.value, position=record.offset)
        chain = VersionChain.restore(by_number(GENERATIONS), 1, chain.state())
        for again in log.records[chain.cutter.next_positions[0] : at]:
            chain.read(0, again.value, position=again.offset)
    assert as_bytes(found) == as_bytes(learned)
