"""The learning benchmark: every task in a pool of processes, and what they came to over seeds."""

import math
import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Final

from benchmarks.learning import tasks as planned
from benchmarks.learning import vowpal
from benchmarks.learning.interval import Interval, interval
from benchmarks.learning.methods import ABLATIONS, FULL_OTHERS, OURS
from benchmarks.learning.run_task import SERVED_MEAN, Outcome, log_yardsticks, run_task
from benchmarks.learning.tasks import KUAIRAND, LAMBDAS, PRIORS, SEMI_REAL, Task

HALF: Final = "_ci"
"""Ending of the name of half the width of a figure's 95 % interval."""
_TOLD: Final = ("gate", "concentration", "prior_scale")
"""What our own learner tells of itself that is worth a figure."""

Seen = Callable[[int, int, Outcome], None]
"""Called with tasks done, tasks in all, and the latest outcome."""


def run_all(
    seeds: range,
    data_dir: Path,
    *,
    full: bool = False,
    worlds: tuple[str, ...] = (),
    workers: int | None = None,
    seen: Seen = lambda done, of, outcome: None,
) -> list[Outcome]:
    """Run the benchmark's tasks in several processes, one torch thread in each.

    Args:
        seeds: one run of everything for each.
        data_dir: folder of the real requests; see `left_out`.
        full: with the methods that take long.
        worlds: only these; all if empty.
        workers: how many processes; one per core if left out.
        seen: told of every outcome.
    """
    others = tuple(m for m in FULL_OTHERS if m != "vw" or vowpal.available())
    todo = [
        task
        for task in planned.tasks(seeds, full=full, worlds=worlds, others=others)
        if data_dir.is_dir() or task.world not in (KUAIRAND, SEMI_REAL)
    ]
    outcomes: list[Outcome] = []
    context = multiprocessing.get_context("spawn")  # torch does not survive a fork
    with ProcessPoolExecutor(workers or os.cpu_count(), mp_context=context) as pool:
        try:
            for future in as_completed([pool.submit(run_task, task, data_dir) for task in todo]):
                outcomes.append(future.result())
                seen(len(outcomes), len(todo), outcomes[-1])
        except BaseException:
            pool.shutdown(cancel_futures=True)  # leaving the block would first run all the others
            raise
    return outcomes


def left_out(data_dir: Path, *, full: bool) -> list[str]:
    """A sentence for everything that cannot be run here."""
    remarks = []
    if not data_dir.is_dir():
        remarks.append(f"no {data_dir}: the real and the semi-real world are left out")
    if full and not vowpal.available():
        remarks.append("vowpalwabbit is not installed (extra `peers`): vw is left out")
    return remarks


def figures_of(outcomes: Sequence[Outcome], data_dir: Path) -> dict[str, float]:
    """Means over seeds by name, each followed by half its 95 % interval.

    Names are `WORLD_REQUESTS[_METHOD]` for what was recovered after so many requests, ours where no
    method is named; `drift_90` are requests; `kuairand` is NDCG. The worlds with a named prior have
    `WORLD_WEIGHT` for each of its weights, and under their own name the least of them.
    `base_REQUESTS_lead` is the lower end of our interval less the highest upper end of the others.

    Args:
        outcomes: of `run_all`, in any order.
        data_dir: folder of the real requests.
    """
    found: dict[str, float] = {}
    for name, numbers in sorted(_by_name(outcomes).items()):
        _tell(found, name, interval(numbers))
    if any(outcome.task.world == KUAIRAND for outcome in outcomes):
        for method, value in log_yardsticks(data_dir).items():
            found[f"{KUAIRAND}_{method}"] = value
    for world in PRIORS:
        names = [f"{world}_{weight:g}" for weight in LAMBDAS]
        there = [name for name in names if name in found]
        if there:
            worst = min(there, key=lambda name: found[name])
            _tell(found, world, Interval(found[worst], found[worst + HALF]))
    found |= _leads(outcomes)
    return {name: value for name, value in found.items() if not math.isnan(value)}


def figure_name(task: Task, figure: str) -> str:
    """What a figure of a task is called.

    >>> figure_name(Task("base", "cem", 0, 13_000, (500,)), "500")
    'base_500_cem'
    """
    method = "" if task.method == OURS else f"_{task.method}"
    if task.prior_weight is not None:
        return f"{task.world}_{task.prior_weight:g}{method}"
    return f"{task.world}{'' if figure == SERVED_MEAN else '_' + figure}{method}"


def _by_name(outcomes: Iterable[Outcome]) -> dict[str, list[float]]:
    """Every figure's numbers, in the order of seeds."""
    numbers: dict[str, list[float]] = {}
    for outcome in sorted(outcomes, key=lambda each: each.task.seed):
        task = outcome.task
        for figure, value in outcome.figures.items():
            numbers.setdefault(figure_name(task, figure), []).append(value)
        if task.method == OURS:
            for told in _TOLD:
                if told in outcome.inside:
                    numbers.setdefault(f"{task.key}_{told}", []).append(outcome.inside[told])
    return numbers


def _leads(outcomes: Sequence[Outcome]) -> dict[str, float]:
    numbers = _by_name(outcomes)
    leads = {}
    for requests in ("1500", "13000"):
        ours = f"base_{requests}"
        rest = ("lead", *ABLATIONS)
        others = [
            interval(each).high
            for name, each in numbers.items()
            if name.startswith(ours + "_") and name.removeprefix(ours + "_") not in rest
        ]
        if ours in numbers and others:
            leads[f"{ours}_lead"] = interval(numbers[ours]).low - max(others)
    return leads


def _tell(found: dict[str, float], name: str, told: Interval) -> None:
    found[name], found[name + HALF] = told
