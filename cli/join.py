"""`grade join`: a join worker."""

import asyncio
import signal

import structlog

from cli.admin import AdminServer
from cli.collector import relax_collector
from cli.repeats import limit_repeats
from cli.settings import Settings, load_settings
from cli.wiring import join_settings, topic_plan
from policy.errors import SettingsError
from policy.schema import load_schema
from stream.app import JoinWorker, WorkerSettings
from stream.connection import Connection
from stream.owner import OwnerSettings
from stream.topics import Topics, check

log = structlog.get_logger(__name__)


def join() -> None:
    """Run a join worker until SIGTERM or Ctrl-C; any number share the partitions.

    To stop a worker in any way, at any time, loses nothing.
    """
    settings = load_settings()
    if settings.timestamps == "event" and settings.join_ticks == "owner":
        raise SettingsError(
            "join_ticks: expected 'producer' where timestamps are the event's own, seen 'owner': "
            "a tick of today would end every window of a history"
        )
    schema = load_schema(settings.schema_path)
    connection = Connection(settings.bootstrap_servers, client_id="grade-join")
    topics = Topics(settings.topic_prefix)
    check(connection, topic_plan(settings, schema))
    worker = JoinWorker(
        connection,
        topics,
        schema,
        join_settings(settings, schema),
        _worker_settings(settings),
    )
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


def _worker_settings(settings: Settings) -> WorkerSettings:
    return WorkerSettings(
        group=settings.join_group,
        partitions=settings.partitions,
        session_timeout_s=settings.join_session_timeout_s,
        owner=OwnerSettings(
            ticks=settings.join_ticks,
            tick_interval_ms=settings.join_tick_interval_ms,
            idle_tick_interval_ms=settings.join_idle_tick_interval_ms,
            stall_timeout_s=settings.join_stall_timeout_s,
        ),
    )
