"""Past requests that are learned from again: flat arrays, so that drawing many costs no loop."""

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from policy.batch import Requests, padded

State = dict[str, npt.NDArray[np.generic]]
Integers = npt.NDArray[np.int64]

_PER_ITEM: Final = ("signals", "values", "predicted", "examination")


class PastRequests:
    """The latest requests with an outcome; kept as float32.

    Args:
        features: features of a context.
        objectives: objectives of a signal.
        most_items: shown items that are kept in total; the oldest requests go first.
    """

    def __init__(self, features: int, objectives: int, most_items: int) -> None:
        self._most_items = most_items
        self._lengths: Integers = np.zeros(0, dtype=np.int64)
        self._firsts: Integers = np.zeros(0, dtype=np.int64)
        self._features = np.zeros((0, features), dtype=np.float32)
        self._items = {
            name: np.zeros((0, objectives) if name == "signals" else 0, dtype=np.float32)
            for name in _PER_ITEM
        }

    def __len__(self) -> int:
        return len(self._lengths)

    def add(self, requests: Requests) -> None:
        """Take in requests in the slot's order; those without outcome are left out."""
        rows = np.flatnonzero(requests.values.any(axis=1))
        if not rows.size:
            return
        present = requests.present[rows]
        lengths = np.concatenate([self._lengths, present.sum(axis=1)])
        # As many of the oldest as leave no more than the most that are kept.
        too_many = max(0, int(lengths.sum()) - self._most_items)
        gone = int(np.searchsorted(np.cumsum(lengths), too_many)) + 1 if too_many else 0
        items_gone = int(lengths[:gone].sum())
        self._keep(
            lengths[gone:],
            np.concatenate([self._features, requests.features[rows].astype(np.float32)])[gone:],
            {
                name: np.concatenate(
                    [self._items[name], getattr(requests, name)[rows][present].astype(np.float32)]
                )[items_gone:]
                for name in _PER_ITEM
            },
        )

    def clear(self) -> None:
        """Forget all of them."""
        self._keep(
            self._lengths[:0],
            self._features[:0],
            {name: array[:0] for name, array in self._items.items()},
        )

    def draw(self, generator: np.random.Generator, count: int) -> Requests:
        """Draw requests evenly, with repetition."""
        chosen = generator.integers(len(self), size=count)
        lengths = self._lengths[chosen]
        present = np.arange(lengths.max()) < lengths[:, None]
        at = (self._firsts[chosen][:, None] + np.arange(lengths.max()))[present]
        return padded(
            self._features[chosen].astype(np.float64),
            present,
            *(self._items[name][at].astype(np.float64) for name in _PER_ITEM),
        )

    def state(self) -> State:
        """Everything, to be kept in a checkpoint."""
        if not len(self):
            return {}
        return {"lengths": self._lengths, "features": self._features, **self._items}

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Continue from what `state` returned."""
        if state:
            self._keep(
                state["lengths"].astype(np.int64),
                state["features"].astype(np.float32),
                {name: state[name].astype(np.float32) for name in _PER_ITEM},
            )
        else:
            self.clear()

    def _keep(
        self,
        lengths: Integers,
        features: npt.NDArray[np.float32],
        items: dict[str, npt.NDArray[np.float32]],
    ) -> None:
        self._lengths, self._features, self._items = lengths, features, items
        self._firsts = np.cumsum(lengths) - lengths
