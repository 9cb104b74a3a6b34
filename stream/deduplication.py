"""Tables of keys that forget by log time, so that they are bounded by it."""

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class RecentKeys(Generic[K]):
    """When each key was last seen, for as long as that matters.

    Args:
        horizon_ms: a key is a repeat up to and including this long after it was last seen.
    """

    __slots__ = ("_horizon_ms", "_last", "_queue")

    def __init__(self, horizon_ms: int) -> None:
        self._horizon_ms = horizon_ms
        self._last: dict[K, int] = {}
        self._queue: deque[tuple[int, K]] = deque()

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
        return last is not None and time_ms - last <= self._horizon_ms

    def forget(self, time_ms: int) -> None:
        """Forget what cannot matter to a key seen at this time or later."""
        queue, limit = self._queue, time_ms - self._horizon_ms
        while queue and queue[0][0] < limit:
            seen, key = queue.popleft()
            if self._last.get(key) == seen:
                del self._last[key]


class RecentVolume(Generic[K]):
    """How many bytes each key has brought within a horizon, up to and including it.

    Args:
        horizon_ms: how long a record counts.
    """

    __slots__ = ("_horizon_ms", "_queue", "_total")

    def __init__(self, horizon_ms: int) -> None:
        self._horizon_ms = horizon_ms
        self._total: dict[K, int] = {}
        self._queue: deque[tuple[int, K, int]] = deque()

    def add(self, key: K, time_ms: int, size: int) -> int:
        """Count a record; returns the key's total with it. Times never fall.

        >>> volume = RecentVolume[str](10)
        >>> [volume.add("a", time, 3) for time in (0, 10, 11)]
        [3, 6, 6]
        """
        self.forget(time_ms)
        self._queue.append((time_ms, key, size))
        total = self._total.get(key, 0) + size
        self._total[key] = total
        return total

    def forget(self, time_ms: int) -> None:
        """Forget what does not count at this time or later."""
        queue, total, limit = self._queue, self._total, time_ms - self._horizon_ms
        while queue and queue[0][0] < limit:
            _, key, size = queue.popleft()
            left = total[key] - size
            if left:
                total[key] = left
            else:
                del total[key]
