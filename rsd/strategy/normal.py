"""The standard normal distribution, and the middle of some numbers. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

_DENSITY_AT_0: Final = 1.0 / math.sqrt(2.0 * math.pi)
_ROOT_2: Final = math.sqrt(2.0)


def density(x: float) -> float:
    """phi(x)."""
    return _DENSITY_AT_0 * math.exp(-0.5 * x * x)


def cumulative(x: float) -> float:
    """Phi(x); exact in both tails."""
    return 0.5 * math.erfc(-x / _ROOT_2)


def expected_gain(mean: float, sd: float, best: float) -> float:
    """E[max(X - best, 0)] of a normal X ("expected improvement", Jones 1998); never negative."""
    if sd <= 0.0:
        return max(mean - best, 0.0)
    z = (mean - best) / sd
    return max(sd * (density(z) + z * cumulative(z)), 0.0)


def median(values: Sequence[float]) -> float:
    """The middle of the values, or the mean of both middle ones. Raises IndexError when empty."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2
