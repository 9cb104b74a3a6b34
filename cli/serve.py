"""`grade serve`: the policy server."""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated

import structlog
import typer

from cli.admin import AdminServer
from cli.repeats import limit_repeats
from cli.settings import Settings, load_settings
from cli.wiring import policies
from policy.durable_file import replace_file
from serving.server import SWITCH_INTERVAL_S, PolicyServer, ServerSettings
from stream.connection import Connection

log = structlog.get_logger(__name__)

_PARENT_INTERVAL_S = 1.0


def serve(
    schema: Annotated[
        Path | None,
        typer.Option(
            help="The policy's schema, or a folder of them: one policy each (setting schema_path)."
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on, 0 for any (setting serve_port).")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that share the port (setting serve_workers)."),
    ] = None,
    port_file: Annotated[
        Path | None, typer.Option(help="File to write the port to once requests are answered.")
    ] = None,
    worker_file: Annotated[
        Path | None,
        typer.Option(hidden=True, help="Be one of several workers; write the admin port here."),
    ] = None,
) -> None:
    """Answer ranking requests over gRPC until SIGTERM or Ctrl-C.

    Starts from the newest published parameters, without Kafka from the last good ones on disk, else
    from version 0; then follows what is published. Version 0 draws the policy arm's weights around
    the schema's baseline (concentration 20); the holdout arm gets the baseline itself. Calls in
    flight are finished before it ends.

    With several workers each is a process of its own on the same port; one that ends is started
    again. The admin port tells of all of them.
    """
    settings = load_settings({"schema_path": schema, "serve_port": port, "serve_workers": workers})
    stop = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stop.set())
    limit_repeats("kafka")
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    if worker_file is not None:
        _serve_as_worker(settings, stop, worker_file)
    elif settings.serve_workers == 1:
        _serve_alone(settings, stop, port_file)
    else:
        from cli.serve_workers import serve_by_workers

        ready_port = serve_by_workers(settings, stop, lambda port: _tell(port_file, port))
        log.info("serve_stopped", port=ready_port)


def _serve_alone(settings: Settings, stop: threading.Event, port_file: Path | None) -> None:
    server = _server(settings, shared_port=False)
    with _admin(server, settings.serve_admin_port, settings.admin_host) as admin:
        try:
            server.start()
            if server.get_ready(stop):
                _tell(port_file, server.port)
                _log_ready(settings, server, admin)
                stop.wait()
            log.info("serve_stopping", grace_s=settings.serve_grace_s)
        finally:
            server.stop()
    log.info("serve_stopped")


def _serve_as_worker(settings: Settings, stop: threading.Event, worker_file: Path) -> None:
    parent = os.getppid()
    server = _server(settings, shared_port=True)
    # For the parent alone, which tells of all workers on the port of the settings.
    with _admin(server, 0, "127.0.0.1") as admin:
        try:
            _tell(worker_file, admin.port)
            server.start()
            if server.get_ready(stop):
                _log_ready(settings, server, admin)
                while not stop.wait(_PARENT_INTERVAL_S):
                    if os.getppid() != parent:
                        # Else it would hold the port for ever, and nobody would know of it.
                        log.error("serve_parent_gone", pid=parent)
                        break
            log.info("serve_stopping", grace_s=settings.serve_grace_s)
        finally:
            server.stop()
    log.info("serve_stopped")


def _server(settings: Settings, *, shared_port: bool) -> PolicyServer:
    return PolicyServer(
        policies(settings),
        ServerSettings(
            host=settings.serve_host,
            port=settings.serve_port,
            seed=settings.serve_seed,
            members=settings.serve_members,
            max_concurrent_rpcs=settings.serve_max_concurrent_rpcs,
            ready_timeout_s=settings.serve_ready_timeout_s,
            grace_s=settings.serve_grace_s,
            reflection=settings.serve_reflection,
            snapshot_folder=settings.data_dir / "serve" / settings.topic_prefix,
            shared_port=shared_port,
        ),
        Connection(settings.bootstrap_servers, client_id="grade-serve"),
    )


def _admin(server: PolicyServer, port: int, host: str) -> AdminServer:
    return AdminServer(port, server.health, {"/swaps": server.swaps}, host=host)


def _log_ready(settings: Settings, server: PolicyServer, admin: AdminServer) -> None:
    log.info(
        "serve_ready",
        host=settings.serve_host,
        port=server.port,
        admin_port=admin.port,
        serving={name: engine.policy.order for name, engine in server.engines.items()},
    )


def _tell(path: Path | None, port: int) -> None:
    """Write a port to a file, for whoever has started this process."""
    if path is not None:
        replace_file(path, f"{port}\n".encode(), durable=False)
