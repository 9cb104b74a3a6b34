"""Which conversion belongs to which impression (design §3, rules 4 and 5).

Accepted impressions of one request and one generation are more than D = W + E apart, so at most one
has a conversion in its window (a - E, a + W], and, since L - W ≤ D, at most one has it in its late
horizon (a + W, a + L]. Across a boundary, where D may have shrunk, there can be a choice: the
earlier impression's it is. W and L are those of the impression's generation, E is the shorter of
the impression's and the conversion's.
"""

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from grade.v1.conversion_pb2 import Conversion
from grade.v1.generation_pb2 import Generation
from grade.v1.impression_pb2 import Impression

from stream.join_records import Record, SoundImpression
from stream.standing import OPEN
from stream.terms import Terms


class PendingConversion:
    """A valid conversion that is no duplicate; `cell` is [when it is decided, fate]."""

    __slots__ = ("cell", "message", "record", "terms", "time_ms", "until_ms")

    def __init__(
        self, record: Record, time_ms: int, message: Conversion, terms: Terms, cell: list[int]
    ) -> None:
        self.record = record
        self.time_ms = time_ms
        self.message = message
        self.terms = terms
        self.cell = cell
        self.until_ms = cell[0]
        """Once impressions have been read up to here, none can follow that it belongs to."""


class Shown(NamedTuple):
    """The list that was shown."""

    item_ids: tuple[str, ...]
    positions: tuple[int, ...]
    """[item] 0 is the top."""


class Window:
    """An accepted impression and the conversions that its attribution window has brought.

    The impression is kept encoded: decoded it takes three times the memory, and few are asked for
    what was shown.
    """

    __slots__ = (
        "_shown",
        "close_ms",
        "earlier",
        "early_end_ms",
        "end_ms",
        "late_end_ms",
        "members",
        "offset",
        "request_id",
        "scores",
        "terms",
        "time_ms",
        "value",
        "weights",
    )

    def __init__(
        self,
        record: Record,
        time_ms: int,
        impression: SoundImpression,
        terms: Terms,
        least_close_ms: int,
    ) -> None:
        settings = terms.settings
        self.offset = record.offset
        self.time_ms = time_ms
        self.terms = terms
        self.early_end_ms = time_ms - settings.early_ms
        self.end_ms = time_ms + settings.window_ms
        self.late_end_ms = time_ms + settings.late_ms
        self.close_ms = max(self.end_ms, least_close_ms)
        """When its group may leave; later than its end if an earlier generation is still open."""
        self.request_id = impression.request_id
        self.value = impression.value
        self.scores = impression.scores
        self.weights = impression.weights
        self._shown: Shown | None = None
        self.members: list[PendingConversion] = []
        self.earlier: Window | None = None
        """The accepted impression of the same request before this one."""

    @property
    def shown(self) -> Shown:
        """The list that was shown."""
        if self._shown is None:
            impression = Impression.FromString(self.value)
            self._shown = Shown(tuple(impression.item_ids), tuple(impression.positions))
        return self._shown

    def holds(self, conversion: PendingConversion) -> bool:
        """Whether a conversion of its request lies in it."""
        time_ms = conversion.time_ms
        # E counted from both sides: the shorter one decides.
        return (
            self.time_ms < conversion.until_ms
            and self.early_end_ms < time_ms
            and time_ms <= self.end_ms
        )

    def close(self) -> None:
        """Let go of all that only an open window needs."""
        self._shown = None
        self.value = self.scores = self.weights = b""
        self.members.clear()


class Crossing(NamedTuple):
    """A boundary in the impression log; it leaves in its turn among the windows."""

    offset: int
    time_ms: int
    close_ms: int
    """By then every window of the generation that ends has closed."""
    terms: Terms
    """Of the generation that ends."""
    next: Generation


class Attribution:
    """The accepted impressions that matter still, and the conversions that wait for one."""

    __slots__ = ("_accepted", "_early_ms", "_retained", "_waiting", "_waiting_of")

    def __init__(self) -> None:
        # The newest accepted impression of each request, and all of them in offset order.
        self._accepted: dict[str, Window] = {}
        self._retained: deque[Window] = deque()
        # Conversions of which it is not known whether an impression follows, in offset order: by
        # how long they wait, those decided since included; and by request, those only that wait.
        self._waiting: dict[int, deque[PendingConversion]] = {}
        self._waiting_of: dict[str, deque[PendingConversion]] = {}
        # The longest that any has ever waited.
        self._early_ms = 0

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
        left = deque(each for each in waiting if not window.holds(each))
        if left:
            self._waiting_of[request_id] = left
        return [each for each in waiting if window.holds(each)]

    def window_of(self, conversion: PendingConversion) -> Window | None:
        """The impression whose window a conversion lies in, as far as impressions are known."""
        window = self._accepted.get(conversion.message.request_id)
        found = None
        while window is not None:
            if window.holds(conversion):
                found = window
            window = window.earlier
        return found

    def late_for(self, conversion: PendingConversion) -> Window | None:
        """The impression that a conversion without one came too late for; None for an orphan."""
        time_ms = conversion.time_ms
        window = self._accepted.get(conversion.message.request_id)
        found = None
        while window is not None:
            if window.end_ms < time_ms <= window.late_end_ms:
                found = window
            window = window.earlier
        return found

    def wait(self, conversion: PendingConversion) -> None:
        """Let a conversion wait for an impression that may follow."""
        early_ms = conversion.terms.settings.early_ms
        self._early_ms = max(self._early_ms, early_ms)
        self._waiting.setdefault(early_ms, deque()).append(conversion)
        self._waiting_of.setdefault(conversion.message.request_id, deque()).append(conversion)

    def overdue(self, impressions_ms: int) -> Iterator[PendingConversion]:
        """Take the conversions that no impression can follow for any more: it ≥ t + E.

        Args:
            impressions_ms: time of the impression log.
        """
        for waiting in self._waiting.values():
            while waiting and waiting[0].until_ms <= impressions_ms:
                conversion = waiting.popleft()
                if conversion.cell[1] != OPEN:
                    continue
                request_id = conversion.message.request_id
                mine = self._waiting_of[request_id]
                mine.remove(conversion)
                if not mine:
                    del self._waiting_of[request_id]
                yield conversion

    def forget(self, impressions_ms: int, conversions_ms: int) -> None:
        """Drop the impressions that no conversion to be decided can be late for.

        Such a conversion has t ≥ ct or, if it waits, t > it - E.
        """
        oldest = min(conversions_ms, impressions_ms - self._early_ms)
        retained = self._retained
        while retained and retained[0].late_end_ms < oldest:
            window = retained.popleft()
            window.earlier = None
            if self._accepted[window.request_id] is window:
                del self._accepted[window.request_id]
