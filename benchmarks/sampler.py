"""What one decision costs the server's core, without gRPC.

    python -m benchmarks.sampler --full

`Engine.sample` and `Engine.sample_batch` beside the floor: the network's forward pass and the raw
gamma and exponential draws alone, which no way of sampling could do without. All of them are timed
in turn, and the least time of each counts: whatever else the machine does can only add to it.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from grade.v1.context_pb2 import Context

from benchmarks.serving import SCHEMA_PATH, learned
from benchmarks.serving_load import context
from policy.schema import load_schema
from serving.engine import Engine

BATCHES: Final = (1, 8, 64, 256)
MEMBERS: Final = 8
_DIFFERENT: Final = 2048


def run(full: bool) -> dict[str, float]:
    """Measure.

    Args:
        full: for as long as quoted figures need (about half a minute); else about 3 seconds.

    Returns:
        microseconds per decision: `us_per_decision` of `Engine.sample`, `us_per_decision_<b>` of
        `Engine.sample_batch` by size of batch, and `floor_us_1` and `floor_us_<b>` of the floor;
        `vs_floor` and `vs_floor_<b>` are how many times the floor that is.
    """
    schema = load_schema(SCHEMA_PATH)
    engine = Engine(schema, seed=0, members=MEMBERS)
    engine.swap(engine.load(learned(schema)))
    contexts = [context(number) for number in range(_DIFFERENT)]
    timed: dict[str, tuple[int, Callable[[int], object]]] = {}
    timed["us_per_decision"] = 1, lambda at: engine.sample(contexts[at])
    for size in BATCHES:
        if size > 1:
            timed[f"us_per_decision_{size}"] = size, _batch(engine, contexts, size)
        timed[f"floor_us_{size}"] = size, _floor(engine, size)
    figures = _least_us(timed, rounds=60 if full else 6)
    figures["vs_floor"] = figures["us_per_decision"] / figures["floor_us_1"]
    for size in BATCHES[1:]:
        figures[f"vs_floor_{size}"] = (
            figures[f"us_per_decision_{size}"] / figures[f"floor_us_{size}"]
        )
    return figures


def _batch(engine: Engine, contexts: Sequence[Context], size: int) -> Callable[[int], object]:
    return lambda at: engine.sample_batch(contexts[at : at + size])


def _floor(engine: Engine, size: int) -> Callable[[int], object]:
    """Forward pass and raw draws of a batch."""
    policy = engine.policy
    features = np.array([context(number).features for number in range(_DIFFERENT)], np.float32)
    generator = np.random.Generator(np.random.Philox(key=0))

    def once(at: int) -> None:
        alpha = policy.alpha(features[at : at + size])
        shape = (len(alpha), MEMBERS, alpha.shape[-1])
        generator.standard_gamma(alpha[:, None, :] + 1, shape)
        generator.standard_exponential(shape)

    return once


def _least_us(
    timed: dict[str, tuple[int, Callable[[int], object]]], rounds: int
) -> dict[str, float]:
    """The least time of each over all rounds, in microseconds per decision."""
    least = dict.fromkeys(timed, float("inf"))
    for _ in range(rounds):
        for name, (size, once) in timed.items():
            began = time.perf_counter()
            for at in range(0, max(256, size), size):
                once(at)
            took = time.perf_counter() - began
            least[name] = min(least[name], took / max(256, size) * 1e6)
    return least


def main(argv: Sequence[str] | None = None) -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="as long as quoted figures need")
    print(json.dumps(run(parser.parse_args(argv).full), indent=2))


if __name__ == "__main__":
    main()
