"""`grade` as a build that has a reward computation 2 beside the first one: `python -m` runs it.

The next version of the real code would have both; the real code of today stands for the old build.
"""

from typing import Any

from policy import rewards

NEWER = 2


def doubled(*arguments: Any) -> Any:
    """The first computation with every prior twice as large."""
    found = rewards.rewards_of(*arguments)
    for group in found:
        group.prior[:] = [2 * each for each in group.prior]
    return found


def install(computations: Any = rewards.COMPUTATIONS) -> None:
    """Add the newer computation to this process."""
    computations[NEWER] = doubled


if __name__ == "__main__":
    install()
    rewards.COMPUTATION = NEWER

    from cli.main import main

    main()
