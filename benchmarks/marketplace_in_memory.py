"""Is the simulated marketplace learnable? The closed loop in one process, in simulated time.

The cores of server, join and learner with the traffic of `grade demo` (rate, delays, window,
slots), but a version serves the moment its slot has ended, and no event is lost, repeated or held
up. Tells how much of the way from uniform weights to the oracle the served mean weights have come.
"""

import heapq
import itertools
from collections.abc import Sequence
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
from simulator.truth import Truth

SLOT_MS: Final = 250
PARTITIONS: Final = 4
MEMBERS: Final = 8
_EPOCH_MS: Final = 1_700_000_000_000


def play(
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


def figures(requests: int, seeds: Sequence[int], rate: float = 300.0) -> dict[str, float]:
    """How much of the way to the oracle the last quarter of a run had come, by seed.

    Args:
        requests: of each run.
        seeds: one run each.
        rate: requests per simulated second.
    """
    found: dict[str, float] = {}
    for seed in seeds:
        truth, loop = play(requests, seed=seed, rate=rate)
        end_s = requests / rate
        value = truth.over(0.75 * end_s, end_s)
        found[f"recovered_seed_{seed}"] = value.recovered
        found[f"static_recovered_seed_{seed}"] = value.share(value.static)
        found[f"versions_seed_{seed}"] = len(loop.versions)
    return found


def run(full: bool) -> dict[str, float]:
    """Measure one seed, or three in full."""
    return figures(27_000, range(3 if full else 1))
