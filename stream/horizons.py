"""How far back the logs still matter, across the boundaries of generations.

How far back a new owner must begin to read depends on W, E and L, so on the generations that still
matter: from the oldest that is in force at a rewind to the newest that is in force in either log at
A. Each horizon is the longest among these (`Horizons`). Where a boundary makes them longer, what
had been let go stays gone, and nobody asks for it: between two records the shorter of two horizons
counts (stream/deduplication.py). Once both rewinds have passed a boundary, the generations before
it count no more.
"""

from collections.abc import Mapping

from policy.errors import BoundaryError
from stream.terms import Terms


class Horizons:
    """How far before the frontier the logs still matter.

    Args:
        terms: of every generation that is known; grows as boundaries are met.
        oldest: the oldest generation that matters.
        newest: the newest.

    Raises:
        BoundaryError: one of the generations is not known.
    """

    __slots__ = ("conversion_rewind_ms", "impression_rewind_ms", "newest", "oldest")

    def __init__(self, terms: Mapping[int, Terms], oldest: int, newest: int) -> None:
        self.oldest, self.newest = oldest, newest
        settings = [known(terms, number).settings for number in range(oldest, newest + 1)]
        window_ms = max(each.window_ms for each in settings)
        early_ms = max(each.early_ms for each in settings)
        late_ms = max(each.late_ms for each in settings)
        self.impression_rewind_ms = early_ms + late_ms + (window_ms + early_ms)
        """E + L + D."""
        self.conversion_rewind_ms = early_ms + (late_ms + early_ms)
        """E + D_c."""


def known(terms: Mapping[int, Terms], generation: int) -> Terms:
    """The terms of a generation that something has been written under.

    Raises:
        BoundaryError: it is not known.
    """
    if generation not in terms:
        raise BoundaryError(
            f"expected one of the generations that are known ({_listed(terms)}), seen {generation}"
        )
    return terms[generation]


def _listed(terms: Mapping[int, Terms]) -> str:
    return ", ".join(map(str, sorted(terms))) or "none"
