"""The learning benchmark's figures as the tables of docs/learning.md."""

import re
from collections.abc import Mapping
from typing import Final

from benchmarks.learning.figures import HALF
from benchmarks.learning.methods import ABLATIONS, FULL_OTHERS, OTHERS
from benchmarks.learning.tasks import KUAIRAND, LAMBDAS, PRIORS

_BASE: Final = ("500", "1500", "5000", "13000")
_ELSEWHERE: Final = (
    *("sparse_13000", "useless_13000", "m3_13000", "m6_13000", "m12_13000"),
    *("drift_90", "drift_gradual_20000", "drift_gradual_25000", "drift_gradual_28000"),
    *("semireal_1500", "semireal_6000", KUAIRAND),
)


def tables(figures: Mapping[str, float]) -> str:
    """Markdown: base by method, the other worlds by method, priors by weight.

    Args:
        figures: as `figures_of` names them; what is missing stays empty.
    """
    methods = ("", *OTHERS, *FULL_OTHERS, *ABLATIONS)
    base = _table(
        ("base: recovered after", *_BASE),
        [(_title(m), *(_cell(figures, f"base_{n}{_end(m)}") for n in _BASE)) for m in methods],
    )
    shown = [m for m in methods if any(f"{name}{_end(m)}" in figures for name in _ELSEWHERE)]
    others = _table(
        ("figure", *(_title(m) for m in shown)),
        [
            (f"`{name}`", *(_cell(figures, f"{name}{_end(m)}") for m in shown))
            for name in _ELSEWHERE
        ],
    )
    priors = _table(
        ("prior: recovered after 13000", *(f"λ {weight:g}" for weight in LAMBDAS)),
        [
            (world, *(_cell(figures, f"{world}_{weight:g}") for weight in LAMBDAS))
            for world in PRIORS
        ],
    )
    return f"{base}\n\n{others}\n\n{priors}"


def written(value: float) -> str:
    """A figure as people read it.

    >>> [written(value) for value in (0.97612, 0.74312, 1856.0)]
    ['.976', '.743', '1,856']
    """
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return re.sub(r"^(-?)0\.", r"\1.", f"{value:.3f}")


def _cell(figures: Mapping[str, float], name: str) -> str:
    if name not in figures:
        return ""
    half = figures.get(name + HALF)
    return written(figures[name]) + ("" if half is None else f" ± {written(half)}")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Rows that are empty beside their name are left out.

    >>> print(_table(("a", "b"), [("x", "1"), ("y", "")]))
    | a | b |
    |---|---|
    | x | 1 |
    """
    told = [row for row in rows if any(row[1:])]
    text = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(text + ["| " + " | ".join(row) + " |" for row in told])


def _title(method: str) -> str:
    return method.replace("no_", "ours without ").replace("_", " ") or "ours"


def _end(method: str) -> str:
    return f"_{method}" if method else ""
