"""A warm-up from logged requests, judged on users that had no part in it."""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from grade.v1.refused_pb2 import Reason

from evaluation.bootstrap import Interval, UnitBootstrap
from evaluation.cross_fit import folds_of
from evaluation.data_folder import DataFolder
from evaluation.static_search import best_static
from evaluation.yardsticks import Lists, examined, lists_of, ndcg_of_weights
from policy.batch import Requests
from policy.dirichlet import draw_simplex, keyed_generator, simplex_to_weights
from policy.errors import DataError
from policy.fusion import Floats
from policy.logged_fit import WarmStartSettings
from policy.rewards import examination_at, expected_values, ideal
from policy.schema import Schema
from policy.warm_start import WarmStart, dirichlet_mean, warm_start

UNIFORM, BASELINE, STATIC, WARM, SAMPLED = (
    *("uniform", "baseline", "best static"),
    *("warm start", "warm start, sampled"),
)
FOLDS: Final = 4
"""Parts of the users that are learned from, each held out once to decide by."""
_DRAWS = 16

Rows = npt.NDArray[np.intp]


class Row(NamedTuple):
    """One way to rank."""

    ndcg: Interval
    less_static: Interval
    """Paired difference from the best static weights."""
    mean_weights: list[float]
    """[objective]"""


class Judged(NamedTuple):
    """What was learned, and what it is worth on held-out requests."""

    learned: WarmStart
    trained: int
    """Requests that were learned from."""
    requests: int
    """Held-out requests with any gain."""
    units: int
    """Their users."""
    rows: dict[str, Row]
    """By name: uniform, baseline, best static, warm start, warm start sampled."""

    @property
    def beats_static(self) -> bool:
        """Whether the warm start ranks better than the best static weights, beyond chance."""
        return self.rows[WARM].less_static.low > 0


def requests_of(folder: DataFolder, schema: Schema) -> Requests:
    """The requests of a folder as a learner reads them: gains over examination."""
    lists = lists_of(folder, schema)
    shown = lists.shown
    predicted, looked_at = np.zeros(shown.shape), np.ones(shown.shape)
    predicted[shown] = expected_values(schema, folder.scores.astype(np.float64))
    looked_at[shown] = examination_at(schema, lists.positions[shown])
    values = lists.gains / looked_at
    features = folder.features.astype(np.float64)
    return Requests(features, lists.signals, values, predicted, looked_at, shown, ideal(values))


def held_out_rows(folder: DataFolder, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """[request] whether its user is held out: a hash of the name, so a user is on one side only.

    Args:
        folder: the requests.
        share: of the users that are held out, in (0, 1).
        seed: another one holds others out.
    """
    parts = 1_000
    return folds_of(folder.unit_ids, parts, seed) < round(share * parts)


def warm_start_judged(
    folder: DataFolder,
    schema: Schema,
    held_out: npt.NDArray[np.bool_],
    settings: WarmStartSettings,
    progress: Callable[[int, int], object] = lambda done, of: None,
) -> Judged:
    """Learn from some requests of a folder and judge on the others.

    Args:
        folder: the requests.
        schema: the folder's.
        held_out: [request] true for those that are only judged.
        settings: how to learn.
        progress: told how many steps are done, and of how many.

    Raises:
        DataError: one of the sides has no gain, or there are too few to learn from.
    """
    lists = examined(lists_of(folder, schema), schema)
    trained, judged = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    for side, rows in (("to learn from", trained), ("held out", judged)):
        if not (lists.ideal[rows] > 0).any():
            raise DataError(
                f"expected a request with some gain among those {side}, seen none in {len(rows)}",
                Reason.REASON_MISSING_FIELD,
            )
    requests = requests_of(folder, schema).of(trained)
    units = [folder.unit_ids[row] for row in trained]
    folds = folds_of(units, FOLDS, settings.seed)
    learned = warm_start(schema, requests, folds, settings, progress)
    gained = judged[lists.ideal[judged] > 0]
    found = judge(
        lists.at(gained),
        folder.features[gained].astype(np.float64),
        [folder.unit_ids[row] for row in gained],
        schema,
        learned,
        best_static(lists.at(trained), schema.floors(), settings.seed),
        settings.seed,
    )
    names = {folder.unit_ids[row] for row in gained}
    return Judged(learned, len(trained), len(gained), len(names), found)


def judge(
    lists: Lists,
    features: Floats,
    unit_ids: list[str],
    schema: Schema,
    learned: WarmStart,
    static: Floats,
    seed: int,
) -> dict[str, Row]:
    """NDCG of every way to rank, with intervals that resample users.

    Args:
        lists: requests with any gain.
        features: [request, feature] theirs.
        unit_ids: [request] theirs.
        schema: the policy's schema.
        learned: the warm start.
        static: [objective] the best static weights of the requests that were learned from.
        seed: of the draws and the resamples.
    """
    count, floors = len(features), schema.floors()
    mean = dirichlet_mean(learned.tensors, features)
    generator = keyed_generator("judge warm start", str(seed))
    drawn = draw_simplex(generator, learned.exploration.concentration * mean, _DRAWS)
    equal = np.full(schema.n_objectives, 1 / schema.n_objectives)
    weights: Mapping[str, Floats] = {
        UNIFORM: np.tile(equal, (count, 1)),
        BASELINE: np.tile(schema.baseline(), (count, 1)),
        STATIC: np.tile(static, (count, 1)),
        WARM: simplex_to_weights(mean, floors),
    }
    ndcg = {name: ndcg_of_weights(lists, each) for name, each in weights.items()}
    sampled = [simplex_to_weights(each, floors) for each in np.moveaxis(drawn, 1, 0)]
    ndcg[SAMPLED] = np.mean([ndcg_of_weights(lists, each) for each in sampled], axis=0)
    figures = UnitBootstrap(unit_ids, seed=seed).means(np.stack(list(ndcg.values()), axis=1))
    less = figures.less(figures.pick(list(ndcg).index(STATIC)))
    return {
        name: Row(
            figures.interval(at),
            less.interval(at),
            weights[WARM if name == SAMPLED else name].mean(axis=0).tolist(),
        )
        for at, name in enumerate(ndcg)
    }
