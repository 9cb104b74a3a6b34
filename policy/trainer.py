"""The update rule: parameters N = f(parameters N-1, the groups of one slot, settings).

`Trainer.learn` reads downwards as the rule. No clock, no global randomness: draws are keyed by
(seed, policy, epoch, slot), so a step can be recomputed bit for bit.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from grade.v1.reward_group_pb2 import RewardGroup
from torch import Tensor

from policy import dirichlet, grpo, listwise
from policy.adam import Adam
from policy.batch import Batch, Requests, Served, collate
from policy.drift import DriftDetector
from policy.fusion import Floats
from policy.initial import initial_parameters
from policy.network import (
    MEASURED,
    Kept,
    PolicyNetwork,
    configure_torch,
    dropout,
    floored,
    mixed_mean,
)
from policy.past import PastRequests
from policy.rewarding import Rewarding
from policy.running import ContextScale, Gate
from policy.schema import Schema
from policy.staleness import stale
from policy.trainer_settings import TrainerSettings
from policy.trainer_state import Part, check_state

State = dict[str, npt.NDArray[np.generic]]


class StepReport(NamedTuple):
    """What one step saw and did."""

    groups: int
    """Policy-arm groups that were learned from."""
    informative_groups: int
    """Those whose members' rewards differ, the prior left aside: it differs nearly always."""
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
    prior_scale: float = 0.0
    """How far the prior agrees with outcomes: what its advantages count, before its weight."""
    drift_score: float = 0.0
    """Standard errors by which the lead over uniform weights has fallen."""
    began_anew: bool = False
    """Whether drift was found and learning began anew with this slot."""
    stale_groups: int = 0
    """Informative groups that the served steps left out; see `policy.staleness`."""


MOST_REPORTED = 256
"""Contexts that the report's means are taken over: more than these are told by every so manieth."""

NOTHING = StepReport(0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, [])
"""The report of a slot that no group can be learned from."""


class _Parts(NamedTuple):
    """What the network says now, with gradients; alpha [request, objective] each."""

    static: Tensor
    """As if only the static part were served; the concentration is held."""
    contextual: Tensor
    """As if only the contextual part were served; the concentration is held."""
    mixed: Tensor
    """As the gate mixes them; only the concentration is learned by it."""


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


class _Weights(NamedTuple):
    """What each of `_Parts` counts in a loss on groups."""

    static: float
    contextual: float
    mixed: float


def _rows_that_speak(members: _Members) -> Tensor:
    return torch.nonzero(grpo.informative(members.advantages)).squeeze(-1)


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
        self._spare = 1 - math.fsum(self._floors.tolist())
        first = initial_parameters(schema, settings.seed)
        self._reference = PolicyNetwork(start or first).requires_grad_(False)
        self._network = PolicyNetwork(start or first)
        self._average = PolicyNetwork(start or first).requires_grad_(False)
        self._sharpness = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        named = dict(self._network.named_parameters())
        static = named.pop("static_logits")
        self._static_adam = Adam(
            [static, self._sharpness], settings.static_rate, second_decay=0.999
        )
        self._contextual_adam = Adam(
            list(named.values()),
            settings.contextual_rate,
            second_decay=0.99,
            gradient_limit=settings.gradient_limit,
        )
        self._scale = ContextScale(schema.n_features)
        self._rewarding = Rewarding(schema, settings)
        self._gate = Gate(settings.half_life)
        self._drift = DriftDetector(settings.drift_threshold)
        self._past = PastRequests(
            schema.n_features,
            schema.n_objectives,
            settings.replay_items,
            most_slots=settings.replay_slots,
        )
        self._slots = 0
        if start is not None:
            self._scale.assume(start["feature_mean"], start["feature_scale"])
            self._gate.assume(float(start["gate"][0]))

    def step(self, groups: Sequence[RewardGroup], *, slot: int, version: int = 0) -> StepReport:
        """Learn from the groups of one slot.

        Args:
            groups: in the order of (close time, partition, offset); holdout groups are ignored, and
                members or groups with numbers that are not finite are left out.
            slot: number of the slot; part of the key of the draws.
            version: the last one of the epoch, 0 before the first: which groups are stale.

        Returns:
            what was seen and done; nothing has changed if no group can be learned from.
        """
        outcomes_only = not self._rewarding.prior_scale
        batch = collate(self._schema, groups, outcomes_only=outcomes_only)
        if batch is None:
            return NOTHING._replace(gate=self.opening())
        return self.learn(batch, slot=slot, version=version)

    def learn(self, batch: Batch, *, slot: int, version: int = 0) -> StepReport:
        """Learn from the groups of one slot that have been read already; see `step`."""
        settings, requests, served = self._settings, batch.requests, batch.served
        generator = dirichlet.keyed_generator(
            "learn", str(settings.seed), self._schema.policy, str(self._epoch), str(slot)
        )
        told = requests.features[:: math.ceil(len(requests.features) / MOST_REPORTED)]
        before = self._served_alpha(told)

        # What is served is judged before anything is learned from what judges it.
        components = self._rewarding.add(batch)
        self._judge(requests.earned())
        score, drifted = self._drift.score(), self._drift.fired()
        if drifted:
            self._begin_anew()
        earned = requests.earned()
        self._past.add(earned, slot=self._slots)
        self._measure(requests)

        old = stale(served.versions, self._epoch, version, settings.staleness_cap)
        counted = np.where(old[:, None], 0, self._rewarding.advantages(components))
        rows, members = self._served_members(served, counted)
        features = torch.from_numpy(requests.features)[rows]
        clipped, norms = [], []
        replayed = settings.replay_steps_of(self._slots, len(earned.features))
        for index in range(max(replayed, settings.served_epochs, settings.fresh_steps)):
            loss = torch.zeros((), dtype=torch.float64)
            if index < replayed:
                loss = loss + self._past_loss(
                    generator, static=index < settings.replay_static_steps
                )
            if index < settings.served_epochs:
                served_loss, cut_off = self._served_loss(features, members)
                loss = loss + served_loss * (len(rows) / len(old))
                clipped.append(cut_off)
            if index < settings.fresh_steps:
                loss = loss + self._fresh_loss(requests, generator)
            norms.append(self._descend(loss))

        self._publish()
        after = self._served_alpha(told)
        seen = np.isfinite(served.executed)
        informative = self._rewarding.informative(components)
        return StepReport(
            groups=len(requests.features),
            informative_groups=int(informative.sum()),
            reward=float(served.executed[seen].mean()) if seen.any() else 0.0,
            kl=float(dirichlet.kl(after, before).mean()),
            concentration=float(after.sum(axis=-1).mean()),
            clip_fraction=float(np.mean(clipped)) if clipped else 0.0,
            gradient_norm=float(np.mean(norms)) if norms else 0.0,
            gate=self.opening(),
            mean_weights=self._mean_weights(after).mean(axis=0).tolist(),
            prior_scale=self._rewarding.prior_scale,
            drift_score=score,
            began_anew=drifted,
            stale_groups=int((informative & old).sum()),
        )

    def opening(self) -> float:
        """Share of the contextual part in the mean of the next version, in [0, 1]."""
        return self._gate.opening() if self._settings.gate else 1.0

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
        found: dict[str, Tensor] = {"sharpness": self._sharpness}
        for prefix, tensors in (
            ("learned", self._network.state_dict()),
            ("served", self._average.state_dict()),
            ("reference", self._reference.state_dict()),
            ("static_adam", self._static_adam.tensors()),
            ("contextual_adam", self._contextual_adam.tensors()),
        ):
            found |= {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}
        return found

    def _running(self) -> dict[str, Part]:
        return {
            "scale": self._scale,
            "gate": self._gate,
            "drift": self._drift,
            "past": self._past,
            **self._rewarding.running(),
        }

    # --- judging what is served ---

    def _judge(self, earned: Requests) -> None:
        """Show gate and drift detector what served and uniform means would have earned.

        Args:
            earned: requests with an outcome.
        """
        if not len(earned.features):
            return
        with torch.no_grad():
            heads = self._average.heads(torch.from_numpy(earned.features))
        floor, shape = self._average.least_mean, (len(earned.features), self._schema.n_objectives)
        means = [floored(mixed_mean(heads, each), floor).numpy() for each in Gate.OPENINGS]
        means += [floored(mixed_mean(heads, self.opening()), floor).numpy()]
        means += [np.full(shape, 1 / shape[1])]
        weights = dirichlet.simplex_to_weights(np.stack(means, axis=1), self._floors)
        rewards = self._rewarding.rewards(earned, weights)
        self._gate.add(rewards[:, : len(Gate.OPENINGS)])
        self._drift.add(rewards[:, -2] - rewards[:, -1])

    def _begin_anew(self) -> None:
        """Forget what was learned of a world that has changed; how features vary is kept."""
        first = PolicyNetwork(initial_parameters(self._schema, self._settings.seed))
        with torch.no_grad():
            for network in (self._network, self._average, self._reference):
                for name, parameter in network.named_parameters():
                    parameter.copy_(first.get_parameter(name))
            self._sharpness.zero_()
        self._static_adam.clear()
        self._contextual_adam.clear()
        for part in (self._gate, self._drift, self._past):
            part.clear()
        self._rewarding.clear_calibration()
        self._slots = 0

    def _measure(self, requests: Requests) -> None:
        """Set the tensors that are measured rather than learned, in learner and served policy."""
        self._scale.add(requests.features)
        mean, scale = self._scale.mean_and_scale()
        gate = np.array([self.opening()])
        for network in (self._network, self._average):
            for name, value in zip(MEASURED, (mean, scale, gate), strict=True):
                network.get_buffer(name).copy_(torch.from_numpy(value))

    # --- learning ---

    def _served_loss(self, features: Tensor, members: _Members) -> tuple[Tensor, float]:
        """Loss of groups as served, off the policy by what has been learned since.

        Args:
            features: [request, feature] of their requests.
            members: of groups that say something.

        Returns:
            the loss, and the share of the members whose gradient the clip has cut off.
        """
        loss = torch.zeros((), dtype=torch.float64)
        if not len(features):
            return loss, 0.0
        parts = self._parts(features)
        for part, weight in zip(parts, self._weights(), strict=True):
            loss = loss + weight * self._groups_loss(features, part, members)
        return loss, self._clip_fraction(parts.mixed.detach(), members)

    def _fresh_loss(self, requests: Requests, generator: np.random.Generator) -> Tensor:
        """Loss of groups that each part draws anew for requests: on its policy."""
        features = torch.from_numpy(requests.features)
        parts = self._parts(features, self._dropout(len(features), generator))
        loss = torch.zeros((), dtype=torch.float64)
        for part, weight in zip(parts, self._weights(), strict=True):
            members = self._fresh_members(requests, part.detach(), generator)
            loss = loss + weight * self._groups_loss(features, part, members)
        return loss

    def _past_loss(self, generator: np.random.Generator, *, static: bool) -> Tensor:
        """Loss of some past requests: the contextual part by their outcomes' likelihood.

        The static part learns in a few steps; groups for it are drawn only where it is asked for.
        """
        requests = self._blurred(
            self._past.draw(generator, self._settings.replay_requests), generator
        )
        if self._settings.replay_by == "groups":
            return self._fresh_loss(requests, generator)
        features = torch.from_numpy(requests.features)
        parts = self._parts(features, self._dropout(len(features), generator))
        loss = torch.zeros((), dtype=torch.float64)
        if static:
            members = self._fresh_members(requests, parts.static.detach(), generator)
            loss = self._groups_loss(features, parts.static, members)
        mean = parts.contextual / parts.contextual.sum(dim=-1, keepdim=True)
        return loss + listwise.listwise_loss(
            self._spare * mean + torch.from_numpy(self._floors),
            torch.from_numpy(requests.signals),
            torch.from_numpy(requests.present),
            torch.from_numpy(
                requests.values * requests.examination / self._rewarding.usual(requests)
            ),
            torch.from_numpy(requests.examination),
            self._sharpness.exp(),
        )

    def _blurred(self, requests: Requests, generator: np.random.Generator) -> Requests:
        """Past requests with noise on their features, so that none is learned by heart.

        Reference: Bishop, "Training with noise is equivalent to Tikhonov regularization", Neural
        Computation 7, 1995.
        """
        if not self._settings.feature_noise:
            return requests
        _, scale = self._scale.mean_and_scale()
        noise = generator.standard_normal(requests.features.shape, dtype=np.float32)
        return requests._replace(
            features=requests.features + self._settings.feature_noise * scale * noise
        )

    def _parts(self, features: Tensor, kept: Kept = None) -> _Parts:
        """Both parts, each as if it alone were served, and the mixture that is.

        A contextual part that only corrected the static one, which moves ten times faster, would
        chase it.
        """
        heads, floor = self._network.heads(features, kept), self._network.least_mean
        total = heads.concentration[..., None]
        held = total.detach()
        mixed = floored(mixed_mean(heads, self.opening()), floor).detach()
        return _Parts(
            static=held * floored(torch.softmax(heads.static_logits, dim=-1), floor),
            contextual=held * floored(torch.softmax(heads.contextual_logits, dim=-1), floor),
            mixed=(total if self._settings.learn_concentration else held) * mixed,
        )

    def _weights(self) -> _Weights:
        return _Weights(static=1.0, contextual=self._settings.groups_weight, mixed=1.0)

    def _groups_loss(self, features: Tensor, part: Tensor, members: _Members) -> Tensor:
        """The loss of `policy.grpo`, in which groups that say nothing are no work but count."""
        rows = _rows_that_speak(members)
        if not len(rows):
            return torch.zeros((), dtype=torch.float64)
        spoken = members.of(rows)
        loss = grpo.grpo_loss(
            part[rows],
            spoken.simplex,
            spoken.log_densities,
            spoken.advantages,
            self._reference(features[rows]) if self._settings.kl_weight else None,
            epsilon=self._settings.epsilon,
            epsilon_high=self._settings.epsilon_high,
            ratio_cap=self._settings.ratio_cap,
            kl_weight=self._settings.kl_weight,
        )
        return loss * (len(rows) / len(members.advantages))

    def _descend(self, loss: Tensor) -> float:
        """Both optimisers take one step; returns the norm of the contextual gradient."""
        if not loss.requires_grad:
            return 0.0
        self._static_adam.zero_grad()
        self._contextual_adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch ships it untyped
        self._static_adam.step()
        return self._contextual_adam.step()

    def _clip_fraction(self, now: Tensor, members: _Members) -> float:
        ratio = grpo.importance_ratio(
            grpo.log_density(now, members.simplex), members.log_densities, self._settings.ratio_cap
        )
        low, high = self._settings.epsilon, self._settings.epsilon_high
        return float(grpo.clip_fraction(ratio, members.advantages, low, high))

    def _dropout(self, requests: int, generator: np.random.Generator) -> Kept:
        hidden = len(self._network.get_parameter("hidden0_bias"))
        return dropout(generator, requests, hidden, self._settings.dropout)

    def _served_members(self, served: Served, advantages: Floats) -> tuple[Tensor, _Members]:
        """The groups as served, and which of the requests [request] they are of: none in vain."""
        scaled = self._advantages(advantages)
        rows = torch.nonzero(grpo.informative(scaled)).squeeze(-1)
        spoken = rows.numpy()
        return rows, _Members(
            torch.from_numpy(dirichlet.weights_to_simplex(served.weights[spoken], self._floors)),
            torch.from_numpy(served.log_densities[spoken]),
            scaled[rows],
        )

    def _fresh_members(
        self, requests: Requests, part: Tensor, generator: np.random.Generator
    ) -> _Members:
        drawn = dirichlet.draw_simplex(generator, part.numpy(), self._settings.fresh_members)
        weights = dirichlet.simplex_to_weights(drawn, self._floors)
        simplex = torch.from_numpy(drawn)
        return _Members(
            simplex,
            grpo.log_density(part, simplex),
            self._advantages(self._rewarding.advantages(self._rewarding.fresh(requests, weights))),
        )

    def _advantages(self, combined: Floats) -> Tensor:
        return grpo.scaled(torch.from_numpy(combined), self._settings.advantage_scale)

    # --- serving what was learned ---

    def _publish(self) -> None:
        """Move served and reference parameters towards the learned ones."""
        settings = self._settings
        share = max(settings.average, 1 / (1 + settings.average_tail * self._slots))
        self._slots += 1
        self._average.approach(self._network, share)
        if settings.kl_weight and settings.reference == "average":
            self._reference.approach(self._network, 1 / settings.reference_slots)
        elif settings.kl_weight and settings.reference == "refresh":
            self._reference.approach(
                self._network, float(self._slots % settings.reference_slots == 0)
            )

    def _served_alpha(self, features: Floats) -> Floats:
        with torch.no_grad():
            result: Floats = self._average(torch.from_numpy(features)).numpy()
        return result

    def _mean_weights(self, served: Floats) -> Floats:
        mean = served / served.sum(axis=-1, keepdims=True)
        return dirichlet.simplex_to_weights(mean, self._floors)
