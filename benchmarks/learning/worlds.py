"""Simulated worlds whose truth is known, read a block of requests at a time.

The story is the marketplace's (`simulator/marketplace.py`): users of hidden types, candidates with
correlated signals, a click where a position is looked at, an order after the click. Here it is told
for any number of objectives, in blocks, and with the parts that a learner can be led astray by:
context that says nothing, orders that hardly happen, tastes that change, predictions that lie.
"""

from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.learning.tastes import conflicts_of, tastes_of
from benchmarks.learning.world import Worth
from policy.batch import Requests
from policy.fusion import fuse, rank
from policy.rewards import ideal
from policy.schema import Schema, parse_schema
from simulator.marketplace import FEATURES, INFORMATIVE, Floats, logistic, spread_out
from simulator.truth import best_static

CHUNK: Final = 256
"""Requests that are drawn together."""
STATIC_REQUESTS, STATIC_ROUNDS = 512, 6
"""Requests and rounds that the search of the best static weights takes."""
_PER_CHUNK = 32
PROBES: Final = 2_000
"""Requests that are never learned from, on which weights are valued."""

Prior = Literal["scores", "right", "noisy", "static", "wrong", "upside_down"]
"""What the predicted gains are; see `SimulatedWorld.predicted`."""


@dataclass(frozen=True, slots=True)
class WorldSettings:
    """What a simulated world is like; chances and logits as in the marketplace."""

    objectives: int = 5
    candidates: int = 60
    shown: int = 10
    type_separation: float = 2.0
    """Spread of the types' centres in a feature, in units of the users' own spread; 0: the features
    say nothing. The least quarter at which whoever knows the features but not the type recovers at
    least .99 in base, sparse and every number of objectives (at 1.75: .988), by nothing else."""
    click_logit: float = -2.6
    order_logit: float = -2.95
    click_slope: float = 1.25
    """How strongly appeal moves the log odds of a click."""
    order_slope: float = 1.25
    """How strongly appeal moves the log odds of an order after the click."""
    order_gain: float = 5.0
    """Reward of an order; a click's is 1."""
    top_examination: float = 0.95
    examination_decay: float = 0.87
    prior: Prior = "scores"
    drift_at: int | None = None
    """Request at which tastes begin to change; None: never."""
    drift_requests: int = 0
    """Requests that the change takes; 0: abrupt."""


class Block(NamedTuple):
    """Some requests, with what is hidden in them."""

    number: npt.NDArray[np.int64]
    """[request] which tells the time."""
    features: Floats
    """[request, feature]"""
    signals: Floats
    """[request, candidate, objective] standardised over the candidates."""
    predicted: Floats
    """[request, candidate] predicted gains: the prior."""
    kind: npt.NDArray[np.int64]
    """[request] hidden: the user's type."""
    clicked: Floats
    """[request, candidate] hidden: chance of a click where the candidate is looked at."""
    ordered: Floats
    """[request, candidate] hidden: chance of an order after the click."""
    luck: Floats
    """[request, position, (looked at, clicked, ordered)] hidden: uniform draws."""


class SimulatedWorld:
    """One seeded world; the oracle ranks by the true chance of an order, values are orders.

    What is informed are the tastes to be expected from the features: the best that weights by
    context can do, as far as a mixture of tastes is best served by their mean.

    Args:
        settings: what it is like.
        seed: of types, candidates and luck.
        name: of its policy.

    >>> world = SimulatedWorld(WorldSettings(objectives=3), seed=1)
    >>> block = world.block(0, 64)
    >>> block.features.shape, block.signals.shape
    ((64, 16), (64, 60, 3))
    """

    def __init__(self, settings: WorldSettings, seed: int, name: str = "simulated") -> None:
        self.settings = settings
        self.schema = _schema(settings, name)
        self._seed = seed
        self._tastes = tastes_of(settings.objectives)
        self._mixing = np.linalg.cholesky(conflicts_of(settings.objectives))
        draw = np.random.default_rng([seed, 0])
        kinds = len(self._tastes)
        self._centres = np.zeros((kinds, len(FEATURES)))
        self._centres[:, :INFORMATIVE] = (
            spread_out(draw, kinds, INFORMATIVE) * settings.type_separation
        )
        self.examination: Floats = np.asarray(
            settings.top_examination * settings.examination_decay ** np.arange(settings.shown)
        )
        self._probes = self._draw(
            np.random.default_rng([seed, 2]), np.zeros(PROBES, dtype=np.int64)
        )
        self._chunk: tuple[int, Block] | None = None
        self._worth: dict[float, Worth] = {}

    def block(self, first: int, count: int) -> Block:
        """Requests from a number on: the same ones, however they are cut into blocks.

        Raises:
            ValueError: the block would reach across a multiple of `CHUNK`.
        """
        chunk, at = divmod(first, CHUNK)
        if at + count > CHUNK:
            raise ValueError(
                f"expected a block within {CHUNK} requests, seen {count} from request {at} on"
            )
        if self._chunk is None or self._chunk[0] != chunk:
            draw = np.random.default_rng([self._seed, 1, chunk])
            numbers = np.arange(chunk * CHUNK, (chunk + 1) * CHUNK)
            self._chunk = chunk, self._draw(draw, numbers)
        rows = slice(at, at + count)
        return Block._make(each[rows] for each in self._chunk[1])

    def show(self, block: Block, weights: Floats) -> Requests:
        """Rank by weights, show the top, and see what users do.

        Args:
            block: the requests.
            weights: [request, objective] that rank each.

        Returns:
            what is logged: only the shown items; gains are divided by the true chance that their
            position is looked at.
        """
        shown = self._shown(block, weights)
        clicked = np.take_along_axis(block.clicked, shown, axis=1)
        ordered = np.take_along_axis(block.ordered, shown, axis=1)
        clicks = (block.luck[..., 0] < self.examination) & (block.luck[..., 1] < clicked)
        orders = clicks & (block.luck[..., 2] < ordered)
        values = (clicks + self.settings.order_gain * orders) / self.examination
        return Requests(
            features=block.features,
            signals=np.take_along_axis(block.signals, shown[..., None], axis=1),
            values=values,
            predicted=np.take_along_axis(block.predicted, shown, axis=1),
            examination=np.broadcast_to(self.examination, shown.shape),
            present=np.ones(shown.shape, dtype=np.bool_),
            ideal=ideal(values),
        )

    def probes(self, at: int) -> Block:
        """Requests that are never learned from, as they would be at the time of a request."""
        probes = self._probes._replace(number=np.full(PROBES, at))
        clicked, ordered = self._chances(probes.signals, self._tastes_of(probes))
        return probes._replace(clicked=clicked, ordered=ordered)

    def value(self, block: Block, weights: Floats) -> Floats:
        """[request] expected orders of the lists that weights [request, objective] lead to."""
        chances = np.take_along_axis(
            block.clicked * block.ordered, self._shown(block, weights), axis=1
        )
        return np.asarray(chances @ self.examination)

    def worth(self, at: int) -> Worth:
        """What everything is compared with, at the time of a request."""
        share = float(self._drift(np.array([at]))[0])
        if share not in self._worth:
            probes = self.probes(at)
            chances = probes.clicked * probes.ordered
            top = -np.sort(-chances, axis=1)[:, : self.settings.shown]
            equal = np.full(self._probes.signals.shape[::2], 1 / self.settings.objectives)
            self._worth[share] = Worth(
                uniform=float(self.value(probes, equal).mean()),
                oracle=float((top @ self.examination).mean()),
                informed=float(self.value(probes, self.informed(probes)).mean()),
            )
        return self._worth[share]

    def best_static(self, first: int, end: int) -> Floats:
        """[objective] searched on `STATIC_REQUESTS` requests that are spread over the stretch."""
        count = STATIC_REQUESTS // _PER_CHUNK
        chunks = np.linspace(first // CHUNK, max(first, end - CHUNK) // CHUNK, count).astype(int)
        blocks = [self.block(int(chunk) * CHUNK, _PER_CHUNK) for chunk in chunks]
        signals = [each for block in blocks for each in block.signals]
        chances = [each for block in blocks for each in block.clicked * block.ordered]
        return best_static(signals, chances, self.examination, rounds=STATIC_ROUNDS)

    def informed(self, block: Block) -> Floats:
        """Weights of whoever knows everything but the requests' types.

        Features are Gaussian about the centre of a type, so the chance of each type given the
        features is a softmax of minus half the squared distances.

        Returns:
            [request, objective] mean tastes under those chances.
        """
        distance = ((block.features[:, None, :] - self._centres) ** 2).sum(axis=-1)
        likelihood = np.exp(-0.5 * (distance - distance.min(axis=1, keepdims=True)))
        chance = likelihood / likelihood.sum(axis=1, keepdims=True)
        return np.asarray(np.einsum("rk,rkm->rm", chance, self._tastes_at(block.number)))

    def _shown(self, block: Block, weights: Floats) -> npt.NDArray[np.intp]:
        fused = fuse(weights[:, None, :], block.signals)[:, 0]
        return rank(fused)[:, : self.settings.shown]

    def _draw(self, draw: np.random.Generator, number: npt.NDArray[np.int64]) -> Block:
        settings, count = self.settings, len(number)
        kind = draw.integers(len(self._tastes), size=count)
        features = self._centres[kind] + draw.standard_normal((count, len(FEATURES)))
        latent = draw.standard_normal((count, settings.candidates, settings.objectives))
        latent = latent @ self._mixing.T
        signals = (latent - latent.mean(axis=1, keepdims=True)) / latent.std(axis=1, keepdims=True)
        luck = draw.random((count, settings.shown, 3))
        nothing = np.zeros((count, settings.candidates))
        block = Block(number, features, signals, nothing, kind, nothing, nothing, luck)
        clicked, ordered = self._chances(signals, self._tastes_of(block))
        block = block._replace(clicked=clicked, ordered=ordered)
        return block._replace(predicted=self._predicted(draw, block))

    def _chances(self, signals: Floats, tastes: Floats) -> tuple[Floats, Floats]:
        appeal = np.einsum("rcm,rm->rc", signals, tastes)
        settings = self.settings
        return (
            logistic(settings.click_logit + settings.click_slope * appeal),
            logistic(settings.order_logit + settings.order_slope * appeal),
        )

    def _drift(self, number: npt.NDArray[np.int64]) -> Floats:
        """[request] how far tastes have changed, in [0, 1]."""
        settings = self.settings
        if settings.drift_at is None:
            return np.zeros(len(number))
        since = number + 1 - settings.drift_at
        return np.clip(since / max(1, settings.drift_requests), 0.0, 1.0)

    def _tastes_at(self, number: npt.NDArray[np.int64]) -> Floats:
        """[request, type, objective]; each type goes over to what the next one wanted before."""
        share = self._drift(number)[:, None, None]
        return np.asarray((1 - share) * self._tastes + share * np.roll(self._tastes, -1, axis=0))

    def _tastes_of(self, block: Block) -> Floats:
        """[request, objective] what each request's user wants."""
        return np.asarray(self._tastes_at(block.number)[np.arange(len(block.kind)), block.kind])

    def _gains(self, signals: Floats, tastes: Floats) -> Floats:
        """[request, candidate] expected gain of a candidate that is looked at."""
        clicked, ordered = self._chances(signals, tastes)
        return np.asarray(clicked * (1 + self.settings.order_gain * ordered))

    def _predicted(self, draw: np.random.Generator, block: Block) -> Floats:
        """[request, candidate] the prior.

        `scores`: what the first two signals say of clicks and orders, as the marketplace's
        predictions do, nobody's taste considered. `right`: the truth. `noisy`: the truth, each item
        off by an independent factor of about e. `static`: the truth for a user of mean tastes.
        `wrong`: the truth for a user of the next type. `upside_down`: minus the truth.
        """
        settings, tastes = self.settings, self._tastes_of(block)
        match settings.prior:
            case "scores":
                click = logistic(-2.0 + 0.8 * block.signals[..., 0])
                order = logistic(-4.0 + 0.9 * block.signals[..., 1])
                return np.asarray(click + settings.order_gain * order)
            case "right":
                return self._gains(block.signals, tastes)
            case "noisy":
                noise = draw.standard_normal(block.predicted.shape)
                return np.asarray(self._gains(block.signals, tastes) * np.exp(noise))
            case "static":
                mean = np.broadcast_to(self._tastes.mean(axis=0), tastes.shape)
                return self._gains(block.signals, mean)
            case "wrong":
                other = np.roll(self._tastes, -1, axis=0)[block.kind]
                return self._gains(block.signals, other)
            case "upside_down":
                return -self._gains(block.signals, tastes)


BASE: Final = WorldSettings()
SIMULATED: Final = {
    "base": BASE,
    # Orders at 0.3 % of the items that uniform weights show; clicks hardly depend on taste.
    "sparse": replace(
        BASE,
        click_logit=-2.2,
        click_slope=0.1,
        order_logit=-5.45,
        order_slope=2.5,
        order_gain=20.0,
    ),
    "drift": replace(BASE, drift_at=15_000),
    "drift_gradual": replace(BASE, drift_at=15_000, drift_requests=10_000),
    "useless": replace(BASE, type_separation=0.0),
    "m3": replace(BASE, objectives=3),
    "m6": replace(BASE, objectives=6),
    "m12": replace(BASE, objectives=12),
    "prior_right": replace(BASE, prior="right"),
    "prior_noisy": replace(BASE, prior="noisy"),
    "prior_static": replace(BASE, prior="static"),
    "prior_wrong": replace(BASE, prior="wrong"),
    "prior_upside_down": replace(BASE, prior="upside_down"),
}
"""What each simulated world is like, by name."""


def _schema(settings: WorldSettings, name: str) -> Schema:
    features = ", ".join(f'"{feature}"' for feature in FEATURES)
    objectives = "".join(
        f'[[objectives]]\nname = "objective_{m}"\nbaseline = {1 / settings.objectives!r}\n'
        for m in range(settings.objectives)
    )
    return parse_schema(
        f'policy = "{name}"\nfeatures = [{features}]\n{objectives}'
        f'[[outcomes]]\nname = "click"\ngain = 1.0\n'
        f'[[outcomes]]\nname = "order"\ngain = {settings.order_gain!r}\n'
        "[attribution]\nwindow_s = 5.0\n",
        where=name,
    )
