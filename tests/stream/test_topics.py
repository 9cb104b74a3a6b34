"""Topics are created with the settings that the design needs, and wrong ones are refused."""

from typing import Any

import pytest
from kafka.admin import ConfigResource, ConfigResourceType

from policy.errors import TopicError
from stream.connection import Connection, open_admin
from stream.topics import DAY_MS, OUTPUT_BYTES, TopicPlan, Topics, TopicSpec, check, create
from tests.kafka import Produced, create_fresh, fresh_plan, produce, read_topic

INPUTS_KEPT_MS = 4 * 5_000 + 2 * 1_000 + 7 * DAY_MS


def make(connection: Connection, spec: TopicSpec, **changes: str) -> None:
    """Create one topic as it ought to be, but for some settings."""
    config = spec.config | {name.replace("_", "."): value for name, value in changes.items()}
    with open_admin(connection) as admin:
        admin.create_topics(
            {spec.name: {"num_partitions": spec.partitions, "configs": config}},
            wait_for_metadata=True,
        )


def describe(connection: Connection, plan: TopicPlan) -> dict[str, dict[str, Any]]:
    with open_admin(connection) as admin:
        wanted = [ConfigResource(ConfigResourceType.TOPIC, name) for name in plan.topics.all]
        found = admin.describe_configs(wanted, config_filter="all")["topic"]
    return {name: {k: v["value"] for k, v in config.items()} for name, config in found.items()}


def spec_of(plan: TopicPlan, topic: str) -> TopicSpec:
    return next(spec for spec in plan.specs if spec.name == topic)


def test_names_follow_the_design() -> None:
    assert Topics("grade").all == (
        "grade.impressions.v1",
        "grade.conversions.v1",
        "grade.reward-groups.v1",
        "grade.late.v1",
        "grade.orphans.v1",
        "grade.dead-letters.v1",
        "grade.parameters.v1",
        "grade.versions.v1",
        "grade.releases.v1",
        "grade.generations.v1",
    )


def test_created_topics_are_as_the_design_says(connection: Connection) -> None:
    plan = fresh_plan(partitions=3)
    assert create(connection, plan) == list(plan.topics.all)
    config = describe(connection, plan)
    with open_admin(connection) as admin:
        partitions = {
            topic["name"]: len(topic["partitions"])
            for topic in admin.describe_topics(list(plan.topics.all))
        }
    topics = plan.topics
    one = {topics.parameters, topics.versions, topics.releases, topics.generations}
    assert partitions == {name: 1 if name in one else 3 for name in topics.all}
    for name in topics.all:
        assert config[name]["message.timestamp.type"] == "LogAppendTime", name
        policy = "compact" if name == topics.parameters else "delete"
        assert config[name]["cleanup.policy"] == policy, name
    compacted = config[topics.parameters]
    assert compacted["segment.bytes"] == str(16 * 1024 * 1024)
    assert compacted["segment.ms"] == str(10 * 60 * 1000)
    assert compacted["delete.retention.ms"] == str(60 * 1000)
    assert compacted["min.cleanable.dirty.ratio"] == "0.1"
    for name in topics.inputs:
        assert int(config[name]["retention.ms"]) == INPUTS_KEPT_MS
    assert int(config[topics.reward_groups]["retention.ms"]) > INPUTS_KEPT_MS + 5_000
    for name in (*topics.refused, topics.versions, topics.releases):
        assert int(config[name]["retention.ms"]) == 365 * DAY_MS


def test_create_again_changes_nothing_and_completes_what_is_missing(
    connection: Connection,
) -> None:
    plan = fresh_plan()
    make(connection, spec_of(plan, plan.topics.conversions))
    assert create(connection, plan) == [
        name for name in plan.topics.all if name != plan.topics.conversions
    ]
    assert create(connection, plan) == []
    check(connection, plan)


def test_missing_topics_are_named(connection: Connection) -> None:
    plan = fresh_plan()
    make(connection, spec_of(plan, plan.topics.releases))
    with pytest.raises(TopicError) as refused:
        check(connection, plan)
    assert str(refused.value).splitlines() == [
        f"{name}: topic: expected to exist, seen none of this name"
        for name in plan.topics.all
        if name != plan.topics.releases
    ]


@pytest.mark.parametrize(
    ("topic", "changes", "complaint"),
    [
        pytest.param(
            "impressions",
            {"retention_ms": "60000"},
            f"retention.ms: expected at least {INPUTS_KEPT_MS}, seen 60000",
            id="inputs kept too short",
        ),
        pytest.param(
            "conversions",
            {"retention_bytes": "1000000"},
            "retention.bytes: expected -1, seen 1000000",
            id="deleted by size",
        ),
        pytest.param(
            "conversions",
            {"message_timestamp_type": "CreateTime"},
            "message.timestamp.type: expected LogAppendTime, seen CreateTime",
            id="timestamp type",
        ),
        pytest.param(
            "impressions",
            {"cleanup_policy": "compact"},
            "cleanup.policy: expected delete, seen compact",
            id="compacted input",
        ),
        pytest.param(
            "reward_groups",
            {"cleanup_policy": "compact,delete"},
            "cleanup.policy: expected delete, seen compact,delete",
            id="compacted groups",
        ),
        pytest.param(
            "reward_groups",
            {"retention_ms": str(INPUTS_KEPT_MS)},
            f"retention.ms: expected at least {INPUTS_KEPT_MS + 5_000 + DAY_MS}, "
            f"seen {INPUTS_KEPT_MS}",
            id="groups kept as short as inputs",
        ),
        pytest.param(
            "reward_groups",
            {"max_message_bytes": "1048588"},
            "max.message.bytes: expected at least 8388608, seen 1048588",
            id="groups too small",
        ),
        pytest.param(
            "parameters",
            {"cleanup_policy": "delete"},
            "cleanup.policy: expected compact, seen delete",
            id="parameters not compacted",
        ),
        pytest.param(
            "versions",
            {"retention_ms": "604800000"},
            f"retention.ms: expected at least {365 * DAY_MS}, seen 604800000",
            id="lineage kept too short",
        ),
    ],
)
def test_a_wrong_setting_is_refused(
    connection: Connection, topic: str, changes: dict[str, str], complaint: str
) -> None:
    plan = fresh_plan()
    name = getattr(plan.topics, topic)
    make(connection, spec_of(plan, name), **changes)
    with pytest.raises(TopicError) as refused:
        create(connection, plan)
    assert str(refused.value) == f"{name}: {complaint}"


def test_unequal_partition_counts_are_refused(connection: Connection) -> None:
    plan = fresh_plan(partitions=2)
    wider = fresh_plan(partitions=3)
    make(connection, TopicSpec(plan.topics.conversions, 3, wider.input_retention_ms))
    with pytest.raises(TopicError) as refused:
        create(connection, plan)
    assert str(refused.value) == f"{plan.topics.conversions}: partitions: expected 2, seen 3"


def test_all_findings_come_at_once(connection: Connection) -> None:
    plan = fresh_plan()
    make(connection, spec_of(plan, plan.topics.late), retention_ms="1000")
    make(connection, spec_of(plan, plan.topics.orphans), retention_ms="1000")
    with pytest.raises(TopicError) as refused:
        create(connection, plan)
    named = [line.split(":")[0] for line in str(refused.value).splitlines()]
    assert named == [plan.topics.late, plan.topics.orphans]


def test_groups_must_outlive_inputs_that_are_kept_longer_than_needed(
    connection: Connection,
) -> None:
    plan = fresh_plan()
    make(connection, spec_of(plan, plan.topics.impressions), retention_ms="-1")
    with pytest.raises(TopicError) as refused:
        create(connection, plan)
    kept = INPUTS_KEPT_MS + 5_000 + DAY_MS
    assert str(refused.value) == (
        f"{plan.topics.reward_groups}: retention.ms: expected -1, as the inputs are kept, "
        f"seen {kept}"
    )


def test_the_largest_snapshot_fits_into_a_segment(connection: Connection) -> None:
    topics = create_fresh(connection)
    largest = bytes(OUTPUT_BYTES - 1024)
    produce(connection, topics.parameters, [Produced(largest, b"example/1/1")])
    assert [record.value for record in read_topic(connection, topics.parameters)] == [largest]


def test_longer_retention_than_needed_will_do(connection: Connection) -> None:
    plan = fresh_plan()
    make(connection, spec_of(plan, plan.topics.impressions), retention_ms=str(INPUTS_KEPT_MS + 1))
    make(connection, spec_of(plan, plan.topics.late), retention_ms="-1")
    create(connection, plan)


def test_event_time_topics_keep_the_events_time_for_ever(connection: Connection) -> None:
    topics = create_fresh(connection, timestamps="event")
    year_2001 = 1_000_000_000_000
    produce(connection, topics.impressions, [Produced(b"old", timestamp_ms=year_2001)])
    (record,) = read_topic(connection, topics.impressions)
    assert (record.value, record.timestamp) == (b"old", year_2001)


def test_event_time_topics_refuse_a_clock_in_the_future(connection: Connection) -> None:
    topics = create_fresh(connection, timestamps="event")
    year_2099 = 4_070_908_800_000
    with pytest.raises(Exception, match="InvalidTimestamp"):
        produce(connection, topics.impressions, [Produced(b"early", timestamp_ms=year_2099)])


def test_event_time_topics_that_take_any_future_are_refused(connection: Connection) -> None:
    plan = fresh_plan(timestamps="event")
    spec = spec_of(plan, plan.topics.impressions)
    make(connection, spec, message_timestamp_after_max_ms=str(DAY_MS))
    with pytest.raises(TopicError) as refused:
        create(connection, plan)
    assert str(refused.value) == (
        f"{spec.name}: message.timestamp.after.max.ms: expected at most 3600000, seen {DAY_MS}"
    )


def test_broker_time_topics_carry_the_brokers_time(connection: Connection, topics: Topics) -> None:
    produce(connection, topics.impressions, [Produced(b"now", timestamp_ms=1_000)])
    (record,) = read_topic(connection, topics.impressions)
    assert record.timestamp > 1_700_000_000_000


def test_live_topics_are_refused_for_replay(connection: Connection) -> None:
    live = fresh_plan()
    create(connection, live)
    replay = TopicPlan(live.topics, 2, 5_000, 1_000, 10_000, timestamps="event")
    with pytest.raises(TopicError) as refused:
        check(connection, replay)
    text = str(refused.value)
    assert f"{live.topics.impressions}: message.timestamp.type: expected CreateTime" in text
    assert f"{live.topics.impressions}: retention.ms: expected -1" in text
