"""Tables of keys that forget by log time, so that they are bounded by it.

Across a boundary the horizon changes. Between two records the shortest horizon of all generations
from the earlier one's to the later one's counts: so no table ever has to remember what an earlier
generation has let go.
"""

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class RecentKeys(Generic[K]):
    """When each key was last seen, for as long as that matters.

    Args:
        horizon_ms: a key is a repeat up to and including this long after it was last seen.
    """

    __slots__ = ("_horizon_ms", "_last", "_older", "_queue")

    def __init__(self, horizon_ms: int) -> None:
        self._horizon_ms = horizon_ms
        self._last: dict[K, int] = {}
        self._queue: deque[tuple[int, K]] = deque()
        # What was seen under other horizons, newest first, while it may matter.
        self._older: list[RecentKeys[K]] = []

    def see(self, key: K, time_ms: int) -> bool:
        """Note a key, and whether it is a repeat. Times never fall.

        >>> keys = RecentKeys[str](10)
        >>> [keys.see("a", time) for time in (0, 10, 20, 31)]
        [False, True, True, False]
        """
        last = self._last.get(key, None)
        if last != time_ms:
            self._last[key] = time_ms
            self._queue.append((time_ms, key))
        if last is None and self._older:
            return self._repeats_older(key, time_ms)
        return last is not None and time_ms - last <= self._horizon_ms

    def change(self, horizon_ms: int) -> None:
        """Go by another horizon from the next key on.

        >>> keys = RecentKeys[str](10)
        >>> _ = keys.see("a", 0), keys.see("b", 0)
        >>> keys.change(20)
        >>> keys.see("a", 11), keys.see("b", 10), keys.see("b", 30)
        (False, True, True)
        """
        before = RecentKeys[K](self._horizon_ms)
        before._last, before._queue = self._last, self._queue
        self._last, self._queue, self._horizon_ms = {}, deque(), horizon_ms
        self._older.insert(0, before)
        for older in self._older:
            older._horizon_ms = min(older._horizon_ms, horizon_ms)

    def forget(self, time_ms: int) -> None:
        """Forget what cannot matter to a key seen at this time or later."""
        queue, limit = self._queue, time_ms - self._horizon_ms
        while queue and queue[0][0] < limit:
            seen, key = queue.popleft()
            if self._last.get(key) == seen:
                del self._last[key]
        for older in self._older:
            older.forget(time_ms)
        while self._older and not self._older[-1]._queue:
            self._older.pop()

    def _repeats_older(self, key: K, time_ms: int) -> bool:
        for older in self._older:
            last = older._last.get(key)
            if last is not None:
                return time_ms - last <= older._horizon_ms
        return False


class RecentVolume(Generic[K]):
    """How many bytes each key has brought within a horizon, up to and including it.

    Args:
        horizon_ms: how long a record counts.
    """

    __slots__ = ("_older", "_queue", "_total")

    def __init__(self, horizon_ms: int) -> None:
        self._queue = _Volumes[K](horizon_ms)
        # What was counted under other horizons, newest first, while it counts.
        self._older: list[_Volumes[K]] = []
        self._total: dict[K, int] = {}

    def add(self, key: K, time_ms: int, size: int) -> int:
        """Count a record; returns the key's total with it. Times never fall.

        >>> volume = RecentVolume[str](10)
        >>> [volume.add("a", time, 3) for time in (0, 10, 11)]
        [3, 6, 6]
        """
        queue = self._queue
        if self._older or (queue and queue[0][0] < time_ms - queue.horizon_ms):
            self.forget(time_ms)
        queue.append((time_ms, key, size))
        total = self._total.get(key, 0) + size
        self._total[key] = total
        return total

    def change(self, horizon_ms: int) -> None:
        """Go by another horizon from the next record on.

        >>> volume = RecentVolume[str](10)
        >>> _ = volume.add("a", 0, 3)
        >>> volume.change(5)
        >>> [volume.add("a", time, 1) for time in (5, 6)]
        [4, 2]
        """
        self._older.insert(0, self._queue)
        self._queue = _Volumes[K](horizon_ms)
        for older in self._older:
            older.horizon_ms = min(older.horizon_ms, horizon_ms)

    def forget(self, time_ms: int) -> None:
        """Forget what does not count at this time or later."""
        self._queue.forget(time_ms, self._total)
        if self._older:
            for older in self._older:
                older.forget(time_ms, self._total)
            self._older = [each for each in self._older if each]


class _Volumes(deque[tuple[int, K, int]]):
    """[time, key, size] of what was counted under one horizon."""

    __slots__ = ("horizon_ms",)

    def __init__(self, horizon_ms: int) -> None:
        super().__init__()
        self.horizon_ms = horizon_ms

    def forget(self, time_ms: int, total: dict[K, int]) -> None:
        """Take what no longer counts at this time or later out of the totals."""
        limit = time_ms - self.horizon_ms
        while self and self[0][0] < limit:
            _, key, size = self.popleft()
            left = total[key] - size
            if left:
                total[key] = left
            else:
                del total[key]
