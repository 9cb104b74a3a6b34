"""What the learning benchmark runs: which method in which world, how long, how often valued."""

from collections.abc import Iterator
from typing import Final, NamedTuple

from benchmarks.learning.methods import ABLATIONS, FULL_OTHERS, OTHERS, OURS

LAMBDAS: Final = (0.1, 0.3, 1.0)
"""Weights of the prior that the worlds with a named prior are played with."""
PRIORS: Final = ("prior_noisy", "prior_static", "prior_wrong", "prior_upside_down")
KUAIRAND, SEMI_REAL, DRIFT, GRADUAL = "kuairand", "semireal", "drift", "drift_gradual"
DRIFT_AT: Final = 15_000
REGAINED: Final = 0.9
"""Share of the way to the oracle that counts as regained after a drift."""
WATCHED: Final = 8_000
"""Requests that are played after an abrupt drift, at most."""


class Task(NamedTuple):
    """One method in one world with one seed."""

    world: str
    method: str
    seed: int
    requests: int
    checkpoints: tuple[int, ...]
    prior_weight: float | None = None
    """Weight of the prior in our own learner; None: the default."""

    @property
    def key(self) -> str:
        """Name of what is measured, without the requests: equal for all seeds."""
        weight = "" if self.prior_weight is None else f"_{self.prior_weight:g}"
        method = "" if self.method == OURS else f"_{self.method}"
        return self.world + weight + method


class _Plan(NamedTuple):
    """One world's part of the benchmark."""

    world: str
    methods: tuple[str, ...]
    requests: int
    checkpoints: tuple[int, ...]


_LONG: Final = 13_000
_CURVE: Final = (500, 1_000, 1_500, 2_000, 5_000, _LONG)
_PLANS: Final = (
    _Plan(GRADUAL, (OURS,), 28_000, (15_000, 20_000, 25_000, 28_000)),
    _Plan(DRIFT, (OURS, "grpo"), DRIFT_AT + WATCHED, (DRIFT_AT,)),
    _Plan("base", (OURS, *OTHERS, *ABLATIONS), _LONG, _CURVE),
    _Plan("sparse", (OURS, *OTHERS, "no_prior"), _LONG, (5_000, _LONG)),
    _Plan("useless", (OURS, "static_hindsight", "cem", "grpo", "no_gate"), _LONG, (_LONG,)),
    _Plan("m3", (OURS,), _LONG, (1_500, _LONG)),
    _Plan("m6", (OURS,), _LONG, (1_500, _LONG)),
    _Plan("m12", (OURS, "static_hindsight", "cem", "grpo"), _LONG, (1_500, _LONG)),
    _Plan(SEMI_REAL, (OURS, *OTHERS, "no_gate"), 6_000, (1_500, 6_000)),
    _Plan(KUAIRAND, (OURS, "cem", "reinforce", "grpo", "no_gate"), 6_726, ()),
)


def tasks(
    seeds: range, *, full: bool, worlds: tuple[str, ...] = (), others: tuple[str, ...] = FULL_OTHERS
) -> Iterator[Task]:
    """Every run of the benchmark, the longest first so that no worker is left with it at the end.

    Args:
        seeds: one run of everything for each.
        full: with the methods that take long, in the base world.
        worlds: only these; all if empty.
        others: the methods that take long and can be run here.

    >>> {task.key for task in tasks(range(1), full=False, worlds=("m3",))}
    {'m3'}
    """
    for world, methods, requests, checkpoints in _PLANS:
        if worlds and world not in worlds:
            continue
        more = others if full and world == "base" else ()
        for method in (*methods, *more):
            if method.startswith("no_") and method not in ABLATIONS:
                continue
            for seed in seeds:
                yield Task(world, method, seed, requests, checkpoints)
    for world in PRIORS:
        if not worlds or world in worlds:
            for weight in LAMBDAS:
                for seed in seeds:
                    yield Task(world, OURS, seed, _LONG, (_LONG,), weight)


def world_names() -> tuple[str, ...]:
    """Every world of the benchmark."""
    return (*(plan.world for plan in _PLANS), *PRIORS)
