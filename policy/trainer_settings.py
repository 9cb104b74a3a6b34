"""How a policy is learned; apart from the trainer, so that it can be read without torch."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from policy.composite import Combination
from policy.errors import BoundaryError

LEARNER_COMPUTATION = 3
"""Version of the update rule: raised whenever the same groups would yield other versions."""

_PREFIX = "learn_"
_COMPUTATION = "learn_computation"


@dataclass(frozen=True, slots=True)
class TrainerSettings:
    """How to learn. All defaults are ours, the paper's are not known; docs/learning.md argues."""

    seed: int = 0
    """Of the initial parameters and of every draw of the learner."""
    static_rate: float = 0.03
    """Adam's learning rate of the static part; as fast as full-information Hedge."""
    contextual_rate: float = 0.003
    """Adam's learning rate of the contextual part and the concentration."""
    gradient_limit: float = 1.0
    """Norm at which the contextual part's gradient is clipped."""
    dropout: float = 0.6
    """Share of the contextual part's hidden units that a request leaves out while it is learned."""
    gate: bool = True
    """Whether the contextual part has to earn its share; False serves it alone."""
    learn_concentration: bool = True
    """Whether the concentration is learned; False keeps it where it starts."""

    combine: Combination = "calibrated"
    """How posterior, prior and format become one advantage; see `policy.composite`."""
    prior_weight: float = 0.3
    """Weight of the prior, before calibration; 0 leaves it out."""
    format_weight: float = 1.0
    """Weight of the format reward beside the posterior, which is about 1 at best."""
    advantage_scale: Literal["off", "group", "batch"] = "off"
    """What advantages are divided by: nothing, or the deviation of their group or batch."""

    served_epochs: int = 2
    """Steps on the groups as served."""
    epsilon: float = 0.2
    """Clip of the importance ratio downwards."""
    epsilon_high: float = 0.2
    """Clip of the importance ratio upwards; more than `epsilon` lets rare good members grow."""
    ratio_cap: float = 1.5
    """Greatest importance ratio of a stale group; at 10 stale groups cost final value."""
    staleness_cap: int | None = None
    """Versions that a group may lag behind before the served steps leave it out; None: any. Every
    group lags by the attribution window at least, so no number would fit all policies."""
    groups_weight: float = 0.3
    """Weight of the contextual part's groups beside what past outcomes say of it."""
    kl_weight: float = 0.0
    """Weight of the KL to the reference, in reward units per nat; any weight cost final value."""
    reference: Literal["start", "average", "refresh"] = "start"
    """The reference: where the epoch began, a slow average of the learned, or a regular copy."""
    reference_slots: int = 200
    """Slots that the average spans, or after which a copy is taken."""

    fresh_steps: int = 1
    """Steps on groups drawn anew from the current policy for the slot's requests."""
    fresh_members: int = 8
    """Members of a group that is drawn anew."""
    feature_noise: float = 0.6
    """Standard deviations of noise on a past request's features whenever it is replayed."""
    replay_steps: int = 8
    """Most steps per slot on past requests, in the long run."""
    replay_first: float = 2.0
    """How many times as many at first: this / (1 + slots learned / 100), at least 1."""
    replay_static_steps: int = 3
    """Those of them in which the static part learns as well: a group costs as much as the rest."""
    replays: float = 100.0
    """Past requests drawn per new one with an outcome: small slots take fewer steps."""
    replay_requests: int = 128
    """Past requests per such step."""
    replay_items: int = 100_000
    """Shown items of past requests that are remembered, which bounds their age."""
    replay_slots: int | None = None
    """Slots after which a past request is forgotten, of those that were learned; None: never."""
    replay_by: Literal["likelihood", "groups"] = "likelihood"
    """What the contextual part learns past requests by; the static part by groups drawn anew."""

    average: float = 0.01
    """Least share of the latest parameters in those that are served, per slot."""
    average_tail: float = 0.05
    """How fast that share falls at first: it is 1 / (1 + this × slots learned)."""
    half_life: float = 2_000.0
    """Informative requests after which gate and running ideals count a request half."""
    drift_threshold: float = 5.0
    """Standard errors by which the lead over uniform weights falls before learning begins anew."""

    def replay_steps_of(self, slots: int, new: int) -> int:
        """Steps on past requests in one slot.

        At first there is more to learn than new requests alone would ask for; in the long run a
        request is replayed about so often whether slots are short or long, up to a limit of work.

        Args:
            slots: learned before it.
            new: its requests with an outcome.

        >>> TrainerSettings().replay_steps_of(0, 64), TrainerSettings().replay_steps_of(0, 2)
        (16, 2)
        >>> TrainerSettings().replay_steps_of(300, 64), TrainerSettings().replay_steps_of(300, 0)
        (8, 0)
        """
        most = self.replay_steps * max(1.0, self.replay_first / (1 + slots / 100))
        return min(round(most), math.ceil(self.replays * new / self.replay_requests))


def trainer_settings_of(settings: Mapping[str, Any]) -> TrainerSettings:
    """How to learn, from a generation's settings.

    Args:
        settings: by name, as `named_settings` gives them; others are left alone.

    Raises:
        BoundaryError: one is missing, or this build does not have the update rule.
    """
    computation = settings.get(_COMPUTATION)
    if computation != LEARNER_COMPUTATION:
        raise BoundaryError(
            f"{_COMPUTATION}: expected {LEARNER_COMPUTATION}, which this build has, "
            f"seen {computation}: start a build that has it"
        )
    names = [field.name for field in fields(TrainerSettings)]
    missing = [_PREFIX + name for name in names if _PREFIX + name not in settings]
    if missing:
        raise BoundaryError(
            f"expected the settings {', '.join(missing)}, seen none of that name: "
            "start a build that learns without them"
        )
    return TrainerSettings(**{name: settings[_PREFIX + name] for name in names})


def named_settings(trainer: TrainerSettings) -> dict[str, object]:
    """What a generation says about how to learn; `trainer_settings_of` turns it back."""
    named = {_PREFIX + name: value for name, value in asdict(trainer).items()}
    return {_COMPUTATION: LEARNER_COMPUTATION, **named}
