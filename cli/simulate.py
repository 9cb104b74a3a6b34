"""`grade simulate`: a simulated marketplace plays against a running system."""

import io
import json
import signal
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import structlog
import typer

from cli.admin import AdminServer
from cli.settings import load_settings
from grade_client import Connection, DeliveryFailed, EventProducer, PolicyClient, Topics
from policy.durable_file import replace_file
from policy.errors import FileNotWritten
from simulator.marketplace import POLICY, Marketplace, MarketplaceSettings
from simulator.traffic import Traffic, TrafficSettings

log = structlog.get_logger(__name__)


def simulate(
    target: Annotated[
        str | None,
        typer.Option(
            help="Policy server as host:port.", show_default="the settings serve_host, serve_port"
        ),
    ] = None,
    rate: Annotated[float, typer.Option(min=0.1, help="Requests per second.")] = 300.0,
    duration_s: Annotated[
        float | None,
        typer.Option(min=0.1, help="Length of the traffic in seconds; until Ctrl-C by default."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the world.")] = 0,
    drift_at_s: Annotated[
        float | None,
        typer.Option(min=0, help="Second at which all users change their taste; none by default."),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Requests asked for at once.")] = 12,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write totals and value to this file at the end.")
    ] = None,
    calls_file: Annotated[
        Path | None,
        typer.Option(
            "--calls",
            help="Write every call's wall time and latency in ms to this .npy file at the end.",
        ),
    ] = None,
    status_file: Annotated[
        Path | None, typer.Option(help="Rewrite this file with the state so far every second.")
    ] = None,
) -> None:
    """Play a simulated marketplace against a running system.

    The server must serve simulator/marketplace.toml. Request ids are new for every run. Ctrl-C or
    SIGTERM ends the run: what is on its way is confirmed and the files are written. The exit status
    is 1 if Kafka did not confirm every event.
    """
    settings = load_settings()
    if target is None:
        host = "127.0.0.1" if settings.serve_host == "0.0.0.0" else settings.serve_host
        target = f"{host}:{settings.serve_port}"
    connection = Connection(settings.bootstrap_servers, client_id="grade-simulate")
    with (
        PolicyClient(target, POLICY) as client,
        EventProducer(connection, Topics(settings.topic_prefix), POLICY) as producer,
    ):
        traffic = Traffic(
            Marketplace(MarketplaceSettings(seed=seed)),
            client,
            producer,
            TrafficSettings(
                rate=rate, duration_s=duration_s, drift_at_s=drift_at_s, threads=threads
            ),
            run=f"{time.time_ns() // 1_000_000:x}",
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: traffic.stop())

        def write_status(status: dict[str, Any]) -> None:
            if status_file is not None:
                try:
                    replace_file(status_file, _json(status), durable=False)
                except FileNotWritten as error:  # the traffic is worth more than the view of it
                    log.warning("status_not_written", reason=str(error))

        with AdminServer(
            settings.simulate_admin_port, traffic.health, host=settings.admin_host
        ) as admin:
            log.info(
                "traffic_began",
                target=target,
                rate=rate,
                duration_s=duration_s,
                seed=seed,
                admin_port=admin.port,
            )
            report = traffic.run(write_status)
        log.info("traffic_ended", **{k: v for k, v in report.items() if k != "curve"})
        # Every event is settled by now: what a full disk refuses costs none.
        if json_file is not None:
            replace_file(json_file, _json(report))
        if calls_file is not None:
            calls = io.BytesIO()
            np.save(calls, traffic.calls())
            replace_file(calls_file, calls.getvalue())
        if report["events_undelivered"]:
            raise DeliveryFailed(
                "expected every event to be confirmed, seen "
                f"{report['events_undelivered']} that Kafka did not confirm"
            )


def _json(content: dict[str, Any]) -> bytes:
    return f"{json.dumps(content)}\n".encode()
