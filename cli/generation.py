"""`grade generation`: let new settings or a new schema take effect, and show what did when."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from grade.v1.generation_pb2 import Generation
from rich.console import Console
from rich.table import Table

from cli.policy_option import PolicyName, load_policy_settings
from cli.settings import Settings
from cli.wiring import topic_plan, wanted_generation
from policy.errors import GradeError, SettingsError
from policy.schema import Schema, load_schema
from stream.connection import Connection
from stream.generations import (
    BEGIN_COMMAND,
    changes,
    missing_boundaries,
    read_generations,
    require_current,
    settings_of,
)
from stream.generations import (
    begin as begin_generation,
)
from stream.retention import lengthen
from stream.topics import Finding, Topics
from stream.topics import check as check_topics

app = typer.Typer(
    help="Begin a generation: let new settings or a new schema take effect.", no_args_is_help=True
)

SchemaPath = Annotated[
    Path | None, typer.Option("--schema", help="The policy's schema (setting schema_path).")
]


@app.command()
def begin(
    schema: SchemaPath = None,
    name: PolicyName = None,
    note: Annotated[str, typer.Option(help="Why, for people.")] = "",
) -> None:
    """Let the settings and the schema as they are now take effect, from here on in the logs.

    Join and learner carry on without a stop. Topics are kept longer where the new times ask
    for it. Prints what changes, and writes it to the generations topic and into every partition of
    both inputs. Run again, it completes what an earlier run left undone; nothing is begun twice.
    """
    settings, policy = _load(schema, name)
    connection, _ = _kafka(settings)
    raised, before, begun = begin_now(connection, settings, policy, note)
    for each in raised:
        typer.echo(f"{each.topic} is now kept for {each.expected} ms, before {each.seen}")
    if before is not None and begun.generation == before.generation:
        typer.echo(f"generation {begun.generation} says the same already; nothing to begin")
        return
    typer.echo(f"generation {begun.generation} of policy {policy.policy!r} has begun")
    if before is not None:
        for change in changes(before, begun):
            typer.echo(f"  {change}")
        typer.echo(_about_servers(before, begun))


@app.command("list")
def show(
    schema: SchemaPath = None,
    name: PolicyName = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON list instead of a table.")
    ] = False,
) -> None:
    """Show every generation of the policy: when it began, what changed, and why."""
    settings, policy = _load(schema, name)
    connection, topics = _kafka(settings)
    generations = read_generations(connection, topics, policy.policy)
    rows = [
        _row(each, generations[number - 1] if number else None)
        for number, each in enumerate(generations)
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    table = Table("generation", "begun (UTC)", "computation")
    for text in ("what changed", "note"):
        table.add_column(text, overflow="fold")  # names must not be cut
    for row in rows:
        begun = datetime.fromtimestamp(row["begun_at_ms"] / 1000, UTC)
        table.add_row(
            str(row["generation"]),
            f"{begun:%Y-%m-%d %H:%M:%S}",
            str(row["computation"]),
            "\n".join(f"{c['name']}: {c['old']} → {c['new']}" for c in row["changes"]),
            row["note"],
        )
    Console().print(table)


@app.command()
def check(schema: SchemaPath = None, name: PolicyName = None) -> None:
    """Compare the settings and the schema with the latest generation.

    Exits with 2 if they say something else, and with 1 if a boundary of the latest generation is
    missing.
    """
    settings, policy = _load(schema, name)
    connection, topics = _kafka(settings)
    generations = read_generations(connection, topics, policy.policy)
    if not generations:
        typer.echo(
            f"no generation of policy {policy.policy!r} has begun; the first start of join or "
            "learner begins one by these settings"
        )
        return
    current = require_current(generations, wanted_generation(settings, policy))
    missing = missing_boundaries(connection, topics, policy.policy, partitions=settings.partitions)
    if missing:
        raise GradeError(
            f"generation {current.generation}: expected its boundary in every partition of the "
            f"inputs, seen none in {', '.join(f'{p.topic} {p.partition}' for p in missing)}: "
            f"run `{BEGIN_COMMAND}` again"
        )
    typer.echo(f"generation {current.generation} is in force and is what the settings say")


class Begun(NamedTuple):
    """What beginning a generation came to."""

    raised: list[Finding]
    """Retentions that had to be longer for the new times."""
    before: Generation | None
    """The latest generation until now; None if none had begun."""
    generation: Generation
    """The latest one now."""


def begin_now(connection: Connection, settings: Settings, schema: Schema, note: str) -> Begun:
    """Let settings and schema take effect, from here on in the logs.

    Args:
        connection: where Kafka is.
        settings: as they are to be.
        schema: as it is to be.
        note: why, for people.

    Raises:
        SettingsError: the topics hold a history with times of its own.
        TopicError: a topic is not as it must be.
        BoundaryError: as `stream.generations.begin`.
        KafkaUnreachable: no broker answers.
    """
    if settings.timestamps == "event":
        raise SettingsError(
            "timestamps: expected 'broker' to begin a generation, seen 'event': in a history that "
            "carries its own time a boundary of today would end every window"
        )
    plan, topics = topic_plan(settings, schema), Topics(settings.topic_prefix)
    raised = lengthen(connection, plan)
    check_topics(connection, plan)
    before = read_generations(connection, topics, schema.policy)
    wanted = wanted_generation(settings, schema)
    begun = begin_generation(connection, topics, wanted, partitions=settings.partitions, note=note)
    return Begun(raised, before[-1] if before else None, begun)


def _load(schema: Path | None, policy: str | None) -> tuple[Settings, Schema]:
    settings = load_policy_settings(policy, {"schema_path": schema})
    return settings, load_schema(settings.schema_path)


def _kafka(settings: Settings) -> tuple[Connection, Topics]:
    connection = Connection(settings.bootstrap_servers, client_id="grade-generation")
    return connection, Topics(settings.topic_prefix)


def _row(generation: Generation, before: Generation | None) -> dict[str, Any]:
    found = changes(before, generation) if before is not None else []
    return {
        "generation": generation.generation,
        "begun_at_ms": generation.begun_at_ms,
        "computation": generation.computation,
        "schema_digest": generation.schema_digest.hex(),
        "accepted_schema_digests": [each.hex() for each in generation.accepted_schema_digests],
        "settings": settings_of(generation),
        "initial_parameters_bytes": len(generation.initial_parameters),
        "changes": [each._asdict() for each in found],
        "note": generation.note,
    }


def _about_servers(before: Generation, begun: Generation) -> str:
    if before.schema_digest in begun.accepted_schema_digests:
        return "decisions of servers that still run by the schema before are taken as well"
    return (
        "from here on decisions by the schema before are dead letters: start the servers anew with "
        "this schema"
    )
