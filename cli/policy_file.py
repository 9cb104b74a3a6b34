"""`grade export` and `grade import`: a policy as one file, out of a system and into one."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import typer
from grade.v1.parameters_pb2 import ParameterSnapshot
from grade.v1.refused_pb2 import Reason

from cli.policy_option import PolicyName, load_policy_settings
from cli.settings import Settings
from cli.versions import far_enough, read_known
from cli.wiring import topic_plan, wanted_generation
from monitor.version_list import Known
from policy import policy_file
from policy.adoption import adopt_parameters
from policy.errors import PolicyFileRefused, SettingsError, SnapshotRefused
from policy.policy_file import PolicyFile
from policy.schema import Schema, load_schema
from serving.snapshot import load_policy
from stream import topics as stream_topics
from stream.connection import Connection
from stream.generation_changes import schema_changes
from stream.generations import begin, read_generations
from stream.lineage import Recorded, name_of
from stream.topics import Topics

SchemaPath = Annotated[
    Path | None, typer.Option("--schema", help="The policy's schema (setting schema_path).")
]


def export_policy(
    file: Annotated[Path, typer.Argument(help="File to write, such as policy.safetensors.")],
    version: Annotated[
        str | None,
        typer.Option(
            help="epoch:version, or a version of the newest epoch.",
            show_default="the newest whose snapshot is kept",
        ),
    ] = None,
    schema: SchemaPath = None,
    policy: PolicyName = None,
) -> None:
    """Write a version of the policy to one file: its parameters with the schema they belong to.

    The file is a safetensors file with a checksum. `grade import` starts a system from it.
    """
    settings = load_policy_settings(policy, {"schema_path": schema})
    known = read_known(settings, _newest_kept if version is None else far_enough(version))
    recorded = _chosen(known, version)
    snapshot = known.kept(recorded)
    if snapshot is None:
        kept = [name_of(each.id) for each in known.lineage.versions.values() if known.kept(each)]
        raise SettingsError(
            f"version: expected one whose snapshot is kept, {_ends(kept)}, "
            f"seen {name_of(recorded.id)}"
        )
    of = known.schema_of(recorded.version)
    if of is None:
        raise SnapshotRefused(
            "schema",
            f"the schema of generation {recorded.version.generation}",
            "none",
            Reason.REASON_UNKNOWN_SCHEMA,
        )
    load_policy(snapshot, of)
    content = PolicyFile(
        of,
        safetensors.numpy.load(snapshot.parameters),
        epoch=snapshot.epoch,
        version=snapshot.version,
        generation=snapshot.generation,
    )
    checksum = policy_file.write(file, content)
    typer.echo(
        f"version {name_of(recorded.id)} of policy {of.policy!r} is in {file} "
        f"({file.stat().st_size} bytes, sha256 {checksum.hex()[:16]}…)"
    )


def import_policy(
    file: Annotated[Path, typer.Argument(help="A file of `grade export` or `grade warmstart`.")],
    schema: SchemaPath = None,
    policy: PolicyName = None,
    note: Annotated[str, typer.Option(help="Why, for people.")] = "",
) -> None:
    """Begin a generation whose learning starts from the parameters in a file.

    In a system that has never run it is the first one: run it after `grade topics create` and
    before the system starts. In one that runs it is the next one. The learner publishes the
    parameters as version 1 of a new epoch and goes on from there. What the schemas have
    differently is adopted by name and printed.
    """
    settings = load_policy_settings(policy, {"schema_path": schema})
    target = load_schema(settings.schema_path)
    source = policy_file.read(file)
    if source.schema.policy != target.policy:
        raise PolicyFileRefused(
            f"{file}: expected a file of policy {target.policy!r}, seen one of "
            f"{source.schema.policy!r}",
            Reason.REASON_UNKNOWN_POLICY,
        )
    parameters = _adopted(source, target)
    connection = Connection(settings.bootstrap_servers, client_id="grade-import")
    topics = Topics(settings.topic_prefix)
    stream_topics.check(connection, topic_plan(settings, target))
    known = read_generations(connection, topics, target.policy)
    if known:
        _require_broker_time(settings)
    of = f"{_what(source)} in {file.name}"
    begun = begin(
        connection,
        topics,
        wanted_generation(settings, target),
        partitions=settings.partitions,
        note=note or f"imported {of}",
        initial_parameters=parameters,
    )
    if known and begun.generation == known[-1].generation:
        typer.echo(f"generation {begun.generation} starts from these parameters already")
        return
    typer.echo(f"generation {begun.generation} of policy {target.policy!r} starts from {of}")
    for change in schema_changes(source.schema, target):
        typer.echo(f"  adopted: {change}")


def _what(source: PolicyFile) -> str:
    """A version of a system; a file that no system has written names none."""
    if source.epoch:
        return f"version {source.epoch}:{source.version}"
    return "the warm start"


def _newest_kept(lineage: object) -> bool:
    """Whether enough versions are known to find the newest snapshot: the first piece has it."""
    return True


def _chosen(known: Known, version: str | None) -> Recorded:
    if version is not None:
        return known.lineage.find(version)
    for recorded in reversed(known.lineage.versions.values()):
        if known.kept(recorded) is not None:
            return recorded
    raise SettingsError(
        f"expected a version of policy {known.lineage.policy!r} with its snapshot, seen none: "
        "until the first one is learned the declared baseline is served, and the schema says it all"
    )


def _adopted(source: PolicyFile, target: Schema) -> bytes:
    """The serving tensors under the target's schema, checked as a server would.

    Raises:
        SnapshotRefused: they may not be served.
    """
    _check(source.schema, _packed(source.tensors))
    if source.schema.digest == target.digest:
        return _packed(source.tensors)
    packed = _packed(adopt_parameters(source.tensors, source.schema, target))
    _check(target, packed)
    return packed


def _packed(tensors: Mapping[str, npt.NDArray[np.float64]]) -> bytes:
    return safetensors.numpy.save({name: tensors[name] for name in sorted(tensors)})


def _check(schema: Schema, parameters: bytes) -> None:
    load_policy(
        ParameterSnapshot(
            policy=schema.policy,
            epoch=1,
            version=1,
            schema_digest=schema.digest,
            parameters=parameters,
            parameters_sha256=hashlib.sha256(parameters).digest(),
        ),
        schema,
    )


def _require_broker_time(settings: Settings) -> None:
    if settings.timestamps == "event":
        raise SettingsError(
            "timestamps: expected 'broker' to begin another generation, seen 'event': in a history "
            "that carries its own time a boundary of today would end every window",
            Reason.REASON_INCONSISTENT,
        )


def _ends(names: list[str]) -> str:
    return f"{names[0]} to {names[-1]}" if names else "of which there is none"
