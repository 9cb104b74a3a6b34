"""What a group's members are rewarded with: components in reward units, and their combination."""

import numpy as np
import numpy.typing as npt

from policy import composite
from policy.batch import Batch, Requests, best_promise, posteriors, priors
from policy.composite import Calibration, Components, Flags
from policy.fusion import Floats
from policy.rewards import format_rewards
from policy.running import LARGEST_IDEAL, RunningIdeal
from policy.schema import Schema
from policy.trainer_settings import TrainerSettings


class Rewarding:
    """Gains become shares of what is usual, so that a step's size does not depend on their unit.

    Args:
        schema: the policy's schema.
        settings: how to learn.
    """

    def __init__(self, schema: Schema, settings: TrainerSettings) -> None:
        self._schema = schema
        self._settings = settings
        self._ideal = RunningIdeal(settings.half_life)
        self._promise = RunningIdeal(settings.half_life)
        self._calibration = Calibration(settings.half_life / 2)

    def add(self, batch: Batch) -> Components:
        """Measure what is usual, and how far the prior agrees, before a slot is learned from.

        Returns:
            the components of the groups as they were served; the posterior as the join wrote it.
        """
        self._ideal.add(batch.requests.ideal)
        served = batch.served
        if not self._settings.prior_weight:
            return self._components(
                batch.requests, served.posterior, served.weights, served.present
            )
        self._promise.add(best_promise(batch.requests.earned()))
        components = self._components(
            batch.requests, served.posterior, served.weights, served.present
        )
        self._calibration.add(components)
        return components

    def clear_calibration(self) -> None:
        """Forget how far the prior agreed."""
        self._calibration.clear()

    @property
    def prior_scale(self) -> float:
        """What the prior's advantages are multiplied with beside its weight; see `Calibration`."""
        if not self._settings.prior_weight:
            return 0.0
        return self._calibration.scale() if self._settings.combine == "calibrated" else 1.0

    def usual(self, requests: Requests) -> Floats:
        """[request, 1] what a gain is a share of: an ideal, in gain units."""
        if self._schema.normalise == "request":
            return np.where(requests.ideal > 0, requests.ideal, 1)[:, None]
        # A request far beyond the mean would outweigh all others in the gate's record.
        return np.maximum(self._ideal.mean(), requests.ideal / LARGEST_IDEAL)[:, None]

    def rewards(self, requests: Requests, weights: Floats) -> Floats:
        """What users' behaviour and the soft rules say of any weights; never the prior.

        Args:
            requests: what was logged.
            weights: [request, member, objective] fusion weights.

        Returns:
            [request, member] in reward units.
        """
        earned = posteriors(requests, weights) / self.usual(requests)
        return earned + self._settings.format_weight * format_rewards(self._schema, weights)

    def informative(self, components: Components) -> Flags:
        """[request] whether a group has members that outcomes or soft rules tell apart."""
        rewards = components.posterior + self._settings.format_weight * components.format
        spread = np.abs(composite.centred(rewards, components.present)).max(axis=-1, initial=0)
        return np.asarray(spread > composite.LEAST_SPREAD)

    def fresh(self, requests: Requests, weights: Floats) -> Components:
        """The components of groups that nobody was served, scored on the logged items."""
        present = np.ones(weights.shape[:2], dtype=np.bool_)
        return self._components(requests, posteriors(requests, weights), weights, present)

    def advantages(self, components: Components) -> Floats:
        """[request, member] in reward units, by the way of combining that is set."""
        prior, rules = self._settings.prior_weight, self._settings.format_weight
        match self._settings.combine:
            case "calibrated":
                return composite.calibrated(components, prior, rules, self.prior_scale)
            case "gated":
                return composite.gated(components, prior, rules)
            case "gdpo":
                return composite.gdpo(components, prior, rules)
            case "weighted_sum":
                return composite.weighted_sum(components, prior, rules)

    def running(self) -> dict[str, RunningIdeal | Calibration]:
        """What is remembered, by name."""
        return {
            "ideal": self._ideal,
            "promise": self._promise,
            "calibration": self._calibration,
        }

    def _components(
        self,
        requests: Requests,
        posterior: Floats,
        weights: Floats,
        present: npt.NDArray[np.bool_],
    ) -> Components:
        # The prior costs a ranking of every member, so it is left out where it has no weight: a
        # prior that does not agree is only asked about what is needed to see whether it does.
        promised = np.zeros(posterior.shape)
        if self._settings.prior_weight:
            asked = requests.values.any(axis=1) | bool(self.prior_scale)
            rows = np.flatnonzero(asked)
            usual = self._usual_promise(requests.of(rows))
            promised[rows] = priors(requests, rows, weights) / usual
        return Components(
            posterior / self.usual(requests),
            promised,
            format_rewards(self._schema, weights),
            present,
        )

    def _usual_promise(self, requests: Requests) -> Floats:
        best = best_promise(requests)
        if self._schema.normalise == "request":
            return np.where(best > 0, best, 1)[:, None]
        return np.maximum(self._promise.mean(), best / LARGEST_IDEAL)[:, None]
