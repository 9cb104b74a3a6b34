"""Differences with their intervals as a picture: one panel per metric, one line per way to rank."""

from collections.abc import Sequence
from typing import Final, NamedTuple
from xml.sax.saxutils import escape

from evaluation.bootstrap import Interval

_PANEL_WIDTH, _LINE, _HEAD, _GAP = 470, 26, 40, 24
_NAMES, _VALUES = 170, 90
"""Room for names on the left and for figures on the right of a panel."""
_MARGIN, _TITLE = 20, 40
_COLUMNS = 2
_NEUTRAL, _BETTER, _WORSE = "#6b7280", "#15803d", "#b91c1c"
_LONGEST_NAME: Final = 24


class Panel(NamedTuple):
    """One metric."""

    title: str
    lines: Sequence[tuple[str, Interval | None]]
    """Name and difference; None where it is not defined."""


def svg(title: str, panels: Sequence[Panel]) -> str:
    """A picture in SVG.

    Each panel has a scale of its own that holds all its intervals and 0. What lies above 0 as a
    whole is green, below 0 red.

    Args:
        title: above everything.
        panels: at least one.
    """
    height_of = _HEAD + max(len(panel.lines) for panel in panels) * _LINE + _GAP
    rows = -(-len(panels) // _COLUMNS)
    width = 2 * _MARGIN + _COLUMNS * _PANEL_WIDTH + (_COLUMNS - 1) * _GAP
    height = _TITLE + rows * height_of + _MARGIN
    body = [_text(_MARGIN, 28, title, size=16, weight="bold")]
    for at, panel in enumerate(panels):
        x = _MARGIN + (at % _COLUMNS) * (_PANEL_WIDTH + _GAP)
        body += _panel(panel, x, _TITLE + (at // _COLUMNS) * height_of)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="sans-serif">\n<rect width="100%" height="100%" '
        'fill="white"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _panel(panel: Panel, left: float, top: float) -> list[str]:
    known = [interval for _, interval in panel.lines if interval is not None]
    low = min([0.0, *(interval.low for interval in known)])
    high = max([0.0, *(interval.high for interval in known)])
    span = (high - low) or 1.0
    start, width = left + _NAMES, _PANEL_WIDTH - _NAMES - _VALUES

    def across(value: float) -> float:
        return start + width * (value - low) / span

    bottom = top + _HEAD + len(panel.lines) * _LINE
    found = [
        _text(left, top + 22, panel.title, size=13, weight="bold"),
        f'<line x1="{across(0):.1f}" y1="{top + _HEAD - 8}" x2="{across(0):.1f}" '
        f'y2="{bottom - 4}" stroke="#9ca3af" stroke-dasharray="3 3"/>',
    ]
    for number, (name, interval) in enumerate(panel.lines):
        y = top + _HEAD + number * _LINE + _LINE / 2
        label = name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
        found.append(_text(left, y + 4, label))
        end = left + _PANEL_WIDTH
        if interval is None:
            found.append(_text(end, y + 4, "not defined", anchor="end", colour=_NEUTRAL))
            continue
        colour = _BETTER if interval.low > 0 else _WORSE if interval.high < 0 else _NEUTRAL
        found += [
            f'<line x1="{across(interval.low):.1f}" y1="{y:.1f}" x2="{across(interval.high):.1f}" '
            f'y2="{y:.1f}" stroke="{colour}" stroke-width="3" stroke-linecap="round"/>',
            f'<circle cx="{across(interval.value):.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>',
            _text(end, y + 4, f"{interval.value:+.4g}", anchor="end", colour=colour),
        ]
    return found


def _text(
    x: float,
    y: float,
    text: str,
    *,
    size: int = 12,
    weight: str = "normal",
    anchor: str = "start",
    colour: str = "#111827",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" '
        f'text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'
    )
