"""`grade examination`: how likely each position is looked at, estimated from a log."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cli.data_folder import folder_and_schema
from evaluation.examination import Examination, estimate_examination
from evaluation.yardsticks import lists_of
from policy.durable_file import replace_file
from policy.rewards import examination as declared_curve
from policy.schema import LEAST_EXAMINATION, Schema


def examination(
    data_dir: Annotated[Path, typer.Argument(help="Folder in the format of docs/data-folder.md.")],
    schema: Annotated[
        Path | None,
        typer.Option(help="The policy's schema.", show_default="policy.toml in the folder"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the resamples.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all figures to this file.")
    ] = None,
) -> None:
    """Estimate from logged requests how likely users look at each position.

    Gains are divided by that chance wherever the system learns or judges, so that a good item is
    not held to be bad for having been shown far down. Positions and the relevance of the signals
    are fitted together; intervals resample users. The lines to put into the schema are printed.

    A log in which like items were always shown at like positions cannot tell the two apart:
    serve sampled weights for a while. docs/offline.md has the model and what it was checked on.
    """
    folder, known = folder_and_schema(data_dir, schema, Console(stderr=True))
    found = estimate_examination(lists_of(folder, known), folder.unit_ids, seed=seed)
    Console().print(_table(found, known))
    above = [at for at, each in enumerate(found.curve) if each.value > 1]
    if above:
        typer.echo(
            f"positions {', '.join(map(str, above))}: estimated above position 0, written as 1"
        )
    typer.echo(f"\n[reward]\nexamination = {settled(found)}")
    if json_file is not None:
        figures = {
            "requests_with_outcome": found.requests,
            "examination": [each._asdict() for each in found.curve],
            "outcomes": found.outcomes,
            "relevance": {
                objective.name: value
                for objective, value in zip(known.objectives, found.relevance, strict=True)
            },
            "schema_examination": settled(found),
        }
        replace_file(json_file, f"{json.dumps(figures, indent=2, allow_nan=False)}\n".encode())


def settled(found: Examination) -> list[float]:
    """The curve as a schema holds it: three digits, within what it allows."""
    return [max(LEAST_EXAMINATION, round(min(1.0, each.value), 3)) for each in found.curve]


def _table(found: Examination, schema: Schema) -> Table:
    table = Table("position", "items with an outcome", "examination \\[95 %]", "declared")
    table.title = f"{found.requests:,} requests with an outcome"
    last = len(found.curve) - 1
    for at, (value, low, high) in enumerate(found.curve):
        table.add_row(
            f"{at} and below" if at == last else str(at),
            f"{found.outcomes[at]:,}",
            f"{value:.3f} \\[{low:.3f}, {high:.3f}]" if at else "1",
            f"{declared_curve(schema, last + 1)[at]:.3f}" if schema.examination else "",
        )
    return table
