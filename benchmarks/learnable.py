"""Does `grade learnable` answer what is so? On real, planted and shuffled outcomes.

The real requests of examples/kuairand; semi-real worlds on them, whose truth depends on the
context; and copies with shuffled outcomes, in which there is nothing to learn: a yes to any of the
three questions there is a false one. One process per core.
"""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

from evaluation.data_folder import DataFolder, read_data_folder
from evaluation.learnable import QUESTIONS, Learnable, learnable
from evaluation.semi_real import Planted, semi_real, shuffled
from policy.schema import Schema, load_schema

KUAIRAND: Final = Path(__file__).parents[1] / "examples" / "kuairand"
PLANTED_SEEDS: Final = range(100, 105)
"""None of them was looked at while the method was made."""
FIRST_SHUFFLE: Final = 200
"""Neither were these; on shuffles 0 to 99 the rule without its √2 was found wanting."""


class Log(NamedTuple):
    """One log to ask."""

    kind: str
    """real, linear, nonlinear or shuffled."""
    seed: int


class Answered(NamedTuple):
    """What came of it."""

    log: Log
    yes: tuple[str, ...]
    """What was said to be better: static, segment, contextual."""
    static_gain: float
    contextual_gain: float
    cpu_s: float


def run(full: bool) -> dict[str, float]:
    """Ask the real log, 1 or 5 planted truths of each kind, and 6 or, in full, 100 shuffles."""
    return measure(planted=5 if full else 1, shuffles=100 if full else 6)


def measure(*, planted: int, shuffles: int, workers: int | None = None) -> dict[str, float]:
    """Ask logs of known truth.

    Args:
        planted: semi-real worlds with a linear truth, and as many with a nonlinear one.
        shuffles: copies with shuffled outcomes.
        workers: processes; as many as there are cores by default.
    """
    logs = [Log("real", 0)]
    logs += [Log(kind, s) for kind in ("linear", "nonlinear") for s in PLANTED_SEEDS[:planted]]
    logs += [Log("shuffled", FIRST_SHUFFLE + number) for number in range(shuffles)]
    # More threads than cores would only take turns.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
        return figures_of(list(pool.map(ask, logs)))


def ask(log: Log) -> Answered:
    """Make a log and ask it."""
    folder, schema = _kuairand()
    if log.kind == "shuffled":
        folder = shuffled(folder, log.seed)
    elif log.kind != "real":
        planted = Planted(nonlinear=log.kind == "nonlinear")
        folder = semi_real(folder, schema, log.seed, planted).folder
    start = time.process_time()
    found = learnable(folder, schema)
    return Answered(
        log,
        tuple(better for better, _ in QUESTIONS if found.yes(better)),
        _gain(found, "static", "baseline"),
        _gain(found, "contextual", "static"),
        time.process_time() - start,
    )


def figures_of(answers: list[Answered]) -> dict[str, float]:
    """The benchmark's figures."""
    figures: dict[str, float] = {}
    for real in _of(answers, "real"):
        figures["real_static_yes"] = float("static" in real.yes)
        figures["real_context_yes"] = float(bool({"segment", "contextual"} & {*real.yes}))
        figures["real_static_gain"] = real.static_gain
        figures["real_contextual_gain"] = real.contextual_gain
        figures["cpu_s"] = real.cpu_s
    for kind in ("linear", "nonlinear"):
        found = list(_of(answers, kind))
        figures[f"{kind}_worlds"] = len(found)
        figures[f"{kind}_contextual_yes"] = sum("contextual" in each.yes for each in found)
        figures[f"{kind}_contextual_gain_least"] = min(each.contextual_gain for each in found)
    shuffles = list(_of(answers, "shuffled"))
    figures["shuffles"] = len(shuffles)
    figures["false_yes"] = sum(bool(each.yes) for each in shuffles)
    for better, _ in QUESTIONS:
        figures[f"false_yes_{better}"] = sum(better in each.yes for each in shuffles)
    return figures


def _of(answers: list[Answered], kind: str) -> Iterator[Answered]:
    return (each for each in answers if each.log.kind == kind)


def _gain(found: Learnable, better: str, than: str) -> float:
    return next(c.gain.value for c in found.compared if (c.better, c.than) == (better, than))


@lru_cache(maxsize=1)
def _kuairand() -> tuple[DataFolder, Schema]:
    schema = load_schema(KUAIRAND / "policy.toml")
    return read_data_folder(KUAIRAND, schema), schema
