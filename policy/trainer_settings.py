"""How a policy is learned; apart from the trainer, so that it can be read without torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from policy.errors import BoundaryError

LEARNER_COMPUTATION = 2
"""Version of the update rule: raised whenever the same groups would yield other versions."""

_PREFIX = "learn_"
_COMPUTATION = "learn_computation"


@dataclass(frozen=True, slots=True)
class TrainerSettings:
    """How to learn. All defaults are ours: the paper's are not known (docs/papers.md)."""

    seed: int = 0
    """Of the initial parameters and of every draw of the learner."""
    static_rate: float = 0.03
    """Adam's learning rate of the static part; as fast as full-information Hedge."""
    contextual_rate: float = 0.003
    """Adam's learning rate of the contextual part and the concentration."""
    gradient_limit: float = 1.0
    """Norm at which the contextual part's gradient is clipped."""
    static_pull: float = 1e-3
    """Weight of the squared distance of contextual from static log means, in reward units."""
    served_epochs: int = 2
    """Clipped steps on the groups as served."""
    epsilon: float = 0.2
    """Clip of the importance ratio."""
    ratio_cap: float = 1.5
    """Greatest importance ratio of a stale group; at 10 stale groups cost final value."""
    kl_weight: float = 0.0
    """Weight of the KL to version 0, in reward units per nat; 0: any weight cost final value."""
    fresh_steps: int = 1
    """Steps on groups drawn anew from the current policy for the slot's requests."""
    replay_steps: int = 2
    """Steps on groups drawn anew for past requests."""
    replay_requests: int = 128
    """Past requests per such step."""
    replay_items: int = 20_000
    """Shown items of past requests that are remembered."""
    fresh_members: int = 8
    """Members of a group that is drawn anew."""
    average: float = 0.1
    """Share of the latest parameters in those that are served, per slot."""
    format_weight: float = 1.0
    """Weight of the format reward beside the posterior, which is about 1 at best."""
    half_life: float = 2_000.0
    """Informative requests after which gate and running ideal count a request half."""


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
