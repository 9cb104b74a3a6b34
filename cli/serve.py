"""`grade serve`: the policy server."""

import signal
import threading
from pathlib import Path
from typing import Annotated

import structlog
import typer

from cli.admin import AdminServer
from cli.repeats import limit_repeats
from cli.settings import Settings, load_settings
from policy.durable_file import replace_file
from policy.schema import load_schema
from serving.server import PolicyServer, ServerSettings
from stream.connection import Connection
from stream.topics import Topics

log = structlog.get_logger(__name__)


def serve(
    schema: Annotated[
        Path | None, typer.Option(help="The policy's schema (setting schema_path).")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on, 0 for any (setting serve_port).")
    ] = None,
    port_file: Annotated[
        Path | None, typer.Option(help="File to write the port to once requests are answered.")
    ] = None,
) -> None:
    """Answer ranking requests over gRPC until SIGTERM or Ctrl-C.

    Starts from the newest published parameters, without Kafka from the last good ones on disk, else
    from version 0; then follows what is published. Version 0 draws the policy arm's weights around
    the schema's baseline (concentration 20); the holdout arm gets the baseline itself. Calls in
    flight are finished before it ends.
    """
    settings = load_settings({"schema_path": schema, "serve_port": port})
    policy = load_schema(settings.schema_path)
    stop = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stop.set())
    server = PolicyServer(
        policy,
        _server_settings(settings, policy.policy),
        Connection(settings.bootstrap_servers, client_id="grade-serve"),
        Topics(settings.topic_prefix).parameters,
    )
    admin = AdminServer(
        settings.serve_admin_port,
        server.health,
        {"/swaps": server.swaps},
        host=settings.admin_host,
    )
    limit_repeats("kafka")
    with admin:
        try:
            server.start()
            if server.get_ready(stop):
                if port_file is not None:
                    replace_file(port_file, f"{server.port}\n".encode())
                log.info(
                    "serve_ready",
                    host=settings.serve_host,
                    port=server.port,
                    admin_port=admin.port,
                    epoch=server.engine.policy.epoch,
                    version=server.engine.policy.version,
                )
                stop.wait()
            log.info("serve_stopping", grace_s=settings.serve_grace_s)
        finally:
            server.stop()
    log.info("serve_stopped")


def _server_settings(settings: Settings, policy: str) -> ServerSettings:
    return ServerSettings(
        host=settings.serve_host,
        port=settings.serve_port,
        seed=settings.serve_seed,
        members=settings.serve_members,
        max_concurrent_rpcs=settings.serve_max_concurrent_rpcs,
        ready_timeout_s=settings.serve_ready_timeout_s,
        grace_s=settings.serve_grace_s,
        reflection=settings.serve_reflection,
        snapshot_file=settings.data_dir / "serve" / settings.topic_prefix / f"{policy}.snapshot",
    )
