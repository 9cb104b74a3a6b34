"""Segments: requests put together by one feature, each segment with weights of its own."""

from typing import Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from evaluation.smooth_ndcg import Singles
from policy.fusion import Floats

MOST_VALUES: Final = 6
"""A feature with at most so many values makes a segment of each; another one quarters."""


class Segments(NamedTuple):
    """A partition of requests by one feature."""

    feature: int
    """Index of the feature."""
    thresholds: Floats
    """[threshold] rising; segment i is from threshold i - 1 to before threshold i."""
    shares: Floats
    """[segment] share of the requests that it was made from."""

    @classmethod
    def over(cls, features: Floats, feature: int) -> Self:
        """By the values of some requests: one per value if they are few, quarters otherwise.

        Args:
            features: [request, feature]
            feature: index of the feature.
        """
        column = features[:, feature]
        values = np.unique(column)
        if len(values) <= MOST_VALUES:
            thresholds = (values[1:] + values[:-1]) / 2
        else:
            thresholds = np.unique(np.quantile(column, [0.25, 0.5, 0.75]))
        segment = np.searchsorted(thresholds, column, side="right")
        shares = np.bincount(segment, minlength=len(thresholds) + 1) / len(column)
        return cls(feature, thresholds, shares)

    def of(self, features: Floats) -> npt.NDArray[np.intp]:
        """[request] segment of [request, feature].

        >>> Segments(0, np.array([0.5]), np.array([0.5, 0.5])).of(np.array([[0.0], [1.0]]))
        array([0, 1])
        """
        return np.searchsorted(self.thresholds, features[:, self.feature], side="right")

    def columns(self, features: Floats) -> Singles:
        """[request, segment] 1 for the request's own segment, less the segment's share.

        The centring leaves what all requests have in common to the part that no ridge shrinks.
        """
        member = np.arange(len(self.shares)) == self.of(features)[:, None]
        return np.asarray(member - self.shares, np.float32)


def most_useful(features: Floats, gradients: Singles) -> Segments:
    """The feature whose segments would have the static weights moved apart the most.

    At the best static weights the requests' gradients sum to about 0. Those of a segment that wants
    the same do so too, up to chance: T = Σ_segments n · ḡᵀ C⁺ ḡ (ḡ mean gradient of the segment, C
    covariance of the gradients) is about χ² with (segments − 1) · rank(C) degrees of freedom. The
    feature whose T is the most standard deviations above its expectation is taken.

    Args:
        features: [request, feature]
        gradients: [request, objective] of the smoothed NDCG at the static weights.

    Returns:
        its segments; one segment of all requests if no feature tells any apart.

    Source: a score test of parameter stability; Zeileis and Hornik: Generalized M-fluctuation tests
    for parameter instability, Statistica Neerlandica 61 (2007).
    """
    gradient = gradients.astype(np.float64)
    gradient -= gradient.mean(axis=0)
    covariance = gradient.T @ gradient / len(gradient)
    inverse = np.linalg.pinv(covariance, rcond=1e-6, hermitian=True)
    rank = int(
        np.linalg.matrix_rank(covariance, tol=1e-6 * np.abs(covariance).max(), hermitian=True)
    )
    best, most = Segments.over(features, 0), -np.inf
    for feature in range(features.shape[1]):
        segments = Segments.over(features, feature)
        freedom = len(segments.thresholds) * rank
        if not freedom:
            continue
        of = segments.of(features)
        counts = np.bincount(of, minlength=len(segments.shares))
        sums = np.stack([np.bincount(of, g, len(counts)) for g in gradient.T], axis=1)
        squares = np.einsum("so,op,sp->s", sums, inverse, sums)
        statistic = float((squares / np.maximum(counts, 1)).sum())
        excess = (statistic - freedom) / np.sqrt(2 * freedom)
        if excess > most:
            best, most = segments, excess
    return best
