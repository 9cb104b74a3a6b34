"""What a benchmark's run came to, as JSON and as the table of docs/performance.md."""

import importlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from policy.durable_file import replace_file

BENCHMARKS: Final[Mapping[str, str]] = {
    "sampler": "benchmarks.sampler",
    "serving": "benchmarks.serving",
    "join": "benchmarks.join",
    "learner": "benchmarks.learner",
    "loop": "benchmarks.loop",
    "marketplace": "benchmarks.marketplace_in_memory",
    "learnable": "benchmarks.learnable",
    "off_policy": "benchmarks.off_policy",
    "warmstart": "benchmarks.warm_start",
}
"""Module of each benchmark by name."""

OVERVIEW: Final = ("sampler", "serving", "join", "learner", "loop")
"""The benchmarks of `make bench`; the others tell what is learned and what is known of it, not how
fast."""

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


class Report(NamedTuple):
    """One run of one benchmark."""

    name: str
    figures: dict[str, float]
    machine: str
    command: str
    """What makes these figures."""


def measure(name: str, *, full: bool) -> Report:
    """Run a benchmark in this process.

    Args:
        name: one of `BENCHMARKS`.
        full: for the figures that are quoted; takes minutes.
    """
    figures: dict[str, float] = importlib.import_module(BENCHMARKS[name]).run(full)
    return Report(name, figures, machine(), f"grade bench {name}{' --full' if full else ''}")


def machine() -> str:
    """What was measured on: type of processor, cores, operating system, Python."""
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        names = [
            line.partition(":")[2].strip()
            for line in information.read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ]
        model = names[0] if names else model
    return (
        f"{model}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}"
    )


def as_json(reports: Report | Sequence[Report]) -> str:
    """One report as a JSON object, several as a list."""
    content: Any = (
        reports._asdict() if isinstance(reports, Report) else [each._asdict() for each in reports]
    )
    return json.dumps(content, indent=2) + "\n"


def table(reports: Sequence[Report]) -> str:
    """The reports as a Markdown table.

    >>> print(table([Report("learner", {"groups_per_s": 23456.7}, "a machine", "grade bench")]))
    | benchmark | figure | value | command |
    |---|---|---|---|
    | learner | `groups_per_s` | 23,457 | `grade bench` |
    """
    lines = ["| benchmark | figure | value | command |", "|---|---|---|---|"]
    for report in reports:
        lines += [
            f"| {report.name} | `{name}` | {written(value)} | `{report.command}` |"
            for name, value in report.figures.items()
        ]
    return "\n".join(lines)


def written(value: float) -> str:
    """A figure as people read it: three digits, or all before the point.

    >>> [written(value) for value in (12345.6, 123.4, 4.567, 0.01234)]
    ['12,346', '123', '4.57', '0.0123']
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def renew_table(page: Path, reports: Sequence[Report]) -> None:
    """Replace what stands between the marks of a Markdown page by machine and table.

    Raises:
        ValueError: the page has no such marks.
    """
    renew(page, f"{reports[0].machine}\n\n{table(reports)}")


def renew(page: Path, body: str) -> None:
    """Replace what stands between the marks of a Markdown page.

    Raises:
        ValueError: the page has no such marks.
    """
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page}: expected the marks {BEGIN} and {END}, seen none")
    replace_file(page, f"{before}{BEGIN}\n{body}\n{END}{after}".encode())
