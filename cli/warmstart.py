"""`grade warmstart`: a policy from a log, for `grade import` to start from."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from cli.data_folder import folder_and_schema
from evaluation.answer import shown
from evaluation.warm_start import STATIC, WARM, Judged, held_out_rows, warm_start_judged
from policy import policy_file
from policy.durable_file import replace_file
from policy.errors import SettingsError
from policy.logged_fit import CHOICES, WarmStartSettings
from policy.policy_file import PolicyFile
from policy.schema import Schema


def warmstart(
    data_dir: Annotated[Path, typer.Argument(help="Folder in the format of docs/data-folder.md.")],
    out: Annotated[
        Path, typer.Option("--out", help="Policy file to write, for `grade import`.")
    ] = Path("warm-start.safetensors"),
    schema: Annotated[
        Path | None,
        typer.Option(help="The policy's schema.", show_default="policy.toml in the folder"),
    ] = None,
    objective: Annotated[
        str,
        typer.Option(
            help="What is made small: likelihood (listwise, of where the gains of a list fell), "
            "lambda (LambdaLoss, pairwise), direct (a smooth NDCG), or best: static and "
            "contextual part each by the one that ranks best for users left out."
        ),
    ] = WarmStartSettings().objective,
    exploration_budget: Annotated[
        float,
        typer.Option(
            help="Share of what the learned order earns beyond a random one that sampling may "
            "cost at the start; sets the concentration."
        ),
    ] = WarmStartSettings().exploration_budget,
    held_out: Annotated[
        float,
        typer.Option(help="Share of the users that is only judged, never learned from."),
    ] = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="Of users held out and of every draw.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all figures to this file.")
    ] = None,
) -> None:
    """Learn a policy from logged requests, so that live learning does not start from nothing.

    Stage 1 of GRADE. Static and contextual weights are learned to rank what users wanted above
    what they did not, gains over examination; how long, and how far the context may move the
    weights, is decided by users that were left out. Then the concentration is set so that
    exploration costs no more than its budget. The table judges the result on users held out.

    Stage 2 is the live system: `grade import FILE` starts it from the file (docs/start.md).
    """
    settings = _settings(objective, exploration_budget, held_out, seed)
    console = Console(stderr=True)
    folder, known = folder_and_schema(data_dir, schema, console)
    with _progress(console) as progress:
        judged = warm_start_judged(
            folder, known, held_out_rows(folder, held_out, seed), settings, progress
        )
    # Of no version: no system has served it.
    checksum = policy_file.write(out, PolicyFile(known, judged.learned.tensors, 0, 0, 0)).hex()
    screen = Console()
    screen.print(_table(judged))
    for sentence in (_mean_weights(judged, known), *sentences(judged, settings)):
        screen.print(sentence, highlight=False, markup=False)
    typer.echo(f"{out} (sha256 {checksum[:16]}…): start from it with `grade import {out}`")
    if json_file is not None:
        text = json.dumps(
            figures(judged, settings, known) | {"sha256": checksum}, indent=2, allow_nan=False
        )
        replace_file(json_file, f"{text}\n".encode())


def figures(judged: Judged, settings: WarmStartSettings, schema: Schema) -> dict[str, Any]:
    """Everything as JSON holds it."""
    learned = judged.learned
    return {
        "objective": settings.objective,
        "seed": settings.seed,
        "requests_learned_from": judged.trained,
        "requests_judged": judged.requests,
        "units_judged": judged.units,
        "gate": learned.gate,
        "value_by_gate": {f"{gate:g}": value for gate, value in learned.held_out.items()},
        "static": learned.static._asdict(),
        "contextual": learned.contextual._asdict(),
        "concentration": learned.exploration.concentration,
        "exploration_budget": settings.exploration_budget,
        "exploration_cost": learned.exploration.cost,
        "beats_best_static": judged.beats_static,
        "objectives": [each.name for each in schema.objectives],
        "ranked_by": {
            name: {
                "ndcg": row.ndcg._asdict(),
                "less_best_static": row.less_static._asdict(),
                "mean_weights": row.mean_weights,
            }
            for name, row in judged.rows.items()
        },
    }


def sentences(judged: Judged, settings: WarmStartSettings) -> list[str]:
    """What was decided and what it costs, for people."""
    learned, exploration = judged.learned, judged.learned.exploration
    values = ", ".join(f"{gate:g}: {value:.4f}" for gate, value in learned.held_out.items())
    told = [
        "learned by "
        + ", ".join(
            f"{part}: {decided.objective}, {decided.steps} steps"
            for part, decided in (("static", learned.static), ("contextual", learned.contextual))
        ),
        f"gate {learned.gate:g}: the context moves the weights that far (value of users left out, "
        f"by gate: {values})",
        f"concentration {exploration.concentration:.1f}: sampling costs {exploration.cost:.2%} of "
        f"what the order earns beyond a random one, budget {settings.exploration_budget:.2%}",
    ]
    if exploration.cost > settings.exploration_budget:
        told.append(
            "That is more than the budget, at the greatest concentration that can be learned from: "
            "the learned order earns too little beyond a random one."
        )
    if not judged.beats_static:
        told.append(
            f"The warm start does not rank better than the best static weights on users held out "
            f"({shown(judged.rows[WARM].less_static)} NDCG): "
            + (
                "its context stayed shut, so static weights are what it has learned."
                if learned.gate == 0
                else "too few requests, or a context that tells little; `grade learnable` tells."
            )
        )
    return told


def _settings(objective: str, budget: float, held_out: float, seed: int) -> WarmStartSettings:
    chosen = next((each for each in CHOICES if each == objective), None)
    if chosen is None:
        raise SettingsError(
            f"--objective: expected one of {', '.join(CHOICES)}, seen {objective!r}"
        )
    if not 0 < budget < 1:
        raise SettingsError(
            f"--exploration-budget: expected a share between 0 and 1, such as 0.02, seen {budget:g}"
        )
    if not 0.01 <= held_out <= 0.9:
        raise SettingsError(f"--held-out: expected a share from 0.01 to 0.9, seen {held_out:g}")
    return WarmStartSettings(objective=chosen, exploration_budget=budget, seed=seed)


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[int, int], None]]:
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("learning", total=None)
        yield lambda done, of: progress.update(task, completed=done, total=of)


def _mean_weights(judged: Judged, schema: Schema) -> str:
    weights = zip(schema.objectives, judged.rows[WARM].mean_weights, strict=True)
    return "mean weights: " + ", ".join(f"{each.name} {weight:.2f}" for each, weight in weights)


def _table(judged: Judged) -> Table:
    table = Table()
    for column in ("ranked by", "NDCG \\[95 %]", f"less {STATIC} \\[95 %]"):
        table.add_column(column, no_wrap=True)
    table.title = (
        f"{judged.trained:,} requests learned from; judged on {judged.requests:,} with any gain "
        f"of {judged.units:,} other users"
    )
    for name, row in judged.rows.items():
        value, low, high = (f"{x:.4f}" for x in row.ndcg)
        table.add_row(
            name,
            f"{value} \\[{low}, {high}]",
            "" if name == STATIC else shown(row.less_static).replace("[", "\\["),
        )
    return table
