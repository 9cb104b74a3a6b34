"""`grade versions`: which versions there are, what each learned from, what changed between two."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from grade.v1.parameters_pb2 import ParameterSnapshot, Version
from rich.console import Console
from rich.table import Table

from cli.settings import Settings, load_settings
from monitor import versions as comparing
from policy.errors import SnapshotRefused
from policy.schema import Schema, load_schema
from stream.connection import Connection
from stream.lineage import (
    Covered,
    Lineage,
    Recorded,
    is_of,
    name_of,
    parent_id,
    read_lineage,
    read_snapshots,
)
from stream.parameters import BEFORE_ALL, VersionId
from stream.topics import Topics

app = typer.Typer(help="Which versions there are, what each learned from, what changed.")

PIPED_WIDTH = 200
"""Columns of a table that does not go to a terminal."""

SHOWN_TENSORS = 6


@dataclass(frozen=True, slots=True)
class Known:
    """What the topics say, and the schemas to read it by."""

    lineage: Lineage
    snapshots: Mapping[VersionId, ParameterSnapshot]
    schemas: Mapping[int, Schema]
    """By generation."""

    def schema_of(self, version: Version) -> Schema | None:
        """Schema of a version's generation, if known."""
        return self.schemas.get(version.generation)

    def weights(self, version: Version) -> dict[str, float]:
        """Mean fusion weights by objective."""
        return comparing.mean_weights(version, self.schema_of(version))

    def kept(self, recorded: Recorded) -> ParameterSnapshot | None:
        """Snapshot of a version, if the parameters topic still has it."""
        snapshot = self.snapshots.get(recorded.id)
        return snapshot if is_of(snapshot, recorded.version) else None


@app.callback(invoke_without_command=True)
def versions(
    context: typer.Context,
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
    settings = load_settings()
    # One more: the oldest one's parent says where it began.
    known = read_known(settings, lambda lineage: len(lineage.versions) > last)
    listed = list(known.lineage.versions.values())[-last:]
    if json_path is not None:
        entries = [as_json(known, each) for each in listed]
        json_path.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
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
) -> None:
    """Print everything that is known of one version."""
    known = read_known(load_settings(), _far_enough(version))
    entry = as_json(known, known.lineage.find(version))
    shown = Table(show_header=False, title=f"version {entry['id']}", title_justify="left")
    for name, value in entry.items():
        for key, text in _lines(name, value):
            shown.add_row(key, text)
    _console().print(shown)


@app.command()
def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="epoch:version or version")],
    second: Annotated[str, typer.Argument(metavar="B", help="epoch:version or version")],
) -> None:
    """Print what changed from version A to version B.

    Parameters are compared if the parameters topic still has both snapshots.
    """
    known = read_known(load_settings(), _far_enough(first, second))
    before, after = known.lineage.find(first), known.lineage.find(second)
    console = _console()
    console.print(_between(known, before, after), soft_wrap=True, highlight=False)
    figures = [
        *comparing.figure_changes(before.version, after.version),
        *comparing.weight_changes(known.weights(before.version), known.weights(after.version)),
    ]
    shown = Table("", name_of(before.id), name_of(after.id), "change")
    for each in figures:
        change = (
            "" if each.before is None or each.after is None else f"{each.after - each.before:+.6g}"
        )
        shown.add_row(
            each.name.replace("_", " "), _figure(each.before), _figure(each.after), change
        )
    console.print(shown)
    gone = [name_of(each.id) for each in (before, after) if known.kept(each) is None]
    if gone:
        console.print(
            f"parameters: not compared, the parameters topic no longer has {' and '.join(gone)}"
        )
        return
    _print_parameters(console, *(_loaded(known, each) for each in (before, after)))


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
        {0: schema, 1: schema},
    )


def table(known: Known, listed: Sequence[Recorded]) -> Table:
    """The list as people read it, the newest last."""
    objectives = " ".join(dict.fromkeys(name for x in listed for name in known.weights(x.version)))
    shown = Table(title=f"policy {known.lineage.policy}", title_justify="left")
    for name in ("version", "from", "gen", "slot begins (UTC)"):
        shown.add_column(name, no_wrap=True)
    for name in ("groups", "informative", "reward", "KL", "concentration", "gate"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column(f"mean weights\n{objectives}")
    shown.add_column("impressions learned from\npartition:offsets")
    shown.add_column("snapshot", no_wrap=True)
    for each in listed:
        version = each.version
        informative = version.informative_groups / version.groups if version.groups else 0.0
        shown.add_row(
            name_of(each.id),
            _parent(version),
            str(version.generation or "-"),
            _slot(version),
            str(version.groups),
            f"{informative:.0%}",
            f"{version.reward:.4f}",
            f"{version.kl:.2e}",
            f"{version.concentration:.1f}",
            f"{version.gate:.2f}",
            " ".join(f"{weight:.3f}" for weight in version.mean_weights) or "-",
            _covered(known.lineage.covered(version)),
            "kept" if known.kept(each) else "gone",
        )
    return shown


def as_json(known: Known, recorded: Recorded) -> dict[str, Any]:
    """Everything of one version, in plain types; a number that is not finite is null."""
    version = recorded.version
    covered = known.lineage.covered(version)
    return {
        "id": name_of(recorded.id),
        "policy": version.policy,
        "epoch": version.epoch,
        "version": version.version,
        "parent": _parent(version),
        "generation": version.generation,
        "slot": version.slot,
        "slot_ms": version.slot_ms,
        "slot_begins": _slot(version),
        "written": _utc(recorded.timestamp_ms),
        "groups": version.groups,
        "informative_groups": version.informative_groups,
        **{
            name: value if math.isfinite(value := getattr(version, name)) else None
            for name in comparing.FIGURES
            if not name.endswith("groups")
        },
        "mean_weights": known.weights(version),
        "learned_from": None if covered is None else [each._asdict() for each in covered],
        "ledger": {str(each.partition): each.offset for each in version.ledger},
        "parameters_sha256": version.parameters_sha256.hex(),
        "state_sha256": version.state_sha256.hex(),
        "lineage_offset": recorded.offset,
        "snapshot_kept": known.kept(recorded) is not None,
    }


def _far_enough(*names: str) -> Any:
    """Whether versions of these names are known, with their parents and all between them."""

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
            "schema", f"the schema of generation {recorded.version.generation}", "none"
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
            tensors.add_row(each.name, f"{each.largest:.3g}", f"{each.relative:.1%}")
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


def _console() -> Console:
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPED_WIDTH)
    return console


def _lines(name: str, value: Any) -> list[tuple[str, str]]:
    """One entry as rows of name and text."""
    words = name.replace("_", " ")
    if name == "learned_from":
        if value is None:
            return [(words, "not known: the versions topic no longer has its parent")]
        return [
            (f"{words}, partition {each['partition']}", _offsets(Covered(**each))) for each in value
        ]
    if isinstance(value, dict):
        of = ", partition " if name == "ledger" else " "
        return [(f"{words}{of}{key}", _figure(each)) for key, each in value.items()]
    return [(words, _figure(value) if isinstance(value, float) else str(value))]


def _parent(version: Version) -> str:
    parent = parent_id(version)
    return "baseline" if parent == BEFORE_ALL else name_of(parent)


def _slot(version: Version) -> str:
    if version.slot < 0:
        return "taken over"
    return _utc(version.slot * version.slot_ms)


def _utc(milliseconds: int) -> str:
    try:
        when = datetime.fromtimestamp(milliseconds / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        return f"{milliseconds} ms"
    return when.isoformat(sep=" ", timespec="milliseconds").removesuffix("+00:00")


def _covered(covered: Sequence[Covered] | None) -> str:
    if covered is None:
        return "not known"
    new = [each for each in covered if each.up_to > each.after]
    return " ".join(f"{each.partition}:{_offsets(each)}" for each in new) or "none"


def _offsets(covered: Covered) -> str:
    """Offsets of the impressions of one partition; not every one of them became a group."""
    first = covered.after + 1
    if covered.up_to < first:
        return "none"
    return str(first) if covered.up_to == first else f"{first}-{covered.up_to}"


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def _weights(weights: Any) -> str:
    return " ".join(f"{weight:.3f}" for weight in weights)
