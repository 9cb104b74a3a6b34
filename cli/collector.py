"""Python's garbage collector in processes that keep many records in memory."""

import gc

ALLOCATIONS = 50_000
"""Net new containers after which the youngest are looked through; Python's default is 700."""


def relax_collector() -> None:
    """Look for cycles less often; call when everything has been imported.

    Records, windows and groups make no cycles, but every look walks over those that are held: with
    the default it took an eighth of the join's time (docs/performance.md).
    """
    gc.freeze()  # what has been imported stays, and need not be walked over
    gc.set_threshold(ALLOCATIONS, 20, 100)
