"""Is it learnable? Whether a log of requests says that other fusion weights rank better, or not.

Three questions, each about a paired difference of cross-fitted NDCG: do static weights beat
today's, do weights per segment beat static ones, do weights per request beat static ones? A yes
wants the one-sided lower bound of the difference above 0 at the level .05 / 3, so that on a log in
which nothing can be learned all three together say yes in at most 5 of 100 cases (Bonferroni).

The bound is √2 as far below the difference as resampled users put it. They see the fitted weights
as given, but each fold has also had a part in the weights that judge the others. Where outcomes
follow nothing, weights fitted to folds j respond to their noise ξ_j, and the whole difference is
Σ_k Σ_{j≠k} ⟨ξ_j, ξ_k⟩ to first order: every pair of folds comes twice, which makes the variance
twice that of as many independent terms (a degenerate U-statistic; Serfling: Approximation Theorems
of Mathematical Statistics, 1980, chapter 5).
"""

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Final, NamedTuple, cast

import numpy as np

from evaluation.bootstrap import Figures, Interval, UnitBootstrap
from evaluation.cross_fit import Fold, Requests, Rows, cross_fit, folds_of
from evaluation.data_folder import DataFolder
from evaluation.fusion_model import Examples, FusionModel
from evaluation.segments import Segments
from evaluation.yardsticks import examined, lists_of, ndcg_of_weights
from policy.errors import GradeError
from policy.fusion import Floats
from policy.schema import Schema

LEVEL: Final = 0.05
"""Chance of a wrong yes, all questions together."""
QUESTIONS: Final = (("static", "baseline"), ("segment", "static"), ("contextual", "static"))
"""Which weights are asked to beat which."""
WIDENED: Final = math.sqrt(2)
"""How much farther below a difference its bound is than with weights that were given beforehand."""
POWER: Final = 0.8
GAINS_ASKED: Final = (0.001, 0.002, 0.005, 0.01)
"""Gains of NDCG for which the requests are told that show them."""
LEAST_UNITS: Final = 20
"""With any gain; fewer fill no folds."""
_PERMUTATIONS: Final = 5
_WEIGHTS: Final = ("uniform", "baseline", "static", "segment", "contextual")
_WIDEST: Final = {"segment": "widest_segment", "contextual": "widest_contextual"}


class Compared(NamedTuple):
    """One paired difference of mean NDCG."""

    better: str
    than: str
    gain: Interval
    """Two-sided 95 %."""
    lower_bound: float | None
    """One-sided, at the level of one of the questions; None where none is asked."""

    @property
    def yes(self) -> bool:
        """Whether the difference is above 0 beyond chance."""
        return self.lower_bound is not None and self.lower_bound > 0


class Power(NamedTuple):
    """What a log of this size can show of one question."""

    detectable: float
    """Gain of NDCG that a log like this shows with chance `POWER`."""
    requests_for: dict[str, int]
    """Requests of this kind that it takes, by gain."""


class FeaturePart(NamedTuple):
    """What the contextual weights lose when they see another request's value of a feature."""

    name: str
    loss: Interval


class Learnable(NamedTuple):
    """What the log says."""

    requests: int
    with_gain: int
    units: int
    ndcg: dict[str, Interval]
    """By weights: uniform, baseline, static, segment, contextual."""
    compared: list[Compared]
    power: dict[str, Power]
    """By what is asked to be better."""
    features: list[FeaturePart]
    """The largest loss first; empty where no fold's contextual weights have been earned."""
    segment_features: list[str | None]
    """Feature that made the segments, by fold; None where static weights did as well."""
    contextual_ridges: list[float | None]
    """By fold; None where static weights did as well."""
    static_weights: list[float]
    """[objective] mean over folds."""

    def yes(self, better: str) -> bool:
        """The answer to one of the questions."""
        return any(c.yes for c in self.compared if c.better == better)


def learnable(
    folder: DataFolder,
    schema: Schema,
    *,
    seed: int = 0,
    progress: Callable[[int], object] = lambda fitted: None,
) -> Learnable:
    """Ask whether other fusion weights than today's can be learned from a log.

    Args:
        folder: the log.
        schema: its features, objectives, outcomes and baseline.
        seed: of folds, resamples and permutations.
        progress: told how many folds have been fitted.

    Raises:
        GradeError: fewer than `LEAST_UNITS` units with any gain.
    """
    requests, rows = requests_of(folder, schema)
    unit_ids = [folder.unit_ids[row] for row in rows]
    folds = cross_fit(requests, folds_of(unit_ids, seed=seed), schema.floors(), progress)
    ndcg = _cross_fitted_ndcg(requests, folds, schema.baseline())
    names = list(ndcg)
    sample = UnitBootstrap(unit_ids, seed=seed)
    figures = sample.means(np.stack([ndcg[name] for name in names], axis=1))
    by_name = {name: figures.pick(at) for at, name in enumerate(names)}
    feature_names = [f.name for f in schema.features]
    return Learnable(
        requests=len(folder.request_ids),
        with_gain=len(rows),
        units=len(set(unit_ids)),
        ndcg={name: by_name[name].interval() for name in _WEIGHTS},
        compared=_compared(by_name),
        power=_power(by_name, len(folder.request_ids)),
        features=_feature_parts(requests, folds, feature_names, sample, seed),
        segment_features=[
            None if model is None else feature_names[cast("Segments", model.encoding).feature]
            for model in (fold.segment.model for fold in folds)
        ],
        contextual_ridges=[
            None if fold.contextual.model is None else fold.contextual.ridge for fold in folds
        ],
        static_weights=np.mean(
            [fold.static.weights(np.zeros((1, schema.n_features)))[0] for fold in folds], axis=0
        ).tolist(),
    )


def requests_of(folder: DataFolder, schema: Schema) -> tuple[Requests, Rows]:
    """The requests with some gain, examination-corrected where the schema says so, and their rows.

    Raises:
        GradeError: fewer than `LEAST_UNITS` units with any gain.
    """
    lists = examined(lists_of(folder, schema), schema)
    rows = np.flatnonzero(lists.ideal > 0)
    units = len({folder.unit_ids[row] for row in rows})
    if units < LEAST_UNITS:
        raise GradeError(
            f"expected requests with some gain of at least {LEAST_UNITS} units, seen {units}: too "
            "few to say anything"
        )
    lists = lists.at(rows)
    features = folder.features[rows].astype(np.float64)
    return Requests(lists, features, Examples.of(lists)), rows


def _cross_fitted_ndcg(
    requests: Requests, folds: list[Fold], baseline: Floats
) -> dict[str, Floats]:
    """[request] NDCG by weights; under `_WIDEST`, the difference that the smallest ridge made."""
    count, objectives = len(requests.features), len(baseline)
    found = {name: np.full(count, np.nan) for name in (*_WEIGHTS, *_WIDEST.values())}
    found["uniform"] = ndcg_of_weights(requests.lists, np.full((count, objectives), 1 / objectives))
    found["baseline"] = ndcg_of_weights(requests.lists, np.tile(baseline, (count, 1)))
    for fold in folds:
        held_out = requests.at(fold.held_out)
        static = held_out.ndcg(fold.static)
        found["static"][fold.held_out] = static
        for name, choice in (("segment", fold.segment), ("contextual", fold.contextual)):
            ndcg = static if choice.model is None else held_out.ndcg(choice.model)
            found[name][fold.held_out] = ndcg
            found[_WIDEST[name]][fold.chose] = choice.widest
    return found


def _compared(by_name: dict[str, Figures]) -> list[Compared]:
    pairs = [(better, than) for better in _WEIGHTS[2:] for than in ("uniform", "baseline")]
    pairs += [("segment", "static"), ("contextual", "static")]
    found = []
    for better, than in pairs:
        difference = by_name[better].less(by_name[than])
        bound = None
        if (better, than) in QUESTIONS:
            value, low = difference.value[0], difference.quantile(LEVEL / len(QUESTIONS))[0]
            bound = float(value - WIDENED * (value - low))
        found.append(Compared(better, than, difference.interval(), bound))
    return found


def _power(by_name: dict[str, Figures], requests: int) -> dict[str, Power]:
    """n = requests · ((√2 z_{1-α} + z_power) · standard error / gain)², of the paired difference.

    The context's standard error is that of weights which depend on it as freely as the smallest
    ridge lets them: where it was not earned the difference is 0, and so would its error be.
    """
    normal = NormalDist()
    deviations = WIDENED * normal.inv_cdf(1 - LEVEL / len(QUESTIONS)) + normal.inv_cdf(POWER)
    found = {}
    for better, than in QUESTIONS:
        difference = by_name[better].less(by_name[than])
        widest = by_name[_WIDEST[better]] if better in _WIDEST else difference
        detectable = deviations * widest.standard_error()
        observed = difference.value[0]
        asked = {f"{gain:g}": gain for gain in GAINS_ASKED}
        if observed > 0:
            asked["observed"] = float(observed)
        needed = {
            name: math.ceil(requests * (detectable / gain) ** 2) for name, gain in asked.items()
        }
        found[better] = Power(detectable, needed)
    return found


def _feature_parts(
    requests: Requests, folds: list[Fold], names: list[str], sample: UnitBootstrap, seed: int
) -> list[FeaturePart]:
    """Loss of held-out NDCG when a feature's values are dealt out anew among the fold's requests.

    Source: Breiman: Random forests, Machine Learning 45 (2001), section 10.
    """
    earned = [fold for fold in folds if fold.contextual.model is not None]
    if not earned:
        return []
    draw = np.random.default_rng(seed)
    losses = np.zeros((len(requests.features), len(names)))
    for fold in earned:
        held_out = requests.at(fold.held_out)
        model = cast("FusionModel", fold.contextual.model)
        intact = held_out.ndcg(model)
        for feature in range(len(names)):
            for _ in range(_PERMUTATIONS):
                dealt = held_out.features.copy()
                dealt[:, feature] = draw.permutation(dealt[:, feature])
                loss = intact - held_out._replace(features=dealt).ndcg(model)
                losses[fold.held_out, feature] += loss / _PERMUTATIONS
    figures = sample.means(losses)
    parts = [FeaturePart(name, figures.interval(at)) for at, name in enumerate(names)]
    return sorted(parts, key=lambda part: -part.loss.value)
