"""Keeping topics longer when the times of a policy grow."""

from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaError

from policy.errors import TopicError
from stream.connection import Connection, open_admin
from stream.topics import DAY_MS, UNLIMITED, Finding, TopicPlan


def lengthen(connection: Connection, plan: TopicPlan) -> list[Finding]:
    """Raise the retention of the topics that are kept shorter than the plan asks for.

    No retention is ever lowered, and topics that are missing are left to `topics.check`.

    Returns:
        What was raised: the retention that is needed and the one that was there.

    Raises:
        TopicError: the broker refuses to change a topic.
        KafkaUnreachable: no broker answers.
    """
    with open_admin(connection) as admin:
        existing = set(admin.list_topics())
        wanted = {s.name: s.retention_ms for s in plan.specs if s.retention_ms is not None}
        resources = [ConfigResource(ConfigResourceType.TOPIC, n) for n in wanted if n in existing]
        described = admin.describe_configs(resources, config_filter="all").get("topic", {})
        kept = {name: int(each["retention.ms"]["value"]) for name, each in described.items()}
        raised = [
            Finding(name, "retention.ms", str(needed), str(kept[name]))
            for name, needed in _needed(plan, wanted, kept).items()
            if name in kept and _longer(needed, kept[name]) != kept[name]
        ]
        if raised:
            try:
                admin.alter_configs(
                    [
                        ConfigResource(ConfigResourceType.TOPIC, name, {setting: needed})
                        for name, setting, needed, _ in raised
                    ]
                )
            except KafkaError as error:
                raise TopicError(
                    f"{', '.join(str(each) for each in raised)}; not changed: {error}"
                ) from error
    return raised


def _needed(plan: TopicPlan, wanted: dict[str, int], kept: dict[str, int]) -> dict[str, int]:
    """How long each topic must be kept; the groups outlive inputs that are kept longer still."""
    longest = 0
    for name in plan.topics.inputs:
        longest = _longer(longest, _longer(wanted[name], kept.get(name, 0)))
    outlived = longest if longest == UNLIMITED else longest + plan.window_ms + DAY_MS
    groups = plan.topics.reward_groups
    return {**wanted, groups: _longer(wanted[groups], outlived)}


def _longer(one: int, other: int) -> int:
    return UNLIMITED if UNLIMITED in (one, other) else max(one, other)
