"""The live view in a terminal: one picture, drawn."""

import math
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from monitor.watch import Picture

BLOCKS = " ▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], low: float, high: float, width: int) -> str:
    """A curve of one character a value; the last `width` values, NaN as a gap.

    Args:
        values: the curve.
        low: value of the empty block.
        high: value of the full block.
        width: largest number of characters.

    >>> sparkline([0.0, 0.5, 1.0, 2.0, -1.0], low=0.0, high=1.0, width=4)
    '▄██ '
    """
    drawn = []
    for value in values[-width:]:
        if math.isnan(value):
            drawn.append(" ")
            continue
        share = min(max((value - low) / (high - low), 0.0), 1.0)
        drawn.append(BLOCKS[round(share * (len(BLOCKS) - 1))])
    return "".join(drawn)


def draw(picture: Picture, objectives: Sequence[str], title: str) -> RenderableType:
    """The whole view.

    Args:
        picture: what is to be shown.
        objectives: [objective] names in the schema's order.
        title: headline.
    """
    return Panel(
        Group(_health(picture), Text(), _numbers(picture), Text(), *_value(picture, objectives)),
        title=title,
        border_style="cyan",
    )


def number(value: float | None, unit: str = "", digits: int = 0) -> str:
    """A number for people; a dash where there is none.

    >>> number(1234.5, " ms"), number(float("nan"))
    ('1,234 ms', '–')
    """
    missing = value is None or math.isnan(value)
    return "–" if missing else f"{value:,.{digits}f}{unit}"


def _health(picture: Picture) -> RenderableType:
    line = Text()
    for name, answer in picture.health.items():
        good = answer.get("status") == "ok"
        line.append(" ● " if good else " ○ ", style="green" if good else "bold red")
        line.append(f"{name} ")
        if not good:
            line.append(f"({answer.get('status')}) ", style="red")
    return line


def _numbers(picture: Picture) -> RenderableType:
    traffic = picture.traffic
    rpc = traffic.get("rpc_ms", {})
    version = picture.version
    table = Table.grid(padding=(0, 3))
    for _ in range(3):
        table.add_column(justify="left")
        table.add_column(justify="right", style="bold")
    late, orphans, dead = picture.refused.values()
    rows = [
        ("requests", number(traffic.get("decisions", math.nan))),
        ("versions published", number(picture.versions_published)),
        ("close → served p50", number(picture.close_to_served_p50_ms, " ms")),
        ("RPC p50", number(rpc.get("p50", math.nan), " ms", 1)),
        ("versions served", number(picture.versions_served)),
        ("close → served p99", number(picture.close_to_served_p99_ms, " ms")),
        ("RPC p99", number(rpc.get("p99", math.nan), " ms", 1)),
        ("model age", number(picture.model_age_s, " s", 1)),
        ("dead letters", number(dead)),
        ("reward groups", number(picture.groups)),
        ("informative share", number(100 * picture.informative_share, " %", 1)),
        ("late · orphans", f"{number(late)} · {number(orphans)}"),
        ("gate", number(version.gate if version else math.nan, "", 2)),
        ("concentration", number(version.concentration if version else math.nan, "", 1)),
        ("KL of last version", number(version.kl if version else math.nan, "", 5)),
    ]
    for at in range(0, len(rows), 3):
        table.add_row(*(cell for row in rows[at : at + 3] for cell in row))
    return table


def _value(picture: Picture, objectives: Sequence[str]) -> list[RenderableType]:
    parts: list[RenderableType] = []
    weights = list(picture.version.mean_weights) if picture.version else []
    if weights:
        bars = Table.grid(padding=(0, 1))
        for name, weight in zip(objectives, weights, strict=True):
            bars.add_row(name, ProgressBar(total=1.0, completed=weight, width=30), f"{weight:.2f}")
        parts += [Text("mean fusion weights", style="dim"), bars, Text()]
    curve = [point["recovered"] for point in picture.traffic.get("curve", [])]
    curve = [math.nan if value is None else float(value) for value in curve]
    known = [value for value in curve if not math.isnan(value)]
    line = Text("recovered share  ", style="dim")
    line.append("0 ", style="dim")
    line.append(sparkline(curve, 0.0, 1.0, 60), style="green")
    line.append(" 1  ", style="dim")
    line.append(f"now {known[-1]:.2f}" if known else "not yet", style="bold")
    static = picture.traffic.get("value", {}).get("static_recovered")
    if static is not None:
        line.append(f" · best static {static:.2f}", style="dim")
    parts.append(line)
    return parts
