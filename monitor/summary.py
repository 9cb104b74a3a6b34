"""What a run of the whole loop came to: the figures that are printed and written as JSON."""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.table import Table

from monitor.latency import CloseToServed
from monitor.terminal import number
from stream.reconcile import ReconcileReport

NEAR_SWAP_MS = 100.0


def near_swap(calls: np.ndarray, swaps_ms: Sequence[float], within_ms: float) -> np.ndarray:
    """Latencies of the calls that began within a time of any swap.

    Args:
        calls: [call, 2] wall time at which it began and latency, in milliseconds.
        swaps_ms: wall times of the swaps in milliseconds, rising.
        within_ms: how near is near.

    Returns:
        [near call] latencies in milliseconds.

    >>> calls = np.array([[1000.0, 2.0], [1500.0, 3.0], [2090.0, 4.0]])
    >>> near_swap(calls, [1050.0, 2000.0], 100.0)
    array([2., 4.])
    """
    near = []
    for began, latency in calls:
        at = bisect_left(swaps_ms, began)
        around = swaps_ms[max(at - 1, 0) : at + 1]
        if any(abs(began - swap) <= within_ms for swap in around):
            near.append(latency)
    return np.array(near)


def summarise(
    report: ReconcileReport,
    latency: CloseToServed,
    swaps: Sequence[Mapping[str, Any]],
    traffic: Mapping[str, Any],
    calls: np.ndarray,
) -> dict[str, Any]:
    """The figures of one run.

    Args:
        report: what reconciling found after everything had stopped.
        latency: has seen every group and every swap.
        swaps: the server's swaps.
        traffic: what the traffic reports of itself: decisions and value.
        calls: [call, 2] wall time and latency of every RPC, in milliseconds.
    """
    impressions, conversions = report.impressions, report.conversions
    served = {(swap["epoch"], swap["version"]) for swap in swaps if swap["version"] > 0}
    close = latency.percentiles([50, 99])
    near = near_swap(calls, [float(s["wall_ms"]) for s in swaps], NEAR_SWAP_MS)
    rpc = np.percentile(calls[:, 1], [50, 99]) if len(calls) else (np.nan, np.nan)
    return {
        "decisions": traffic["decisions"],
        "failed_rpcs": traffic["failed_rpcs"],
        "impressions": impressions.read - impressions.ticks,
        "conversions": conversions.read - conversions.ticks,
        "conversions_joined": conversions.used,
        "groups": report.groups,
        "late": conversions.late,
        "orphans": conversions.orphans,
        "dead_letters": impressions.dead_letters + conversions.dead_letters,
        "duplicates": impressions.duplicates + conversions.duplicates,
        "ticks": impressions.ticks + conversions.ticks,
        "open": impressions.open + conversions.open,
        "conserved": report.conserved,
        "reconciled": report.reconciled,
        "versions_published": report.versions.versions,
        "versions_served": len(served),
        "groups_applied": report.versions.groups_applied,
        "groups_applied_twice": report.versions.groups_applied_twice,
        "groups_lost": report.versions.groups_lost,
        "close_to_served_ms": {"p50": close[0], "p99": close[1]},
        "rpc_ms": {"p50": float(rpc[0]), "p99": float(rpc[1])},
        "rpc_near_swap_ms": {"p99": float(np.percentile(near, 99)) if len(near) else float("nan")},
        "value": dict(traffic["value"]),
    }


def without_nan(value: Any) -> Any:
    """The same figures with None where there is none, since JSON has no NaN.

    >>> without_nan({"p99": float("nan"), "groups": 3})
    {'p99': None, 'groups': 3}
    """
    if isinstance(value, Mapping):
        return {name: without_nan(each) for name, each in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def show(figures: Mapping[str, Any]) -> RenderableType:
    """The summary as people read it."""
    counts = Table(title="every input accounted for", show_header=False)
    for name in (
        "decisions",
        "impressions",
        "groups",
        "conversions",
        "conversions_joined",
        "late",
        "orphans",
        "duplicates",
        "dead_letters",
        "open",
        "ticks",
    ):
        counts.add_row(name.replace("_", " "), number(figures[name]))
    proofs = Table(title="recomputed from the topics", show_header=False)
    for name in ("conserved", "reconciled"):
        proofs.add_row(name, "[green]yes[/]" if figures[name] else "[bold red]NO[/]")
    for name in ("groups_applied", "groups_lost", "groups_applied_twice"):
        proofs.add_row(name.replace("_", " "), number(figures[name]))
    speed = Table(title="near real time", show_header=False)
    speed.add_row("versions published", number(figures["versions_published"]))
    speed.add_row("versions served", number(figures["versions_served"]))
    for title, name in (
        ("window close → served", "close_to_served_ms"),
        ("RPC", "rpc_ms"),
        ("RPC near a swap", "rpc_near_swap_ms"),
    ):
        for percentile, value in figures[name].items():
            speed.add_row(f"{title} {percentile}", number(value, " ms", 1))
    value = Table("weights", "orders / 1,000", title="worth, in the last quarter")
    for name in ("uniform", "static", "served", "oracle"):
        value.add_row(_VALUE_NAMES[name], number(1000 * figures["value"][name], "", 2))
    value.add_row("recovered", number(figures["value"]["recovered"], "", 3), style="bold")
    value.add_section()
    value.add_row("gain over the holdout", _over_holdout(figures["uplift"]))
    return Columns([counts, Group(proofs, value), speed], padding=(0, 2))


def _over_holdout(uplift: Mapping[str, Any] | None) -> str:
    """The relative uplift of the whole run, with its sequence.

    >>> _over_holdout({"relative": {"value": 0.1, "sequence": [-0.05, 0.27]}})
    '+10 % (-5 to +27 %)'
    """
    if uplift is None or uplift["relative"] is None:
        return number(None)
    low, high = uplift["relative"]["sequence"]
    return f"{100 * uplift['relative']['value']:+.0f} % ({100 * low:+.0f} to {100 * high:+.0f} %)"


_VALUE_NAMES = {
    "uniform": "uniform",
    "static": "best static",
    "served": "served policy",
    "oracle": "oracle",
}
