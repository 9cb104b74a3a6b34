"""`grade evaluate`: policies judged by logged requests, beside fixed weights."""

import json
import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from cli.data_folder import folder_and_schema
from evaluation.auction_metrics import METRICS, Roles, names_at
from evaluation.auctions import BASELINE, Evaluation
from evaluation.auctions import evaluate as judge_all
from evaluation.bootstrap import Interval
from evaluation.interval_plot import Panel, svg
from evaluation.target_policy import mean_weights, read_target
from policy.durable_file import replace_file
from policy.errors import SettingsError
from policy.fusion import Floats
from policy.schema import Schema


def evaluate(
    data_dir: Annotated[Path, typer.Argument(help="Folder in the format of docs/data-folder.md.")],
    policy: Annotated[
        list[Path] | None,
        typer.Option(
            help="A policy to judge, as often as wanted: a file of `grade export`, or a .toml with "
            "a table named weights, one number per objective."
        ),
    ] = None,
    schema: Annotated[
        Path | None,
        typer.Option(help="The policy's schema.", show_default="policy.toml in the folder"),
    ] = None,
    k: Annotated[int, typer.Option("--k", min=1, help="How many items of a list win.")] = 3,
    click: Annotated[
        str | None, typer.Option(help="Outcome that counts as a click.", show_default="the first")
    ] = None,
    order: Annotated[
        str | None,
        typer.Option(
            help="Outcome that counts as an order.", show_default="the one of largest gain"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the search and of the resamples.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all figures to this file.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw the differences from the baseline into this .svg file."),
    ] = None,
) -> None:
    """Rank logged items anew by each policy's fusion weights and judge the first k of each list.

    The second half of the requests is judged; best single objective and best static weights are
    those of the first half. Intervals are 95 %, by resampling users; differences are paired.
    docs/offline.md has the definitions.
    """
    if plot is not None and plot.suffix != ".svg":
        raise SettingsError(f"--plot: expected a file called .svg, seen {str(plot)!r}")
    console = Console(stderr=True)
    folder, known = folder_and_schema(data_dir, schema, console)
    try:
        roles = Roles.of(known, click, order)
    except ValueError as error:
        raise SettingsError(f"--click, --order: {error}") from None
    features, policies = folder.features.astype(np.float64), dict[str, Floats]()
    for path in policy or []:
        target = read_target(path, known, None)
        policies[_unused(path.stem, policies)] = mean_weights(target, features, known)
    with console.status("judging"):
        found = judge_all(folder, known, policies, k=k, roles=roles, seed=seed)
    names = names_at(k, roles, any(o.value_weighted for o in known.outcomes))
    out = Console()
    out.print(
        f"second half: {found.requests:,} requests of {found.units:,} users; the first {found.k} "
        "of each list win",
        highlight=False,
    )
    for metric in METRICS:
        out.print(_table(found, metric, names[metric]))
    if json_file is not None:
        replace_file(json_file, (json.dumps(figures(found, known), indent=2) + "\n").encode())
    if plot is not None:
        replace_file(plot, _picture(found, names).encode())


def figures(found: Evaluation, schema: Schema) -> dict[str, Any]:
    """Everything as JSON holds it; a figure that is not defined is null."""

    def written(by_metric: dict[str, Interval | None]) -> dict[str, dict[str, float | None] | None]:
        return {
            metric: None
            if interval is None
            else {key: x if math.isfinite(x) else None for key, x in interval._asdict().items()}
            for metric, interval in by_metric.items()
        }

    return {
        "requests_judged": found.requests,
        "units_judged": found.units,
        "k": found.k,
        "click": found.roles.click,
        "order": found.roles.order,
        "objectives": [objective.name for objective in schema.objectives],
        "ranked_by": {
            row.name: {
                "figures": written(row.figures),
                "less_baseline": written(row.differences),
                "mean_weights": row.weights,
            }
            for row in found.rows
        },
    }


def _unused(name: str, taken: dict[str, Floats]) -> str:
    """The name, numbered if another policy file is called so too."""
    number = 2
    wanted = name
    while wanted in taken:
        wanted, number = f"{name} ({number})", number + 1
    return wanted


def _table(found: Evaluation, metric: str, title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("ranked by")
    table.add_column("value [95 %]", no_wrap=True)
    table.add_column("less baseline [95 %]", no_wrap=True)
    for row in found.rows:
        table.add_row(row.name, _written(row.figures[metric]), _difference(row.differences[metric]))
    return table


def _written(interval: Interval | None, sign: str = "") -> str:
    if interval is None:
        return "not defined"
    digits = 4 if max(map(abs, interval)) < 10 else 1
    value, low, high = (f"{x:{sign}.{digits}f}" for x in interval)
    return f"{value} \\[{low}, {high}]"  # a bare [ would begin rich's markup


def _difference(interval: Interval | None) -> str:
    if interval is None:
        return ""
    colour = "green" if interval.low > 0 else "red" if interval.high < 0 else "default"
    return f"[{colour}]{_written(interval, '+')}[/{colour}]"


def _picture(found: Evaluation, names: dict[str, str]) -> str:
    panels = []
    for metric in METRICS:
        at_baseline = next(r.figures[metric] for r in found.rows if r.name == BASELINE)
        beside = "not defined" if at_baseline is None else f"baseline {at_baseline.value:.4g}"
        lines = [(r.name, r.differences[metric]) for r in found.rows if r.name != BASELINE]
        panels.append(Panel(f"{names[metric]}: {beside}", lines))
    title = f"Less baseline, 95 % by user; {found.requests:,} requests of {found.units:,} users"
    return svg(title, panels)
