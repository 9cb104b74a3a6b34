"""Generations: what differs is named, the first begins once, a boundary is in every partition."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from grade.v1.generation_pb2 import Generation
from kafka import TopicPartition

from policy.errors import BoundaryError, StreamError
from policy.schema import Schema, parse_schema
from stream.boundaries import append
from stream.codec import BOUNDARY_HEADER, encode
from stream.connection import Connection, open_admin
from stream.generation_changes import decide_alike
from stream.generations import (
    begin,
    changes,
    ensure_first,
    generation_of,
    missing_boundaries,
    read_generations,
    require_current,
    schema_of,
    settings_of,
)
from stream.topics import Topics
from tests.kafka import read_topic

TEXT = (Path(__file__).parents[1] / "example_schema.toml").read_text("utf-8")
SETTINGS = {"learn_slot_ms": 250, "learn_average": 0.1, "learn_computation": 1}

LIKES = """
[[objectives]]
name = "plike"
baseline = 0.0
"""


def schema(*edits: tuple[str, str]) -> Schema:
    """The example with pieces of its text replaced."""
    text = TEXT
    for was, now in edits:
        assert text.count(was) == 1, was
        text = text.replace(was, now)
    return parse_schema(text)


def wanted(*edits: tuple[str, str], computation: int = 1, **settings: Any) -> Generation:
    """A definition by the example's schema and a few settings."""
    return generation_of(schema(*edits), {**SETTINGS, **settings}, computation)


def numbered(definition: Generation, number: int) -> Generation:
    """The definition as it stands in the topic."""
    found = Generation()
    found.CopyFrom(definition)
    found.generation = number
    return found


# --- what differs ---


def test_a_definition_carries_schema_and_settings() -> None:
    made = wanted(learn_average=1 / 3)
    assert made.generation == 0
    assert [each.name for each in made.settings] == sorted(SETTINGS)
    assert settings_of(made) == {**SETTINGS, "learn_average": 1 / 3}
    assert schema_of(made) == schema()


def test_what_defines_nothing_is_no_change() -> None:
    """Comments, the note, the time, the number and where learning starts."""
    one, other = wanted(), wanted(("# A small", "# An even smaller"))
    other.note, other.begun_at_ms, other.generation = "why", 7, 3
    other.initial_parameters = b"tensors"
    assert changes(one, other) == []


@pytest.mark.parametrize(
    ("was", "now", "told"),
    [
        ("window_s = 5.0", "window_s = 7.5", "attribution.window_s: 5.0 → 7.5"),
        ("early_s = 1.0", "early_s = 0.5", "attribution.early_s: 1.0 → 0.5"),
        ("late_s = 10.0", "late_s = 9.5", "attribution.late_s: 10.0 → 9.5"),
        ("gain = 5.0", "gain = 6.0", "outcomes.order.gain: 5.0 → 6.0"),
        ("gain = 5.0", "gain = 5\nvalue_weighted = true", None),
        ('"hour", ', "", "features.hour: present → absent"),
        ('"hour", ', '"hour", "is_new", ', "features.is_new: absent → present"),
        (
            '"hour", "age_days"',
            '"age_days", "hour"',
            'features: ["hour", "age_days", "past_click_rate"] → '
            '["age_days", "hour", "past_click_rate"]',
        ),
        ("[attribution]", LIKES + "[attribution]", "objectives.plike: absent → present"),
        ('transform = "log"', 'transform = "linear"', 'objectives.price.transform: "log" → '),
        ('predicts = "order"', "", 'objectives.pcvr.predicts: "order" → absent'),
        ("max_weight = 0.6", "max_weight = 0.5", "soft_rules.price.max_weight: 0.6 → 0.5"),
        ("0.7, 0.5]", "0.5, 0.5]", "reward.examination: [1.0, 0.7, 0.5] → [1.0, 0.5, 0.5]"),
        ('"running_mean"', '"request"', 'reward.normalise: "running_mean" → "request"'),
        ("share = 0.1", "share = 0.2", "holdout.share: 0.1 → 0.2"),
        ('policy = "example"', 'policy = "other"', 'policy: "example" → "other"'),
    ],
)
def test_a_change_of_the_schema_is_named_by_its_place(was: str, now: str, told: str | None) -> None:
    edits = [(was, now)]
    if "value_weighted" in now:  # a probability predicts no value
        edits.append(('predicts = "order"', ""))
        told = "outcomes.order.value_weighted: false → true"
    found = [str(each) for each in changes(wanted(), wanted(*edits))]
    assert any(each.startswith(str(told)) for each in found), found
    assert len(found) == len(edits)


def test_changes_of_settings_and_computation_are_named() -> None:
    found = changes(wanted(), wanted(learn_slot_ms=500, learn_average=0.2, computation=2))
    assert [str(each) for each in found] == [
        "computation: 1 → 2",
        "learn_average: 0.1 → 0.2",
        "learn_slot_ms: 250 → 500",
    ]


@pytest.mark.parametrize(
    ("was", "now", "alike"),
    [
        ("window_s = 5.0", "window_s = 7.5", True),
        ("gain = 5.0", "gain = 6.0", True),
        ("max_weight = 0.6", "max_weight = 0.5", True),
        ("0.7, 0.5]", "0.5, 0.5]", True),
        ('predicts = "order"', "", True),
        ('"hour", ', "", False),
        ('"hour", "age_days"', '"age_days", "hour"', False),
        ('transform = "log"', 'transform = "linear"', False),
        ("share = 0.1", "share = 0.2", False),
        ("baseline = 0.2", "baseline = 0.2\nfloor = 0.1", False),
        ('policy = "example"', 'policy = "other"', False),
    ],
)
def test_servers_decide_alike_unless_what_they_go_by_changes(
    was: str, now: str, alike: bool
) -> None:
    assert decide_alike(schema(), schema((was, now))) is alike


def test_another_baseline_decides_otherwise() -> None:
    other = schema(("baseline = 0.5", "baseline = 0.4"), ("baseline = 0.2", "baseline = 0.3"))
    assert not decide_alike(schema(), other)


# --- what is in force ---


def test_an_accidental_change_is_refused_by_name() -> None:
    generations = [numbered(wanted(learn_slot_ms=100), 1), numbered(wanted(), 2)]
    assert require_current(generations, wanted()).generation == 2
    with pytest.raises(BoundaryError) as refused:
        require_current(
            generations, wanted(("window_s = 5.0", "window_s = 6.0"), learn_slot_ms=500)
        )
    assert str(refused.value).splitlines() == [
        "attribution.window_s: expected 5.0 as in generation 2, seen 6.0",
        "learn_slot_ms: expected 250 as in generation 2, seen 500",
        "put back what generation 2 has, or let the change take effect by `grade generation begin`",
    ]


def test_a_newer_build_goes_on_by_the_computation_in_force() -> None:
    """Until a generation begins with its own; an older build cannot go on with a newer one."""
    newer = wanted(computation=2, learn_computation=2)
    assert require_current([numbered(wanted(), 1)], newer).computation == 1
    with pytest.raises(BoundaryError, match=r"^computation: expected 2 .* seen 1.* a newer build$"):
        require_current([numbered(newer, 1)], wanted())


def test_a_schema_that_another_build_wrote_is_not_guessed_at() -> None:
    unknown = numbered(wanted(), 4)
    unknown.schema_toml = TEXT + "\n[novelty]\nbonus = 1.0\n"
    with pytest.raises(BoundaryError, match=r"schema of generation 4: novelty: .* the build that"):
        schema_of(unknown)
    unknown.schema_toml = TEXT.replace("share = 0.1", "share = 0.2")
    with pytest.raises(BoundaryError, match=r"schema of generation 4: expected digest"):
        schema_of(unknown)


# --- the topic ---


def boundaries(connection: Connection, topic: str) -> list[tuple[int, bytes, bytes]]:
    """[partition, key, value] of every record with the boundary's header."""
    return [
        (record.partition, record.key, record.value)
        for record in read_topic(connection, topic)
        if record.headers == [BOUNDARY_HEADER]
    ]


def test_the_first_start_begins_generation_one(connection: Connection, topics: Topics) -> None:
    """Without a boundary: nothing comes to an end."""
    assert read_generations(connection, topics, "example") == []
    [first] = ensure_first(connection, topics, wanted())
    assert (first.generation, first.policy) == (1, "example")
    assert list(first.accepted_schema_digests) == [schema().digest]
    assert first.begun_at_ms > 1_700_000_000_000
    again = ensure_first(connection, topics, wanted(learn_slot_ms=500))
    assert again == [first]
    assert len(read_topic(connection, topics.generations)) == 1
    assert read_topic(connection, topics.impressions) == []
    assert missing_boundaries(connection, topics, "example", partitions=2) == []
    # Another policy has generations of its own.
    assert read_generations(connection, topics, "other") == []


def test_a_race_of_first_starts_has_one_winner(connection: Connection, topics: Topics) -> None:
    definitions = [wanted(learn_slot_ms=number) for number in (100, 200, 300, 400)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda each: ensure_first(connection, topics, each), definitions))
    assert all(each == found[0] for each in found)
    [winner] = found[0]
    obeyed = [each for each in definitions if settings_of(each) == settings_of(winner)]
    assert len(obeyed) == 1


def test_begin_writes_one_record_and_a_boundary_everywhere(
    connection: Connection, topics: Topics
) -> None:
    """Impressions have theirs before conversions get theirs; a second run writes nothing."""
    ensure_first(connection, topics, wanted())
    longer = wanted(("window_s = 5.0", "window_s = 7.5"))
    assert missing_boundaries(connection, topics, "example", partitions=2) == []
    second = begin(connection, topics, longer, partitions=2, note="longer window")
    assert (second.generation, second.note) == (2, "longer window")
    assert list(second.accepted_schema_digests) == [longer.schema_digest, schema().digest]
    assert begin(connection, topics, longer, partitions=2) == second

    assert read_generations(connection, topics, "example")[1:] == [second]
    # Its record again, marked: the boundaries need not be looked for when retention has them.
    written = read_topic(connection, topics.generations)
    assert [record.headers for record in written] == [[], [], [BOUNDARY_HEADER]]
    assert written[1].value == written[2].value
    times = []
    for topic in topics.inputs:
        assert boundaries(connection, topic) == [(p, b"", encode(second)) for p in (0, 1)]
        times.append([record.timestamp for record in read_topic(connection, topic)])
    assert max(times[0]) <= min(times[1])

    fewer = wanted(("window_s = 5.0", "window_s = 7.5"), ('"hour", ', ""), learn_slot_ms=500)
    third = begin(connection, topics, fewer, partitions=2)
    assert third.generation == 3
    # Decisions on other features are not to be joined.
    assert list(third.accepted_schema_digests) == [fewer.schema_digest]
    back = begin(connection, topics, wanted(), partitions=2)
    assert list(back.accepted_schema_digests) == [schema().digest, longer.schema_digest]


def test_other_initial_parameters_begin_a_generation_of_the_same_settings(
    connection: Connection, topics: Topics
) -> None:
    ensure_first(connection, topics, wanted())
    imported = begin(connection, topics, wanted(), partitions=2, initial_parameters=b"tensors")
    assert (imported.generation, imported.initial_parameters) == (2, b"tensors")
    again = begin(connection, topics, wanted(), partitions=2, initial_parameters=b"tensors")
    assert again == imported
    with pytest.raises(BoundaryError, match=r"generation 3: expected at most 1000000 bytes"):
        begin(connection, topics, wanted(), partitions=2, initial_parameters=bytes(1_000_000))
    assert len(read_generations(connection, topics, "example")) == 2


def test_begin_completes_what_was_left_half_done(connection: Connection, topics: Topics) -> None:
    """Ended after the record and one boundary; the next run adds the others, before its own."""
    ensure_first(connection, topics, wanted())
    second = numbered(wanted(learn_slot_ms=500), 2)
    append(connection, [TopicPartition(topics.generations, 0)], b"example", encode(second))
    done = TopicPartition(topics.impressions, 1)
    append(connection, [done], b"", encode(second), [BOUNDARY_HEADER])
    impressions, conversions = topics.inputs
    assert missing_boundaries(connection, topics, "example", partitions=2) == [
        TopicPartition(impressions, 0),
        TopicPartition(conversions, 0),
        TopicPartition(conversions, 1),
    ]

    third = begin(connection, topics, wanted(learn_slot_ms=1_000), partitions=2)
    assert third.generation == 3
    assert missing_boundaries(connection, topics, "example", partitions=2) == []
    for topic in topics.inputs:
        found = boundaries(connection, topic)
        for partition in (0, 1):
            values = [value for place, _, value in found if place == partition]
            assert values == [encode(second), encode(third)]


def test_records_that_do_not_continue_the_numbers_do_not_count(
    connection: Connection, topics: Topics
) -> None:
    [first] = ensure_first(connection, topics, wanted())
    place = [TopicPartition(topics.generations, 0)]
    foreign = numbered(wanted(('policy = "example"', 'policy = "other"')), 2)
    for value in (
        b"\xffbroken",
        encode(numbered(wanted(learn_slot_ms=9), 1)),
        encode(numbered(wanted(learn_slot_ms=9), 3)),
        encode(foreign),
    ):
        append(connection, place, b"example", value)
    assert read_generations(connection, topics, "example") == [first]
    assert begin(connection, topics, wanted(learn_slot_ms=7), partitions=2).generation == 2


def test_a_topic_without_its_first_records_is_refused(
    connection: Connection, topics: Topics
) -> None:
    ensure_first(connection, topics, wanted())
    with open_admin(connection) as admin:
        admin.delete_records({TopicPartition(topics.generations, 0): 1})
    with pytest.raises(StreamError, match=r"expected its records from offset 0, seen 1"):
        read_generations(connection, topics, "example")
