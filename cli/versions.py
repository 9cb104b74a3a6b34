"""`grade versions`: which versions there are, what each learned from, what changed between two."""

import contextlib
import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer
from grade.v1.refused_pb2 import Reason
from rich.console import Console
from rich.table import Table

from cli.policy_option import PolicyName, load_policy_settings
from cli.settings import Settings
from monitor import versions as comparing
from monitor.version_list import Known, as_json, figure, rows, table
from policy.durable_file import replace_file
from policy.errors import BoundaryError, SnapshotRefused
from policy.schema import Schema, load_schema
from stream.connection import Connection
from stream.generations import read_generations, schema_of
from stream.lineage import Lineage, Recorded, name_of, read_lineage, read_snapshots
from stream.topics import Topics

app = typer.Typer(help="Which versions there are, what each learned from, what changed.")

PIPED_WIDTH = 200
"""Columns of a table that does not go to a terminal."""

SHOWN_TENSORS = 6


@app.callback(invoke_without_command=True)
def versions(
    context: typer.Context,
    policy: PolicyName = None,
    last: Annotated[int, typer.Option(min=1, help="How many of the newest to list.")] = 20,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write the list as JSON to this file too.")
    ] = None,
) -> None:
    """List the newest versions: what each learned from, what it earned, whether it is still kept.

    Only reads the topics. A version is named epoch:version, such as 1:42; 42 alone means version 42
    of the newest epoch.
    """
    if context.invoked_subcommand is not None:
        return
    settings = load_policy_settings(policy)
    # One more: the oldest one's parent says where it began.
    known = read_known(settings, lambda lineage: len(lineage.versions) > last)
    listed = list(known.lineage.versions.values())[-last:]
    if json_path is not None:
        entries = [as_json(known, each) for each in listed]
        replace_file(json_path, (json.dumps(entries, indent=2) + "\n").encode())
    if not listed:
        typer.echo(
            f"policy {known.lineage.policy!r} has no versions yet; version 0, the declared "
            "baseline, is served"
        )
    else:
        _console().print(table(known, listed))
    for problem in known.lineage.problems:
        typer.echo(f"warning: {problem}", err=True)


@app.command()
def show(
    version: Annotated[str, typer.Argument(help="epoch:version, or a version of the newest epoch")],
    policy: PolicyName = None,
) -> None:
    """Print everything that is known of one version."""
    known = read_known(load_policy_settings(policy), far_enough(version))
    entry = as_json(known, known.lineage.find(version))
    shown = Table(show_header=False, title=f"version {entry['id']}", title_justify="left")
    for name, value in entry.items():
        for key, text in rows(name, value):
            shown.add_row(key, text)
    _console().print(shown)


@app.command()
def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="epoch:version or version")],
    second: Annotated[str, typer.Argument(metavar="B", help="epoch:version or version")],
    policy: PolicyName = None,
) -> None:
    """Print what changed from version A to version B.

    Parameters are compared if the parameters topic still has both snapshots.
    """
    known = read_known(load_policy_settings(policy), far_enough(first, second))
    before, after = known.lineage.find(first), known.lineage.find(second)
    console = _console()
    console.print(_between(known, before, after), soft_wrap=True, highlight=False)
    shown = Table("", name_of(before.id), name_of(after.id), "change")
    weights = [known.weights(each.version) for each in (before, after)]
    for each in (
        *comparing.figure_changes(before.version, after.version),
        *comparing.weight_changes(*weights),
    ):
        change = (
            "" if each.before is None or each.after is None else f"{each.after - each.before:+.6g}"
        )
        shown.add_row(each.name, figure(each.before), figure(each.after), change)
    console.print(shown)
    gone = [name_of(each.id) for each in (before, after) if known.kept(each) is None]
    if gone:
        console.print(
            f"parameters: not compared, the parameters topic no longer has {' and '.join(gone)}"
        )
        return
    try:
        loaded = [_loaded(known, each) for each in (before, after)]
    except SnapshotRefused as refused:
        console.print(f"parameters: not compared: {refused}")
        return
    _print_parameters(console, *loaded)


def read_known(settings: Settings, enough: Any) -> Known:
    """Read what the topics say of the policy that the settings name.

    Args:
        settings: where the topics are.
        enough: of a lineage read so far: whether to read no further back.

    Raises:
        SchemaError, TopicError, KafkaUnreachable: what could not be read.
    """
    schema = load_schema(settings.schema_path)
    connection = Connection(settings.bootstrap_servers, client_id="grade-versions")
    topics = Topics(settings.topic_prefix)
    return Known(
        read_lineage(connection, topics, schema.policy, enough),
        read_snapshots(connection, topics, schema.policy),
        _schemas(connection, topics, schema),
    )


def _schemas(connection: Connection, topics: Topics, own: Schema) -> dict[int, Schema]:
    """Schema by generation; 0, of what belongs to none, is the one that the settings name."""
    schemas = {0: own}
    for generation in read_generations(connection, topics, own.policy):
        # Another build's: its versions are listed all the same, without names.
        with contextlib.suppress(BoundaryError):
            schemas[generation.generation] = schema_of(generation)
    return schemas


def far_enough(*names: str) -> Any:
    """Whether versions of these names are known, with their parents and all between them.

    Args:
        names: as people write them, see `Lineage.named`.

    Returns:
        for `read_known`.
    """

    def enough(lineage: Lineage) -> bool:
        wanted = [lineage.named(name) for name in names]
        if any(each is None or each not in lineage.versions for each in wanted):
            return False
        oldest = lineage.versions[min(each for each in wanted if each is not None)]
        return lineage.covered(oldest.version) is not None

    return enough


def _between(known: Known, before: Recorded, after: Recorded) -> str:
    """What lies between two versions, in words."""
    first, last = sorted((before.id, after.id))
    steps = known.lineage.steps(first, last)
    if steps is None:
        return f"{name_of(last)} does not come from {name_of(first)}: they are on different lines"
    groups = sum(each.groups for each in steps)
    begin, end = known.lineage.versions[first], known.lineage.versions[last]
    seconds = (end.timestamp_ms - begin.timestamp_ms) / 1000
    text = (
        f"from {name_of(first)} to {name_of(last)}: {len(steps)} versions, {groups} groups, "
        f"written {seconds:.1f} s apart"
    )
    begun = sorted({each.generation for each in steps} - {begin.version.generation})
    return text + "".join(f"; generation {number} begins between them" for number in begun)


def _loaded(known: Known, recorded: Recorded) -> comparing.Loaded:
    snapshot, schema = known.kept(recorded), known.schema_of(recorded.version)
    assert snapshot is not None, "the caller has looked"
    if schema is None:
        raise SnapshotRefused(
            "schema",
            f"the schema of generation {recorded.version.generation}",
            "none",
            Reason.REASON_UNKNOWN_SCHEMA,
        )
    return comparing.load(snapshot, schema)


def _print_parameters(console: Console, before: comparing.Loaded, after: comparing.Loaded) -> None:
    moved = [
        each
        for each in comparing.tensor_changes(before.tensors, after.tensors)
        if each.relative or each.shapes[0] != each.shapes[1]
    ]
    tensors = Table("tensor", "largest change", "relative change")
    for each in moved[:SHOWN_TENSORS]:
        if each.shapes[0] != each.shapes[1]:
            tensors.add_row(each.name, f"shape {each.shapes[0]}", f"shape {each.shapes[1]}")
        else:
            tensors.add_row(each.name, f"{each.largest:.3g}", _relative(each))
    console.print(tensors)
    console.print(f"{len(moved)} of {len(after.tensors)} tensors changed")
    try:
        probes = comparing.probe_changes(before, after)
    except SnapshotRefused as refused:
        console.print(f"no probe contexts: {refused}")
        return
    objectives = " ".join(objective.name for objective in after.schema.objectives)
    answers = Table("context", f"mean weights before\n{objectives}", "mean weights after", "change")
    for probe in probes:
        answers.add_row(
            probe.context,
            _weights(probe.before),
            _weights(probe.after),
            " ".join(f"{value:+.3f}" for value in probe.after - probe.before),
        )
    console.print(answers)


def _relative(change: comparing.TensorChange) -> str:
    return f"{change.relative:.1%}" if math.isfinite(change.relative) else "from 0"


def _console() -> Console:
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPED_WIDTH)
    return console


def _weights(weights: Any) -> str:
    return " ".join(f"{weight:.3f}" for weight in weights)
