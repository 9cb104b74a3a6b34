"""What served weights are worth in the simulated world: expected orders per request.

Reads the world's truth and the decisions that came back; tells nobody but the report.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from grade.v1.decision_pb2 import ARM_HOLDOUT, Decision

from grade_client import mean_weights
from policy.fusion import fuse, rank, transform_scores
from policy.schema import Schema
from simulator.marketplace import Floats, Marketplace, Request

KEPT_FOR_STATIC: Final = 400
"""About how many valued requests static weights are searched on."""
_ROUNDS, _PER_ROUND, _ELITE = 4, 150, 15


class Valued(NamedTuple):
    """One request's value, in expected orders."""

    at_s: float
    """When it was answered, seconds since the traffic began."""
    number: int
    """Of the request."""
    drifted: bool
    uniform: float
    served: float
    """Of the served policy's mean weights."""
    executed: float
    """Of the sampled weights that ranked the list."""
    oracle: float
    """Of ranking by the true chance of an order."""


@dataclass(frozen=True, slots=True)
class Value:
    """Means over requests, in expected orders per request; NaN over none."""

    uniform: float
    static: float
    """Of the best weights that are the same for every request, found in hindsight."""
    served: float
    executed: float
    oracle: float
    requests: int
    """How many requests were valued."""

    def share(self, value: float) -> float:
        """How much of the way from uniform weights to the oracle a value has come."""
        reachable = self.oracle - self.uniform
        return (value - self.uniform) / reachable if reachable > 0 else math.nan

    @property
    def recovered(self) -> float:
        """(served - uniform) / (oracle - uniform)."""
        return self.share(self.served)

    def as_json(self) -> dict[str, float | int | None]:
        """The figures by name, null where there is none."""
        figures = {
            "uniform": self.uniform,
            "static": self.static,
            "served": self.served,
            "executed": self.executed,
            "oracle": self.oracle,
            "recovered": self.recovered,
            "static_recovered": self.share(self.static),
        }
        return {name: rounded(x) for name, x in figures.items()} | {"requests": self.requests}


class Truth:
    """Values requests and keeps the curve.

    Args:
        world: the truth.
        schema: how scores become signals.
        bucket_s: length of one point of the curve, in seconds.
    """

    def __init__(self, world: Marketplace, schema: Schema, bucket_s: float = 2.0) -> None:
        self._world = world
        self._schema = schema
        self._bucket_s = bucket_s
        self._valued: list[Valued] = []
        self._buckets: dict[int, Floats] = {}  # [requests, uniform, served, executed, oracle] sums

    def value(self, request: Request, decision: Decision, at_s: float, *, drifted: bool) -> None:
        """Value one answered request; one of the holdout arm is left out.

        Args:
            request: what was asked for.
            decision: what was answered.
            at_s: when, seconds since the traffic began.
            drifted: whether tastes have changed.
        """
        if decision.arm == ARM_HOLDOUT:
            return
        mean = mean_weights(decision, self._schema)
        objectives = self._schema.n_objectives
        executed = np.array(decision.weights).reshape(-1, objectives)[decision.executed]
        uniform = np.full(objectives, 1 / objectives)
        signals = transform_scores(self._schema, request.scores)
        chances = self._world.order_chances(request.number, drifted=drifted)
        orders = expected_orders(
            self._world.examination, chances, fuse([uniform, mean, executed], signals)
        )
        best = expected_orders(self._world.examination, chances, chances)
        uniform_orders, served, executed_orders = (float(x) for x in orders)
        valued = Valued(
            at_s, request.number, drifted, uniform_orders, served, executed_orders, float(best)
        )
        self._valued.append(valued)
        bucket = self._buckets.setdefault(int(at_s / self._bucket_s), np.zeros(5))
        bucket += [1, *valued[3:]]

    def over(self, start_s: float, end_s: float, *, static: bool = True) -> Value:
        """Means over the requests that were answered in [start_s, end_s).

        Args:
            start_s: seconds since the traffic began.
            end_s: the same.
            static: whether the best static weights are searched, which takes about a second.
        """
        chosen = [v for v in self._valued if start_s <= v.at_s < end_s]
        return _means(chosen, self._best_static(chosen) if static and chosen else math.nan)

    def curve(self) -> list[dict[str, float | int | None]]:
        """[point] start of each bucket in seconds, and what was recovered.

        A point covers its bucket and the two before it: a bucket alone holds too few valued
        requests for a ratio.
        """
        points: list[dict[str, float | int | None]] = []
        nothing = np.zeros(5)
        for index in sorted(self._buckets):
            smoothed = sum((self._buckets.get(index - back, nothing) for back in range(3)), nothing)
            requests, *sums = smoothed.tolist()
            uniform, served, executed, oracle = (total / requests for total in sums)
            value = Value(uniform, math.nan, served, executed, oracle, int(requests))
            points.append(
                {
                    "at_s": index * self._bucket_s,
                    "requests": value.requests,
                    "recovered": rounded(value.recovered),
                    "executed_recovered": rounded(value.share(value.executed)),
                }
            )
        return points

    def static_recovered(self, requests: int, *, drifted: bool) -> float:
        """How much the best static weights recover, on the world's first requests.

        Args:
            requests: how many.
            drifted: whether tastes have changed.
        """
        nothing = dict.fromkeys(("served", "executed"), math.nan)
        uniform = np.full(self._schema.n_objectives, 1 / self._schema.n_objectives)
        valued = []
        for number in range(requests):
            chances = self._world.order_chances(number, drifted=drifted)
            signals = transform_scores(self._schema, self._world.request(number).scores)
            examination = self._world.examination
            valued.append(
                Valued(
                    at_s=0,
                    number=number,
                    drifted=drifted,
                    uniform=float(
                        expected_orders(examination, chances, fuse([uniform], signals))[0]
                    ),
                    oracle=float(expected_orders(examination, chances, chances)),
                    **nothing,
                )
            )
        return _means(valued, math.nan).share(self._best_static(valued))

    def _best_static(self, chosen: Sequence[Valued]) -> float:
        sample = chosen[:: max(1, len(chosen) // KEPT_FOR_STATIC)]
        signals, chances = [], []
        for valued in sample:  # the world is pure, so nothing but the number had to be kept
            scores = self._world.request(valued.number).scores
            signals.append(transform_scores(self._schema, scores))
            chances.append(self._world.order_chances(valued.number, drifted=valued.drifted))
        examination = self._world.examination
        weights = best_static(signals, chances, examination)
        static = _mean(
            [
                float(expected_orders(examination, chance, fuse([weights], signal))[0])
                for signal, chance in zip(signals, chances, strict=True)
            ]
        )
        # On the sample's own scale, carried over to all that were chosen.
        among = _means(sample, static)
        every = _means(chosen, math.nan)
        return every.uniform + among.share(static) * (every.oracle - every.uniform)


def expected_orders(examination: Floats, chances: Floats, fused: Floats) -> Floats:
    """Expected orders of the list that fused scores lead to.

    Args:
        examination: [position] chance that a position is looked at; as many as are shown.
        chances: [candidate] chance of an order where it is looked at.
        fused: [..., candidate] higher is shown further up.

    Returns:
        [...] expected orders.

    >>> expected_orders(np.array([1.0, 0.5]), np.array([0.1, 0.0, 0.2]), np.array([1.0, 0.0, 2.0]))
    array(0.25)
    """
    order = rank(fused)[..., : len(examination)]
    return np.asarray((chances[order] * examination).sum(axis=-1))


def best_static(
    signals: Sequence[Floats],
    chances: Sequence[Floats],
    examination: Floats,
    seed: int = 0,
    rounds: int = _ROUNDS,
) -> Floats:
    """Search the weights that are best for all requests together (cross-entropy method).

    Args:
        signals: [request][candidate, objective].
        chances: [request][candidate] chance of an order where it is looked at.
        examination: [position] chance that a position is looked at.
        seed: of the search.
        rounds: of the search; many objectives need more.

    Returns:
        [objective] weights on the simplex.
    """
    draw = np.random.default_rng(seed)
    objectives = signals[0].shape[1]
    alpha = np.ones(objectives)
    best, most = np.full(objectives, 1 / objectives), -math.inf
    for _ in range(rounds):
        tried = draw.dirichlet(alpha, _PER_ROUND)
        tried[0] = best
        orders = np.zeros(len(tried))
        for signal, chance in zip(signals, chances, strict=True):
            orders += expected_orders(examination, chance, fuse(tried, signal))
        elite = np.argsort(-orders)[:_ELITE]
        if orders[elite[0]] > most:
            best, most = tried[elite[0]], float(orders[elite[0]])
        # Moments of the elite as a Dirichlet, never narrower than what it came from.
        mean, spread = tried[elite].mean(axis=0), tried[elite].var(axis=0).mean()
        concentration = (mean * (1 - mean)).mean() / max(float(spread), 1e-6) - 1
        alpha = np.maximum(mean * min(max(float(concentration), 5.0), 300.0), 0.3)
    return best


def _means(valued: Sequence[Valued], static: float) -> Value:
    return Value(
        uniform=_mean([v.uniform for v in valued]),
        static=static,
        served=_mean([v.served for v in valued]),
        executed=_mean([v.executed for v in valued]),
        oracle=_mean([v.oracle for v in valued]),
        requests=len(valued),
    )


def rounded(number: float, digits: int = 6) -> float | None:
    """A number for JSON, which knows no NaN."""
    return None if math.isnan(number) else round(number, digits)


def _mean(numbers: Sequence[float]) -> float:
    return math.fsum(numbers) / len(numbers) if numbers else math.nan
