"""Which arms next, and what images say about them. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from math import exp, floor, fsum
from typing import Final

import msgspec

from rsd.protocol.learned import ConsensusSums, Level, Regression
from rsd.protocol.vocabulary import Arm, Recipe, SamplingParams
from rsd.strategy.dice import Dice
from rsd.strategy.levels import PRIOR_SD, levels_of, levels_of_arm
from rsd.strategy.linalg import Matrix, Vector, cholesky, dot, inverse, multiply, pack, unpack

#: Combinations that are weighed in a choice; of more, a fixed random part.
ARMS_MAX: Final = 4096
#: Share of the images whose first candidate is of a uniformly drawn arm, and graded in any case.
EXPLORE_SHARE: Final = 0.25
#: Weight of a candidate without a grade beside one with: what is known of it was inferred.
UNGRADED_WEIGHT: Final = 0.5
#: Points squared: quality within an image is never taken to differ by less.
LEAST_SPREAD: Final = 9.0


@dataclass(frozen=True, slots=True)
class Arms:
    """The different arms of a recipe. At temperature 0 top-p and top-k make no difference, so that
    a prompt has one such arm, and an image draws it once.
    """

    arms: tuple[Arm, ...]
    places: tuple[tuple[int, ...], ...]  #: of the arms' levels among those of the recipe
    weights: tuple[int, ...]  #: combinations that each arm stands for

    @staticmethod
    def of(recipe: Recipe) -> Arms:
        """All of them, up to `ARMS_MAX`."""
        temperatures = tuple(dict.fromkeys(recipe.temperatures))
        tops = list(product(dict.fromkeys(recipe.top_ps), dict.fromkeys(recipe.top_ks)))
        at = {level: i for i, level in enumerate(levels_of(recipe))}
        keys = tuple(recipe.prompts)
        found: list[tuple[Arm, int]] = []
        for key, temperature, (top_p, top_k) in _some(keys, temperatures, tops):
            params = SamplingParams(
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                min_p=recipe.min_p,
                repetition_penalty=recipe.repetition_penalty,
            )
            if temperature > 0:
                found.append((Arm(prompt_key=key, params=params), 1))
            elif not found or found[-1][0].prompt_key != key or found[-1][0].params.temperature > 0:
                found.append((Arm(prompt_key=key, params=params), len(tops)))
        return Arms(
            arms=tuple(arm for arm, _ in found),
            places=tuple(tuple(at[x] for x in levels_of_arm(recipe, arm)) for arm, _ in found),
            weights=tuple(weight for _, weight in found),
        )

    def uniform(self, count: int, taken: Iterable[Arm], dice: Dice) -> list[Arm]:
        """Arms of equally likely combinations; fewer when none is left."""
        spent = _greedy(taken)
        chosen: list[Arm] = []
        for _ in range(count):
            free = [
                i for i, arm in enumerate(self.arms) if arm.prompt_key not in spent or _hot(arm)
            ]
            if not free:
                break
            arm = self.arms[free[dice.sample([self.weights[i] for i in free], 1)[0]]]
            chosen.append(arm)
            spent |= _greedy((arm,))
        return chosen

    def promising(
        self, effects: Effects, softness: float, count: int, taken: Iterable[Arm], dice: Dice
    ) -> list[Arm]:
        """Arms in proportion to exp(effect / softness), of effects as they may be: one draw from
        what is known of them (Thompson, 1933). Stratified: whole shares first, the rest by lot.

        Fewer than `count` when none is left. A sharp choice would do worse: votes need variety.
        """
        levels = effects.draw(dice)
        values = [fsum(levels[k] for k in places) for places in self.places]
        top = max(values)
        weights = [w * exp((v - top) / softness) for w, v in zip(self.weights, values, strict=True)]
        spent = _greedy(taken)
        room = [count if _hot(arm) else int(arm.prompt_key not in spent) for arm in self.arms]
        chosen: list[int] = []
        while len(chosen) < count:
            free = [i for i, k in enumerate(room) if k]
            if not free:
                break
            missing, total = count - len(chosen), fsum(weights[i] for i in free)
            shares = [weights[i] / total * missing for i in free]
            for i, share in zip(free, shares, strict=True):
                whole = min(floor(share), room[i], count - len(chosen))
                chosen += [i] * whole
                room[i] -= whole
            rest = [share % 1.0 if room[i] else 0.0 for i, share in zip(free, shares, strict=True)]
            lots = min(count - len(chosen), sum(r > 0 for r in rest))
            for k in dice.sample(rest, lots):
                chosen.append(free[k])
                room[free[k]] -= 1
        return together(self.arms[chosen[k]] for k in dice.permutation(len(chosen)))


def together(arms: Iterable[Arm]) -> list[Arm]:
    """Equal arms side by side, so that they can share one request with `n`."""
    counts = Counter(arms)
    return [arm for arm, count in counts.items() for _ in range(count)]


def _some(
    keys: Sequence[str], temperatures: Sequence[float], tops: Sequence[tuple[float, int]]
) -> Iterable[tuple[str, float, tuple[float, int]]]:
    total = len(keys) * len(temperatures) * len(tops)
    if total <= ARMS_MAX:
        return product(keys, temperatures, tops)
    dice = Dice(0, "", 0, "arms")
    numbers: set[int] = set()
    while len(numbers) < ARMS_MAX:
        numbers.add(dice.below(total))
    found = []
    for number in sorted(numbers):
        rest, top = divmod(number, len(tops))
        key, temperature = divmod(rest, len(temperatures))
        found.append((keys[key], temperatures[temperature], tops[top]))
    return found


def _hot(arm: Arm) -> bool:
    return arm.params.temperature > 0


def _greedy(arms: Iterable[Arm]) -> set[str]:
    """Prompts that were asked at temperature 0."""
    return {arm.prompt_key for arm in arms if not _hot(arm)}


def explores(recipe: Recipe, sha256: str) -> bool:
    """Whether the image's first candidate is drawn uniformly and graded whatever its text says;
    not when one grade is all that there may be.
    """
    lot = Dice(recipe.seed, sha256, 0, "explore").uniform()
    return lot < EXPLORE_SHARE and recipe.grades_max > 1


@dataclass(frozen=True, slots=True)
class Effects:
    """What is known of the effects of some levels on quality, in points: a Gaussian."""

    levels: tuple[Level, ...]
    mean: Vector
    covariance: Matrix
    lower: Matrix  #: of its Cholesky decomposition

    @staticmethod
    def of(
        sums: Regression, known: Sequence[Level], wanted: Collection[Level], spread: float
    ) -> Effects:
        """Effects of the `wanted` levels, from sums over the `known` ones. `spread` is the variance
        of quality within an image. A level that is not known is at its prior.
        """
        new = [level for level in wanted if level not in set(known)]
        order = (*(known if sums.moments else ()), *(new if sums.moments else wanted))
        size, seen = len(order), len(sums.moments)
        rows = [[0.0] * size for _ in range(size)]
        for i, row in enumerate(unpack(sums.information)):
            rows[i][:seen] = [x / spread for x in row]
        for i, level in enumerate(order):
            rows[i][i] += PRIOR_SD[level.factor] ** -2.0
        covariance = inverse(rows)
        mean = multiply(covariance, [x / spread for x in sums.moments] + [0.0] * (size - seen))
        at = {level: i for i, level in enumerate(order)}
        kept = [at[level] for level in wanted]
        part = [[covariance[i][j] for j in kept] for i in kept]
        # The inverse is rounded: what is definite by nature must stay so.
        safe = [[x + 1e-9 * (i == j) for j, x in enumerate(row)] for i, row in enumerate(part)]
        return Effects(tuple(wanted), [mean[i] for i in kept], part, cholesky(safe))

    def draw(self, dice: Dice) -> Vector:
        """Effects as they may be."""
        noise = [dice.normal() for _ in self.mean]
        return [m + dot(row, noise) for m, row in zip(self.mean, self.lower, strict=True)]


def learn_arms(
    sums: ConsensusSums,
    effects: Effects,
    rows: Sequence[Sequence[int]],
    quality: Sequence[float],
    graded: Sequence[bool],
    forget: float,
) -> ConsensusSums:
    """The sums after one more image, of which all candidates count, graded or not: grading selects
    by text, so that averages over graded ones would flatter bad arms.

    `rows` are the places of each candidate's levels in the sums, `effects` what the sums were
    solved to, `quality` posterior means in points. The image's own level is taken out.
    """
    size = len(effects.levels)
    old = sums.arms
    information = (
        [[forget * x for x in row] for row in unpack(old.information)]
        if old.moments
        else [[0.0] * size for _ in range(size)]
    )
    moments = [forget * x for x in old.moments] if old.moments else [0.0] * size
    count, square = forget * sums.spread_count, forget * sums.spread_sum
    weights = [1.0 if known else UNGRADED_WEIGHT for known in graded]
    total = fsum(weights)
    if total > 1.0:
        design = [[float(k in row) for k in range(size)] for row in map(set, rows)]
        centre = [dot(weights, column) / total for column in zip(*design, strict=True)]
        middle = dot(weights, quality) / total
        for weight, row, value in zip(weights, design, quality, strict=True):
            x = [a - b for a, b in zip(row, centre, strict=True)]
            y = value - middle
            for i, xi in enumerate(x):
                if xi:
                    moments[i] += weight * xi * y
                    information[i] = [
                        a + weight * xi * b for a, b in zip(information[i], x, strict=True)
                    ]
            off = y - dot(x, effects.mean)
            square += weight * off * off
        count += total - 1.0
    return msgspec.structs.replace(
        sums,
        arms=Regression(information=pack(information), moments=tuple(moments)),
        spread_count=count,
        spread_sum=square,
    )


def spread_of(sums: ConsensusSums) -> float:
    """Variance of quality within an image, in points squared."""
    return max(sums.spread_sum / sums.spread_count, LEAST_SPREAD)
