"""`grade learn`: the learner process."""

import signal

from cli.admin import AdminServer
from cli.policy_option import PolicyName, load_policy_settings
from cli.repeats import limit_repeats
from cli.settings import Settings
from cli.wiring import wanted_generation
from policy.schema import load_schema
from stream import learner_metrics as metrics
from stream.connection import Connection
from stream.learner import Learner, LearnerSettings
from stream.topics import Topics


def learner_settings(settings: Settings) -> LearnerSettings:
    """How the learner process works, from the settings."""
    return LearnerSettings(
        partitions=settings.partitions,
        checkpoints=settings.data_dir / "checkpoints" / settings.topic_prefix,
        keep_checkpoints=settings.learn_checkpoints_kept,
        keep_versions=settings.learn_versions_kept,
    )


def learn(policy: PolicyName = None) -> None:
    """Learn from reward groups and publish policy versions, until SIGTERM or Ctrl-C.

    One learner per policy. A second one does no harm: it publishes the same bytes.
    """
    settings = load_policy_settings(policy)
    schema = load_schema(settings.schema_path)
    metrics.POLICY.labels(schema.policy).set(1)
    learner = Learner(
        wanted_generation(settings, schema),
        learner_settings(settings),
        Connection(settings.bootstrap_servers, client_id="grade-learn"),
        Topics(settings.topic_prefix),
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: learner.stop())
    limit_repeats("kafka")
    with AdminServer(settings.learn_admin_port, learner.health, host=settings.admin_host):
        learner.run()
