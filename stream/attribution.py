"""Which conversion belongs to which impression (design §3, rules 4 and 5).

Accepted impressions of one request are more than D = W + E apart, so at most one has a conversion
in its window (a - E, a + W], and, since L - W ≤ D, at most one has it in its late horizon
(a + W, a + L]: there is never a choice to be made.
"""

from collections import deque
from collections.abc import Iterator

from grade.v1.conversion_pb2 import Conversion
from grade.v1.impression_pb2 import Impression

from stream.join_records import JoinSettings, Record
from stream.standing import OPEN


class PendingConversion:
    """A valid conversion that is no duplicate; `cell` is its [time, fate]."""

    __slots__ = ("cell", "message", "record", "time_ms")

    def __init__(self, record: Record, time_ms: int, message: Conversion, cell: list[int]) -> None:
        self.record = record
        self.time_ms = time_ms
        self.message = message
        self.cell = cell


class Window:
    """An accepted impression and the conversions that its attribution window has brought.

    The impression is kept as it was read: decoded it takes three times the memory.
    """

    __slots__ = ("earlier", "item_ids", "members", "offset", "request_id", "time_ms", "value")

    def __init__(self, record: Record, time_ms: int, impression: Impression) -> None:
        self.offset = record.offset
        self.time_ms = time_ms
        self.request_id = impression.request_id
        self.item_ids = tuple(impression.item_ids)
        self.value = record.value or b""
        self.members: list[PendingConversion] = []
        self.earlier: Window | None = None
        """The accepted impression of the same request before this one."""

    def close(self) -> None:
        """Let go of all that only an open window needs."""
        self.item_ids = ()
        self.value = b""
        self.members.clear()


class Attribution:
    """The accepted impressions that matter still, and the conversions that wait for one.

    Args:
        settings: W, E and L.
    """

    __slots__ = ("_accepted", "_retained", "_settings", "_waiting", "_waiting_of")

    def __init__(self, settings: JoinSettings) -> None:
        self._settings = settings
        # The newest accepted impression of each request, and all of them in offset order.
        self._accepted: dict[str, Window] = {}
        self._retained: deque[Window] = deque()
        # Conversions of which it is not known whether an impression follows, in offset order: all,
        # those decided since included; and by request, those only that wait.
        self._waiting: deque[PendingConversion] = deque()
        self._waiting_of: dict[str, deque[PendingConversion]] = {}

    @property
    def waiting(self) -> bool:
        """Whether a conversion waits for an impression."""
        return bool(self._waiting_of)

    def accept(self, window: Window) -> list[PendingConversion]:
        """Take up an accepted impression; times never fall.

        Returns:
            the waiting conversions that belong to it, in offset order; they wait no longer.
        """
        request_id = window.request_id
        window.earlier = self._accepted.get(request_id)
        self._accepted[request_id] = window
        self._retained.append(window)
        waiting = self._waiting_of.pop(request_id, None)
        if waiting is None:
            return []
        first, last = self._bounds(window)
        left = deque(each for each in waiting if not first < each.time_ms <= last)
        if left:
            self._waiting_of[request_id] = left
        return [each for each in waiting if first < each.time_ms <= last]

    def window_of(self, conversion: PendingConversion) -> Window | None:
        """The impression whose window a conversion lies in, as far as impressions are known."""
        time_ms, early_ms = conversion.time_ms, self._settings.early_ms
        window = self._accepted.get(conversion.message.request_id)
        while window is not None and time_ms <= window.time_ms - early_ms:
            window = window.earlier
        if window is None or time_ms > window.time_ms + self._settings.window_ms:
            return None
        return window

    def late_for(self, conversion: PendingConversion) -> Window | None:
        """The impression that a conversion without one came too late for; None for an orphan."""
        time_ms, window_ms = conversion.time_ms, self._settings.window_ms
        window = self._accepted.get(conversion.message.request_id)
        while window is not None and time_ms <= window.time_ms + window_ms:
            window = window.earlier
        if window is None or time_ms > window.time_ms + self._settings.late_ms:
            return None
        return window

    def wait(self, conversion: PendingConversion) -> None:
        """Let a conversion wait for an impression that may follow."""
        self._waiting.append(conversion)
        self._waiting_of.setdefault(conversion.message.request_id, deque()).append(conversion)

    def overdue(self, impressions_ms: int) -> Iterator[PendingConversion]:
        """Take the conversions that no impression can follow for any more: it ≥ t + E.

        Args:
            impressions_ms: time of the impression log.
        """
        waiting, limit = self._waiting, impressions_ms - self._settings.early_ms
        while waiting and waiting[0].time_ms <= limit:
            conversion = waiting.popleft()
            if conversion.cell[1] != OPEN:
                continue
            request_id = conversion.message.request_id
            mine = self._waiting_of[request_id]
            mine.popleft()
            if not mine:
                del self._waiting_of[request_id]
            yield conversion

    def forget(self, impressions_ms: int, conversions_ms: int) -> None:
        """Drop the impressions that no conversion to be decided can be late for.

        Such a conversion has t ≥ ct or, if it waits, t > it - E.
        """
        oldest = min(conversions_ms, impressions_ms - self._settings.early_ms)
        retained, limit = self._retained, oldest - self._settings.late_ms
        while retained and retained[0].time_ms < limit:
            window = retained.popleft()
            window.earlier = None
            if self._accepted[window.request_id] is window:
                del self._accepted[window.request_id]

    def _bounds(self, window: Window) -> tuple[int, int]:
        settings = self._settings
        return window.time_ms - settings.early_ms, window.time_ms + settings.window_ms
