"""Both parts of a policy's mean, fitted to logged requests by one objective of learning to rank."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from policy.adam import Adam
from policy.batch import Requests
from policy.dirichlet import keyed_generator
from policy.fusion import Floats
from policy.lambda_loss import lambda_loss
from policy.listwise import listwise_loss
from policy.network import PolicyNetwork, dropout, floored
from policy.schema import Schema
from policy.smooth_ndcg_loss import smooth_ndcg_loss

Objective = Literal["likelihood", "lambda", "direct"]
"""`policy.listwise`, `policy.lambda_loss` or `policy.smooth_ndcg_loss`."""
OBJECTIVES: Final[tuple[Objective, ...]] = get_args(Objective)
Choice = Literal["best", "likelihood", "lambda", "direct"]
"""An objective, or for each part of the mean the one that ranks held-out requests best."""
CHOICES: Final[tuple[Choice, ...]] = get_args(Choice)

CONTEXTUAL: Final = (
    *("hidden0_weight", "hidden0_bias", "hidden1_weight", "hidden1_bias"),
    *("mean_weight", "mean_bias"),
)
"""Tensors of the contextual part's mean; `static_logits` is all there is of the static one."""
_PAIRS_TOGETHER = 1 << 21
_SECOND_DECAY = 0.99


@dataclass(frozen=True, slots=True)
class WarmStartSettings:
    """How to learn from a log."""

    objective: Choice = "best"
    """What is made small."""
    seed: int = 0
    """Of the initial parameters and of every draw."""
    steps: int = 1_200
    """Gradient steps of each fit at most; how many are taken is decided by validation."""
    check_every: int = 60
    """Steps after which the held-out requests are asked."""
    requests: int = 128
    """Requests of a step; fewer if lists are so long that their pairs would fill the memory."""
    static_rate: float = 0.03
    """Adam's learning rate of the static part, as in stage 2."""
    contextual_rate: float = 0.003
    """Adam's learning rate of the contextual part, as in stage 2."""
    dropout: float = 0.6
    """Share of the contextual part's hidden units that a request leaves out, as in stage 2."""
    average_tail: float = 0.25
    """What is kept is an average over about this share of the steps, the latest."""
    exploration_budget: float = 0.02
    """Share of the logged outcomes' value that sampling may cost at the start."""


class LoggedFit:
    """One fit: both parts at once, each by its own term of one sum, as stage 2 learns them.

    Args:
        schema: the policy's schema.
        requests: with outcomes.
        gains: [request, item] theirs, over examination, in units of an ideal.
        start: serving tensors to begin with, by name.
        objective: what is made small.
        settings: how to learn; their objective is not looked at.
    """

    def __init__(
        self,
        schema: Schema,
        requests: Requests,
        gains: Floats,
        start: Mapping[str, Floats],
        objective: Objective,
        settings: WarmStartSettings,
    ) -> None:
        self._settings, self._requests, self._gains = settings, requests, gains
        self._chosen = objective
        self._network = PolicyNetwork(start)
        self._average = PolicyNetwork(start).requires_grad_(False)
        floors = schema.floors()
        self._floors, self._spare = torch.from_numpy(floors), 1 - float(floors.sum())
        self._generator = keyed_generator("warm start", str(settings.seed), schema.policy)
        self._hidden = len(start["hidden0_bias"])
        self._sharpness = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        named = dict(self._network.named_parameters())
        self._adams = (
            Adam([named["static_logits"], self._sharpness], settings.static_rate, 0.999),
            Adam(
                [named[name] for name in CONTEXTUAL],
                settings.contextual_rate,
                _SECOND_DECAY,
                gradient_limit=1.0,
            ),
        )
        self._steps = 0
        items = requests.present.shape[1]
        self._together = max(1, min(settings.requests, _PAIRS_TOGETHER // items**2))

    def advance(self, steps: int) -> None:
        """Take some steps, each on requests drawn evenly."""
        for _ in range(steps):
            rows = self._generator.integers(len(self._gains), size=self._together)
            for adam in self._adams:
                adam.zero_grad()
            self._loss(rows).backward()  # type: ignore[no-untyped-call]  # torch's own
            for adam in self._adams:
                adam.step()
            self._steps += 1
            share = 1 / (1 + self._settings.average_tail * self._steps)
            self._average.approach(self._network, share)

    @torch.no_grad()
    def logits(self, features: Floats) -> tuple[Floats, Floats]:
        """Static and contextual logits, [request, objective] each."""
        heads = self._average.heads(torch.from_numpy(features))
        return heads.static_logits.numpy(), heads.contextual_logits.numpy()

    def tensors(self) -> dict[str, Floats]:
        """What was learned so far, averaged."""
        return self._average.tensors()

    def _loss(self, rows: npt.NDArray[np.intp]) -> Tensor:
        requests = self._requests.of(rows)
        gains = torch.from_numpy(self._gains[rows])
        kept = dropout(self._generator, len(rows), self._hidden, self._settings.dropout)
        heads = self._network.heads(torch.from_numpy(requests.features), kept)
        # Static and contextual means one after the other, as if there were twice the requests.
        logits = torch.cat([heads.static_logits, heads.contextual_logits])
        mean = floored(torch.softmax(logits, dim=-1), self._network.least_mean)
        weights = self._spare * mean + self._floors
        signals, present, examination = (
            torch.from_numpy(np.concatenate([each, each]))
            for each in (requests.signals, requests.present, requests.examination)
        )
        gains = torch.cat([gains, gains])
        sharpness = self._sharpness.exp().repeat_interleave(len(rows))[:, None]
        return 2 * self._objective(weights, signals, present, gains, examination, sharpness)

    def _objective(
        self,
        weights: Tensor,
        signals: Tensor,
        present: Tensor,
        gains: Tensor,
        examination: Tensor,
        sharpness: Tensor,
    ) -> Tensor:
        if self._chosen == "likelihood":
            return listwise_loss(
                weights, signals, present, gains * examination, examination, sharpness
            )
        fused = torch.einsum("rm,rim->ri", weights, signals)
        if self._chosen == "lambda":
            return lambda_loss(sharpness * fused, gains, present)
        return smooth_ndcg_loss(fused, gains, present)
