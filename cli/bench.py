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
    renew,
    renew_table,
    written,
)
from policy.durable_file import replace_file
from policy.errors import SettingsError

LEARNING = "learning"


def bench(
    name: Annotated[
        str,
        typer.Argument(
            help=f"One of {', '.join(BENCHMARKS)}, {LEARNING}; or all: {', '.join(OVERVIEW)}."
        ),
    ] = "all",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write name, figures, machine and command here.")
    ] = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="Long runs, for figures that are quoted; of learning: also the slow methods.",
        ),
    ] = False,
    table_file: Annotated[
        Path | None,
        typer.Option("--table", help="Renew the table between the marks of this Markdown page."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Of learning: seeds from 0 on.")] = 5,
    first_seed: Annotated[
        int, typer.Option(min=0, help="Of learning: another first seed; choose settings on 100.")
    ] = 0,
    world: Annotated[
        list[str] | None, typer.Option(help="Of learning: only this world; may be repeated.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Of learning: processes.", show_default="one per core")
    ] = None,
    data: Annotated[
        Path, typer.Option(help="Of learning: folder of real requests with their policy.toml.")
    ] = Path("examples/kuairand"),
) -> None:
    """Measure how fast the parts are, each beside its peers in the same run.

    Nothing else should run on the machine; ratios suffer less from it than figures do.

    `learning` measures how well is learned instead: what every method's mean weights recover of the
    way from uniform weights to the oracle, in worlds whose truth is known, and NDCG on a real log;
    means over seeds, NAME_ci is half of the 95 % interval. It takes every core for half an hour.
    """
    if name == LEARNING:
        # Here, for the others need no torch.
        from benchmarks.learning.table import tables
        from cli.bench_learning import measure_learning

        command = f"grade bench learning --seeds {seeds}{' --full' if full else ''}"
        command += f" --first-seed {first_seed}" if first_seed else ""
        command += "".join(f" --world {each}" for each in world or ())
        numbers = range(first_seed, first_seed + seeds)
        report = measure_learning(
            numbers, data, tuple(world or ()), full=full, workers=workers, command=command
        )
        Console().print(_shown(report))
        if json_file is not None:
            json_file.write_text(as_json(report), encoding="utf-8")
        if table_file is not None:
            renew(table_file, f"`{command}`, {report.machine}\n\n{tables(report.figures)}")
        return
    if name != "all" and name not in BENCHMARKS:
        known = ", ".join((*BENCHMARKS, LEARNING))
        raise SettingsError(f"bench: expected one of {known} or all, seen {name!r}")
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
