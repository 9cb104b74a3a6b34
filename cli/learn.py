"""`grade learn`: the learner process."""

import signal

from cli.admin import AdminServer
from cli.repeats import limit_repeats
from cli.settings import Settings, load_settings
from cli.wiring import trainer_settings
from policy.schema import load_schema
from stream.connection import Connection
from stream.learner import Learner, LearnerSettings
from stream.topics import Topics


def learner_settings(settings: Settings) -> LearnerSettings:
    """How the learner process works, from the settings."""
    return LearnerSettings(
        partitions=settings.partitions,
        checkpoints=settings.data_dir / "checkpoints" / settings.topic_prefix,
        slot_ms=settings.learn_slot_ms,
        keep_checkpoints=settings.learn_checkpoints_kept,
        keep_versions=settings.learn_versions_kept,
    )


def learn() -> None:
    """Learn from reward groups and publish policy versions, until SIGTERM or Ctrl-C.

    One learner per policy. A second one does no harm: it publishes the same bytes.
    """
    settings = load_settings()
    learner = Learner(
        load_schema(settings.schema_path),
        trainer_settings(settings),
        learner_settings(settings),
        Connection(settings.bootstrap_servers, client_id="grade-learn"),
        Topics(settings.topic_prefix),
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: learner.stop())
    limit_repeats("kafka")
    with AdminServer(settings.learn_admin_port, learner.health, host=settings.admin_host):
        learner.run()
