"""How long a closed window takes until a version that learned from it serves."""

from bisect import bisect_left

import numpy as np


class CloseToServed:
    """Latency of each reward group: from its close time to the first swap that covers it.

    A swap covers a group when its version learned up to the group's slot or a later one.
    Close times are the log's, swap times the server's clock: on several machines their skew counts.

    Args:
        slot_ms: length of a slot, in milliseconds.

    >>> latency = CloseToServed(slot_ms=250)
    >>> latency.group(1_100)                    # slot 4
    >>> latency.swap(slot=3, wall_ms=1_200)     # does not cover it
    >>> latency.swap(slot=4, wall_ms=1_350)
    >>> latency.percentiles([50])
    [250.0]
    """

    def __init__(self, slot_ms: int) -> None:
        self._slot_ms = slot_ms
        self._slots: list[int] = []  # rising: a swap to an older slot covers nothing new
        self._walls: list[int] = []
        self._waiting: dict[int, list[int]] = {}
        self._latencies: list[int] = []

    @property
    def waiting(self) -> int:
        """Groups that no served version covers yet."""
        return sum(len(closes) for closes in self._waiting.values())

    @property
    def latencies_ms(self) -> list[int]:
        """Latency of every covered group so far, in milliseconds, in the order of covering."""
        return self._latencies

    def group(self, close_time_ms: int) -> None:
        """A group closed at this log time, in milliseconds since 1970 UTC."""
        slot = close_time_ms // self._slot_ms
        at = bisect_left(self._slots, slot)
        if at < len(self._slots):
            self._latencies.append(self._walls[at] - close_time_ms)
        else:
            self._waiting.setdefault(slot, []).append(close_time_ms)

    def swap(self, slot: int, wall_ms: int) -> None:
        """A version that learned up to `slot` began to serve at `wall_ms`; call in rising order."""
        if self._slots and slot <= self._slots[-1]:
            return
        self._slots.append(slot)
        self._walls.append(wall_ms)
        for covered in [s for s in self._waiting if s <= slot]:
            self._latencies += [wall_ms - close for close in self._waiting.pop(covered)]

    def percentiles(self, which: list[float], last: int | None = None) -> list[float]:
        """Percentiles of the latencies in milliseconds; NaN while there is none.

        Args:
            which: percentiles, in [0, 100].
            last: of how many of the last groups; None takes all.
        """
        chosen = self._latencies if last is None else self._latencies[-last:]
        if not chosen:
            return [float("nan")] * len(which)
        return [float(p) for p in np.percentile(chosen, which)]
