"""One run of the learning benchmark: a pure function of its task, whatever process it is in."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from benchmarks.learning.fixed import Fixed
from benchmarks.learning.logged import Logged, SemiRealWorld, kuairand_world
from benchmarks.learning.method import Groups, Method
from benchmarks.learning.methods import new_method
from benchmarks.learning.ours import with_prior
from benchmarks.learning.play import BLOCK, Point, play, valued
from benchmarks.learning.tasks import DRIFT, DRIFT_AT, KUAIRAND, REGAINED, SEMI_REAL, Task
from benchmarks.learning.world import BlockT, World
from benchmarks.learning.worlds import SIMULATED, SimulatedWorld
from evaluation.data_folder import DataFolder, read_data_folder
from evaluation.semi_real import semi_real
from evaluation.yardsticks import mean_gained, ndcg_of_weights, yardsticks
from policy.batch import Requests
from policy.fusion import Floats
from policy.schema import Schema, load_schema
from policy.trainer_settings import TrainerSettings

REQUESTS_TO_REGAIN: Final = "90"
"""Name of the outcome of an abrupt drift."""
SERVED_MEAN: Final = "served_mean"
"""Name of the outcome of the real log: NDCG of the mean weights as served, over the second half."""
FIRST_HALF: Final = "first_half"
"""The same over the first half: what settings may be chosen by."""


class Outcome(NamedTuple):
    """What one run came to."""

    task: Task
    figures: dict[str, float]
    """By name; a number of requests names what was recovered after them."""
    inside: dict[str, float]
    """What the method told of itself at the end."""
    seconds: float
    """Of serving and learning."""


def run_task(task: Task, data_dir: Path, settings: TrainerSettings | None = None) -> Outcome:
    """Run one method in one world.

    Args:
        task: what.
        data_dir: folder of real requests with their `policy.toml`; read by the worlds that are made
            of it.
        settings: of our own learner, but for the seed and what the task says; by default its own.
    """
    settings = replace(settings or TrainerSettings(), seed=task.seed)
    if task.prior_weight is not None:
        settings = with_prior(settings, task.prior_weight)
    if task.world == KUAIRAND:
        return _on_the_log(task, *_folder(data_dir), settings)
    if task.world == SEMI_REAL:
        return _in(semi_real_world(task.seed, data_dir), task, settings)
    return _in(SimulatedWorld(SIMULATED[task.world], task.seed), task, settings)


def semi_real_world(seed: int, data_dir: Path) -> SemiRealWorld:
    """The covariates of a folder with the truth of a seed."""
    folder, schema = _folder(data_dir)
    return SemiRealWorld(semi_real(folder, schema, seed), schema)


def _in(world: World[BlockT], task: Task, settings: TrainerSettings) -> Outcome:
    if task.method.startswith("static_"):
        end = task.requests if task.method == "static_hindsight" else task.requests // 2
        fixed = Fixed(world.best_static(0, end))
        return _outcome(task, [valued(world, fixed, each) for each in task.checkpoints], 0.0)
    method = new_method(task.method, world.schema, world.examination, settings, task.seed)
    due = list(task.checkpoints)
    if task.world == DRIFT:
        due += range(DRIFT_AT, task.requests, BLOCK)
    run = play(world, method, task.requests, seed=task.seed, checkpoints=due)
    return _outcome(task, run.points, run.seconds)


def _outcome(task: Task, points: list[Point], seconds: float) -> Outcome:
    def nearest(requests: int) -> Point:
        return min(points, key=lambda point: abs(point.requests - requests))

    figures = {str(each): nearest(each).recovered for each in task.checkpoints}
    if task.world == DRIFT:
        figures[REQUESTS_TO_REGAIN] = float(requests_to_regain(points, task.requests))
    return Outcome(task, figures, points[-1].inside if points else {}, seconds)


def requests_to_regain(points: list[Point], played: int) -> int:
    """Requests from the drift until the mean weights are again worth `REGAINED` of the way.

    Args:
        points: by rising requests.
        played: what is answered for if they never are: all that were played since.
    """
    regained = (
        point.requests
        for point in points
        if point.requests > DRIFT_AT and point.recovered >= REGAINED
    )
    return next(regained, played) - DRIFT_AT


class _Recorded:
    """A method whose served mean weights are kept, as they were before it learned."""

    def __init__(self, method: Method) -> None:
        self._method = method
        self.served: list[Floats] = []
        self.means, self.learn, self.inside = method.means, method.learn, method.inside

    def groups(self, features: Floats, generator: np.random.Generator) -> Groups:
        """As the method draws."""
        self.served.append(self._method.means(features))
        return self._method.groups(features, generator)


def _on_the_log(
    task: Task, folder: DataFolder, schema: Schema, settings: TrainerSettings
) -> Outcome:
    """Serve the log in its order; the rule is the one of `grade replay`, without the delays."""
    world = kuairand_world(folder, schema)
    recorded = _Recorded(new_method(task.method, schema, world.examination, settings, task.seed))
    generator = np.random.default_rng([task.seed, 3])
    for first in range(0, len(world), BLOCK):
        block = world.block(first, BLOCK)
        groups = recorded.groups(block.features, generator)
        requests: Requests = world.show(block, groups.ranking())
        recorded.learn(requests, groups)
    ndcg = ndcg_of_weights(world.lists, np.concatenate(recorded.served))
    half = len(world) // 2
    figures = {FIRST_HALF: mean_gained(ndcg[:half]), SERVED_MEAN: mean_gained(ndcg[half:])}
    return Outcome(task, figures, recorded.inside(), 0.0)


@lru_cache(maxsize=1)
def _folder(data_dir: Path) -> tuple[DataFolder, Schema]:
    schema = load_schema(data_dir / "policy.toml")
    return read_data_folder(data_dir, schema), schema


def log_yardsticks(data_dir: Path) -> dict[str, float]:
    """What the served mean on the log is compared with, by method."""
    folder, schema = _folder(data_dir)
    world: Logged = kuairand_world(folder, schema)
    told = yardsticks(world.lists)
    return {
        "uniform": told.uniform,
        "static_first_half": told.static_first_half,
        "static_hindsight": told.static_hindsight,
    }
