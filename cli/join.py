"""`grade join`: a join worker."""

import asyncio
import signal
from typing import Annotated

import structlog
import typer
from grade.v1.refused_pb2 import Reason

from cli.admin import AdminServer
from cli.collector import relax_collector
from cli.policy_option import PolicyName, load_policy_settings
from cli.repeats import limit_repeats
from cli.settings import Settings
from cli.wiring import generations_to_go_by, join_limits
from policy.errors import SettingsError
from policy.schema import load_schema
from stream import join_metrics as metrics
from stream.app import JoinWorker, WorkerSettings
from stream.connection import Connection
from stream.owner import OwnerSettings
from stream.topics import Topics

log = structlog.get_logger(__name__)


def join(
    policy: PolicyName = None,
    accept_loss: Annotated[
        bool,
        typer.Option(
            "--accept-loss",
            help="Go on, and record the loss, where retention has deleted records that were not "
            "joined yet.",
        ),
    ] = False,
) -> None:
    """Run a join worker until SIGTERM or Ctrl-C; any number share the partitions.

    To stop a worker in any way, at any time, loses nothing. Ends with code 2 if the settings or the
    schema say something else than the generation in force (`grade generation`).
    """
    settings = load_policy_settings(policy)
    if settings.timestamps == "event" and settings.join_ticks == "owner":
        raise SettingsError(
            "join_ticks: expected 'producer' where timestamps are the event's own, seen 'owner': "
            "a tick of today would end every window of a history",
            Reason.REASON_INCONSISTENT,
        )
    schema = load_schema(settings.schema_path)
    connection = Connection(settings.bootstrap_servers, client_id="grade-join")
    generations_to_go_by(settings, schema, connection)
    worker = JoinWorker(
        connection,
        Topics(settings.topic_prefix),
        schema.policy,
        join_limits(settings),
        _worker_settings(settings, accept_loss),
    )
    metrics.POLICY.labels(schema.policy).set(1)
    limit_repeats("aiokafka", "faust", "mode")
    relax_collector()
    with AdminServer(settings.join_admin_port, worker.health, host=settings.admin_host) as admin:
        asyncio.run(_run(worker, admin.port))
    log.info("join_stopped")


async def _run(worker: JoinWorker, admin_port: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    log.info("join_started", admin_port=admin_port)
    await worker.run(stop, lambda: log.info("join_ready", admin_port=admin_port))


def _worker_settings(settings: Settings, accept_loss: bool) -> WorkerSettings:
    return WorkerSettings(
        group=settings.join_group,
        partitions=settings.partitions,
        session_timeout_s=settings.join_session_timeout_s,
        owner=OwnerSettings(
            ticks=settings.join_ticks,
            tick_interval_ms=settings.join_tick_interval_ms,
            idle_tick_interval_ms=settings.join_idle_tick_interval_ms,
            stall_timeout_s=settings.join_stall_timeout_s,
            accept_loss=accept_loss,
        ),
    )
