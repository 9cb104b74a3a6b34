"""Do off-policy intervals cover the truth? In the simulated marketplace the truth is known.

    grade bench off_policy --json off_policy.json

Every trial draws units of a pool of requests, with all their requests, executes weights that a
logging policy draws for them, and lets users order. Three targets are estimated from that: another
contextual policy, static weights, and static weights with a density so much wider than the logged
one that importance weights have no finite variance. What each is worth on the pool is known from
the chances of an order. Told by target and estimator: how often the interval covers at the last
look, how often the sequence covers at all looks together, mean widths; and how often intervals
would cover at all looks, which they do not promise. `benchmarks/watching.py` adds the same for the
holdout's uplift and for shares.
"""

from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

import simulator
from benchmarks import watching
from evaluation.importance import LoggedDecisions, Overlap, importance, overlap, require_overlap
from evaluation.off_policy import ESTIMATORS, Look, looking_at, looks
from evaluation.target_policy import around
from policy.dirichlet import draw_simplex, log_density, simplex_to_weights
from policy.errors import TooLittleData
from policy.fusion import Floats, fuse, rank, transform_scores
from policy.initial import initial_parameters
from policy.schema import load_schema
from serving.serving_policy import ServingPolicy
from simulator.marketplace import Marketplace, MarketplaceSettings
from simulator.truth import expected_orders

TRIALS: Final = 500
UNITS: Final = 800
REQUESTS: Final = 4_000
LOOKS: Final = 25
_TRUTH_DRAWS: Final = 100
_BLOCK: Final = 250


class Pool(NamedTuple):
    """Requests that trials are drawn from, and what is true of them."""

    features: npt.NDArray[np.float32]
    """[request, feature]"""
    signals: Floats
    """[request, candidate, objective]"""
    chances: Floats
    """[request, candidate] of an order where the candidate is looked at."""
    units: npt.NDArray[np.intp]
    """[request]"""
    examination: Floats
    """[position] chance that it is looked at."""
    floors: Floats
    """[objective]"""
    alpha: Floats
    """[request, objective] at which the executed weights are drawn."""
    targets: dict[str, Floats]
    """[request, objective] alpha of each target."""


class _Outcome(NamedTuple):
    """What one trial says of one estimator."""

    interval: bool
    sequence: bool
    watched: bool
    """Whether the fixed interval covered at every look: what it does not promise."""
    interval_width: float
    sequence_width: float
    error: float


def pool(seed: int, units: int = UNITS, requests: int = REQUESTS) -> Pool:
    """Draw the pool.

    Args:
        seed: of the world and of both policies.
        units: users of the world.
        requests: how many.
    """
    schema = load_schema(Path(str(simulator.__file__)).with_name("marketplace.toml"))
    world = Marketplace(MarketplaceSettings(seed=seed, users=units))
    asked = [world.request(number) for number in range(requests)]
    chances = [world.order_chances(number, drifted=False) for number in range(requests)]
    features = np.array([each.features for each in asked])
    signals = np.stack([transform_scores(schema, each.scores) for each in asked])
    _, unit = np.unique([each.unit_id for each in asked], return_inverse=True)

    def policy(number: int, strength: float, concentration: float) -> Floats:
        tensors = initial_parameters(schema, seed)
        draw = np.random.default_rng([seed, number])
        tensors["feature_mean"] = features.mean(axis=0, dtype=np.float64)
        tensors["feature_scale"] = features.std(axis=0, dtype=np.float64)
        tensors["mean_weight"] = strength * draw.standard_normal(tensors["mean_weight"].shape)
        tensors["gate"] = np.ones(1)
        alpha = ServingPolicy.from_tensors(tensors, epoch=1, version=1).alpha(features)
        return np.asarray(alpha * concentration / alpha.sum(axis=1, keepdims=True))

    def static(weights: list[float], concentration: float) -> Floats:
        alpha = around(np.array(weights), schema.floors(), concentration)
        return np.broadcast_to(alpha, (requests, len(alpha)))

    return Pool(
        features,
        signals,
        np.array(chances),
        unit,
        world.examination,
        schema.floors(),
        alpha=policy(1, 0.02, 20.0),
        targets={
            "policy": policy(2, 0.02, 25.0),
            "static": static([0.15, 0.3, 0.15, 0.2, 0.2], 30.0),
            "wide": static([0.2] * 5, 15.0),
        },
    )


def true_value(pool: Pool, alpha: Floats, seed: int, draws: int = _TRUTH_DRAWS) -> float:
    """Expected orders per request of Dirichlets [request, objective] over the whole pool."""
    generator = np.random.default_rng([seed, 3])
    total = 0.0
    for begin in range(0, len(alpha), _BLOCK):
        block = slice(begin, begin + _BLOCK)
        drawn = draw_simplex(generator, alpha[block], draws)
        weights = simplex_to_weights(drawn, pool.floors)
        fused = fuse(weights, pool.signals[block])
        for chances, scores in zip(pool.chances[block], fused, strict=True):
            total += float(expected_orders(pool.examination, chances, scores).mean())
    return total / len(alpha)


def logged(
    pool: Pool, generator: np.random.Generator
) -> tuple[LoggedDecisions, npt.NDArray[np.intp]]:
    """One trial's log: units drawn with replacement, decisions and feedback drawn anew.

    Returns:
        the log, and the numbers of its requests in the pool.
    """
    units = int(pool.units.max()) + 1
    of_unit = np.argsort(pool.units, kind="stable")
    sizes = np.bincount(pool.units, minlength=units)
    first = np.cumsum(sizes) - sizes
    drawn = generator.integers(units, size=units)
    chosen = np.concatenate([of_unit[first[u] : first[u] + sizes[u]] for u in drawn])
    cluster = np.repeat(np.arange(units), sizes[drawn])
    order = generator.permutation(len(chosen))
    chosen, cluster = chosen[order], cluster[order]
    alpha = pool.alpha[chosen]
    weights = simplex_to_weights(draw_simplex(generator, alpha, 1)[:, 0], pool.floors)
    weights = weights.astype(np.float32).astype(np.float64)
    fused = fuse(weights[:, None, :], pool.signals[chosen])[:, 0]
    shown = rank(fused)[:, : len(pool.examination)]
    chances = np.take_along_axis(pool.chances[chosen], shown, axis=1) * pool.examination
    orders = (generator.random(chances.shape) < chances).sum(axis=1)
    decisions = LoggedDecisions(
        features=pool.features[chosen].astype(np.float64),
        alpha=alpha,
        weights=weights,
        log_densities=log_density(weights, alpha, pool.floors),
        rewards=orders.astype(np.float64),
        units=cluster,
        time_ms=np.arange(len(chosen)),
    )
    return decisions, chosen


def figures(
    trials: int, seed: int, *, units: int = UNITS, requests: int = REQUESTS
) -> dict[str, float]:
    """Coverage, widths and overlap.

    Args:
        trials: how many.
        seed: of world, policies and trials.
        units: users of the pool, and drawn in a trial.
        requests: of the pool.
    """
    drawn_from = pool(seed, units, requests)
    truths = {name: true_value(drawn_from, a, seed) for name, a in drawn_from.targets.items()}
    outcomes: dict[str, list[_Outcome]] = {}
    overlaps: dict[str, list[Overlap]] = {name: [] for name in truths}
    generator = np.random.default_rng([seed, 4])
    for _ in range(trials):
        decisions, chosen = logged(drawn_from, generator)
        at = looking_at(len(chosen), LOOKS)
        for name, alpha in drawn_from.targets.items():
            shared = overlap(importance(decisions, alpha[chosen], drawn_from.floors))
            overlaps[name].append(shared)
            if not told(shared):
                continue
            found_at = looks(decisions, alpha[chosen], drawn_from.floors, at)
            for estimator in ESTIMATORS:
                key = f"{name}_{estimator}"
                outcomes.setdefault(key, []).append(_outcome(found_at, estimator, truths[name]))
    found: dict[str, float] = {"trials": trials}
    for name, value in truths.items():
        found[f"{name}_true_orders"] = value
        found[f"{name}_effective_sample"] = float(np.mean([o.effective for o in overlaps[name]]))
        found[f"{name}_lost"] = float(np.mean([o.lost for o in overlaps[name]]))
        found[f"{name}_refused"] = float(np.mean([not told(o) for o in overlaps[name]]))
    for key, each in outcomes.items():
        found |= _summary(key, each)
    return found


def told(shared: Overlap) -> bool:
    """Whether anything is estimated at all."""
    try:
        require_overlap(shared, REQUESTS)
    except TooLittleData:
        return False
    return True


def _outcome(found: list[Look], estimator: str, truth: float) -> _Outcome:
    valued = [look.by_estimator[estimator] for look in found]
    fixed = [each.interval.low <= truth <= each.interval.high for each in valued]
    sequence = [each.sequence.low <= truth <= each.sequence.high for each in valued]
    last = valued[-1]
    return _Outcome(
        fixed[-1],
        all(sequence),
        all(fixed),
        last.interval.width,
        last.sequence.width,
        last.estimate.value - truth,
    )


def _summary(key: str, outcomes: list[_Outcome]) -> dict[str, float]:
    means = {name: float(np.mean([getattr(o, name) for o in outcomes])) for name in _MEANS}
    errors = np.array([each.error for each in outcomes])
    return {
        f"{key}_interval_coverage": means["interval"],
        f"{key}_sequence_coverage": means["sequence"],
        f"{key}_watched_coverage": means["watched"],
        f"{key}_interval_width": means["interval_width"],
        f"{key}_sequence_width": means["sequence_width"],
        f"{key}_rmse": float(np.sqrt((errors**2).mean())),
    }


_MEANS: Final = ("interval", "sequence", "watched", "interval_width", "sequence_width")


def run(full: bool) -> dict[str, float]:
    """500 trials of one world, about three minutes of one core; in full 2,000."""
    trials = 4 * TRIALS if full else TRIALS
    return figures(trials, seed=11) | watching.figures(trials, seed=11)
