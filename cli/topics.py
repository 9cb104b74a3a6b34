"""`grade topics`: create the topics of the system and refuse wrong ones."""

from pathlib import Path
from typing import Annotated

import typer

from cli.settings import Settings, load_settings
from cli.wiring import topic_plan
from policy.schema import load_schema
from stream import topics
from stream.connection import Connection
from stream.topics import TopicPlan

app = typer.Typer(help="Create and check the topics.", no_args_is_help=True)

SchemaPath = Annotated[
    Path | None,
    typer.Option("--schema", help="The policy's schema, for its times [setting: schema_path]."),
]


@app.command()
def create(schema: SchemaPath = None) -> None:
    """Create the topics that are missing, then check all of them."""
    settings, plan = _plan(schema)
    created = topics.create(_connection(settings), plan)
    for name in created:
        typer.echo(f"created {name}")
    typer.echo(f"{len(plan.specs)} topics are as they must be, {len(created)} of them new")


@app.command()
def check(schema: SchemaPath = None) -> None:
    """Check partitions, timestamps, compaction and retention; exit with 1 if a topic is wrong."""
    settings, plan = _plan(schema)
    topics.check(_connection(settings), plan)
    typer.echo(f"{len(plan.specs)} topics are as they must be")


def _plan(schema: Path | None) -> tuple[Settings, TopicPlan]:
    settings = load_settings({"schema_path": schema})
    return settings, topic_plan(settings, load_schema(settings.schema_path))


def _connection(settings: Settings) -> Connection:
    return Connection(settings.bootstrap_servers, client_id="grade-topics")
