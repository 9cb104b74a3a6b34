"""The closed loop without a stream: serve, rank, show, learn at once, block by block."""

import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np

from benchmarks.learning.method import Method
from benchmarks.learning.world import BlockT, World, Worth

BLOCK: Final = 64
"""Requests that are served, shown and learned from together."""
CHECKPOINTS: Final = (500, 1_000, 1_500, 2_000, 3_000, 5_000, 8_000, 13_000)
"""Requests after which the served mean is valued, if not said otherwise."""


class Point(NamedTuple):
    """What the served mean weights were worth at some time, per request."""

    requests: int
    """Learned from so far: whole blocks, as many as come nearest to the checkpoint."""
    value: float
    worth: Worth
    inside: dict[str, float]
    """What the method told of itself."""

    @property
    def recovered(self) -> float:
        """How much of the way from uniform weights to the oracle."""
        return self.worth.share(self.value)

    @property
    def of_informed(self) -> float:
        """How much of the way from uniform weights to what can be had by context."""
        return self.worth.share_of_informed(self.value)


class Run(NamedTuple):
    """One method in one world."""

    points: list[Point]
    seconds: float
    """Of learning and serving, the world's own work and the valuing left out."""

    def at(self, requests: int) -> Point:
        """The point that is nearest to a number of requests."""
        return min(self.points, key=lambda point: abs(point.requests - requests))


def play(
    world: World[BlockT],
    method: Method,
    requests: int,
    *,
    seed: int = 0,
    block: int = BLOCK,
    checkpoints: Sequence[int] = CHECKPOINTS,
    on_block: Callable[[int], None] = lambda requests: None,
) -> Run:
    """Let a method learn in a world.

    It learns from a block of requests before the next one is served. At the checkpoints
    its mean weights are valued on requests that it never learns from, by the truth of that time:
    not a window of served requests, whose luck would blur the figure and whose start would age it.

    Args:
        world: the world.
        method: it has learned nothing yet.
        requests: rounded to whole blocks.
        seed: of the method's exploration.
        block: requests that are learned from together; a divisor of `worlds.CHUNK`.
        checkpoints: requests after which to value, rounded to whole blocks.
        on_block: called after each block with the requests so far.
    """
    generator = np.random.default_rng([seed, 3])
    blocks = max(1, round(requests / block))
    due = {round(each / block) for each in checkpoints}
    points, seconds = [], 0.0
    for index in range(blocks):
        asked = world.block(index * block, block)
        began = time.perf_counter()
        groups = method.groups(asked.features, generator)
        seconds += time.perf_counter() - began
        logged = world.show(asked, groups.ranking())
        began = time.perf_counter()
        method.learn(logged, groups)
        seconds += time.perf_counter() - began
        if index + 1 in due:
            points.append(valued(world, method, (index + 1) * block))
        on_block((index + 1) * block)
    return Run(points, seconds)


def valued(world: World[BlockT], method: Method, requests: int) -> Point:
    """What a method's mean weights are worth after some requests."""
    probes = world.probes(requests)
    value = world.value(probes, method.means(probes.features)).mean()
    return Point(requests, float(value), world.worth(requests), method.inside())
