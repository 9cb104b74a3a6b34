"""`grade reconcile`: recompute groups and versions from the topics and compare."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cli.policy_option import PolicyName, load_policy_settings
from cli.settings import Settings
from cli.wiring import join_settings, topic_plan, trainer_settings
from policy.durable_file import replace_file
from policy.errors import RetentionLost
from policy.schema import Schema, load_schema
from stream.connection import Connection
from stream.reconcile import ReconcileReport, ReconcileSettings, read_content
from stream.reconcile import reconcile as reconcile_content
from stream.reconcile_join import Fates
from stream.topics import UNLIMITED, Topics

_SHOWN_DIFFERENCES = 10


def reconcile_settings(settings: Settings, schema: Schema) -> ReconcileSettings:
    """How join and learner worked, from the settings."""
    return ReconcileSettings(
        join=join_settings(settings, schema),
        trainer=trainer_settings(settings),
        slot_ms=settings.learn_slot_ms,
    )


def reconcile(
    policy: PolicyName = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write the report as JSON to this file.")
    ] = None,
) -> None:
    """Recompute every group and every version from the topics and compare byte for byte.

    Needs the same settings and schema as the running system. It only reads, and may run beside it.
    Exits with 1 if anything differs or is not accounted for, naming the first record, and with an
    error if retention has deleted what is needed to tell.
    """
    settings = load_policy_settings(policy)
    schema = load_schema(settings.schema_path)
    out, err = Console(), Console(stderr=True)
    with err.status("reading the topics") as status:
        content = read_content(
            Connection(settings.bootstrap_servers, client_id="grade-reconcile"),
            Topics(settings.topic_prefix),
        )
        try:
            report = reconcile_content(
                schema, reconcile_settings(settings, schema), content, tell=status.update
            )
        except RetentionLost as lost:
            kept_ms = topic_plan(settings, schema).input_retention_ms
            kept = "for ever" if kept_ms == UNLIMITED else f"for {kept_ms / 3_600_000:.1f} hours"
            raise RetentionLost(
                f"{lost}; `grade topics` has inputs and reward groups kept {kept}. Nothing was "
                "compared, and no difference was found"
            ) from lost
    for table in tables(report):
        out.print(table)
    out.print(summary(report), soft_wrap=True, markup=False, highlight=False)
    if json_path is not None:  # last: a disk that is full must not keep the answer back
        replace_file(json_path, (report.to_json() + "\n").encode())
    if not report.ok:
        raise typer.Exit(1)


def tables(report: ReconcileReport) -> list[Table]:
    """The conservation tables of impressions and conversions, by partition and in total."""
    impressions = [each.impressions for each in report.partitions]
    conversions = [each.conversions for each in report.partitions]
    return [
        _table(
            "impressions",
            {
                "read": "read",
                "grouped": "used",
                "duplicates": "duplicates",
                "dead letters": "dead_letters",
                "ticks": "ticks",
                "open": "open",
            },
            [*impressions, report.impressions],
        ),
        _table(
            "conversions",
            {
                "read": "read",
                "joined": "used",
                "late": "late",
                "orphaned": "orphans",
                "duplicates": "duplicates",
                "dead letters": "dead_letters",
                "ticks": "ticks",
                "open": "open",
            },
            [*conversions, report.conversions],
        ),
    ]


def _table(title: str, columns: dict[str, str], rows: list[Fates]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("partition")
    for column in columns:
        table.add_column(column, justify="right")
    for number, fates in enumerate(rows):
        total = number == len(rows) - 1
        if total:
            table.add_section()
        table.add_row(
            "total" if total else str(number),
            *(f"{getattr(fates, name):,}" for name in columns.values()),
        )
    return table


def summary(report: ReconcileReport) -> str:
    """What was compared, and what is wrong if anything is."""
    versions = report.versions
    lines = [
        f"groups: {report.groups:,} recomputed and compared",
        f"versions: {versions.versions:,}; compared {versions.versions_compared:,} lineage records "
        f"and {versions.snapshots_compared:,} snapshots",
        f"groups applied {versions.groups_applied:,}, lost {versions.groups_lost:,}, "
        f"applied twice {versions.groups_applied_twice:,}",
    ]
    lines += [f"NOT CONSERVED: {each}" for each in report.unconserved]
    found = report.differences
    lines += [f"DIFFERENCE: {each}" for each in found[:_SHOWN_DIFFERENCES]]
    if len(found) > _SHOWN_DIFFERENCES:
        lines.append(f"... and {len(found) - _SHOWN_DIFFERENCES:,} more differences")
    lines.append(
        "conserved and reconciled"
        if report.ok
        else f"conserved: {report.conserved}, reconciled: {report.reconciled}"
    )
    return "\n".join(lines)
