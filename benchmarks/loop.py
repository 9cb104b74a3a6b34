"""From the close of an attribution window to new parameters that serve, in the whole system.

Runs `grade demo` at 300 requests/s: a real Kafka, server, join worker, learner and simulated users
as processes of this machine, which they share. Afterwards every group and version is recomputed, so
a figure of a loop that lost something is none.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from policy.errors import GradeError

RATE = 300


def run(full: bool) -> dict[str, float]:
    """Measure 30 s of traffic, or 90 s in full."""
    return measure(seconds=90 if full else 30, rate=RATE)


def measure(*, seconds: float, rate: float) -> dict[str, float]:
    """Measure traffic of some length.

    Args:
        seconds: of the traffic.
        rate: requests per second.
    """
    with tempfile.TemporaryDirectory(prefix="grade-bench-") as name:
        folder = Path(name)
        report = folder / "demo.json"
        done = subprocess.run(
            [
                *(sys.executable, "-m", "cli.main", "demo"),
                *("--seconds", str(seconds), "--rate", str(rate)),
                *("--data-dir", str(folder / "demo"), "--json", str(report)),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise GradeError(
                f"grade demo: expected exit code 0, seen {done.returncode}:\n"
                f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
            )
        return figures_of(json.loads(report.read_text(encoding="utf-8")))


def figures_of(figures: Mapping[str, Any]) -> dict[str, float]:
    """The benchmark's figures, from what `grade demo --json` writes."""
    return {
        "close_to_served_p50_ms": figures["close_to_served_ms"]["p50"],
        "close_to_served_p99_ms": figures["close_to_served_ms"]["p99"],
        "rpc_p50_ms": figures["rpc_ms"]["p50"],
        "rpc_p99_ms": figures["rpc_ms"]["p99"],
        "groups": figures["groups"],
        "versions_served": figures["versions_served"],
    }
