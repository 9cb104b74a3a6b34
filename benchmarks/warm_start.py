"""What is a warm start from a log worth, by objective, and what does it give live learning?

    grade bench warmstart --json warmstart.json

- base: a log of 2,000 requests of the simulated marketplace, served by weights that are drawn from
  a Dirichlet around uniform ones (concentration 20). Then the learner plays other requests, from
  the warm start and from the declared baseline. *Recovered* is of the way from uniform weights to
  the oracle, as in docs/learning.md, at once and after 500 and 1,500 requests.
- semireal: the first 3,008 requests of the semi-real world; recovered on its 710 probes.
- kuairand: learned from the first half of the real log, NDCG on the second half.

Seeds are 100 and up. NAME_ci is half of the 95 % interval of a mean over seeds, Student's t.
"""

import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from benchmarks.learning.interval import interval
from benchmarks.learning.logged import SemiRealWorld
from benchmarks.learning.method import draw_groups
from benchmarks.learning.ours import Grade
from benchmarks.learning.play import play, valued
from benchmarks.learning.world import BlockT, World
from benchmarks.learning.worlds import CHUNK, SIMULATED, SimulatedWorld
from evaluation.cross_fit import folds_of
from evaluation.data_folder import DataFolder, read_data_folder
from evaluation.semi_real import semi_real
from evaluation.warm_start import FOLDS, STATIC, UNIFORM, WARM, warm_start_judged
from policy.batch import Requests
from policy.dirichlet import simplex_to_weights
from policy.fusion import Floats
from policy.initial import INITIAL_CONCENTRATION
from policy.logged_fit import CHOICES, WarmStartSettings
from policy.schema import Schema, load_schema
from policy.trainer_settings import TrainerSettings
from policy.warm_start import WarmStart, dirichlet_mean, warm_start

KUAIRAND: Final = Path(__file__).parents[1] / "examples" / "kuairand"
LOGGED: Final = 2_000
"""Requests of the marketplace's log."""
LOGGED_FROM: Final = 400 * CHUNK
"""Their first one: far from those that are played."""
LIVE: Final = (500, 1_500)
"""Requests after which live learning is looked at."""
SEMI_REAL_LOGGED: Final = 3_008
FIRST_SEED: Final = 100
COLD: Final = "cold"
_ANSWERED = 64


class Asked(NamedTuple):
    """One run."""

    world: str
    """base, semireal or kuairand."""
    objective: str
    """Of `CHOICES`, or cold: live learning from the declared baseline."""
    seed: int


def run(full: bool) -> dict[str, float]:
    """One seed of each world; in full five of the marketplace and two of the semi-real one.

    That is 5 or 17 CPU-minutes, one process per core.
    """
    many, some = (5, 2) if full else (1, 1)
    return measure({"base": many, "semireal": some, "kuairand": 1})


def measure(seeds: Mapping[str, int], workers: int | None = None) -> dict[str, float]:
    """Run everything.

    Args:
        seeds: by world how many, from `FIRST_SEED` on: of worlds, logs and learners; of the real
            log only of the learner.
        workers: processes; as many as there are cores by default.
    """
    runs = [
        Asked(world, objective, FIRST_SEED + number)
        for world, count in seeds.items()
        for objective in (*CHOICES, *((COLD,) if world == "base" else ()))
        for number in range(count)
    ]
    # More threads than cores would only take turns.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
        return figures_of(list(zip(runs, pool.map(ask, runs), strict=True)))


def figures_of(answers: list[tuple[Asked, dict[str, float]]]) -> dict[str, float]:
    """Means over seeds by world, objective and figure; intervals where there are several."""
    found: dict[str, list[float]] = {}
    for asked, figures in answers:
        for name, value in figures.items():
            key = f"{asked.world}_{asked.objective}_{name}"
            found.setdefault(key, []).append(value)
    told: dict[str, float] = {}
    for key, values in found.items():
        told[key] = float(np.mean(values))
        if len(values) > 1:
            told[f"{key}_ci"] = interval(values).half
    return told


def ask(asked: Asked) -> dict[str, float]:
    """One run's figures."""
    if asked.world == "base":
        return in_the_marketplace(asked)
    settings = _settings(asked)
    if asked.world == "semireal":
        return on_planted_outcomes(settings)
    folder, schema = _kuairand()
    second_half = np.arange(len(folder.request_ids)) >= len(folder.request_ids) // 2
    judged = warm_start_judged(folder, schema, second_half, settings)
    rows = judged.rows
    return {
        "ndcg": rows[WARM].ndcg.value,
        "less_static": rows[WARM].less_static.value,
        "less_static_low": rows[WARM].less_static.low,
        "less_static_high": rows[WARM].less_static.high,
        "static": rows[STATIC].ndcg.value,
        "uniform": rows[UNIFORM].ndcg.value,
        **_decided(judged.learned),
    }


def in_the_marketplace(asked: Asked) -> dict[str, float]:
    """Warm up from a log, then learn live; without an objective, only the latter."""
    world = SimulatedWorld(SIMULATED["base"], asked.seed)
    settings = TrainerSettings(seed=asked.seed)
    figures, start = dict[str, float](), None
    if asked.objective != COLD:
        log = logged(world, asked.seed)
        folds = np.arange(len(log.features)) % FOLDS  # every request has a user of its own
        learned = warm_start(world.schema, log, folds, _settings(asked))
        start = learned.tensors
        figures = _parts(world, learned) | _decided(learned)
        figures["true_cost"] = true_cost(world, learned, asked.seed)
    method = Grade(world.schema, settings, start=start)
    figures["at_0"] = valued(world, method, 0).recovered
    live = play(world, method, max(LIVE), seed=asked.seed, checkpoints=LIVE)
    return figures | {f"at_{each}": live.at(each).recovered for each in LIVE}


def logged(world: SimulatedWorld, seed: int, requests: int = LOGGED) -> Requests:
    """What uniform weights with sampled exploration have logged."""
    generator, objectives = np.random.default_rng([seed, 5]), world.schema.n_objectives
    parts = []
    for first in range(0, requests, _ANSWERED):
        block = world.block(LOGGED_FROM + first, min(_ANSWERED, requests - first))
        alpha = np.full((len(block.features), objectives), INITIAL_CONCENTRATION / objectives)
        groups = draw_groups(alpha, world.schema.floors(), 1, generator)
        parts.append(world.show(block, groups.ranking()))
    return Requests._make(np.concatenate(each) for each in zip(*parts, strict=True))


def true_cost(world: SimulatedWorld, learned: WarmStart, seed: int) -> float:
    """Share of expected orders that sampling by the warm start really costs at the start."""
    probes = world.probes(0)
    mean = dirichlet_mean(learned.tensors, probes.features)
    alpha = learned.exploration.concentration * mean
    drawn = draw_groups(alpha, world.schema.floors(), 4, np.random.default_rng([seed, 6])).weights
    sampled = [world.value(probes, each).mean() for each in np.moveaxis(drawn, 1, 0)]
    served = world.value(probes, simplex_to_weights(mean, world.schema.floors())).mean()
    return float(1 - np.mean(sampled) / served)


def on_planted_outcomes(settings: WarmStartSettings) -> dict[str, float]:
    """Learn from the first requests of a semi-real world."""
    folder, schema = _kuairand()
    world = SemiRealWorld(semi_real(folder, schema, settings.seed), schema)
    block = world.block(0, SEMI_REAL_LOGGED)
    log = world.show(block, np.tile(schema.baseline(), (SEMI_REAL_LOGGED, 1)))
    folds = folds_of(folder.unit_ids[:SEMI_REAL_LOGGED], FOLDS, settings.seed)
    learned = warm_start(schema, log, folds, settings)
    static = world.best_static(0, SEMI_REAL_LOGGED)
    return {
        "recovered": _recovered(world, learned.tensors),
        "best_static": _recovered_by(world, np.tile(static, (len(world.probes(0).rows), 1))),
        **_decided(learned),
    }


def _settings(asked: Asked) -> WarmStartSettings:
    objective = next(each for each in CHOICES if each == asked.objective)
    return WarmStartSettings(objective=objective, seed=asked.seed)


def _decided(learned: WarmStart) -> dict[str, float]:
    return {
        "gate": learned.gate,
        "concentration": learned.exploration.concentration,
        "cost": learned.exploration.cost,
    }


def _parts(world: SimulatedWorld, learned: WarmStart) -> dict[str, float]:
    """What either part would recover alone."""
    return {
        name: _recovered(world, learned.tensors | {"gate": np.array([gate])})
        for name, gate in (("static_alone", 0.0), ("contextual_alone", 1.0))
    }


def _recovered(world: World[BlockT], tensors: dict[str, Floats]) -> float:
    probes = world.probes(0)
    mean = dirichlet_mean(tensors, probes.features)
    return _recovered_by(world, simplex_to_weights(mean, world.schema.floors()))


def _recovered_by(world: World[BlockT], weights: Floats) -> float:
    return world.worth(0).share(float(world.value(world.probes(0), weights).mean()))


@lru_cache(maxsize=1)
def _kuairand() -> tuple[DataFolder, Schema]:
    schema = load_schema(KUAIRAND / "policy.toml")
    return read_data_folder(KUAIRAND, schema), schema
