"""What the benchmark asks of a method, and how methods draw."""

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from policy import dirichlet
from policy.batch import Requests
from policy.fusion import Floats


class Groups(NamedTuple):
    """Fusion weights to explore with."""

    weights: Floats
    """[request, member, objective]"""
    log_densities: Floats
    """[request, member] in nats; zero where the method has no density."""
    executed: npt.NDArray[np.intp]
    """[request] the member that ranks."""

    def ranking(self) -> Floats:
        """[request, objective] weights of the members that rank."""
        return np.asarray(self.weights[np.arange(len(self.executed)), self.executed])


class Method(Protocol):
    """Learns fusion weights from blocks of requests."""

    def means(self, features: Floats) -> Floats:
        """[request, objective] the weights that it would serve if it did not explore."""

    def groups(self, features: Floats, generator: np.random.Generator) -> Groups:
        """Weights to explore with; the executed member of each group ranks its request."""

    def learn(self, requests: Requests, groups: Groups) -> None:
        """Learn from what users did with the lists that the executed members ranked."""

    def inside(self) -> dict[str, float]:
        """What the method tells of itself, by name."""


def draw_groups(
    alpha: Floats, floors: Floats, members: int, generator: np.random.Generator
) -> Groups:
    """Draw a group per request as the server does: float32 weights and their exact density.

    Args:
        alpha: [request, objective] the Dirichlets.
        floors: [objective] least weights.
        members: of a group; one of them, drawn evenly, is executed.
        generator: source of randomness.
    """
    drawn = dirichlet.draw_simplex(generator, alpha, members)
    shipped = dirichlet.simplex_to_weights(drawn, floors).astype(np.float32)
    return Groups(
        shipped.astype(np.float64),
        dirichlet.log_density(shipped, alpha[:, None, :], floors),
        generator.integers(members, size=len(alpha)),
    )


def same_for_all(weights: Floats, requests: int) -> Groups:
    """Groups of one member, the same weights [objective] for every request."""
    each = np.tile(weights, (requests, 1, 1))
    return Groups(each, np.zeros((requests, 1)), np.zeros(requests, dtype=np.intp))
