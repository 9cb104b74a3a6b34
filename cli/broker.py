"""`grade broker`: a real Apache Kafka on this machine, without Docker or an installed Java."""

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from cli.settings import Settings, load_settings
from cli.wiring import local_broker_port
from policy.errors import BrokerError
from stream.broker import BrokerStatus, LocalBroker
from stream.broker_jars import KAFKA_VERSION

STOPPED = 3
"""Exit code of `status` when the broker does not run, as service managers have it."""

app = typer.Typer(
    help="Run a local Apache Kafka: one node, reachable from this machine only.",
    no_args_is_help=True,
)

DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder of the broker's data.", show_default="kafka in the setting data_dir"),
]


@app.command()
def up(
    port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="Port to listen on; 0 takes a free one.",
            show_default="that of bootstrap_servers",
        ),
    ] = None,
    data_dir: DataDir = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay, and stop the broker on Ctrl-C or SIGTERM.")
    ] = False,
) -> None:
    """Start the broker unless it runs; return when it answers.

    The first start downloads Apache Kafka (44 MB) into the Maven repository of the user. The data
    survives restarts.
    """
    settings = load_settings()
    broker = LocalBroker(
        _folder(settings, data_dir),
        local_broker_port(settings) if port is None else port,
        progress=lambda sentence: typer.echo(sentence, err=True),
    )
    if not foreground:
        typer.echo(_sentence(broker.up()))
        return
    stop = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stop.set())
    started = broker.up()
    typer.echo(_sentence(started))
    try:
        while not stop.wait(0.5):
            if not broker.status().running:
                raise BrokerError(
                    f"{started.data_dir}: expected the broker to run, seen process {started.pid} "
                    f"ended; {broker.log_file} tells why"
                )
    finally:
        broker.down()


@app.command()
def down(data_dir: DataDir = None) -> None:
    """Stop the broker and wait until it is gone. Its data stays."""
    folder = _folder(load_settings(), data_dir)
    was_running = LocalBroker(folder).down()
    typer.echo(f"{folder}: {'stopped' if was_running else 'no broker was running'}")


@app.command()
def status(data_dir: DataDir = None) -> None:
    """Tell whether the broker runs; exit with 3 if it does not."""
    found = LocalBroker(_folder(load_settings(), data_dir)).status()
    typer.echo(_sentence(found))
    if not found.running:
        raise typer.Exit(STOPPED)


def _sentence(status: BrokerStatus) -> str:
    if status.running:
        return (
            f"running: Apache Kafka {KAFKA_VERSION} at {status.bootstrap_servers} "
            f"(pid {status.pid}, data in {status.data_dir})"
        )
    port = f", last port {status.port}" if status.port is not None else ""
    stale = (
        f"; broker.pid is stale: process {status.stale_pid} is not this broker"
        if status.stale_pid is not None
        else ""
    )
    return f"stopped (data in {status.data_dir}{port}){stale}"


def _folder(settings: Settings, data_dir: Path | None) -> Path:
    return settings.data_dir / "kafka" if data_dir is None else data_dir
