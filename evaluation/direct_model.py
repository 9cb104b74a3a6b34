"""A direct model of the reward, for doubly robust estimates: ridge regression.

The realised reward is regressed on the context, the point of the simplex, their products, and the
products of the point's coordinates. Then the expectation over a Dirichlet is known in closed form,
and no ranking has to be repeated. The ranking that other weights induce on the *same* list's
outcomes would be a sharper prediction, but no model for this use: it has seen the outcome that it
is to correct, and the estimate would be biased.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np

from policy.fusion import Floats

PENALTY = 1_000.0
"""Ridge penalty in observations: rewards are noisy, and a model that says little does no harm."""
CLIP = 4.0
"""Standardised features are kept within this distance of 0."""
FIRST_FIT, GROWTH = 256, 1.25
"""Observations before the first model is fitted, and by what factor they grow until the next."""


@dataclass(frozen=True, slots=True)
class DirectModel:
    """A fitted model.

    Attributes:
        feature_mean, feature_scale: [feature] of the contexts that it was fitted on.
        term_mean, term_scale: [term] of the regression's terms.
        coefficients: [term] of the standardised terms.
        level: mean reward.
    """

    feature_mean: Floats
    feature_scale: Floats
    term_mean: Floats
    term_scale: Floats
    coefficients: Floats
    level: float

    @classmethod
    def fitted(cls, features: Floats, simplex: Floats, rewards: Floats) -> Self:
        """Fit a model.

        Args:
            features: [request, feature] contexts.
            simplex: [request, objective] the executed points.
            rewards: [request]
        """
        feature_mean, feature_scale = features.mean(axis=0), _scale(features)
        context = _standardised(features, feature_mean, feature_scale)
        terms = _terms(context, simplex, simplex[:, :, None] * simplex[:, None, :])
        term_mean, term_scale = terms.mean(axis=0), _scale(terms)
        z = (terms - term_mean) / term_scale
        level = float(rewards.mean())
        penalised = z.T @ z + PENALTY * np.eye(z.shape[1])
        coefficients = np.linalg.solve(penalised, z.T @ (rewards - level))
        return cls(feature_mean, feature_scale, term_mean, term_scale, coefficients, level)

    def at(self, features: Floats, simplex: Floats) -> Floats:
        """[request] predicted reward of the points [request, objective]."""
        return self._predicted(features, simplex, simplex[:, :, None] * simplex[:, None, :])

    def over(self, features: Floats, alpha: Floats) -> Floats:
        """[request] expected prediction over the Dirichlets of alpha [request, objective].

        E x_i = a_i / A and E x_i x_j = (a_i a_j + [i = j] a_i) / (A (A + 1)), A the sum of alpha.
        """
        total = alpha.sum(axis=1, keepdims=True)
        products = alpha[:, :, None] * alpha[:, None, :]
        products += alpha[:, :, None] * np.eye(alpha.shape[1])
        products /= (total * (total + 1))[:, :, None]
        return self._predicted(features, alpha / total, products)

    def _predicted(self, features: Floats, first: Floats, second: Floats) -> Floats:
        context = _standardised(features, self.feature_mean, self.feature_scale)
        z = (_terms(context, first, second) - self.term_mean) / self.term_scale
        return np.asarray(self.level + z @ self.coefficients)


def predictions(
    features: Floats, simplex: Floats, rewards: Floats, alpha: Floats
) -> tuple[Floats, Floats]:
    """Predict each request by a model that was fitted on earlier requests alone.

    So a prediction never depends on the reward that it is compared with, nor on a later one, and
    what is made of it stays valid at every look. The first requests are predicted as 0.

    Args:
        features: [request, feature] in the order of time.
        simplex: [request, objective] the executed points.
        rewards: [request]
        alpha: [request, objective] the target's Dirichlets.

    Returns:
        [request] predicted reward of the executed point, and of the target.

    Reference: sequential fitting as in Waudby-Smith, Wu, Ramdas, Karampatziakis, Mineiro,
    arXiv:2210.10768.
    """
    executed, expected = np.zeros(len(rewards)), np.zeros(len(rewards))
    for begin, end in pairwise(_fits(len(rewards))):
        model = DirectModel.fitted(features[:begin], simplex[:begin], rewards[:begin])
        block = slice(begin, end)
        executed[block] = model.at(features[block], simplex[block])
        expected[block] = model.over(features[block], alpha[block])
    return executed, expected


def _fits(requests: int) -> list[int]:
    """Numbers of requests after which a model is fitted; the last is all of them."""
    fits: list[int] = []
    at = FIRST_FIT
    while at < requests:
        fits.append(at)
        at = int(at * GROWTH)
    return [*fits, requests]


def _terms(context: Floats, first: Floats, second: Floats) -> Floats:
    """[request, term]; the simplex's last coordinate is what the others leave."""
    free = first.shape[1] - 1
    x = first[:, :free]
    rows, columns = np.triu_indices(free)
    crossed = context[:, :, None] * x[:, None, :]
    return np.hstack([context, x, second[:, rows, columns], crossed.reshape(len(x), -1)])


def _standardised(features: Floats, mean: Floats, scale: Floats) -> Floats:
    return np.clip((features - mean) / scale, -CLIP, CLIP)


def _scale(values: Floats) -> Floats:
    spread = values.std(axis=0)
    return np.where(spread > 0, spread, 1.0)
