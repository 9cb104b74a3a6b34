"""Try settings of the learner in one world: `python -m benchmarks.learning.try_one base`."""

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.learning.methods import OURS, new_method
from benchmarks.learning.play import BLOCK, CHECKPOINTS, Point, Run, play
from benchmarks.learning.run_task import run_task, semi_real_world
from benchmarks.learning.tasks import KUAIRAND, SEMI_REAL, Task
from benchmarks.learning.world import BlockT, World
from benchmarks.learning.worlds import SIMULATED, SimulatedWorld
from policy.trainer_settings import TrainerSettings

WORLDS = (*SIMULATED, SEMI_REAL, KUAIRAND)


def try_one(
    world: Annotated[
        str, typer.Argument(help=f"One of {', '.join((*SIMULATED, SEMI_REAL, KUAIRAND))}.")
    ],
    name: Annotated[str, typer.Option("--method", help="Who learns.")] = OURS,
    requests: Annotated[int, typer.Option(help="Requests of each run.")] = 13_000,
    seeds: Annotated[str, typer.Option(help="Seeds of world and learner.")] = "100,101",
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="A field of TrainerSettings, name=value.")
    ] = None,
    block: Annotated[int, typer.Option(help="Requests that are learned from together.")] = BLOCK,
    data: Annotated[Path, typer.Option(help="Folder of real requests.")] = Path(
        "examples/kuairand"
    ),
    at: Annotated[
        str, typer.Option(help="Requests after which the served mean is valued.")
    ] = ",".join(map(str, CHECKPOINTS)),
) -> None:
    """Print what the served mean recovered as it learned, mean and range over the seeds.

    recovered: of the way from uniform weights to ranking by the true chance of an order; informed:
    of the way to the best that is known from the context. Of the real log: NDCG of its first half,
    to choose by, and of its second.
    """
    if world not in WORLDS:
        raise typer.BadParameter(f"expected one of {', '.join(WORLDS)}, seen {world!r}")
    checkpoints = [int(each) for each in at.split(",") if int(each) <= requests]
    runs: list[Run] = []
    for seed in (int(each) for each in seeds.split(",")):
        settings = changed(replace(TrainerSettings(), seed=seed), sets or [])
        if world == KUAIRAND:
            print(seed, run_task(Task(world, name, seed, requests, ()), data, settings).figures)
            continue
        if world == SEMI_REAL:
            real = semi_real_world(seed, data)
            run = _play(real, name, settings, min(requests, real.LEARNED), block, checkpoints)
        else:
            simulated = SimulatedWorld(SIMULATED[world], seed)
            run = _play(simulated, name, settings, requests, block, checkpoints)
        runs.append(run)
        last = run.points[-1]
        print(f"seed {seed}: {last.recovered:.3f} at the end; learned in {run.seconds:.1f} s")
    if not runs:
        return
    print("requests  recovered (least, most)  informed    gate  concentration")
    for points in zip(*(run.points for run in runs), strict=True):
        print(_line(points))


def _play(
    world: World[BlockT],
    name: str,
    settings: TrainerSettings,
    requests: int,
    block: int,
    checkpoints: list[int],
) -> Run:
    seed = settings.seed
    method = new_method(name, world.schema, world.examination, settings, seed)
    return play(world, method, requests, seed=seed, block=block, checkpoints=checkpoints)


def changed(settings: TrainerSettings, sets: list[str]) -> TrainerSettings:
    """Settings with some fields set from texts `name=value`.

    Raises:
        typer.BadParameter: no such field, or not of its type.

    >>> changed(TrainerSettings(), ["replay_steps=4"]).replay_steps
    4
    """
    kinds = {field.name: type(getattr(settings, field.name)) for field in fields(settings)}
    values: dict[str, Any] = {}
    for each in sets:
        name, _, text = each.partition("=")
        if name not in kinds:
            raise typer.BadParameter(f"expected one of {', '.join(kinds)}, seen {name!r}")
        kind = kinds[name]
        if kind is bool and text not in ("True", "False"):
            raise typer.BadParameter(f"{name}: expected True or False, seen {text!r}")
        try:
            values[name] = text == "True" if kind is bool else kind(text)
        except (ValueError, TypeError) as error:
            raise typer.BadParameter(f"{name}: expected {kind.__name__}, seen {text!r}") from error
    return replace(settings, **values)


def _line(points: tuple[Point, ...]) -> str:
    recovered = np.array([point.recovered for point in points])
    informed = float(np.mean([point.of_informed for point in points]))
    inside = [
        float(np.mean([p.inside.get(n, math.nan) for p in points]))
        for n in ("gate", "concentration")
    ]
    return (
        f"{points[0].requests:8d}  {recovered.mean():9.3f} ({recovered.min():.3f}, "
        f"{recovered.max():.3f})  {informed:8.3f}  {inside[0]:6.2f}  {inside[1]:13.1f}"
    )


if __name__ == "__main__":
    typer.run(try_one)
