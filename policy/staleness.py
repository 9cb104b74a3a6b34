"""Which served groups are too old to be learned from as served. Pure; numpy only."""

import numpy as np
import numpy.typing as npt

Flags = npt.NDArray[np.bool_]
Versions = npt.NDArray[np.uint64]


def stale(decided: Versions, epoch: int, version: int, cap: int | None) -> Flags:
    """Groups of another epoch, and those that more than so many versions have followed.

    1[e ≠ epoch or version - v > cap]. Importance weights correct for what has been learned since a
    group was served, but their clip makes them biased, and the more, the older the group is.

    Args:
        decided: [request, (epoch, version)] that decided.
        epoch: of the learner.
        version: the last one that the learner has made in its epoch, 0 before the first.
        cap: most versions that a group may lag behind; None: nothing is stale.

    Returns:
        [request]

    Reference: staleness-aware training, with the bound η, of AReaL, arXiv:2505.24298.

    >>> stale(np.array([[1, 7], [1, 6], [0, 9]], dtype=np.uint64), 1, 9, 2).tolist()
    [False, True, True]
    """
    if cap is None:
        return np.zeros(len(decided), dtype=np.bool_)
    # Compared, not subtracted: a caller's version may be any unsigned number.
    oldest = np.uint64(max(0, version - cap))
    return np.asarray((decided[:, 0] != np.uint64(epoch)) | (decided[:, 1] < oldest))
