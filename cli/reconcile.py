"""`grade reconcile`: recompute groups and versions from the topics and compare."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cli.settings import load_settings
from cli.wiring import settings_of_policy
from policy.durable_file import replace_file
from policy.errors import RetentionLost, SettingsError
from stream.connection import Connection
from stream.generations import read_generations
from stream.logs import read_logs
from stream.reconcile import ReconcileReport, TopicContent
from stream.reconcile import reconcile as reconcile_content
from stream.reconcile_join import Fates
from stream.topics import Topics
from stream.version_range import check_range

_SHOWN_DIFFERENCES = 10


def reconcile(
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write the report as JSON to this file.")
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="Name of the policy.", show_default="the only one of the generations topic"
        ),
    ] = None,
    versions: Annotated[
        str,
        typer.Option(
            help="Versions to compare: all, none, or a stretch such as 3..17, with epochs 1:3..2:4."
        ),
    ] = "all",
) -> None:
    """Recompute every group and every version from the topics and compare byte for byte.

    What join and learner went by is in the generations topic, so nobody's settings or schema are
    needed. It only reads, and may run beside the running system. Exits with 1 if anything differs
    or is not accounted for, naming the first record, and with an error if retention has deleted
    what is needed to tell.
    """
    check_range(versions)
    settings = load_settings()
    if settings.schema_path.is_dir():
        settings = settings_of_policy(settings, policy)
    out, err = Console(), Console(stderr=True)
    connection = Connection(settings.bootstrap_servers, client_id="grade-reconcile")
    topics = Topics(settings.topic_prefix)
    with err.status("reading the topics") as status:
        generations = read_generations(connection, topics, policy or _only(connection, topics))
        try:
            report = reconcile_content(
                generations,
                TopicContent(connection, topics),
                versions=versions,
                tell=status.update,
            )
        except RetentionLost as lost:
            raise RetentionLost(
                f"{lost}. Nothing was compared, and no difference was found"
            ) from lost
    for table in tables(report):
        out.print(table)
    out.print(summary(report), soft_wrap=True, markup=False, highlight=False)
    if json_path is not None:  # last: a disk that is full must not keep the answer back
        replace_file(json_path, (report.to_json() + "\n").encode())
    if not report.ok:
        raise typer.Exit(1)


def _only(connection: Connection, topics: Topics) -> str:
    """The policy whose generations the topic has, if there is one."""
    [begun] = read_logs(connection, [topics.generations])[topics.generations]
    found = sorted({(each.key or b"").decode(errors="replace") for each in begun.records})
    if len(found) != 1:
        raise SettingsError(
            f"--policy: expected the name of one of the policies in {topics.generations} "
            f"({', '.join(found) or 'it has none'}), seen none"
        )
    return found[0]


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
    lines += [f"accepted: {each}" for each in report.losses]
    lines += [f"not compared: {each}" for each in report.not_compared]
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
