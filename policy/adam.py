"""Adam, in the few lines that it is.

`torch.optim` loads torch's compiler with its first optimiser: 1.4 s and 150 MB that a learner of
small networks has no use for. The moments here are plain tensors that exist from the start, so a
checkpoint always holds the same ones.

Reference: Kingma and Ba, arXiv:1412.6980, algorithm 1.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

FIRST_DECAY = 0.9
EPSILON = 1e-8


class Adam:
    """One optimiser over some parameters.

    Args:
        parameters: to be changed in place; float64.
        rate: learning rate.
        second_decay: decay of the second moment, per step.
        gradient_limit: norm over all parameters at which their gradient is clipped.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        rate: float,
        second_decay: float,
        gradient_limit: float = math.inf,
    ) -> None:
        self._parameters = list(parameters)
        self._rate = rate
        self._second_decay = second_decay
        self._gradient_limit = gradient_limit
        self._steps = torch.zeros(1, dtype=torch.float64)
        self._first = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._second = [torch.zeros_like(parameter) for parameter in self._parameters]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> float:
        """Move the parameters against their gradients; one without a gradient counts as zero.

        Returns:
            norm of the gradient before clipping.
        """
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        norm = math.sqrt(math.fsum(g.square().sum().item() for g in gradients))
        shrink = min(1.0, self._gradient_limit / norm) if norm else 1.0
        self._steps += 1
        steps = self._steps.item()
        unbiased_first = 1 - FIRST_DECAY**steps
        unbiased_second = 1 - self._second_decay**steps
        for parameter, gradient, first, second in zip(
            self._parameters, gradients, self._first, self._second, strict=True
        ):
            clipped = gradient * shrink
            first.mul_(FIRST_DECAY).add_(clipped, alpha=1 - FIRST_DECAY)
            second.mul_(self._second_decay).addcmul_(clipped, clipped, value=1 - self._second_decay)
            spread = (second / unbiased_second).sqrt_().add_(EPSILON)
            parameter.addcdiv_(first, spread, value=-self._rate / unbiased_first)
        return norm

    @torch.no_grad()
    def clear(self) -> None:
        """Forget every gradient so far."""
        for tensor in (self._steps, *self._first, *self._second):
            tensor.zero_()

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on beside the parameters; not copies."""
        found = {"steps": self._steps}
        for index, (first, second) in enumerate(zip(self._first, self._second, strict=True)):
            found |= {f"{index}.first": first, f"{index}.second": second}
        return found
