"""Fusion weights fitted offline to the smoothed NDCG of logged requests.

    w(x) = floor + (1 − Σ floor) · softmax(c_0 + C · columns(x))

Three models by what the columns are: none (static weights), one per segment of a feature, or all
standardised features. Fitted by Adam over all requests at once; a ridge on C, never on c_0, says
how far the context may move the weights.
"""

from typing import Final, NamedTuple, Protocol, Self

import numpy as np

from evaluation.smooth_ndcg import Singles, smooth_ndcg
from evaluation.yardsticks import Lists
from policy.fusion import Floats
from policy.initial import CONTEXT_CLIP

_NUMBERS_AT_ONCE: Final = 1 << 17
"""Pairs of items that are worked out in one go: more fit no cache, and long lists no memory."""
_RATE, _DECAY1, _DECAY2 = np.float32(0.1), np.float32(0.9), np.float32(0.95)
_FAR_BELOW = np.float32(-1e4)
STATIC_STEPS, CONTEXT_STEPS = 60, 60


class Examples(NamedTuple):
    """Requests with some gain, as a fit reads them."""

    signals: Singles
    """[request, item, objective] 0 for padding."""
    gains: Singles
    """[request, item] less their mean, divided by the request's ideal; 0 for padding."""
    below: Singles
    """[request, item] 0, and far below every score for padding."""

    @classmethod
    def of(cls, lists: Lists) -> Self:
        """Every request of some lists; one without gain is allowed and teaches nothing."""
        ideal = np.where(lists.ideal > 0, lists.ideal, 1.0)
        mean = lists.gains.sum(axis=1, keepdims=True) / lists.shown.sum(axis=1, keepdims=True)
        gains = np.where(lists.shown, lists.gains - mean, 0) / ideal[:, None]
        return cls(
            np.where(lists.shown[:, :, None], lists.signals, 0).astype(np.float32),
            gains.astype(np.float32),
            np.where(lists.shown, np.float32(0), _FAR_BELOW),
        )


class Encoding(Protocol):
    """What of the context the weights may depend on."""

    def columns(self, features: Floats) -> Singles:
        """[request, column] of [request, feature] in the schema's units."""
        ...


class Nothing:
    """The same weights for every request."""

    def columns(self, features: Floats) -> Singles:
        """No columns."""
        return np.zeros((len(features), 0), np.float32)


class Standardised(NamedTuple):
    """All features, each by its mean and standard deviation, clipped as a policy clips them."""

    mean: Floats
    scale: Floats

    @classmethod
    def over(cls, features: Floats) -> Self:
        """By the statistics of some requests."""
        scale = features.std(axis=0)
        return cls(features.mean(axis=0), np.where(scale > 0, scale, 1.0))

    def columns(self, features: Floats) -> Singles:
        """One column per feature."""
        z = (features - self.mean) / self.scale
        return np.clip(z, -CONTEXT_CLIP, CONTEXT_CLIP).astype(np.float32)


class FusionModel(NamedTuple):
    """Fitted weights."""

    encoding: Encoding
    coefficients: Singles
    """[1 + column, objective]; the first row is c_0."""
    floors: Floats
    """[objective] least weight."""

    def weights(self, features: Floats) -> Floats:
        """[request, objective] fusion weights of [request, feature]."""
        columns = _with_constant(self.encoding.columns(features))
        free = 1.0 - float(self.floors.sum())
        return np.asarray(self.floors + free * _softmax(columns @ self.coefficients), np.float64)


def fit_static(examples: Examples, floors: Floats) -> FusionModel:
    """The static weights that rank best, from equal weights on.

    Args:
        examples: requests with some gain.
        floors: [objective] least weight.
    """
    start = np.zeros((1, examples.signals.shape[2]), np.float32)
    columns = np.ones((len(examples.gains), 1), np.float32)
    fitted = _fit(examples, columns, start, floors, ridge=0.0, steps=STATIC_STEPS)
    return FusionModel(Nothing(), fitted, floors)


def fit_contextual(
    examples: Examples, features: Floats, encoding: Encoding, static: FusionModel, ridge: float
) -> FusionModel:
    """Weights that depend on the context, from the static ones on.

    Args:
        examples: requests with some gain.
        features: [request, feature] theirs.
        encoding: what the weights may depend on.
        static: static weights of the same examples.
        ridge: λ; the fit gives up λ/2 · ‖C‖² of mean NDCG.
    """
    columns = _with_constant(encoding.columns(features))
    start = np.zeros((columns.shape[1], static.coefficients.shape[1]), np.float32)
    start[0] = static.coefficients[0]
    fitted = _fit(examples, columns, start, static.floors, ridge=ridge, steps=CONTEXT_STEPS)
    return FusionModel(encoding, fitted, static.floors)


def logit_gradients(examples: Examples, model: FusionModel, features: Floats) -> Singles:
    """How each request would have the logits of its weights moved.

    Args:
        examples: requests.
        model: where the gradient is taken.
        features: [request, feature] theirs.

    Returns:
        [request, objective] gradient of the smoothed NDCG; each row sums to 0.
    """
    columns = _with_constant(model.encoding.columns(features))
    return _gradients(examples, columns @ model.coefficients, np.asarray(model.floors, np.float32))


def _fit(
    examples: Examples, columns: Singles, start: Singles, floors: Floats, ridge: float, steps: int
) -> Singles:
    """Adam (Kingma and Ba, arXiv:1412.6980), its rate falling to 0 over the second half."""
    coefficients = start.copy()
    first, second = np.zeros_like(start), np.zeros_like(start)
    shrink = np.full((len(start), 1), ridge, np.float32)
    shrink[0] = 0
    floor = np.asarray(floors, np.float32)
    for step in range(1, steps + 1):
        by_request = _gradients(examples, columns @ coefficients, floor)
        gradient = columns.T @ by_request / np.float32(len(columns)) - shrink * coefficients
        first += (1 - _DECAY1) * (gradient - first)
        second += (1 - _DECAY2) * (gradient * gradient - second)
        rate = _RATE * np.float32(min(1.0, 2 * (1 - step / (steps + 1))))
        scale = np.sqrt(second / (1 - _DECAY2**step)) + np.float32(1e-8)
        coefficients += rate * (first / (1 - _DECAY1**step)) / scale
    return coefficients


def _gradients(examples: Examples, logits: Singles, floor: Singles) -> Singles:
    soft = _softmax(logits)
    free = 1 - floor.sum()
    weights = floor + free * soft
    by_weight = np.empty_like(soft)
    items = examples.gains.shape[1]
    at_once = max(1, _NUMBERS_AT_ONCE // (items * items))
    for first in range(0, len(soft), at_once):
        block = slice(first, first + at_once)
        signals = examples.signals[block]
        fused = np.matmul(signals, weights[block, :, None])[:, :, 0] + examples.below[block]
        _, by_score = smooth_ndcg(fused, examples.gains[block])
        by_weight[block] = np.matmul(by_score[:, None, :], signals)[:, 0, :]
    mean = (soft * by_weight).sum(axis=1, keepdims=True)
    return np.asarray(free * soft * (by_weight - mean), np.float32)


def _softmax(logits: Singles) -> Singles:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _with_constant(columns: Singles) -> Singles:
    return np.concatenate([np.ones((len(columns), 1), np.float32), columns], axis=1)
