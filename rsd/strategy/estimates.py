"""Means with their intervals, from sums. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from msgspec import Struct

from rsd.strategy.linalg import Matrix, Vector, dot, inverse, multiply

#: Fewer observations than this are marked: a mean of them is not worth a decision.
FEW: Final = 5
#: 97.5 % points of Student's t with 1, 2, ... degrees of freedom; beyond, the normal's are near.
STUDENT: Final = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
NORMAL: Final = 1.95996


class Estimate(Struct, frozen=True, kw_only=True):
    """A mean with its 95 % interval, and from how many observations it comes."""

    mean: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    few: bool = True  #: fewer than FEW observations


def mean_of(count: float, total: float, square: float, low: float, high: float) -> Estimate:
    """Mean and interval (Student's t) from sums, the interval cut to what is possible."""
    n = int(count)
    if n < 1:
        return Estimate()
    mean = total / n
    if n < 2:
        return Estimate(mean=mean, n=n)
    variance = max(square - n * mean * mean, 0.0) / (n - 1)
    half = student(n - 1) * math.sqrt(variance / n)
    return Estimate(
        mean=mean, low=max(mean - half, low), high=min(mean + half, high), n=n, few=n < FEW
    )


def share_of(part: int, whole: int) -> Estimate:
    """A share with its interval (Wilson 1927), which is sensible for 0 of 3, too."""
    if whole < 1:
        return Estimate()
    p, z = part / whole, NORMAL * NORMAL / whole
    middle = (p + z / 2) / (1 + z)
    half = math.sqrt(max(z * p * (1 - p) + z * z / 4, 0.0)) / (1 + z)
    low, high = max(middle - half, 0.0), min(middle + half, 1.0)
    return Estimate(mean=p, low=min(low, p), high=max(high, p), n=whole, few=whole < FEW)


def student(freedom: int) -> float:
    """The 97.5 % point of Student's t (beyond the table by its expansion at the normal's)."""
    if freedom <= len(STUDENT):
        return STUDENT[freedom - 1]
    z = NORMAL
    first = (z**3 + z) / (4 * freedom)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return z + first + second


def normal(mean: float, variance: float, n: int) -> Estimate:
    """A coefficient with its posterior variance; `n`: the images that it comes from."""
    half = NORMAL * math.sqrt(max(variance, 0.0))
    return Estimate(mean=mean, low=mean - half, high=mean + half, n=n, few=n < FEW)


def ratio(part: float, whole: float) -> float | None:
    """None where there is nothing to divide by."""
    return part / whole if whole > 0 else None


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Posterior of a regression."""

    mean: Vector
    covariance: Matrix

    def of(self, weights: Sequence[float]) -> tuple[float, float]:
        """Mean and variance of a weighted sum of its coefficients."""
        return dot(self.mean, weights), dot(multiply(self.covariance, weights), weights)


def posterior(
    information: Matrix, moments: Sequence[float], mean: Sequence[float], sd: Sequence[float]
) -> Gaussian:
    """Under independent normal priors; `information` is in units of the noise."""
    precision = [
        [x + (sd[i] ** -2.0 if i == j else 0.0) for j, x in enumerate(row)]
        for i, row in enumerate(information)
    ]
    covariance = inverse(precision)
    right = [h + m * s**-2.0 for h, m, s in zip(moments, mean, sd, strict=True)]
    return Gaussian(multiply(covariance, right), covariance)
