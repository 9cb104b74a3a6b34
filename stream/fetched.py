"""Batches as aiokafka fetched them, in the portions and words of the join's core."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from stream.codec import has_boundary_header, has_tick_header
from stream.join_records import Record

LARGEST_FEED = 1_000
"""Records that are fed at a time, so that no partition keeps the others waiting for long."""


def portions(fetched: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Parts of about the same size: feeding has a fixed cost, also for the last one.

    >>> [len(portion) for portion in portions(range(2_001))]
    [667, 667, 667]
    """
    parts = -(-len(fetched) // LARGEST_FEED)
    bounds = [len(fetched) * part // parts for part in range(parts + 1)]
    for start, end in pairwise(bounds):
        yield fetched[start:end]


def records_from(fetched: Sequence[Any], position: int) -> list[Record]:
    """The records from an offset on, which are those that have not been read yet.

    Args:
        fetched: consecutive records as aiokafka gives them.
        position: the offset.
    """
    return [
        Record(
            each.offset,
            each.timestamp,
            each.key,
            each.value,
            has_tick_header(each.headers),
            has_boundary_header(each.headers),
        )
        for each in fetched
        if each.offset >= position
    ]
