"""The policy function in torch; `policy/initial.py` has its formula and its tensors.

Serving computes the same in numpy; a test holds the two together.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from policy.initial import CONCENTRATION_BOUNDS, CONTEXT_CLIP

MEASURED = ("feature_mean", "feature_scale", "gate")
"""Tensors that are measured rather than learned by gradient."""
FIXED = (*MEASURED, "mean_floor")
"""Tensors that are not learned by gradient."""

Kept = tuple[Tensor, Tensor] | None
"""What dropout keeps, see `dropout`; None: everything."""


class Heads(NamedTuple):
    """What the network says about a batch of contexts, before static and contextual are mixed."""

    static_logits: Tensor
    """[request, objective] the same in every row."""
    contextual_logits: Tensor
    """[request, objective]"""
    concentration: Tensor
    """[request] sum of alpha."""


class PolicyNetwork(nn.Module):
    """Context → alpha. All tensors are float64.

    Args:
        parameters: the serving tensors by name; they are copied.
    """

    def __init__(self, parameters: Mapping[str, npt.NDArray[np.float64]]) -> None:
        super().__init__()
        for name, value in parameters.items():
            tensor = torch.tensor(value, dtype=torch.float64)
            if name in FIXED:
                self.register_buffer(name, tensor)
            else:
                self.register_parameter(name, nn.Parameter(tensor))

    def heads(self, features: Tensor, kept: Kept = None) -> Heads:
        """Evaluate both parts.

        Args:
            features: [request, feature] in the schema's units.
            kept: two times [request, hidden], see `dropout`; None keeps every hidden unit.
        """
        p = dict(self.named_parameters()) | dict(self.named_buffers())
        context = (features - p["feature_mean"]) / p["feature_scale"]
        context = context.clamp(-CONTEXT_CLIP, CONTEXT_CLIP)
        hidden = torch.relu(context @ p["hidden0_weight"].T + p["hidden0_bias"])
        hidden = hidden if kept is None else hidden * kept[0]
        hidden = torch.relu(hidden @ p["hidden1_weight"].T + p["hidden1_bias"])
        hidden = hidden if kept is None else hidden * kept[1]
        low, high = map(math.log, CONCENTRATION_BOUNDS)
        # The concentration reads the hidden layers and does not shape them.
        level = hidden.detach() @ p["concentration_weight"] + p["concentration_bias"]
        return Heads(
            static_logits=p["static_logits"].expand(len(features), -1),
            contextual_logits=hidden @ p["mean_weight"].T + p["mean_bias"],
            concentration=torch.exp(low + (high - low) * torch.sigmoid(level)),
        )

    def forward(self, features: Tensor) -> Tensor:
        """[request, objective] alpha of the served policy, from [request, feature]."""
        return self.alpha(self.heads(features))

    def alpha(self, heads: Heads) -> Tensor:
        """[request, objective] alpha of the served policy, from what its heads say."""
        mean = floored(mixed_mean(heads, self.get_buffer("gate")), self.least_mean)
        return heads.concentration[..., None] * mean

    @torch.no_grad()
    def approach(self, other: "PolicyNetwork", share: float) -> None:
        """Move the learned tensors a share of the way to another network's."""
        for (_, mine), (_, theirs) in zip(
            self.named_parameters(), other.named_parameters(), strict=True
        ):
            mine.lerp_(theirs.detach(), share)

    @property
    def least_mean(self) -> Tensor:
        """[objective] the least that the mean can become."""
        return self.get_buffer("mean_floor")

    def tensors(self) -> dict[str, npt.NDArray[np.float64]]:
        """Copies of the serving tensors by name."""
        return {name: tensor.numpy().copy() for name, tensor in self.state_dict().items()}


def dropout(generator: np.random.Generator, requests: int, hidden: int, share: float) -> Kept:
    """Which hidden units of both layers a request keeps, and how much more they then count.

    Args:
        generator: source of randomness.
        requests: how many.
        hidden: units of a layer.
        share: of the units that are left out, in [0, 1).

    Returns:
        two times [request, hidden]: 0 or 1 / (1 - share); None if all are kept.

    Reference: Srivastava et al., "Dropout: a simple way to prevent neural networks from
    overfitting", JMLR 15, 2014.
    """
    if not share:
        return None
    kept = generator.random((2, requests, hidden), dtype=np.float32) >= share
    first, second = torch.from_numpy(kept / (1 - share))
    return first, second


def mixed_mean(heads: Heads, gate: Tensor | float) -> Tensor:
    """[request, objective] softmax of static and contextual logits, mixed by the gate in [0, 1]."""
    logits = (1 - gate) * heads.static_logits + gate * heads.contextual_logits
    return torch.softmax(logits, dim=-1)


def floored(mean: Tensor, floor: Tensor) -> Tensor:
    """[..., objective] the mean, kept above a floor [objective] by taking as much from it."""
    return (1 - math.fsum(floor.tolist())) * mean + floor


def configure_torch() -> None:
    """Make torch's results repeat bit for bit: one thread, deterministic algorithms only.

    MKL must be told as well, by `MKL_CBWR=COMPATIBLE` in the environment before torch is imported.
    """
    torch.set_num_threads(1)
    # Not `use_deterministic_algorithms`, which also loads torch's compiler (1.4 s, 150 MB).
    torch.set_deterministic_debug_mode("error")
