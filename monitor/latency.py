"""How long a closed window takes until a version that learned from it serves."""

from bisect import bisect_right

import numpy as np


class CloseToServed:
    """Latency of each reward group: from its close time to the first swap that covers it.

    A swap covers a group when its version learned up to the end of the slot that the group closed
    in; slots may have another length in another generation, so it is their ends that count.
    Close times are the log's, swap times the server's clock: on several machines their skew counts.

    >>> latency = CloseToServed()
    >>> latency.group(1_100)                              # in the slot from 1,000 to 1,250
    >>> latency.swap(slot=3, slot_ms=250, wall_ms=1_200)  # does not cover it
    >>> latency.swap(slot=4, slot_ms=250, wall_ms=1_350)
    >>> latency.percentiles([50])
    [250.0]
    """

    def __init__(self) -> None:
        self._ends: list[int] = []  # rising: a swap to an older slot covers nothing new
        self._walls: list[int] = []
        self._waiting: list[int] = []
        self._latencies: list[int] = []

    @property
    def waiting(self) -> int:
        """Groups that no served version covers yet."""
        return len(self._waiting)

    @property
    def latencies_ms(self) -> list[int]:
        """Latency of every covered group so far, in milliseconds, in the order of covering."""
        return self._latencies

    def group(self, close_time_ms: int) -> None:
        """A group closed at this log time, in milliseconds since 1970 UTC."""
        at = bisect_right(self._ends, close_time_ms)
        if at < len(self._ends):
            self._latencies.append(self._walls[at] - close_time_ms)
        else:
            self._waiting.append(close_time_ms)

    def swap(self, slot: int, slot_ms: int, wall_ms: int) -> None:
        """A version that learned up to a slot began to serve at `wall_ms`; call in rising order."""
        end_ms = (slot + 1) * slot_ms
        if self._ends and end_ms <= self._ends[-1]:
            return
        self._ends.append(end_ms)
        self._walls.append(wall_ms)
        self._latencies += [wall_ms - close for close in self._waiting if close < end_ms]
        self._waiting = [close for close in self._waiting if close >= end_ms]

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
