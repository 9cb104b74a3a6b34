"""Offline auctions: policies and yardsticks judged on the second half of logged requests."""

from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np

from evaluation.auction_metrics import METRICS, Roles, auctions_of, judge, outcome_index
from evaluation.bootstrap import Figures, Interval, UnitBootstrap
from evaluation.data_folder import DataFolder
from evaluation.static_search import best_single, best_static
from policy.errors import GradeError
from policy.fusion import Floats
from policy.schema import Schema

BASELINE: Final = "baseline"
"""What every row is compared with: the schema's baseline weights."""


class Judged(NamedTuple):
    """One way to rank."""

    name: str
    figures: dict[str, Interval | None]
    """By metric; None where it is not defined."""
    differences: dict[str, Interval | None]
    """By metric, less the baseline, paired; None where it is not defined and for the baseline."""
    weights: list[float]
    """[objective] mean over the requests."""


class Evaluation(NamedTuple):
    """All ways to rank, on the same requests."""

    requests: int
    """Of the second half, which is judged."""
    units: int
    k: int
    roles: Roles
    rows: list[Judged]


def evaluate(
    folder: DataFolder,
    schema: Schema,
    policies: Mapping[str, Floats],
    *,
    k: int,
    roles: Roles,
    seed: int = 0,
) -> Evaluation:
    """Judge policies beside uniform, baseline, best single and best static weights.

    The best are chosen by the NDCG of the first half of the requests.

    Args:
        folder: the requests, in file order.
        schema: the folder's.
        policies: by name, [request, objective] fusion weights of every request of the folder.
        k: how many items win.
        roles: what counts as click and order.
        seed: of the search and of the resamples.

    Raises:
        GradeError: one of the halves has no gain.
    """
    count, objectives = len(folder.request_ids), schema.n_objectives
    auctions = auctions_of(folder, schema)
    first, second = slice(0, count // 2), slice(count // 2, count)
    earlier, later = auctions.lists.at(first), auctions.at(second)
    for half, lists in (("first", earlier), ("second", later.lists)):
        if not (lists.ideal > 0).any():
            raise GradeError(f"expected a request with some gain in the {half} half, seen none")
    single = best_single(earlier)
    fixed = {
        "uniform": np.full(objectives, 1 / objectives),
        BASELINE: schema.baseline(),
        f"best single: {schema.objectives[single].name}": np.eye(objectives)[single],
        "best static": best_static(earlier, schema.floors(), seed),
    }
    ways = {name: np.tile(weights, (count, 1)) for name, weights in fixed.items()} | dict(policies)
    unit_ids = folder.unit_ids[second]
    sample = UnitBootstrap(unit_ids, seed=seed)
    clicks, orders = outcome_index(schema, roles)
    found = {
        name: judge(later, weights[second], k, clicks, orders, sample)
        for name, weights in ways.items()
    }
    rows = [
        Judged(
            name,
            _by_metric(figures),
            dict.fromkeys(METRICS)
            if name == BASELINE
            else _by_metric(figures.less(found[BASELINE])),
            ways[name][second].mean(axis=0).tolist(),
        )
        for name, figures in found.items()
    ]
    return Evaluation(count - count // 2, len(set(unit_ids)), k, roles, rows)


def _by_metric(figures: Figures) -> dict[str, Interval | None]:
    return {
        metric: None if np.isnan(figures.value[at]) else figures.interval(at)
        for at, metric in enumerate(METRICS)
    }
