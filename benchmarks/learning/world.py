"""What the benchmark asks of a world: requests in blocks, what users do, and the truth."""

from typing import NamedTuple, Protocol, TypeVar

from policy.batch import Requests
from policy.fusion import Floats
from policy.schema import Schema


class Asked(Protocol):
    """Some requests; what else they hold is the world's own affair."""

    @property
    def features(self) -> Floats:
        """[request, feature] as a method sees them."""


class Worth(NamedTuple):
    """Mean values per request of what every method is compared with, in the world's unit."""

    uniform: float
    """Of equal weights."""
    oracle: float
    """Of the ranking that nobody can beat; `World` says which."""
    informed: float
    """Of the best weights that are known to exist for who knows the features and all else but the
    hidden type."""

    def share(self, value: float) -> float:
        """How much of the way from uniform weights to the oracle."""
        return (value - self.uniform) / (self.oracle - self.uniform)

    def share_of_informed(self, value: float) -> float:
        """How much of the way from uniform weights to what can be had by context."""
        return (value - self.uniform) / (self.informed - self.uniform)


BlockT = TypeVar("BlockT", bound=Asked)


class World(Protocol[BlockT]):
    """A world with a known truth."""

    schema: Schema
    examination: Floats
    """[position] true chance that a position is looked at; the last repeats."""

    def block(self, first: int, count: int) -> BlockT:
        """Requests from a number on, to be learned from together."""

    def show(self, block: BlockT, weights: Floats) -> Requests:
        """What is logged once weights [request, objective] have ranked the requests.

        Gains are divided by the true chance that their position is looked at.
        """

    def probes(self, at: int) -> BlockT:
        """Requests that are not learned from, as they would be at the time of request `at`."""

    def value(self, block: BlockT, weights: Floats) -> Floats:
        """[request] true value of the rankings that weights [request, objective] lead to."""

    def worth(self, at: int) -> Worth:
        """What is compared with, on the probes of request `at`."""

    def best_static(self, first: int, end: int) -> Floats:
        """[objective] the weights that are best for requests `first` to before `end` together."""
