"""Other ways to learn a policy that knows the context, in their textbook form.

All have the policy function of ours, its contextual part served alone, and Adam; contexts are
standardised by the same running statistics. Learning rates were chosen among 3e-4, 1e-3, 3e-3 and
1e-2 on seeds that are not reported, each method's own.
"""

from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.learning.method import Groups, draw_groups
from policy import dirichlet, grpo
from policy.adam import Adam
from policy.batch import Requests, posteriors
from policy.fusion import Floats
from policy.initial import initial_parameters
from policy.network import MEASURED, PolicyNetwork, configure_torch
from policy.running import ContextScale, RunningIdeal
from policy.schema import Schema

SECOND_DECAY: Final = 0.999
GRADIENT_LIMIT: Final = 1.0


class _Contextual:
    """What the methods share: the policy, how it draws, and rewards about 1 at best.

    Args:
        schema: the policy's schema.
        seed: of the network.
        rate: Adam's learning rate.
        members: of a group.
    """

    def __init__(self, schema: Schema, seed: int, rate: float, members: int) -> None:
        configure_torch()
        self._floors = schema.floors()
        self._members = members
        parameters = initial_parameters(schema, seed) | {"gate": np.ones(1)}
        self._network = PolicyNetwork(parameters)
        self._adam = Adam(list(self._network.parameters()), rate, SECOND_DECAY, GRADIENT_LIMIT)
        self._scale = ContextScale(schema.n_features)
        self._ideal = RunningIdeal(2_000.0)

    def means(self, features: Floats) -> Floats:
        """[request, objective] weights of the Dirichlets' means."""
        alpha = self._alpha(features)
        mean = alpha / alpha.sum(axis=1, keepdims=True)
        return dirichlet.simplex_to_weights(mean, self._floors)

    def groups(self, features: Floats, generator: np.random.Generator) -> Groups:
        """Draws from the Dirichlets."""
        return draw_groups(self._alpha(features), self._floors, self._members, generator)

    def learn(self, requests: Requests, groups: Groups) -> None:
        """Take in the contexts, then learn from rewards as shares of the running ideal."""
        self._ideal.add(requests.ideal)
        rewards = posteriors(requests, groups.weights) / self._ideal.mean()
        simplex = torch.from_numpy(dirichlet.weights_to_simplex(groups.weights, self._floors))
        self._update(
            torch.from_numpy(requests.features),
            simplex,
            torch.from_numpy(groups.log_densities),
            torch.from_numpy(rewards),
            groups,
        )
        self._scale.add(requests.features)
        for name, value in zip(MEASURED[:2], self._scale.mean_and_scale(), strict=True):
            self._network.get_buffer(name).copy_(torch.from_numpy(value))

    def inside(self) -> dict[str, float]:
        """Mean concentration for contexts in the middle."""
        middle, _ = self._scale.mean_and_scale()
        return {"concentration": float(self._alpha(middle[None]).sum())}

    def _update(
        self, features: Tensor, simplex: Tensor, density: Tensor, rewards: Tensor, groups: Groups
    ) -> None:
        raise NotImplementedError

    def _descend(self, loss: Tensor) -> None:
        self._adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch ships it untyped
        self._adam.step()

    def _alpha(self, features: Floats) -> Floats:
        with torch.no_grad():
            alpha: Floats = self._network(torch.from_numpy(features)).numpy()
        return alpha


class Reinforce(_Contextual):
    """One sample per request, its reward less the running mean of rewards.

    Reference: Williams, "Simple statistical gradient-following algorithms for connectionist
    reinforcement learning", 1992, section 4.
    """

    def __init__(self, schema: Schema, seed: int, rate: float = 1e-3) -> None:
        super().__init__(schema, seed, rate, members=1)
        self._baseline = 0.0
        self._blocks = 0

    def _update(
        self, features: Tensor, simplex: Tensor, density: Tensor, rewards: Tensor, groups: Groups
    ) -> None:
        log_density = grpo.log_density(self._network(features), simplex)
        self._descend(-((rewards - self._baseline) * log_density).mean())
        self._blocks += 1
        share = max(0.05, 1 / self._blocks)
        self._baseline += share * (float(rewards.mean()) - self._baseline)


class PlainGrpo(_Contextual):
    """GRPO as libraries for language models do it.

    Advantages are divided by the group's standard deviation, the ratio is clipped at 0.2, and a KL
    term keeps the policy near where it began.

    Reference: DeepSeekMath, arXiv:2402.03300, equation 3 and section 4.1.2; weight of the KL and
    clip as there.
    """

    CLIP, KL_WEIGHT, STEPS = 0.2, 0.04, 2

    def __init__(self, schema: Schema, seed: int, rate: float = 3e-3, members: int = 8) -> None:
        super().__init__(schema, seed, rate, members)
        self._reference = PolicyNetwork(self._network.tensors()).requires_grad_(False)

    def _update(
        self, features: Tensor, simplex: Tensor, density: Tensor, rewards: Tensor, groups: Groups
    ) -> None:
        centred = rewards - rewards.mean(dim=1, keepdim=True)
        advantages = centred / (rewards.std(dim=1, keepdim=True) + 1e-4)
        reference = self._reference(features)
        for _ in range(self.STEPS):
            alpha = self._network(features)
            ratio = torch.exp(grpo.log_density(alpha, simplex) - density)
            surrogate = grpo.clipped_surrogate(ratio, advantages, self.CLIP, self.CLIP).mean()
            self._descend(self.KL_WEIGHT * grpo.kl(alpha, reference).mean() - surrogate)


class Ppo(_Contextual):
    """One sample per request, compared with what a critic expects of its context.

    Reference: PPO, arXiv:1707.06347, equations 7 and 9; an episode is one request, so the advantage
    is reward less the critic's value.
    """

    CLIP, STEPS, ENTROPY_WEIGHT, VALUE_RATE = 0.2, 4, 0.001, 3e-3

    def __init__(self, schema: Schema, seed: int, rate: float = 1e-3) -> None:
        super().__init__(schema, seed, rate, members=1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._critic = nn.Sequential(
                nn.Linear(schema.n_features, 64), nn.Tanh(), nn.Linear(64, 1)
            ).double()
        self._critic_adam = Adam(
            list(self._critic.parameters()), self.VALUE_RATE, SECOND_DECAY, GRADIENT_LIMIT
        )

    def _update(
        self, features: Tensor, simplex: Tensor, density: Tensor, rewards: Tensor, groups: Groups
    ) -> None:
        mean, scale = (torch.from_numpy(each) for each in self._scale.mean_and_scale())
        context = ((features - mean) / scale).clamp(-4, 4)
        with torch.no_grad():
            advantages = rewards - self._critic(context)
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        for _ in range(self.STEPS):
            alpha = self._network(features)
            ratio = torch.exp(grpo.log_density(alpha, simplex) - density)
            surrogate = grpo.clipped_surrogate(ratio, advantages, self.CLIP, self.CLIP).mean()
            self._descend(-surrogate - self.ENTROPY_WEIGHT * entropy(alpha).mean())
            self._critic_adam.zero_grad()
            loss = (self._critic(context) - rewards).square().mean()
            loss.backward()
            self._critic_adam.step()


def entropy(alpha: Tensor) -> Tensor:
    """[...] differential entropy in nats of Dirichlets [..., objective].

    >>> float(entropy(torch.ones(2, dtype=torch.float64)))  # uniform on [0, 1]
    0.0
    """
    total = alpha.sum(dim=-1)
    inner = ((alpha - 1) * torch.digamma(alpha)).sum(dim=-1)
    return -grpo.log_normaliser(alpha) + (total - alpha.shape[-1]) * torch.digamma(total) - inner
