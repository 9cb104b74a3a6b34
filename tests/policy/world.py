"""A small world for learning tests: hidden utility weights by type of user, told by the context."""

import numpy as np
import numpy.typing as npt
from grade.v1.reward_group_pb2 import RewardGroup

from policy.batch import Batch, collate
from policy.fusion import fuse, rank
from policy.schema import Schema
from policy.trainer import StepReport, Trainer
from tests.policy.forward import forward_batch
from tests.policy.groups import click, make_group, make_impression

Floats = npt.NDArray[np.float64]

ITEMS = 8


class World:
    """Requests whose users click what their type likes; every item is looked at.

    Args:
        schema: linear objectives, not standardised.
        likes: [type, objective] hidden utility weights.
        seed: of everything that happens.
    """

    def __init__(self, schema: Schema, likes: npt.ArrayLike, seed: int) -> None:
        self._schema = schema
        self.likes = np.asarray(likes, dtype=np.float64)
        self._generator = np.random.default_rng(seed)

    def contexts(self, types: npt.NDArray[np.int64]) -> Floats:
        """[request, feature]: the first feature tells the type, the others nothing."""
        features = self._generator.normal(size=(len(types), self._schema.n_features))
        features[:, 0] = 50 + 3 * (2.0 * types - 1) + 0.5 * features[:, 0]
        return features.astype(np.float32).astype(np.float64)

    def slot(self, trainer: Trainer, requests: int = 32) -> list[RewardGroup]:
        """Serve requests with the trainer's version and let the users click."""
        types = self._generator.integers(len(self.likes), size=requests)
        contexts = self.contexts(types)
        alphas = forward_batch(trainer.serving_parameters(), contexts)
        groups = []
        for kind, context, alpha in zip(types, contexts, alphas, strict=True):
            signals = self._generator.normal(size=(ITEMS, self._schema.n_objectives))
            liking = signals @ self.likes[kind] * 3
            clicked = self._generator.random(ITEMS) < 1 / (1 + np.exp(3 - 2 * liking))
            groups.append(
                make_group(
                    self._schema,
                    make_impression(signals),
                    [click(int(item)) for item in np.flatnonzero(clicked)],
                    features=context,
                    alpha=alpha,
                    generator=self._generator,
                )
            )
        return groups

    def collated(self, groups: list[RewardGroup]) -> Batch:
        """The groups of a slot as arrays, every item among them."""
        batch = collate(self._schema, groups)
        assert batch is not None
        return batch

    def batch(self, trainer: Trainer, requests: int) -> Batch:
        """A slot as arrays; see `slot`."""
        return self.collated(self.slot(trainer, requests))

    def live(self, trainer: Trainer, slots: int) -> StepReport:
        """Let slots pass, each learned from at once; returns the last report."""
        for slot in range(slots):
            report = trainer.step(self.slot(trainer), slot=slot)
        return report

    def agreement(self, parameters: dict[str, Floats], kind: int) -> float:
        """Share of item pairs that served mean weights order as users of a type like them."""
        contexts = self.contexts(np.full(400, kind))
        weights = forward_batch(parameters, contexts)
        signals = self._generator.normal(size=(400, 2, self._schema.n_objectives))
        first = rank(fuse(weights[:, None, :], signals)[:, 0])[:, 0]
        return float((first == rank(signals @ self.likes[kind])[:, 0]).mean())
