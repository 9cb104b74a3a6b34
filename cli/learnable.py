"""`grade learnable`: whether a log says that other fusion weights would rank better."""

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cli.data_folder import folder_and_schema, folds_progress
from evaluation.answer import answer, shown
from evaluation.delays import Delays, delays_of
from evaluation.learnable import LEVEL, QUESTIONS, Learnable
from evaluation.learnable import learnable as ask
from policy.durable_file import replace_file

_FEATURES_SHOWN = 5


def learnable(
    data_dir: Annotated[Path, typer.Argument(help="Folder in the format of docs/data-folder.md.")],
    schema: Annotated[
        Path | None,
        typer.Option(help="The policy's schema.", show_default="policy.toml in the folder"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of folds, resamples and permutations.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all figures to this file.")
    ] = None,
) -> None:
    """Tell from logged requests whether fusion weights are worth learning; the answer may be no.

    Static weights, weights per segment and weights per request are fitted to the users of four
    folds and judged on those of the fifth, in turns. A yes is wrong in at most 5 of 100 logs in
    which there is nothing to learn. docs/offline.md has the definitions.
    """
    console = Console(stderr=True)
    folder, known = folder_and_schema(data_dir, schema, console)
    with folds_progress(console) as progress:
        found = ask(folder, known, seed=seed, progress=progress)
    delays = delays_of(folder, known)
    sentence = answer(found)
    out = Console()
    for table in (_weights(found), _differences(found), _power(found), _delays(delays)):
        out.print(table)
    out.print(_features(found), highlight=False)
    out.print(sentence, style="bold", highlight=False)
    if json_file is not None:
        replace_file(json_file, (json.dumps(figures(found, delays), indent=2) + "\n").encode())


def figures(found: Learnable, delays: Delays) -> dict[str, Any]:
    """Everything as JSON holds it; a figure that is not defined is null."""
    return {
        "answer": answer(found),
        "yes": {better: found.yes(better) for better, _ in QUESTIONS},
        "requests": found.requests,
        "requests_with_gain": found.with_gain,
        "units_with_gain": found.units,
        "ndcg": {name: interval._asdict() for name, interval in found.ndcg.items()},
        "differences": [
            {"better": c.better, "than": c.than, **c.gain._asdict(), "lower_bound": c.lower_bound}
            for c in found.compared
        ],
        "power": {name: power._asdict() for name, power in found.power.items()},
        "features": [{"name": part.name, **part.loss._asdict()} for part in found.features],
        "segment_features": found.segment_features,
        "contextual_ridges": found.contextual_ridges,
        "static_weights": found.static_weights,
        "delays": {
            "window_suggested_s": delays.window_s,
            "window_declared_s": delays.declared_s,
            "by_outcome": {
                delay.outcome: {
                    "count": delay.number,
                    "quantiles_s": delay.quantiles_s,
                    "outside": None if math.isnan(delay.outside) else delay.outside,
                }
                for delay in delays.by_outcome
            },
        },
    }


def _weights(found: Learnable) -> Table:
    title = (
        f"cross-fitted: {found.with_gain:,} of {found.requests:,} requests with any gain, "
        f"{found.units:,} users"
    )
    table = Table("weights", "NDCG", "95 % interval", title=title)
    for name, (value, low, high) in found.ndcg.items():
        table.add_row(name, f"{value:.4f}", f"{low:.4f} to {high:.4f}")
    return table


def _differences(found: Learnable) -> Table:
    table = Table("difference", "NDCG [95 %]", "bound", "answer")
    table.caption = f"bound: one-sided, {LEVEL:.0%} for all {len(QUESTIONS)} questions together"
    for c in found.compared:
        asked = c.lower_bound is not None
        table.add_row(
            f"{c.better} − {c.than}",
            shown(c.gain),
            f"{c.lower_bound:+.4f}" if asked else "",
            ("[green]yes[/green]" if c.yes else "no") if asked else "",
        )
    return table


def _power(found: Learnable) -> Table:
    asked = [gain for gain in next(iter(found.power.values())).requests_for if gain != "observed"]
    table = Table(
        "requests needed", "seen here", *(f"for +{gain}" for gain in asked), "as observed"
    )
    for better, than in QUESTIONS:
        power = found.power[better]
        needed = [f"{power.requests_for[gain]:,}" for gain in asked]
        observed = power.requests_for.get("observed")
        table.add_row(
            f"{better} − {than}",
            f"+{power.detectable:.4f}",
            *needed,
            "–" if observed is None else f"{observed:,}",
        )
    table.caption = "seen here: a gain that a log of this size shows in 4 of 5 cases"
    return table


def _delays(delays: Delays) -> Table:
    names = next((list(d.quantiles_s) for d in delays.by_outcome if d.number), [])
    table = Table("outcome", "count", *(f"{float(q):.0%}" for q in names), "outside window")
    table.title = "seconds from request to outcome, by share"
    for delay in delays.by_outcome:
        cells = [f"{delay.quantiles_s[q]:,.1f}" if delay.number else "–" for q in names]
        outside = f"{delay.outside:.1%}" if delay.number else "–"
        table.add_row(delay.outcome, f"{delay.number:,}", *cells, outside)
    suggested = "none" if delays.window_s is None else f"{delays.window_s:g} s"
    table.caption = f"window: declared {delays.declared_s:g} s; 99 % of each type: {suggested}"
    return table


def _features(found: Learnable) -> str:
    if not found.features:
        return "features: weights by the context did no better than static ones in any fold"
    carry = [part for part in found.features if part.loss.low > 0]
    if not carry:
        return "features: none whose loss could be told from chance"
    parts = [f"{part.name} {shown(part.loss)}" for part in carry[:_FEATURES_SHOWN]]
    return "NDCG lost without a feature: " + ", ".join(parts)
