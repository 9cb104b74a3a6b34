"""The world: users with hidden tastes, candidates, and what users do with a shown list.

Pure and seeded: request number n of a seed is always the same request, and the same list shown
for it has always the same feedback. Nothing here knows of gRPC, Kafka or a clock.

What a ranking tier sees of a request are its features and its candidates' scores. What it never
sees: the user's type, each type's tastes, how often a position is looked at, when tastes change.

The world in one paragraph: a candidate has five latent signals, correlated so that objectives
conflict (dear items sell less, fresh ones are clicked less). Each score is one signal in its own
unit: a probability, a price. A user of type k is drawn to a candidate by tastes[k] · signals; that
appeal raises the odds of a click where the position is looked at, and of an order after the click.
So predictions are right, and what is hidden is which of them matters to whom. Types leave noisy
traces in the features: telling them apart is possible, not certain.
"""

import math
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

POLICY: Final = "marketplace"
FEATURES: Final = (
    "past_click_rate",
    "past_order_rate",
    "past_like_rate",
    "mean_price_seen",
    "mean_price_bought",
    "share_of_new_items",
    "session_depth",
    "searches_per_day",
    "account_age_log_days",
    "days_since_order",
    "hour_sin",
    "hour_cos",
    "is_weekend",
    "is_mobile",
    "basket_size",
    "network_speed",
)
OBJECTIVES: Final = ("pctr", "pcvr", "plike", "price", "freshness")

# [type, objective] rows are normalised below. Sales matter to everyone, and then tastes part.
TASTES: Final = (
    (0.02, 0.85, 0.05, 0.05, 0.03),
    (0.02, 0.35, 0.03, 0.58, 0.02),
    (0.02, 0.42, 0.53, 0.02, 0.01),
    (0.02, 0.42, 0.03, 0.05, 0.48),
)
TYPE_SHARES: Final = (0.25, 0.25, 0.25, 0.25)

# [objective, objective] correlation of the latent signals: the conflicts.
CONFLICTS: Final = (
    (1.00, 0.25, 0.20, -0.30, -0.35),
    (0.25, 1.00, 0.00, -0.45, 0.10),
    (0.20, 0.00, 1.00, -0.20, -0.30),
    (-0.30, -0.45, -0.20, 1.00, 0.00),
    (-0.35, 0.10, -0.30, 0.00, 1.00),
)

# [feature] location and scale of each feature's own unit, in the order of FEATURES.
_LOCATION_AND_SCALE: Final = (
    (0.08, 0.03),
    (0.01, 0.004),
    (0.03, 0.015),
    (40.0, 15.0),
    (35.0, 12.0),
    (0.4, 0.15),
    (12.0, 5.0),
    (2.0, 0.8),
    (5.0, 1.5),
    (20.0, 12.0),
    (0.0, 0.7),
    (0.0, 0.7),
    (0.3, 0.45),
    (0.7, 0.45),
    (2.5, 1.2),
    (30.0, 12.0),
)
# Features from this index on say nothing about the type.
INFORMATIVE: Final = 10
_REQUEST_LEVEL: Final = slice(10, 16)

CHUNK: Final = 256
"""Requests that are drawn together."""

CLICK, ORDER = "click", "order"


@dataclass(frozen=True, slots=True)
class MarketplaceSettings:
    """What the world is like. Times in seconds, chances in [0, 1]."""

    seed: int = 0
    users: int = 5_000
    candidates: int = 60
    shown: int = 10
    type_separation: float = 1.25
    """Spread of the types' centres in a feature, in units of the users' own spread."""
    click_logit: float = -2.6
    """Log odds of a click on an average candidate that is looked at."""
    order_logit: float = -2.95
    """Log odds of an order after a click on an average candidate."""
    appeal_slope: float = 1.25
    """How strongly appeal moves both log odds."""
    top_examination: float = 0.95
    """Chance that the top position is looked at."""
    examination_decay: float = 0.87
    """Chance of each further position relative to the one above it."""
    click_delay_median_s: float = 0.9
    order_delay_median_s: float = 1.1
    delay_sigma: float = 1.05
    """Spread of the logarithm of a delay; 5 s are exceeded by 5 % of clicks, 13 % of orders."""
    longest_delay_s: float = 60.0


class Request(NamedTuple):
    """What a ranking tier sees of one request."""

    number: int
    unit_id: str
    features: npt.NDArray[np.float32]
    """[feature]"""
    scores: npt.NDArray[np.float32]
    """[candidate, objective]"""


class Outcome(NamedTuple):
    """What a user did with a shown candidate."""

    candidate: int
    kind: str
    """`click` or `order`."""
    delay_s: float
    """After the impression."""


class _Chunk(NamedTuple):
    """`CHUNK` requests with what is hidden in them."""

    user: npt.NDArray[np.int64]
    features: npt.NDArray[np.float32]
    signals: Floats
    scores: npt.NDArray[np.float32]
    luck: Floats
    """[request, position, (looked at, clicked, ordered)] uniform draws."""
    delays: Floats
    """[request, position, (click, order)] standard normal draws."""


class Marketplace:
    """A seeded world.

    Args:
        settings: what it is like.

    >>> world = Marketplace(MarketplaceSettings(seed=1))
    >>> request = world.request(0)
    >>> request.features.shape, request.scores.shape
    ((16,), (60, 5))
    """

    def __init__(self, settings: MarketplaceSettings) -> None:
        self.settings = settings
        tastes = np.array(TASTES)
        self._tastes: Floats = tastes / tastes.sum(axis=1, keepdims=True)
        self._mixing = np.linalg.cholesky(np.array(CONFLICTS))
        draw = np.random.default_rng([settings.seed, 0])
        kinds, informative = len(TASTES), INFORMATIVE
        centres = np.zeros((kinds, len(FEATURES)))
        centres[:, :informative] = spread_out(draw, kinds, informative) * settings.type_separation
        self._type = draw.choice(kinds, size=settings.users, p=TYPE_SHARES)
        noise = draw.standard_normal((settings.users, len(FEATURES)))
        self._profile: Floats = centres[self._type] + noise
        positions = np.arange(settings.shown)
        self.examination: Floats = np.asarray(
            settings.top_examination * settings.examination_decay**positions, dtype=np.float64
        )
        self._chunks: dict[int, _Chunk] = {}

    def request(self, number: int) -> Request:
        """What a ranking tier sees of the request of this number."""
        chunk, at = self._chunk(number)
        return Request(number, f"user-{chunk.user[at]}", chunk.features[at], chunk.scores[at])

    def feedback(self, number: int, shown: npt.NDArray[np.intp], *, drifted: bool) -> list[Outcome]:
        """What the user does with a list.

        Args:
            number: of the request.
            shown: [position] candidates, best first.
            drifted: whether tastes have changed.

        Returns:
            Clicks and orders; an order only after a click on the same candidate, and later.
        """
        chunk, at = self._chunk(number)
        clicked, ordered = self._chances(chunk, at, drifted)
        luck, size = chunk.luck[at], len(shown)
        examined = luck[:size, 0] < self.examination[:size]
        clicks = examined & (luck[:size, 1] < clicked[shown])
        orders = clicks & (luck[:size, 2] < ordered[shown])
        outcomes = []
        for position in np.flatnonzero(clicks):
            candidate = int(shown[position])
            delay = self._delay(CLICK, chunk.delays[at, position, 0])
            outcomes.append(Outcome(candidate, CLICK, delay))
            if orders[position]:
                further = self._delay(ORDER, chunk.delays[at, position, 1])
                # An order follows its click; most of its delay is its own.
                outcomes.append(Outcome(candidate, ORDER, max(delay + 0.05, further)))
        return outcomes

    def order_chances(self, number: int, *, drifted: bool) -> Floats:
        """[candidate] the true chance of an order where the candidate is looked at."""
        chunk, at = self._chunk(number)
        clicked, ordered = self._chances(chunk, at, drifted)
        chances: Floats = clicked * ordered
        return chances

    def true_weights(self, number: int, *, drifted: bool) -> Floats:
        """[objective] the tastes of the request's user."""
        chunk, at = self._chunk(number)
        return np.asarray(self._tastes[self._taste_of(int(chunk.user[at]), drifted)])

    def _chances(self, chunk: _Chunk, at: int, drifted: bool) -> tuple[Floats, Floats]:
        tastes = self._tastes[self._taste_of(int(chunk.user[at]), drifted)]
        appeal = self.settings.appeal_slope * (chunk.signals[at] * tastes).sum(axis=1)
        return (
            logistic(self.settings.click_logit + appeal),
            logistic(self.settings.order_logit + appeal),
        )

    def _taste_of(self, user: int, drifted: bool) -> int:
        """After the drift everyone has the tastes that the next type had before."""
        return int((self._type[user] + drifted) % len(TASTES))

    def _delay(self, kind: str, normal: float) -> float:
        settings = self.settings
        median = settings.click_delay_median_s if kind == CLICK else settings.order_delay_median_s
        return min(median * math.exp(settings.delay_sigma * normal), settings.longest_delay_s)

    def _chunk(self, number: int) -> tuple[_Chunk, int]:
        index, at = divmod(number, CHUNK)
        if index not in self._chunks:
            # Feedback is asked for right after its request: two chunks are enough.
            while len(self._chunks) > 1:
                del self._chunks[next(iter(self._chunks))]
            self._chunks[index] = self._draw(index)
        return self._chunks[index], at

    def _draw(self, index: int) -> _Chunk:
        settings = self.settings
        draw = np.random.default_rng([settings.seed, 1, index])
        user = draw.integers(settings.users, size=CHUNK)
        profile = self._profile[user]
        fresh = draw.standard_normal((CHUNK, len(FEATURES)))
        profile[:, _REQUEST_LEVEL] = fresh[:, _REQUEST_LEVEL]
        location, scale = np.array(_LOCATION_AND_SCALE).T
        features = location + scale * profile
        signals = (
            draw.standard_normal((CHUNK, settings.candidates, len(OBJECTIVES))) @ self._mixing.T
        )
        return _Chunk(
            user,
            features.astype(np.float32),
            signals,
            _scores(signals).astype(np.float32),
            draw.random((CHUNK, settings.shown, 3)),
            draw.standard_normal((CHUNK, settings.shown, 2)),
        )


def _scores(signals: Floats) -> Floats:
    """[..., objective] signals in the units in which a ranking tier has them."""
    return np.stack(
        [
            logistic(-2.0 + 0.8 * signals[..., 0]),  # pctr
            logistic(-4.0 + 0.9 * signals[..., 1]),  # pcvr
            logistic(-3.0 + 0.7 * signals[..., 2]),  # plike
            np.exp(3.5 + 0.6 * signals[..., 3]),  # price, in currency units
            0.5 + 0.15 * signals[..., 4],  # freshness, 1 is new
        ],
        axis=-1,
    )


def spread_out(draw: np.random.Generator, kinds: int, dimensions: int) -> Floats:
    """[kind, dimension] centres that are about equally far from each other."""
    basis, _ = np.linalg.qr(draw.standard_normal((dimensions, kinds)))
    centres = basis.T * math.sqrt(dimensions / 2)
    return np.asarray(centres - centres.mean(axis=0))


def logistic(x: Floats) -> Floats:
    value: Floats = 1.0 / (1.0 + np.exp(-x))
    return value
