"""`grade bench`: the figures that the docs quote."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.report import (
    BENCHMARKS,
    OVERVIEW,
    Report,
    as_json,
    measure,
    renew_table,
    written,
)
from policy.durable_file import replace_file
from policy.errors import SettingsError


def bench(
    name: Annotated[
        str, typer.Argument(help=f"One of {', '.join(BENCHMARKS)}; or all: {', '.join(OVERVIEW)}.")
    ] = "all",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write name, figures, machine and command here.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Long runs, for figures that are quoted.")
    ] = False,
    table_file: Annotated[
        Path | None,
        typer.Option("--table", help="Renew the table between the marks of this Markdown page."),
    ] = None,
) -> None:
    """Measure how fast the parts are, each beside its peers in the same run.

    Nothing else should run on the machine; ratios suffer less from it than figures do.
    """
    if name != "all" and name not in BENCHMARKS:
        raise SettingsError(f"bench: expected one of {', '.join(BENCHMARKS)} or all, seen {name!r}")
    console = Console()
    reports: list[Report] = []
    for each in OVERVIEW if name == "all" else (name,):
        with console.status(f"measuring {each}"):
            reports.append(measure(each, full=full))
        console.print(_shown(reports[-1]))
    if json_file is not None:
        text = as_json(reports if name == "all" else reports[0])
        replace_file(json_file, text.encode())
    if table_file is not None:
        renew_table(table_file, reports)


def _shown(report: Report) -> Table:
    table = Table(title=report.name, caption=f"{report.command} on {report.machine}")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for figure, value in report.figures.items():
        table.add_row(figure, written(value))
    return table
