"""What scores alone say of levels and images: the solved form of `PlainSums`. Pure.

    score of a candidate = mean of images + effects of its four levels + image + candidate + grader

An image's part is random with the variance `variance`, a candidate's with `spread` at its
temperature, the grader's with `repeat`; effects are normal around 0 (`levels.PRIOR_SD`). Points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from typing import Final

import msgspec

from rsd.protocol.learned import Learned, Level, PlainSums, TemperatureSums
from rsd.strategy.dice import Dice
from rsd.strategy.levels import PRIOR_SD, regrown
from rsd.strategy.linalg import Matrix, Vector, cholesky, solve, unpack

#: Variances below this are believed of no image and no grader.
LEAST_VARIANCE: Final = 25.0
#: A spread is a candidate's own for at least this share, however noisy the grader seems.
LEAST_SHARE: Final = 0.2
#: Pseudo-observations below which sums have faded into noise: the prior holds again.
FADED: Final = 1e-6


@dataclass(frozen=True, slots=True)
class PlainModel:
    """Effects by the index of the level; the others by that of the temperature's level."""

    effects: Vector
    factor: Matrix  #: lower Cholesky factor of the effects' information
    mean: float
    variance: float
    pool: float  #: spread over all temperatures, the grader's part included
    observed: dict[int, float]  #: the same of one temperature
    spread: dict[int, float]  #: without the grader's part; positive
    failing: dict[int, float]  #: share of visible failures
    repeat: float

    def drawn(self, dice: Dice) -> Vector:
        """Effects as they may be: one draw of their posterior (Thompson, 1933)."""
        size = len(self.effects)
        found = [dice.normal() for _ in range(size)]
        for i in reversed(range(size)):  # factor' x = z has the covariance of the effects
            later = fsum(self.factor[k][i] * found[k] for k in range(i + 1, size))
            found[i] = (found[i] - later) / self.factor[i][i]
        return [effect + x for effect, x in zip(self.effects, found, strict=True)]


def solve_of(learned: Learned, levels: Sequence[Level]) -> PlainModel:
    """The model of a record for levels in another order, those that it does not know included."""
    arms = regrown(learned.plain.arms, learned.levels, levels)
    plain = msgspec.structs.replace(learned.plain, arms=arms)
    return solve_plain(plain, levels, learned.repeat_sum / learned.repeat_count)


def solve_plain(plain: PlainSums, levels: Sequence[Level], repeat: float = 0.0) -> PlainModel:
    """`levels` in the order of the regression, which has all of them; `repeat` is the variance of
    the grader's repetitions.
    """
    prior = TemperatureSums()
    sums = {
        i: plain.temperatures.get(level.name, prior)
        for i, level in enumerate(levels)
        if level.factor == "temperature"
    }
    observed = {i: _share(s.spread_sum, s.spread_count, prior) for i, s in sums.items()}
    counts = fsum(s.spread_count for s in sums.values())
    pool = _share(fsum(s.spread_sum for s in sums.values()), counts, prior)
    information = [[x / pool for x in row] for row in unpack(plain.arms.information)]
    for i, level in enumerate(levels):
        information[i][i] += PRIOR_SD[level.factor] ** -2
    mean = plain.image_sum / plain.image_count
    return PlainModel(
        effects=solve(information, [x / pool for x in plain.arms.moments]),
        factor=cholesky(information),
        mean=mean,
        variance=max(plain.image_square / plain.image_count - mean**2, LEAST_VARIANCE),
        pool=pool,
        observed=observed,
        spread={i: max(r - repeat, LEAST_SHARE * r) for i, r in observed.items()},
        failing={i: s.failed / s.drawn for i, s in sums.items()},
        repeat=repeat,
    )


def _share(total: float, count: float, prior: TemperatureSums) -> float:
    """A variance of at least 1: grades of one value would leave nothing to divide by."""
    if count < FADED:
        return prior.spread_sum / prior.spread_count
    return max(total / count, 1.0)
