"""What the settings and the policy's schema mean for the parts, said once for all verbs."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from grade.v1.generation_pb2 import Generation
from grade.v1.refused_pb2 import Reason

from cli.settings import Settings
from policy.errors import SchemaError, SettingsError, TopicError
from policy.schema import Schema, load_schema
from policy.trainer_settings import TrainerSettings
from stream.connection import Connection
from stream.generations import definition, ensure_first, read_generations, require_current
from stream.join_records import JoinLimits
from stream.topics import TopicPlan, Topics, check


def policies(settings: Settings) -> list[tuple[Schema, Topics]]:
    """Every policy of the system: its schema and the names of its topics.

    `schema_path` is one policy's file, or a folder in which every *.toml is a policy. Policies of a
    folder are kept apart by their topics: their names begin with `<topic_prefix>.<policy>`, those
    of a file's policy with `<topic_prefix>`.

    Raises:
        SchemaError: a file is not a schema, the folder has none, or two have the same policy.
    """
    path = settings.schema_path
    if not path.is_dir():
        return [(load_schema(path), Topics(settings.topic_prefix))]
    found: dict[str, Path] = {}
    schemas = []
    for file in sorted(path.glob("*.toml")):
        schema = load_schema(file)
        if schema.policy in found:
            raise SchemaError(
                f"{file}: policy: expected another name than that of {found[schema.policy]}, "
                f"seen {schema.policy!r} again",
                Reason.REASON_REPEATED_NAME,
            )
        found[schema.policy] = file
        schemas.append(schema)
    if not schemas:
        raise SchemaError(
            f"{path}: expected a schema file or a folder of them (*.toml), seen an empty one",
            Reason.REASON_UNAVAILABLE,
        )
    return [(schema, Topics(f"{settings.topic_prefix}.{schema.policy}")) for schema in schemas]


def one_policy(settings: Settings, name: str | None = None) -> tuple[Schema, Topics]:
    """The policy that a process works for.

    Args:
        settings: whose `schema_path` says which there are.
        name: the policy; None if there is only one.

    Raises:
        SchemaError: as `policies`.
        SettingsError: there is none of this name, or several and none is named.
    """
    known = {schema.policy: (schema, topics) for schema, topics in policies(settings)}
    if name is None and len(known) == 1:
        return next(iter(known.values()))
    if name not in known:
        raise SettingsError(
            f"--policy: expected one of {', '.join(known)} (schema_path {settings.schema_path}), "
            f"seen {'none' if name is None else repr(name)}",
            Reason.REASON_UNKNOWN_POLICY,
        )
    return known[name]


def settings_of_policy(settings: Settings, name: str | None = None) -> Settings:
    """The settings as a process that works for one policy reads them.

    In a folder of policies each has its own schema file, topics and consumer group of the join.

    Args:
        settings: whose `schema_path` says which policies there are.
        name: the policy; None if there is only one.

    Raises:
        SchemaError, SettingsError: as `one_policy`.
    """
    folder = settings.schema_path
    if name is None and not folder.is_dir():
        return settings  # who does not need the schema does without the file
    schema, topics = one_policy(settings, name)
    if not folder.is_dir():
        return settings
    (file,) = (each for each in folder.glob("*.toml") if load_schema(each).policy == schema.policy)
    return settings.model_copy(
        update={
            "schema_path": file,
            "topic_prefix": topics.prefix,
            "join_group": f"{settings.join_group}.{schema.policy}",
        }
    )


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


def join_limits(settings: Settings) -> JoinLimits:
    """When the join reads and writes; it tells its progress at the learner's slot boundaries."""
    return JoinLimits(
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


def trainer_settings(settings: Settings) -> TrainerSettings:
    """How to learn."""
    return TrainerSettings(
        seed=settings.learn_seed,
        static_rate=settings.learn_static_rate,
        contextual_rate=settings.learn_contextual_rate,
        served_epochs=settings.learn_served_epochs,
        epsilon=settings.learn_epsilon,
        epsilon_high=settings.learn_epsilon_high,
        ratio_cap=settings.learn_ratio_cap,
        staleness_cap=settings.learn_staleness_cap,
        kl_weight=settings.learn_kl_weight,
        fresh_steps=settings.learn_fresh_steps,
        replay_steps=settings.learn_replay_steps,
        replay_slots=settings.learn_replay_slots,
        feature_noise=settings.learn_feature_noise,
        average=settings.learn_average,
        combine=settings.learn_combine,
        prior_weight=settings.learn_prior_weight,
        format_weight=settings.learn_format_weight,
        advantage_scale=settings.learn_advantage_scale,
        reference=settings.learn_reference,
        dropout=settings.learn_dropout,
        drift_threshold=settings.learn_drift_threshold,
    )


def wanted_generation(settings: Settings, schema: Schema) -> Generation:
    """What this process would go by if a generation began now; its number is 0."""
    return definition(schema, trainer_settings(settings), settings.learn_slot_ms)


def generations_to_go_by(
    settings: Settings,
    schema: Schema,
    connection: Connection,
    prepare: Callable[[Connection, TopicPlan], object] = check,
) -> list[Generation]:
    """Every generation of the policy; the first one begins here if none has.

    Args:
        settings: of this process.
        schema: the policy's schema.
        connection: where Kafka is.
        prepare: checks or creates the topics that the settings ask for; not before it is known that
            the settings are in force, since topics need not be fit for others.

    Returns:
        Numbers rising; the last is in force and is what the settings and the schema say.

    Raises:
        BoundaryError: the settings or the schema say something else than the latest generation.
        TopicError: a topic is not as it must be.
        KafkaUnreachable: no broker answers.
    """
    topics, wanted = Topics(settings.topic_prefix), wanted_generation(settings, schema)
    with suppress(TopicError):  # before the first start there is no topic
        begun = read_generations(connection, topics, schema.policy)
        if begun:
            require_current(begun, wanted)
    prepare(connection, topic_plan(settings, schema))
    generations = ensure_first(connection, topics, wanted)
    require_current(generations, wanted)
    return generations
