"""The update rule: parameters N = f(parameters N-1, the groups of one slot, settings).

`Trainer.step` reads downwards as the rule. No clock, no global randomness: draws are keyed by
(seed, policy, epoch, slot), so a step can be recomputed bit for bit.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from grade.v1.reward_group_pb2 import RewardGroup
from torch import Tensor

from policy import dirichlet, grpo
from policy.adam import Adam
from policy.batch import Batch, Requests, collate, pad, posteriors
from policy.fusion import Floats
from policy.initial import initial_parameters
from policy.network import (
    MEASURED,
    Heads,
    PolicyNetwork,
    configure_torch,
    floored,
    mixed_mean,
)
from policy.rewards import format_rewards
from policy.running import LARGEST_IDEAL, ContextScale, Gate, PastRequests, RunningIdeal
from policy.schema import Schema
from policy.trainer_settings import TrainerSettings
from policy.trainer_state import check_state

State = dict[str, npt.NDArray[np.generic]]


class StepReport(NamedTuple):
    """What one step saw and did."""

    groups: int
    """Policy-arm groups that were learned from."""
    informative_groups: int
    """Those whose members' rewards differ."""
    reward: float
    """Mean posterior of the executed members, in gain units."""
    kl: float
    """Mean KL of the new served policy from the one before, in nats."""
    concentration: float
    """Mean sum of alpha over the slot's contexts."""
    clip_fraction: float
    """Share of the served members' gradients that the clip cut off, in [0, 1]."""
    gradient_norm: float
    """Mean norm of the contextual part's gradient before clipping, in reward units."""
    gate: float
    """Share of the contextual part in the served mean, in [0, 1]."""
    mean_weights: list[float]
    """[objective] mean fusion weights over the slot's contexts."""


NOTHING = StepReport(0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, [])
"""The report of a slot that no group can be learned from."""


class _Parts(NamedTuple):
    """What the network says now, with gradients."""

    static: Tensor
    """[request, objective] alpha if only the static part were served."""
    contextual: Tensor
    """[request, objective] alpha if only the contextual part were served."""
    apart: Tensor
    """[request, objective] contextual less static log mean."""


class _Members(NamedTuple):
    """Groups to learn from."""

    simplex: Tensor
    """[request, member, objective]"""
    log_densities: Tensor
    """[request, member] under the Dirichlet that drew them, in nats."""
    advantages: Tensor
    """[request, member] in reward units."""

    def of(self, rows: Tensor) -> "_Members":
        """The groups of some requests."""
        return _Members(*(each[rows] for each in self))


class Trainer:
    """Learns the parameters of one policy.

    Args:
        schema: the policy's schema.
        settings: how to learn.
        epoch: epoch of the versions that it makes.
        start: serving tensors to start from, by name; the declared baseline if left out. What
            measures features and the gate begins as if it had measured what they say.
    """

    def __init__(
        self,
        schema: Schema,
        settings: TrainerSettings,
        *,
        epoch: int = 1,
        start: Mapping[str, Floats] | None = None,
    ) -> None:
        configure_torch()
        self._schema = schema
        self._settings = settings
        self._epoch = epoch
        self._floors = schema.floors()
        first = initial_parameters(schema, settings.seed)
        self._reference = PolicyNetwork(first).requires_grad_(False)
        self._network = PolicyNetwork(start or first)
        self._average = PolicyNetwork(start or first).requires_grad_(False)
        named = dict(self._network.named_parameters())
        static = named.pop("static_logits")
        self._static_adam = Adam([static], settings.static_rate, second_decay=0.999)
        self._contextual_adam = Adam(
            list(named.values()),
            settings.contextual_rate,
            second_decay=0.99,
            gradient_limit=settings.gradient_limit,
        )
        self._scale = ContextScale(schema.n_features)
        self._ideal = RunningIdeal(settings.half_life)
        self._gate = Gate(settings.half_life)
        self._past = PastRequests(settings.replay_items)
        self._slots = 0
        if start is not None:
            self._scale.assume(start["feature_mean"], start["feature_scale"])
            self._gate.assume(float(start["gate"][0]))

    def step(self, groups: Sequence[RewardGroup], *, slot: int) -> StepReport:
        """Learn from the groups of one slot.

        Args:
            groups: in the order of (close time, partition, offset); holdout groups are ignored, and
                members or groups with numbers that are not finite are left out.
            slot: number of the slot; part of the key of the draws.

        Returns:
            what was seen and done; nothing has changed if no group can be learned from.
        """
        batch = collate(self._schema, groups)
        if batch is None:
            return NOTHING._replace(gate=self._gate.opening())
        return self.learn(batch, slot=slot)

    def learn(self, batch: Batch, *, slot: int) -> StepReport:
        """Learn from the groups of one slot that have been read already; see `step`."""
        settings, requests, served = self._settings, batch.requests, batch.served
        generator = dirichlet.keyed_generator(
            "learn", str(settings.seed), self._schema.policy, str(self._epoch), str(slot)
        )
        heads = self._served_heads(requests)
        with torch.no_grad():
            before = self._average.alpha(heads)

        self._ideal.add(requests.ideal)
        self._gate.add(self._rewards_of_openings(requests, heads))
        self._past.add(requests.with_outcome())
        self._measure(requests)

        members = self._served_members(batch)
        steps = [self._learn_served(requests, members) for _ in range(settings.served_epochs)]
        clipped = [share for share, _ in steps]
        norms = [norm for _, norm in steps]
        for _ in range(settings.fresh_steps):
            norms.append(self._learn_fresh(requests, generator))
        for _ in range(settings.replay_steps if len(self._past) else 0):
            past = pad(self._past.draw(generator, settings.replay_requests))
            norms.append(self._learn_fresh(past, generator))

        self._publish()
        after = self._served_alpha(requests)
        seen = np.isfinite(served.executed)
        return StepReport(
            groups=len(requests.features),
            informative_groups=int(grpo.informative(members.advantages).sum()),
            reward=float(served.executed[seen].mean()) if seen.any() else 0.0,
            kl=float(dirichlet.kl(after, before.numpy()).mean()),
            concentration=float(after.sum(axis=-1).mean()),
            clip_fraction=float(np.mean(clipped)) if clipped else 0.0,
            gradient_norm=float(np.mean(norms)) if norms else 0.0,
            gate=self._gate.opening(),
            mean_weights=self._mean_weights(after).mean(axis=0).tolist(),
        )

    def opening(self) -> float:
        """Share of the contextual part in the mean of the next version, in [0, 1]."""
        return self._gate.opening()

    def serving_parameters(self) -> dict[str, Floats]:
        """The tensors to serve, by name; see `policy.initial`."""
        return self._average.tensors()

    def state(self) -> State:
        """Everything that the next step depends on, beside schema and settings, by name."""
        state: State = {
            "epoch": np.array([self._epoch], dtype=np.int64),
            "slots": np.array([self._slots], dtype=np.int64),
        }
        for name, tensor in self._tensors().items():
            state[name] = tensor.detach().numpy().copy()
        for name, part in self._running().items():
            for key, value in part.state().items():
                state[f"{name}.{key}"] = value.copy()
        return state

    @classmethod
    def restore(
        cls, schema: Schema, settings: TrainerSettings, state: Mapping[str, npt.NDArray[np.generic]]
    ) -> "Trainer":
        """Continue exactly where `state` was taken.

        Raises:
            CheckpointRefused: a tensor is missing, is not finite, or has another type or shape than
                the schema asks for.
        """
        check_state(schema, cls(schema, settings).state(), state)
        trainer = cls(schema, settings, epoch=int(state["epoch"][0]))
        trainer._slots = int(state["slots"][0])
        with torch.no_grad():
            for name, target in trainer._tensors().items():
                target.copy_(torch.tensor(state[name]))
        for name, part in trainer._running().items():
            prefix = name + "."
            part.restore(
                {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            )
        return trainer

    def _tensors(self) -> dict[str, Tensor]:
        """Every torch tensor of the state by name; the tensors themselves, not copies."""
        found: dict[str, Tensor] = {}
        for prefix, tensors in (
            ("learned", self._network.state_dict()),
            ("served", self._average.state_dict()),
            ("static_adam", self._static_adam.tensors()),
            ("contextual_adam", self._contextual_adam.tensors()),
        ):
            found |= {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}
        return found

    def _learn_served(self, requests: Requests, members: _Members) -> tuple[float, float]:
        """One clipped step on the groups as served; returns clip fraction and gradient norm."""
        rows = torch.nonzero(grpo.informative(members.advantages)).squeeze(-1)
        spoken = members.of(rows)
        with torch.no_grad():
            parts = self._parts(torch.from_numpy(requests.features)[rows])
        served = parts.contextual if self._gate.opening() else parts.static
        ratio = grpo.importance_ratio(
            grpo.log_density(served, spoken.simplex), spoken.log_densities, self._settings.ratio_cap
        )
        clipped = grpo.clip_fraction(ratio, spoken.advantages, self._settings.epsilon)
        return float(clipped), self._descend(requests, members, members)

    def _learn_fresh(self, requests: Requests, generator: np.random.Generator) -> float:
        """One step on groups drawn from both parts as they are now; returns the gradient norm."""
        with torch.no_grad():
            parts = self._parts(torch.from_numpy(requests.features))
        static = self._fresh_members(requests, parts.static, generator)
        contextual = self._fresh_members(requests, parts.contextual, generator)
        return self._descend(requests, static, contextual)

    def _parts(self, features: Tensor) -> _Parts:
        """Both parts, each as if it alone were served.

        A contextual part that only corrected the static one, which moves ten times faster, would
        chase it. The concentration learns with the contextual part.
        """
        heads = self._network.heads(features)
        total, floor = heads.concentration[..., None], self._network.least_mean
        return _Parts(
            static=total.detach() * floored(torch.softmax(heads.static_logits, dim=-1), floor),
            contextual=total * floored(torch.softmax(heads.contextual_logits, dim=-1), floor),
            apart=torch.log_softmax(heads.contextual_logits, dim=-1)
            - torch.log_softmax(heads.static_logits, dim=-1).detach(),
        )

    def _descend(self, requests: Requests, static: _Members, contextual: _Members) -> float:
        """One gradient step of both parts; returns the contextual gradient's norm.

        Most groups say nothing: they are left out of the work, but not of the mean.
        """
        speaks = grpo.informative(contextual.advantages)
        rows = torch.nonzero(speaks | grpo.informative(static.advantages)).squeeze(-1)
        if not len(rows):
            return 0.0
        features = torch.from_numpy(requests.features)[rows]
        parts, reference = self._parts(features), self._reference_alpha(features)
        pull = torch.where(speaks[rows], parts.apart.square().sum(dim=-1), 0).mean()
        loss = (
            self._loss(parts.static, static.of(rows), reference)
            + self._loss(parts.contextual, contextual.of(rows), reference)
            + self._settings.static_pull * pull
        )
        self._static_adam.zero_grad()
        self._contextual_adam.zero_grad()
        (loss * (len(rows) / len(speaks))).backward()  # type: ignore[no-untyped-call]  # torch ships it untyped
        self._static_adam.step()
        return self._contextual_adam.step()

    def _loss(self, part: Tensor, members: _Members, reference: Tensor | None) -> Tensor:
        return grpo.grpo_loss(
            part,
            members.simplex,
            members.log_densities,
            members.advantages,
            reference,
            epsilon=self._settings.epsilon,
            ratio_cap=self._settings.ratio_cap,
            kl_weight=self._settings.kl_weight,
        )

    def _served_members(self, batch: Batch) -> _Members:
        served = batch.served
        rewards = self._rewards(batch.requests, served.posterior, served.weights)
        return _Members(
            torch.from_numpy(served.simplex),
            torch.from_numpy(served.log_densities),
            grpo.group_advantages(torch.from_numpy(rewards), torch.from_numpy(served.present)),
        )

    def _fresh_members(
        self, requests: Requests, part: Tensor, generator: np.random.Generator
    ) -> _Members:
        drawn = dirichlet.draw_simplex(generator, part.numpy(), self._settings.fresh_members)
        weights = dirichlet.simplex_to_weights(drawn, self._floors)
        rewards = torch.from_numpy(self._rewards(requests, posteriors(requests, weights), weights))
        simplex = torch.from_numpy(drawn)
        return _Members(
            simplex,
            grpo.log_density(part, simplex),
            grpo.group_advantages(rewards, torch.ones_like(rewards, dtype=torch.bool)),
        )

    def _rewards(self, requests: Requests, posterior: Floats, weights: Floats) -> Floats:
        """[request, member] what is learned from: posterior as a share of the ideal, and format."""
        if self._schema.normalise == "request":
            posterior = posterior / np.where(requests.ideal > 0, requests.ideal, 1)[:, None]
        else:
            # A request far beyond the mean would outweigh all others in the gate's record.
            usual = np.maximum(self._ideal.mean(), requests.ideal / LARGEST_IDEAL)
            posterior = posterior / usual[:, None]
        return posterior + self._settings.format_weight * format_rewards(self._schema, weights)

    def _served_heads(self, requests: Requests) -> Heads:
        with torch.no_grad():
            return self._average.heads(torch.from_numpy(requests.features))

    def _rewards_of_openings(self, requests: Requests, heads: Heads) -> Floats:
        """[request, opening] rewards of the means that every opening of the gate would serve."""
        floor = self._average.least_mean
        means = [floored(mixed_mean(heads, opening), floor) for opening in Gate.OPENINGS]
        weights = dirichlet.simplex_to_weights(
            np.stack([mean.numpy() for mean in means], axis=1), self._floors
        )
        return self._rewards(requests, posteriors(requests, weights), weights)

    def _measure(self, requests: Requests) -> None:
        """Set the tensors that are measured rather than learned, in learner and served policy."""
        self._scale.add(requests.features)
        mean, scale = self._scale.mean_and_scale()
        gate = np.array([self._gate.opening()])
        for network in (self._network, self._average):
            for name, value in zip(MEASURED, (mean, scale, gate), strict=True):
                network.get_buffer(name).copy_(torch.from_numpy(value))

    def _publish(self) -> None:
        """Move the served parameters towards the learned ones; in the first slots faster."""
        self._slots += 1
        share = max(self._settings.average, 1 / self._slots)
        served = self._average.named_parameters()
        for (_, kept), (_, learned) in zip(served, self._network.named_parameters(), strict=True):
            kept.lerp_(learned.detach(), share)

    def _served_alpha(self, requests: Requests) -> Floats:
        with torch.no_grad():
            result: Floats = self._average(torch.from_numpy(requests.features)).numpy()
        return result

    def _reference_alpha(self, features: Tensor) -> Tensor | None:
        if not self._settings.kl_weight:
            return None
        result: Tensor = self._reference(features)
        return result

    def _mean_weights(self, served: Floats) -> Floats:
        mean = served / served.sum(axis=-1, keepdims=True)
        return dirichlet.simplex_to_weights(mean, self._floors)

    def _running(self) -> dict[str, ContextScale | RunningIdeal | Gate | PastRequests]:
        return {
            "scale": self._scale,
            "ideal": self._ideal,
            "gate": self._gate,
            "past": self._past,
        }
