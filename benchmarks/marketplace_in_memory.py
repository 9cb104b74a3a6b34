"""Is the simulated marketplace learnable? The closed loop in one process, in simulated time.

    python -m benchmarks.marketplace_in_memory --requests 27000 --seeds 0 1 2

The cores of server, join and learner with the traffic of `grade demo` (rate, delays, window,
slots), but a version serves the moment its slot has ended, and no event is lost, repeated or held
up. Prints how much of the way from uniform weights to the oracle the served mean weights have come.
"""

import argparse
import heapq
import itertools
import json
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Final

import numpy as np
from grade.v1.context_pb2 import Context
from grade.v1.conversion_pb2 import Conversion
from grade.v1.decision_pb2 import Decision
from grade.v1.impression_pb2 import Impression

import simulator
from evaluation.in_memory import MemoryLoop
from grade_client import blend
from policy.fusion import rank
from policy.schema import load_schema
from policy.trainer_settings import TrainerSettings
from simulator.marketplace import POLICY, Marketplace, MarketplaceSettings
from simulator.truth import Truth, rounded

SLOT_MS: Final = 250
PARTITIONS: Final = 4
MEMBERS: Final = 8
_EPOCH_MS: Final = 1_700_000_000_000


def run(
    requests: int,
    *,
    seed: int = 0,
    rate: float = 300.0,
    drift_at_s: float | None = None,
    trainer: TrainerSettings | None = None,
    value_every: int = 5,
) -> tuple[Truth, MemoryLoop]:
    """Play the marketplace against the cores.

    Args:
        requests: how many, evenly spaced.
        seed: of the world and of the server's draws.
        rate: requests per simulated second.
        drift_at_s: simulated second at which all users change their taste; None: never.
        trainer: how to learn.
        value_every: every n-th request is valued.

    Returns:
        the truth, which has valued requests at their simulated seconds, and the loop.
    """
    schema = load_schema(Path(str(simulator.__file__)).with_name("marketplace.toml"))
    world = Marketplace(MarketplaceSettings(seed=seed))
    truth = Truth(world, schema)
    loop = MemoryLoop(
        schema,
        seed=seed,
        members=MEMBERS,
        trainer=trainer or TrainerSettings(),
        partitions=PARTITIONS,
        slot_ms=SLOT_MS,
    )
    due: list[tuple[int, int, Conversion]] = []
    order = itertools.count()
    ticked_ms = _EPOCH_MS
    for number in range(requests):
        at_s = number / rate
        now_ms = _EPOCH_MS + int(at_s * 1000)
        while (due and due[0][0] <= now_ms) or now_ms >= ticked_ms + SLOT_MS:
            if due and due[0][0] <= ticked_ms + SLOT_MS:
                time_ms, _, conversion = heapq.heappop(due)
                loop.conversion(conversion, time_ms)
            else:
                ticked_ms += SLOT_MS
                loop.tick(ticked_ms)
        request = world.request(number)
        context = Context(
            policy=POLICY,
            request_id=f"r{number}",
            unit_id=request.unit_id,
            features=request.features,
        )
        response = loop.serve(context)
        ranking = rank(blend(schema, np.array(response.weights), request.scores))
        shown = ranking[: world.settings.shown]
        drifted = drift_at_s is not None and at_s >= drift_at_s
        if number % value_every == 0:
            decision = Decision.FromString(response.decision.payload)
            truth.value(request, decision, at_s, drifted=drifted)
        impression = Impression(
            policy=POLICY,
            request_id=context.request_id,
            decision=response.decision,
            item_ids=[f"item-{candidate}" for candidate in shown],
            positions=range(len(shown)),
            scores=request.scores[shown].ravel(),
            unshown_scores=request.scores[ranking[len(shown) :]].ravel(),
            shown_at_ms=now_ms,
        )
        loop.impression(impression, now_ms)
        for outcome in world.feedback(number, shown, drifted=drifted):
            conversion = Conversion(
                policy=POLICY,
                request_id=context.request_id,
                conversion_id=f"{outcome.kind}/{outcome.candidate}",
                item_id=f"item-{outcome.candidate}",
                outcome=outcome.kind,
                value=1.0,
            )
            time_ms = now_ms + round(outcome.delay_s * 1000)
            heapq.heappush(due, (time_ms, next(order), conversion))
    return truth, loop


def main() -> None:
    """Print the curve and the last quarter for each seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=27_000)
    parser.add_argument("--rate", type=float, default=300.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--drift-at-s", type=float)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args()
    figures: dict[str, float | None] = {}
    for seed in given.seeds:
        began = time.perf_counter()
        truth, loop = run(given.requests, seed=seed, rate=given.rate, drift_at_s=given.drift_at_s)
        end_s = given.requests / given.rate
        value = truth.over(0.75 * end_s, end_s)
        print(f"seed {seed}: last quarter {value.as_json()}")
        figures[f"recovered_seed_{seed}"] = rounded(value.recovered)
        figures[f"static_recovered_seed_{seed}"] = rounded(value.share(value.static))
        curve = [
            f"{point['at_s']:.0f}s {point['recovered']:.2f}"
            for point in truth.curve()
            if point["recovered"] is not None
        ]
        print("  recovered by time: " + "  ".join(curve[::3]))
        took = f"{len(loop.versions)} versions, {time.perf_counter() - began:.0f} s"
        if loop.versions:  # none before the first window has closed
            last = loop.versions[-1]
            took += f", gate {last.gate:.2f}, concentration {last.concentration:.1f}"
        print("  " + took)
    if given.json is not None:
        report = {
            "name": "marketplace_in_memory",
            "figures": figures,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "command": shlex.join(sys.argv),
        }
        given.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
