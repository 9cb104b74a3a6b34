"""What the settings and the policy's schema mean for the parts, said once for all verbs."""

from cli.settings import Settings
from policy.errors import SettingsError
from policy.schema import Schema
from stream.connection import Connection
from stream.join import JoinSettings
from stream.topics import TopicPlan, Topics


def topic_plan(settings: Settings, schema: Schema) -> TopicPlan:
    """The topics that the settings and the policy's schema ask for."""
    return TopicPlan(
        Topics(settings.topic_prefix),
        settings.partitions,
        schema.window_ms,
        schema.early_ms,
        schema.late_ms,
        settings.timestamps,
    )


def join_settings(settings: Settings, schema: Schema) -> JoinSettings:
    """How the join works; it tells its progress at the learner's slot boundaries."""
    return JoinSettings(
        window_ms=schema.window_ms,
        early_ms=schema.early_ms,
        late_ms=schema.late_ms,
        max_open_groups=settings.join_max_open_groups,
        progress_step_ms=settings.learn_slot_ms,
    )


def local_broker_port(settings: Settings) -> int:
    """Port at which the local broker must listen to be found by the processes.

    Raises:
        SettingsError: `bootstrap_servers` is not one address on this machine.
    """
    addresses = Connection(settings.bootstrap_servers).addresses
    if len(addresses) != 1 or addresses[0][0] not in ("127.0.0.1", "localhost"):
        raise SettingsError(
            "bootstrap_servers: expected one address on 127.0.0.1 for the local broker, "
            f"seen {settings.bootstrap_servers!r}"
        )
    return addresses[0][1]
