"""`grade replay`: play a folder of real requests in event time."""

import json
import math
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from cli.settings import Settings, load_settings
from cli.supervisor import Supervisor
from cli.system import admin_ports, free_ports, process_plans, wait_until_healthy
from cli.wiring import topic_plan, trainer_settings
from evaluation.data_folder import DataFolder, read_data_folder
from evaluation.in_memory import MemoryLoop
from evaluation.replay import Served, Slot, Way, first_difference, play, second_half_ndcg, slots_of
from evaluation.through_kafka import ThroughKafka
from evaluation.through_memory import ThroughMemory
from evaluation.yardsticks import lists_of, yardsticks
from grade_client import Connection, EventProducer, PolicyClient
from policy.durable_file import replace_file
from policy.errors import GradeError
from policy.schema import Schema, load_schema
from stream.broker import LocalBroker
from stream.connection import open_admin
from stream.topics import create

PROCESS_LOG = "replay.log"


class Through(StrEnum):
    """Which system a folder is played through."""

    MEMORY = "memory"
    KAFKA = "kafka"
    BOTH = "both"


def replay(
    data_dir: Annotated[Path, typer.Argument(help="Folder in the format of docs/data-folder.md.")],
    schema: Annotated[
        Path | None,
        typer.Option(help="The policy's schema.", show_default="policy.toml in the folder"),
    ] = None,
    through: Annotated[
        Through,
        typer.Option(help="In this process, through a real Kafka, or both and compared."),
    ] = Through.MEMORY,
    slot_s: Annotated[
        float, typer.Option(min=0.001, help="Event time that is learned together, in seconds.")
    ] = 3600.0,
    broker: Annotated[
        bool,
        typer.Option(
            help="Start a Kafka of its own for the way through Kafka; with --no-broker the one of "
            "bootstrap_servers is used, with topics of their own."
        ),
    ] = True,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file.")
    ] = None,
) -> None:
    """Play logged requests in event time, and compare what was served with fixed weights.

    A request is served with the version that has learned every slot of event time that ended before
    it, so the figures do not depend on the machine. With --through both the exit status is 1 unless
    both ways made the same parameters bit for bit.
    """
    console = Console(stderr=True)
    path = (schema or data_dir / "policy.toml").resolve()
    known = load_schema(path)
    folder = read_data_folder(data_dir, known)
    for remark in folder.remarks:
        console.print(f"note: {remark}", style="yellow", highlight=False)
    settings = load_settings(
        {
            "schema_path": path,
            "learn_slot_ms": round(slot_s * 1000),
            "timestamps": "event",
            "join_ticks": "producer",
        }
    )
    slots = slots_of(folder, known, settings.learn_slot_ms)
    lists = lists_of(folder, known)
    served: dict[str, Served] = {}
    if through is not Through.KAFKA:
        served["memory"] = _play(console, "memory", folder, known, slots, _memory(settings, known))
    if through is not Through.MEMORY:
        with _kafka(console, settings, known, own_broker=broker) as way:
            served["kafka"] = _play(console, "kafka", folder, known, slots, way)
    one = next(iter(served.values()))
    figures: dict[str, Any] = {
        "ndcg_second_half": {
            name: None if math.isnan(value) else value
            for name, value in (yardsticks(lists)._asdict() | second_half_ndcg(lists, one)).items()
        },
        "requests": len(folder.request_ids),
        "versions": len(one.version_digests),
        "parameters_sha256": {
            name: served[name].parameters_sha256 if name in served else None
            for name in ("memory", "kafka")
        },
    }
    difference = first_difference(*served.values()) if len(served) == 2 else None
    Console().print(_table(figures))
    if json_file is not None:
        replace_file(json_file, (json.dumps(figures, indent=2) + "\n").encode())
    if difference is not None:
        raise GradeError(f"expected memory and Kafka to be equal bit for bit, seen: {difference}")
    if len(served) == 2:
        console.print("memory and Kafka made the same parameters, bit for bit", style="green")


def _play(
    console: Console, name: str, folder: DataFolder, schema: Schema, slots: list[Slot], way: Way
) -> Served:
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("requests"),
        TimeElapsedColumn(),
        console=console,
    ) as progress:
        task = progress.add_task(f"through {name}", total=len(folder.request_ids))
        return play(
            folder, schema, slots, way, lambda played: progress.update(task, completed=played)
        )


def _memory(settings: Settings, schema: Schema) -> Way:
    loop = MemoryLoop(
        schema,
        seed=settings.serve_seed,
        members=settings.serve_members,
        trainer=trainer_settings(settings),
        partitions=settings.partitions,
        slot_ms=settings.learn_slot_ms,
    )
    return ThroughMemory(loop, schema.policy)


@contextmanager
def _kafka(
    console: Console, settings: Settings, schema: Schema, *, own_broker: bool
) -> Iterator[Way]:
    """A whole system of its own: topics, server, join and learner, and a broker if asked for."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="grade-replay-")))
        bootstrap_servers = settings.bootstrap_servers
        if own_broker:
            local = LocalBroker(
                folder / "kafka",
                progress=lambda sentence: console.print(sentence, highlight=False),
            )
            bootstrap_servers = local.up().bootstrap_servers
            stack.callback(local.down)
        ports = free_ports(4)
        prefix = f"{settings.topic_prefix}-replay-{secrets.token_hex(4)}"
        settings = settings.model_copy(
            update={
                "data_dir": folder,
                "bootstrap_servers": bootstrap_servers,
                "topic_prefix": prefix,
                "join_group": prefix,
                "serve_host": "127.0.0.1",
                "serve_port": ports[0],
                "serve_admin_port": ports[1],
                "join_admin_port": ports[2],
                "learn_admin_port": ports[3],
            }
        )
        connection = Connection(bootstrap_servers, client_id="grade-replay")
        plan = topic_plan(settings, schema)
        if not own_broker:
            stack.callback(_delete_topics, connection, prefix)
        create(connection, plan)
        plans = process_plans(settings, join_workers=1)
        supervisor = stack.enter_context(Supervisor(plans, folder / PROCESS_LOG))

        def watch() -> None:
            if len(supervisor.process_ids()) < len(plans):
                lines = supervisor.log_path.read_text(encoding="utf-8", errors="replace")
                raise GradeError(
                    "expected server, join and learner to run, seen one that ended; the end of "
                    "their log:\n" + "\n".join(lines.splitlines()[-15:])
                )

        wait_until_healthy(admin_ports(plans), supervisor)
        client = stack.enter_context(
            PolicyClient(f"127.0.0.1:{ports[0]}", schema.policy, timeout_s=10.0)
        )
        producer = stack.enter_context(EventProducer(connection, plan.topics, schema.policy))
        yield ThroughKafka(client, producer, connection, plan.topics, watch=watch)


def _delete_topics(connection: Connection, prefix: str) -> None:
    """Delete every topic that a replay has made; the prefix is one replay's own."""
    with open_admin(connection) as admin:
        made = [name for name in admin.list_topics() if name.startswith(prefix)]
        if made:
            admin.delete_topics(made)


def _table(figures: dict[str, Any]) -> Table:
    names = {
        "random": "random order, in expectation",
        "logged": "order as it was logged",
        "uniform": "uniform weights",
        "static_first_half": "best static weights of the first half",
        "static_hindsight": "best static weights in hindsight (optimistic)",
        "served_mean": "served policy, mean weights, as it went",
        "served_executed": "served policy, sampled weights, as it went",
    }
    table = Table(
        "ranked by",
        "NDCG",
        title=f"second half of {figures['requests']:,} requests, {figures['versions']} versions",
    )
    for name, value in figures["ndcg_second_half"].items():
        style = "bold" if name == "served_mean" else None
        table.add_row(names[name], "–" if value is None else f"{value:.4f}", style=style)
    return table
