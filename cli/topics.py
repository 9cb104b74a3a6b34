"""`grade topics`: create the topics of the system and refuse wrong ones."""

from pathlib import Path
from typing import Annotated

import typer

from cli.policy_option import PolicyName, load_policy_settings, settings_of_each_policy
from cli.settings import Settings, load_settings
from cli.wiring import topic_plan
from policy.schema import load_schema
from stream import topics
from stream.connection import Connection
from stream.topics import TopicPlan

app = typer.Typer(help="Create and check the topics.", no_args_is_help=True)

SchemaPath = Annotated[
    Path | None,
    typer.Option(
        "--schema",
        help="The policy's schema, or a folder of several, for its times (setting schema_path).",
    ),
]


@app.command()
def create(schema: SchemaPath = None, policy: PolicyName = None) -> None:
    """Create the topics that are missing, then check all of them."""
    count, created = 0, list[str]()
    for settings, plan in _plans(schema, policy):
        created += topics.create(_connection(settings), plan)
        count += len(plan.specs)
    for name in created:
        typer.echo(f"created {name}")
    typer.echo(f"{count} topics are as they must be, {len(created)} of them new")


@app.command()
def check(schema: SchemaPath = None, policy: PolicyName = None) -> None:
    """Check partitions, timestamps, compaction and retention; exit with 1 if a topic is wrong."""
    plans = _plans(schema, policy)
    for settings, plan in plans:
        topics.check(_connection(settings), plan)
    typer.echo(f"{sum(len(plan.specs) for _, plan in plans)} topics are as they must be")


def _plans(schema: Path | None, policy: str | None) -> list[tuple[Settings, TopicPlan]]:
    """The topics of a policy, or of every policy if none is named."""
    found = settings_of_each_policy(load_settings({"schema_path": schema}))
    if policy is not None:
        found = {policy: load_policy_settings(policy, {"schema_path": schema})}
    return [(each, topic_plan(each, load_schema(each.schema_path))) for each in found.values()]


def _connection(settings: Settings) -> Connection:
    return Connection(settings.bootstrap_servers, client_id="grade-topics")
