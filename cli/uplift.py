"""`grade uplift`: what the policy brings over the permanent holdout."""

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cli.policy_option import PolicyName, load_policy_settings
from evaluation.confidence import LEVEL, Interval
from evaluation.logged_groups import (
    LeftOut,
    Span,
    comparable_digests,
    observed,
    parse_time,
    read_groups,
)
from evaluation.uplift import LOOKS, TUNED_FOR, Difference, Look, looks
from monitor.summary import without_nan
from policy.durable_file import replace_file
from policy.errors import SettingsError
from policy.schema import load_schema
from stream.connection import Connection
from stream.generations import read_generations
from stream.topics import Topics

Since = Annotated[
    str | None,
    typer.Option(help="Only impressions from then on: a date or time (UTC), or 6h, 7d ago."),
]
Until = Annotated[str | None, typer.Option(help="Only impressions before, written as --since.")]
Level = Annotated[
    float, typer.Option(min=0.5, max=0.9999, help="Confidence level of intervals and sequences.")
]
TunedFor = Annotated[
    float,
    typer.Option(
        min=1, help="Requests at which sequences are narrowest; fix it before the first look."
    ),
]


def uplift(
    policy: PolicyName = None,
    since: Since = None,
    until: Until = None,
    level: Level = LEVEL,
    tuned_for: TunedFor = TUNED_FOR,
    times: Annotated[int, typer.Option(min=1, help="How many moments to show.")] = LOOKS,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file.")
    ] = None,
) -> None:
    """Compare the realised gain per request of the policy's arm with the holdout's.

    The holdout gets the baseline and is never learned from, so the difference is what the policy
    brings, exploration paid. Units are assigned at random and keep their arm; requests of one unit
    may depend on each other. The interval is for one look that was planned; the sequence holds
    however often you look and whenever you stop. Only closed attribution windows count.
    """
    settings = load_policy_settings(policy)
    span = span_of(since, until)
    schema = load_schema(settings.schema_path)
    connection = Connection(settings.bootstrap_servers, client_id="grade-uplift")
    topics = Topics(settings.topic_prefix)
    with Console(stderr=True).status("reading the generations") as status:
        comparable = comparable_digests(schema, read_generations(connection, topics, schema.policy))
        requests, left_out = observed(
            read_groups(connection, topics, status.update), schema, comparable, span
        )
        found = looks(requests, times, level=level, tuned_for=tuned_for)
    console = Console()
    console.print(_table(found, level))
    console.print(sentence(found[-1], level), soft_wrap=True, highlight=False, markup=False)
    say_left_out(left_out)
    if json_file is not None:
        figures = {**as_json(found, level), "left_out": left_out._asdict()}
        replace_file(json_file, (json.dumps(without_nan(figures), indent=2) + "\n").encode())


def span_of(since: str | None, until: str | None) -> Span:
    """The stretch of log time that was asked for.

    Raises:
        SettingsError: an end cannot be read, or it ends before it begins.
    """
    now_ms = time.time_ns() // 1_000_000
    span = Span(
        None if since is None else parse_time(since, "--since", now_ms),
        None if until is None else parse_time(until, "--until", now_ms),
    )
    if span.since_ms is not None and span.until_ms is not None and span.since_ms >= span.until_ms:
        raise SettingsError(f"--until: expected a time after --since {since}, seen {until}")
    return span


def say_left_out(left_out: LeftOut) -> None:
    """Warn of groups that were read and not used."""
    if left_out.other_schema:
        typer.echo(
            f"warning: {left_out.other_schema:,} groups left out: decided under a schema with "
            "other features, objectives or holdout",
            err=True,
        )
    if left_out.not_finite:
        typer.echo(
            f"warning: {left_out.not_finite:,} groups left out: a number is not finite", err=True
        )


def sentence(look: Look, level: float) -> str:
    """The last look in one sentence."""
    change = look.relative
    share = "" if change is None else f" ({change.value:+.1%}, {_percent(change.sequence)})"
    sequence = look.absolute.sequence
    verdict = "the policy earns more" if sequence.low > 0 else "the policy earns less"
    if sequence.low <= 0 <= sequence.high:
        verdict = "the arms cannot be told apart yet"
    return (
        f"policy {look.policy.value:.4g}, holdout {look.holdout.value:.4g} gain per request: "
        f"difference {look.absolute.value:+.4g}, {_written(sequence)} at {level:.0%} however often "
        f"you look{share}: {verdict}"
    )


def as_json(found: Sequence[Look], level: float) -> dict[str, Any]:
    """The figures by name: the last look, and the way there."""
    return {"level": level, **_look(found[-1]), "over_time": [_look(each) for each in found]}


def _look(look: Look) -> dict[str, Any]:
    return {
        "time_ms": look.time_ms,
        "policy": _arm(look.policy),
        "holdout": _arm(look.holdout),
        "absolute": _difference(look.absolute),
        "relative": None if look.relative is None else _difference(look.relative),
    }


def _arm(estimate: Any) -> dict[str, Any]:
    return {
        "gain_per_request": estimate.value,
        "standard_error": estimate.standard_error,
        "requests": int(estimate.size),
        "units": estimate.clusters,
    }


def _difference(difference: Difference) -> dict[str, Any]:
    return {
        "value": difference.value,
        "interval": list(difference.interval),
        "sequence": list(difference.sequence),
    }


def _table(found: Sequence[Look], level: float) -> Table:
    table = Table(title="gain per request, policy less holdout", title_justify="left")
    table.add_column("up to (UTC)", no_wrap=True)
    for name in ("requests", "held out", "policy", "holdout", "difference"):
        table.add_column(name, justify="right")
    table.add_column(f"{level:.0%} interval\none look")
    table.add_column(f"{level:.0%} sequence\nall looks")
    table.add_column("relative, sequence")
    for look in found:
        relative = look.relative
        table.add_row(
            utc(look.time_ms),
            f"{look.policy.size + look.holdout.size:,}",
            f"{look.holdout.size:,}",
            f"{look.policy.value:.4g}",
            f"{look.holdout.value:.4g}",
            f"{look.absolute.value:+.4g}",
            _written(look.absolute.interval),
            _written(look.absolute.sequence),
            "–" if relative is None else f"{relative.value:+.1%} {_percent(relative.sequence)}",
        )
    return table


def utc(time_ms: int) -> str:
    """A moment as people read it, to the second."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _written(interval: Interval) -> str:
    return f"{interval.low:+.4g} to {interval.high:+.4g}"


def _percent(interval: Interval) -> str:
    return f"{interval.low:+.1%} to {interval.high:+.1%}"
