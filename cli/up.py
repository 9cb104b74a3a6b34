"""`grade up`: broker, server, join and learner on this machine, supervised."""

import time
from pathlib import Path
from typing import Annotated

import structlog
import typer
from rich.console import Console

from cli.clean_stop import clean_stop
from cli.policy_option import settings_of_each_policy
from cli.settings import load_settings
from cli.supervisor import Supervisor
from cli.system import admin_ports, process_plans, wait_until_healthy
from cli.wiring import generations_to_go_by, local_broker_port
from policy.errors import BrokerError, FileNotWritten
from policy.schema import load_schema
from stream.broker import LocalBroker
from stream.connection import Connection
from stream.topics import create

log = structlog.get_logger(__name__)

KAFKA_RETRY_S = 10.0
"""Least time between two starts of a broker that ends, such as on a full disk."""


def up(
    schema: Annotated[
        Path | None,
        typer.Option(
            help="The policy's schema, or a folder of them: one policy each (setting schema_path)."
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder for everything on disk (setting data_dir).")
    ] = None,
    join_workers: Annotated[int, typer.Option(min=1, help="Join workers of each policy.")] = 1,
    broker: Annotated[
        bool,
        typer.Option(
            help="Run a local Kafka too, on the port of bootstrap_servers; "
            "with --no-broker an existing one is used."
        ),
    ] = True,
) -> None:
    """Run the whole system for your own traffic until Ctrl-C.

    Starts a local Kafka (unless --no-broker), creates the topics that are missing, and keeps
    server, join workers and learner running: one that ends is started again. With a folder of
    schemas there is one server for all policies, and join workers and a learner for each. Their
    output goes to <data_dir>/grade.log. Ctrl-C or SIGTERM stops everything in order; the data
    stays.
    """
    settings = load_settings({"schema_path": schema, "data_dir": data_dir})
    settings = settings.model_copy(
        update={
            "schema_path": settings.schema_path.resolve(),
            "data_dir": settings.data_dir.resolve(),
        }
    )
    of_each = settings_of_each_policy(settings)
    console = Console(stderr=True)
    with clean_stop(console, 0) as stack:
        local = LocalBroker(
            settings.data_dir / "kafka",
            local_broker_port(settings) if broker else 0,
            progress=console.print,
        )
        if broker:
            if not local.status().running:  # one that runs already is somebody else's to stop
                stack.callback(local.down)
                local.up()
            console.print(f"Kafka runs at {settings.bootstrap_servers}")
        connection = Connection(settings.bootstrap_servers, client_id="grade-up")
        for own in of_each.values():
            # The processes would refuse one after the other what is refused here at once.
            policy = load_schema(own.schema_path)
            generations_to_go_by(own, policy, connection, prepare=create)
        plans = process_plans(settings, join_workers)
        running = stack.enter_context(Supervisor(plans, settings.data_dir / "grade.log"))
        wait_until_healthy(admin_ports(plans), running)
        console.print(
            "".join(
                f"policy {name!r} is served at {settings.serve_host}:{settings.serve_port}\n"
                for name in of_each
            )
            + "\n".join(
                f"  {name:8} http://{settings.admin_host}:{port}/health and /metrics"
                for name, port in admin_ports(plans).items()
            )
            + f"\nlog: {running.log_path}\nCtrl-C stops everything."
        )
        due_at = 0.0
        while True:
            time.sleep(1.0)  # until a signal
            running.keep_running()
            if broker and time.monotonic() >= due_at and not local.status().running:
                _start_again(local)
                due_at = time.monotonic() + KAFKA_RETRY_S


def _start_again(local: LocalBroker) -> None:
    """Start a broker that has ended; if it cannot, requests are answered all the same."""
    log.warning("kafka_ended", what="starting it again", log=str(local.log_file))
    try:
        local.up()
    except (BrokerError, FileNotWritten) as error:
        log.error("kafka_not_started", retry_s=KAFKA_RETRY_S, reason=str(error))
