"""`grade learn`: the learner process."""

import signal

from cli.admin import AdminServer
from cli.settings import Settings, load_settings
from policy.schema import load_schema
from policy.trainer import TrainerSettings
from stream.connection import Connection
from stream.learner import Learner, LearnerSettings
from stream.topics import Topics


def trainer_settings(settings: Settings) -> TrainerSettings:
    """How to learn, from the settings."""
    return TrainerSettings(
        seed=settings.learn_seed,
        static_rate=settings.learn_static_rate,
        contextual_rate=settings.learn_contextual_rate,
        served_epochs=settings.learn_served_epochs,
        epsilon=settings.learn_epsilon,
        ratio_cap=settings.learn_ratio_cap,
        kl_weight=settings.learn_kl_weight,
        fresh_steps=settings.learn_fresh_steps,
        replay_steps=settings.learn_replay_steps,
        average=settings.learn_average,
        format_weight=settings.learn_format_weight,
    )


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
    with AdminServer(settings.learn_admin_port, learner.health, host=settings.admin_host):
        learner.run()
