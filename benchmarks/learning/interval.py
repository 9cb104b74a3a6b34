"""A mean over seeds and how far it may be off."""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

_STUDENT_975: Final = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)
_NORMAL_975: Final = 1.96
"""[degrees of freedom - 1] quantiles of Student's t; beyond them the normal's is near enough."""


class Interval(NamedTuple):
    """A mean with its 95 % interval."""

    mean: float
    half: float
    """Half the width; NaN of one number."""

    @property
    def low(self) -> float:
        """Lower end."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end."""
        return self.mean + self.half


def interval(numbers: Sequence[float]) -> Interval:
    """Student's t interval of a mean of independent numbers.

    >>> [round(each, 3) for each in interval([1.0, 3.0])]  # 12.706 standard errors of 1
    [2.0, 12.706]
    """
    count = len(numbers)
    mean = math.fsum(numbers) / count
    if count < 2:
        return Interval(mean, math.nan)
    variance = math.fsum((each - mean) ** 2 for each in numbers) / (count - 1)
    quantile = _STUDENT_975[count - 2] if count - 2 < len(_STUDENT_975) else _NORMAL_975
    return Interval(mean, quantile * math.sqrt(variance / count))
