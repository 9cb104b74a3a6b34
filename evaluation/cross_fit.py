"""Cross-fitting by unit: every request is judged under weights fitted to other units' requests.

For each fold: how far the context may move the weights (the ridge) is chosen by one of the other
folds, then all of them are fitted. Nothing of a fold has any part in what it is judged under.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from evaluation.fusion_model import (
    Encoding,
    Examples,
    FusionModel,
    Standardised,
    fit_contextual,
    fit_static,
    logit_gradients,
)
from evaluation.segments import most_useful
from evaluation.yardsticks import Lists, ndcg_of_weights
from policy.fusion import Floats

FOLDS: Final = 5
RIDGES: Final = (0.1, 0.01, 0.001)
"""What a ridge is chosen from, besides no context at all; falling."""

Rows = npt.NDArray[np.intp]


class Requests(NamedTuple):
    """Requests with some gain, ready to be fitted and judged."""

    lists: Lists
    features: Floats
    """[request, feature]"""
    examples: Examples

    def at(self, rows: Rows) -> "Requests":
        """Some of them."""
        return Requests(
            self.lists.at(rows),
            self.features[rows],
            Examples(*(part[rows] for part in self.examples)),
        )

    def ndcg(self, model: FusionModel) -> Floats:
        """[request] exact NDCG under a model's weights."""
        return ndcg_of_weights(self.lists, model.weights(self.features))


Encode = Callable[[Requests, FusionModel], Encoding]


class Choice(NamedTuple):
    """Weights that use the context, if that does better than static ones."""

    model: FusionModel | None
    """Fitted outside of the fold; None if no ridge earned it on the fold that chose."""
    ridge: float
    """The ridge that did best there."""
    widest: Floats
    """[request] what the smallest ridge gained over static weights on the fold that chose."""


class Fold(NamedTuple):
    """What was fitted outside of one fold."""

    held_out: Rows
    """The fold's requests."""
    chose: Rows
    """Requests of the fold that chose the ridges; each fold does so for one other."""
    static: FusionModel
    segment: Choice
    contextual: Choice


def folds_of(unit_ids: Sequence[str], folds: int = FOLDS, seed: int = 0) -> npt.NDArray[np.intp]:
    """[request] the fold of each request: a hash of its unit, so a unit is in one fold only.

    >>> folds_of(["a", "b", "a"])[[0, 2]].tolist() == folds_of(["a", "a"]).tolist()
    True
    """
    known: dict[str, int] = {}
    for unit in unit_ids:
        if unit not in known:
            text = f"{seed}:{unit}".encode("utf-8", "surrogatepass")
            number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
            known[unit] = number % folds
    return np.array([known[unit] for unit in unit_ids], dtype=np.intp)


def cross_fit(
    requests: Requests,
    fold: npt.NDArray[np.intp],
    floors: Floats,
    progress: Callable[[int], object] = lambda fitted: None,
) -> list[Fold]:
    """Fit every model once without each fold.

    Args:
        requests: all of them.
        fold: [request] as `folds_of` gives it.
        floors: [objective] least weights.
        progress: told how many folds have been fitted.
    """
    found = []
    count = int(fold.max()) + 1
    for number in range(count):
        chose = np.flatnonzero(fold == (number + 1) % count)
        inner = requests.at(np.flatnonzero((fold != number) & (fold != (number + 1) % count)))
        outer = requests.at(np.flatnonzero(fold != number))
        trial = fit_static(inner.examples, floors)
        static = fit_static(outer.examples, floors)
        parts = _Parts(inner, requests.at(chose), outer, trial, static)
        found.append(
            Fold(
                np.flatnonzero(fold == number),
                chose,
                static,
                _choice(parts, _by_segment),
                _choice(parts, _by_feature),
            )
        )
        progress(number + 1)
    return found


class _Parts(NamedTuple):
    inner: Requests
    check: Requests
    outer: Requests
    trial: FusionModel
    """Static weights of the inner requests."""
    static: FusionModel
    """Static weights of the outer requests."""


def _choice(parts: _Parts, encode: Encode) -> Choice:
    """Choose the ridge whose gain over static weights, less one standard error, is the largest."""
    encoding = encode(parts.inner, parts.trial)
    without = parts.check.ndcg(parts.trial)
    bounds, gain = [], np.zeros(len(without))
    for ridge in RIDGES:
        features = parts.inner.features
        model = fit_contextual(parts.inner.examples, features, encoding, parts.trial, ridge)
        gain = parts.check.ndcg(model) - without
        bounds.append(float(gain.sum() - np.sqrt((gain**2).sum())))
    ridge = RIDGES[int(np.argmax(bounds))]
    if max(bounds) <= 0:
        return Choice(None, ridge, gain)
    encoding = encode(parts.outer, parts.static)
    features = parts.outer.features
    model = fit_contextual(parts.outer.examples, features, encoding, parts.static, ridge)
    return Choice(model, ridge, gain)


def _by_feature(requests: Requests, static: FusionModel) -> Encoding:
    return Standardised.over(requests.features)


def _by_segment(requests: Requests, static: FusionModel) -> Encoding:
    gradients = logit_gradients(requests.examples, static, requests.features)
    return most_useful(requests.features, gradients)
