"""Past requests that are learned from again: flat arrays, so that drawing many costs no loop."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from policy.batch import Requests, padded

State = dict[str, npt.NDArray[np.generic]]
Array = npt.NDArray[Any]

_PER_ITEM: Final = ("signals", "values", "predicted", "examination")


class _Rows:
    """Rows that come at the end and go at the front.

    A row never changes once it is there, so what `rows` returned stays as it was, and nothing is
    copied but when the room at the end is used up: then half of what is there is room again.
    """

    def __init__(self, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> None:
        self._array: Array = np.zeros((0, *shape), dtype=dtype)
        self._first = self._end = 0

    def rows(self) -> Array:
        return self._array[self._first : self._end]

    def replace(self, rows: Array) -> None:
        self._array = rows.astype(self._array.dtype)
        self._first, self._end = 0, len(rows)

    def add(self, rows: Array) -> None:
        if self._end + len(rows) > len(self._array):
            kept = self.rows()
            room = max(len(rows), len(kept) // 2)
            self._array = np.zeros((len(kept) + room, *kept.shape[1:]), dtype=kept.dtype)
            self._array[: len(kept)] = kept
            self._first, self._end = 0, len(kept)
        self._array[self._end : self._end + len(rows)] = rows
        self._end += len(rows)

    def drop(self, count: int) -> None:
        self._first += count


class PastRequests:
    """The latest requests with an outcome; kept as float32.

    Args:
        features: features of a context.
        objectives: objectives of a signal.
        most_items: shown items that are kept in total; the oldest requests go first.
        most_slots: slots that a request is kept for; None: any number.
    """

    def __init__(
        self, features: int, objectives: int, most_items: int, *, most_slots: int | None = None
    ) -> None:
        self._most_items = most_items
        self._most_slots = most_slots
        float32, int64 = np.dtype(np.float32), np.dtype(np.int64)
        self._columns = {
            "lengths": _Rows((), int64),
            "slots": _Rows((), int64),
            "features": _Rows((features,), float32),
        }
        for name in _PER_ITEM:
            self._columns[name] = _Rows((objectives,) if name == "signals" else (), float32)

    def __len__(self) -> int:
        return len(self._columns["lengths"].rows())

    def add(self, requests: Requests, *, slot: int) -> None:
        """Take in the requests of a slot, and forget what is too old by then.

        Args:
            requests: in the slot's order, each with an outcome.
            slot: its number; a request is forgotten once its own is `most_slots` behind.
        """
        present, columns = requests.present, self._columns
        columns["lengths"].add(present.sum(axis=1))
        columns["slots"].add(np.full(len(present), slot))
        columns["features"].add(requests.features)
        for name in _PER_ITEM:
            columns[name].add(getattr(requests, name)[present])
        self._drop(max(self._beyond_items(), self._beyond_slots(slot)))

    def clear(self) -> None:
        """Forget all of them."""
        self._drop(len(self))

    def draw(self, generator: np.random.Generator, count: int) -> Requests:
        """Draw requests evenly, with repetition."""
        rows = {name: column.rows() for name, column in self._columns.items()}
        chosen = generator.integers(len(self), size=count)
        firsts = np.cumsum(rows["lengths"]) - rows["lengths"]
        lengths = rows["lengths"][chosen]
        present = np.arange(lengths.max()) < lengths[:, None]
        at = (firsts[chosen][:, None] + np.arange(lengths.max()))[present]
        return padded(
            rows["features"][chosen].astype(np.float64),
            present,
            *(rows[name][at].astype(np.float64) for name in _PER_ITEM),
        )

    def state(self) -> State:
        """Everything, to be kept in a checkpoint; the arrays are not changed by what follows."""
        if not len(self):
            return {}
        return {name: column.rows() for name, column in self._columns.items()}

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Continue from what `state` returned."""
        if not state:
            self.clear()
        for name in state:
            self._columns[name].replace(state[name])

    def _beyond_items(self) -> int:
        """As many of the oldest as leave no more items than the most that are kept."""
        items = np.cumsum(self._columns["lengths"].rows())
        too_many = int(items[-1]) - self._most_items if len(items) else 0
        return int(np.searchsorted(items, too_many)) + 1 if too_many > 0 else 0

    def _beyond_slots(self, slot: int) -> int:
        """As many as came too many slots before this one."""
        if self._most_slots is None:
            return 0
        slots = self._columns["slots"].rows()
        return int(np.searchsorted(slots, slot - self._most_slots, side="right"))

    def _drop(self, requests: int) -> None:
        items = int(self._columns["lengths"].rows()[:requests].sum())
        for name, column in self._columns.items():
            column.drop(items if name in _PER_ITEM else requests)
