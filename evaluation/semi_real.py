"""A semi-real world: contexts, lists and scores of a data folder, outcomes of a known truth.

Covariates stay as they were logged, with all their correlations, gaps and heavy tails; only what
users do is drawn anew, from weights that depend on the context. So an evaluation or a learner can
be held against the truth on inputs that nobody has designed.

With z the standardised context (clipped as a policy clips it), S some features that are drawn, A
and b drawn from normal distributions:

    w(x) = softmax(b + strength · h(x)),   h(x) = A z_S / √|S|   or   A tanh(B z_S) / √hidden
    u_i  = w(x) · signals_i, standardised over all items
    P(outcome o of item i) = examination(position_i) · σ(slope · (u_i + noise · ε_i) + b_o)

b_o is such that the expected rate of each outcome type is the folder's own, before examination.
"""

import dataclasses
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from evaluation.data_folder import DataFolder, LoggedConversion
from policy.fusion import Floats, transform_scores
from policy.initial import CONTEXT_CLIP
from policy.schema import Schema

EXAMINATION: Final = tuple((1.0 + position) ** -0.25 for position in range(16))
"""[position] probability that a position is looked at, where the schema declares none."""
_HIDDEN: Final = 8
_MOST_ALIKE: Final = 0.9
"""A feature with a larger share of equal values cannot be drawn: nothing could depend on it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Planted:
    """How the truth depends on the context, and how loudly outcomes tell of it."""

    features: int = 4
    """How many features matter."""
    nonlinear: bool = False
    """Whether through one layer of tanh units instead of linearly."""
    strength: float = 2.0
    """Standard deviation of what the context adds to a weight's logit; 0: one truth for all."""
    static: float = 0.5
    """Standard deviation of what is the same for all requests."""
    slope: float = 1.5
    """Log odds of an outcome per standard deviation of utility."""
    noise: float = 0.5
    """Standard deviation of what an item's utility has that no score tells, in standard deviations
    of utility."""


class SemiReal(NamedTuple):
    """The world and its truth."""

    folder: DataFolder
    """Requests, lists and scores of the source; conversions of the truth."""
    weights: Floats
    """[request, objective] the true fusion weights; each row sums to 1."""
    utilities: Floats
    """[item] true utility, standardised over all items, without noise."""
    gains: Floats
    """[item] expected gain of an item that is looked at, in gain units, noise included: what the
    value of a ranking is to be worked out from."""
    matters: tuple[str, ...]
    """Names of the features that the truth depends on."""


def semi_real(
    folder: DataFolder,
    schema: Schema,
    seed: int,
    planted: Planted = Planted(),
    examination: Sequence[float] | None = None,
) -> SemiReal:
    """Draw a world.

    Args:
        folder: real requests; its conversions give rates, delays and values by outcome type.
        schema: the folder's.
        seed: of the truth and of what users do; the same seed gives the same world.
        planted: the kind of truth.
        examination: [position] probability that a position is looked at, the last one repeats; by
            default the schema's, else `EXAMINATION`.

    Returns:
        the world. Its folder plays with the same schema; a schema without an examination curve does
        not correct for the positions, which is then more noise.

    Raises:
        ValueError: no feature varies enough to matter.
    """
    draw = np.random.default_rng(seed)
    weights, matters = _true_weights(folder, schema, planted, draw)
    signals = [
        transform_scores(schema, folder.scores[folder.items(request)])
        for request in range(len(weights))
    ]
    owner = np.repeat(np.arange(len(weights)), np.diff(folder.first_item))
    utilities = np.einsum("im,im->i", weights[owner], np.concatenate(signals))
    utilities = (utilities - utilities.mean()) / max(float(utilities.std()), 1e-12)
    noisy = utilities + planted.noise * draw.standard_normal(len(utilities))
    curve = np.array(examination or schema.examination or EXAMINATION)
    seen = curve[np.minimum(folder.positions, len(curve) - 1)]

    conversions: list[LoggedConversion] = []
    gains = np.zeros(len(utilities))
    for outcome in schema.outcomes:
        logged = [c for c in folder.conversions if c.outcome == outcome.name]
        if not logged:
            continue
        values = np.array([c.value for c in logged])
        delays = np.array([c.time_ms - folder.times_ms[c.request] for c in logged])
        rate = min(len({c.item for c in logged}) / len(utilities), 0.99)
        chance = _at_rate(planted.slope * noisy, rate)
        gains += chance * outcome.gain * (values.mean() if outcome.value_weighted else 1.0)
        happened = np.flatnonzero(draw.random(len(utilities)) < seen * chance)
        source = draw.integers(len(logged), size=len(happened))
        times = folder.times_ms[owner[happened]] + delays[source]
        conversions += [
            LoggedConversion(
                f"{outcome.name}/{folder.item_ids[item]}",
                int(owner[item]),
                int(item),
                outcome.name,
                float(values[at]),
                int(time_ms),
            )
            for item, at, time_ms in zip(happened, source, times, strict=True)
        ]
    conversions.sort(key=lambda conversion: conversion.time_ms)
    return SemiReal(
        dataclasses.replace(folder, conversions=conversions), weights, utilities, gains, matters
    )


def shuffled(folder: DataFolder, seed: int) -> DataFolder:
    """The folder with its outcomes moved to other items: nothing can be learned from it.

    Within each request, every item takes all outcomes of another of the same request, so what
    users do stays as frequent, as bundled and as dependent on the user as it was; it only has
    nothing to do with the scores any more.

    Args:
        folder: real requests.
        seed: of the shuffle.
    """
    draw = np.random.default_rng(seed)
    # Sorted by request, then at random: within its request each item gets another one's place.
    owner = np.repeat(np.arange(len(folder.request_ids)), np.diff(folder.first_item))
    moved_to: npt.NDArray[np.intp] = np.lexsort((draw.random(len(owner)), owner))
    conversions = [c._replace(item=int(moved_to[c.item])) for c in folder.conversions]
    return dataclasses.replace(folder, conversions=conversions)


def _true_weights(
    folder: DataFolder, schema: Schema, planted: Planted, draw: np.random.Generator
) -> tuple[Floats, tuple[str, ...]]:
    features = folder.features.astype(np.float64)
    alike = [np.unique(column, return_counts=True)[1].max() for column in features.T]
    able = np.flatnonzero(np.array(alike) <= _MOST_ALIKE * len(features))
    if not able.size:
        raise ValueError(
            f"expected a feature with fewer than {_MOST_ALIKE:.0%} equal values, seen none"
        )
    chosen = np.sort(draw.choice(able, size=min(planted.features, len(able)), replace=False))
    z = features[:, chosen]
    z = np.clip((z - z.mean(axis=0)) / z.std(axis=0), -CONTEXT_CLIP, CONTEXT_CLIP)
    if planted.nonlinear:
        z = np.tanh(z @ draw.standard_normal((len(chosen), _HIDDEN)))
    slopes = draw.standard_normal((z.shape[1], schema.n_objectives)) / np.sqrt(z.shape[1])
    logits = planted.static * draw.standard_normal(schema.n_objectives)
    logits = logits + planted.strength * (z @ slopes)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return weights, tuple(schema.features[at].name for at in chosen)


def _at_rate(logits: Floats, rate: float) -> Floats:
    """Probabilities of these log odds, moved together until their mean is the rate."""
    low, high = -60.0, 60.0
    for _ in range(60):
        middle = (low + high) / 2
        if _sigmoid(logits + middle).mean() < rate:
            low = middle
        else:
            high = middle
    return _sigmoid(logits + low)


def _sigmoid(logits: Floats) -> Floats:
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * logits))
