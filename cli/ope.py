"""`grade ope`: what another policy would have earned, from logged decisions alone."""

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cli.policy_option import PolicyName, load_policy_settings
from cli.uplift import Level, Since, TunedFor, Until, say_left_out, span_of, utc
from evaluation.confidence import LEVEL, Interval
from evaluation.importance import (
    LARGEST_WEIGHT,
    LEAST_EFFECTIVE,
    Overlap,
    importance,
    overlap,
    require_overlap,
)
from evaluation.logged_groups import comparable_digests, logged_decisions, read_groups
from evaluation.off_policy import TUNED_FOR, Look, looks
from evaluation.target_policy import Target, parse_weights, read_target, static_target
from monitor.summary import without_nan
from policy.durable_file import replace_file
from policy.errors import SettingsError, TooLittleData
from policy.schema import Schema, load_schema
from stream.connection import Connection
from stream.generations import read_generations
from stream.topics import Topics

_NAMES = {
    "ips": "importance sampling (IPS)",
    "snips": "self-normalised (SNIPS)",
    "dr": "doubly robust (DR)",
}


def ope(
    target: Annotated[
        Path | None,
        typer.Argument(
            help="The policy to evaluate: a file of `grade export`, or a .toml with a table "
            "named weights, one number per objective."
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Static weights instead, as pctr=0.3,price=0.7: every objective."),
    ] = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="The schema's baseline weights instead.")
    ] = False,
    concentration: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Of the Dirichlet that stands for static weights; for a policy, around its mean "
            "instead of its own.",
            show_default="20 for static weights",
        ),
    ] = None,
    policy: PolicyName = None,
    since: Since = None,
    until: Until = None,
    least_effective: Annotated[
        float, typer.Option(min=1, help="Effective sample below which nothing is estimated.")
    ] = LEAST_EFFECTIVE,
    level: Level = LEVEL,
    tuned_for: TunedFor = TUNED_FOR,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file.")
    ] = None,
) -> None:
    """Estimate what a policy would earn per request, from decisions that were logged.

    Reads closed reward groups of the policy's arm: the executed weights, the density at which they
    were drawn, and what the user did. Static weights have no density; they are smoothed by a
    Dirichlet around them, whose concentration you may set: higher is nearer to the point, and
    speaks of fewer requests. Where too few logged requests resemble the target, it refuses.
    """
    settings = load_policy_settings(policy)
    schema = load_schema(settings.schema_path)
    evaluated = _target(schema, target, weights, baseline, concentration)
    span = span_of(since, until)
    connection = Connection(settings.bootstrap_servers, client_id="grade-ope")
    topics = Topics(settings.topic_prefix)
    with Console(stderr=True).status("reading the generations") as status:
        comparable = comparable_digests(schema, read_generations(connection, topics, schema.policy))
        logged, left_out = logged_decisions(
            read_groups(connection, topics, status.update), schema, comparable, span
        )
        say_left_out(left_out)
        requests = len(logged.rewards)
        if not requests:
            raise TooLittleData(
                f"expected reward groups of the policy arm in {topics.reward_groups}, seen none"
            )
        alpha, floors = evaluated.alpha(logged.features), schema.floors()
        shared = overlap(importance(logged, alpha, floors))
        require_overlap(shared, requests, least_effective)
        status.update("estimating")
        found = looks(
            logged, alpha, floors, level=level, tuned_for=tuned_for, least=least_effective
        )
    console = Console()
    console.print(_table(found[-1], level, float(logged.rewards.mean())))
    console.print(_overlap_text(shared, requests), soft_wrap=True, highlight=False, markup=False)
    if json_file is not None:
        figures = {
            "level": level,
            "requests": requests,
            "units": int(logged.units.max()) + 1,
            "served_gain_per_request": float(logged.rewards.mean()),
            "overlap": shared._asdict(),
            **_estimates(found[-1]),
            "over_time": [
                {"requests": look.requests, "time_ms": look.time_ms, **_estimates(look)}
                for look in found
            ],
            "left_out": left_out._asdict(),
        }
        replace_file(json_file, (json.dumps(without_nan(figures), indent=2) + "\n").encode())


def _target(
    schema: Schema,
    file: Path | None,
    weights: str | None,
    baseline: bool,
    concentration: float | None,
) -> Target:
    if [file is not None, weights is not None, baseline].count(True) != 1:
        raise SettingsError(
            "ope: expected one policy to evaluate, a file, --weights or --baseline, seen "
            + ("none" if not (file or weights or baseline) else "several")
        )
    if file is not None:
        return read_target(file, schema, concentration)
    if weights is not None:
        return static_target(schema, parse_weights(weights), concentration, "--weights")
    named = dict(zip((o.name for o in schema.objectives), schema.baseline().tolist(), strict=True))
    return static_target(schema, named, concentration, "--baseline")


def _table(look: Look, level: float, served: float) -> Table:
    table = Table(
        title=f"gain per request from {look.requests:,} requests up to {utc(look.time_ms)} UTC",
        title_justify="left",
    )
    table.add_column("estimate")
    table.add_column("gain", justify="right")
    table.add_column(f"{level:.0%} interval, one look")
    table.add_column(f"{level:.0%} sequence, all looks")
    table.add_row("as it was served", f"{served:.4g}", "", "")
    for name, valued in look.by_estimator.items():
        table.add_row(
            _NAMES[name],
            f"{valued.estimate.value:.4g}",
            _written(valued.interval),
            _written(valued.sequence),
        )
    return table


def _overlap_text(shared: Overlap, requests: int) -> str:
    return (
        f"effective sample {shared.effective:,.0f} of {requests:,} requests, largest weight "
        f"{shared.largest:.3g} (cut at {LARGEST_WEIGHT:g}: {shared.lost:.2%} of the target left "
        f"out), mean weight {shared.mean:.3f}"
    )


def _estimates(look: Look) -> dict[str, Any]:
    return {
        name: {
            "value": valued.estimate.value,
            "standard_error": valued.estimate.standard_error,
            "interval": list(valued.interval),
            "sequence": list(valued.sequence),
        }
        for name, valued in look.by_estimator.items()
    }


def _written(interval: Interval) -> str:
    if math.isnan(interval.low):
        return "–"
    return f"{interval.low:.4g} to {interval.high:.4g}"
