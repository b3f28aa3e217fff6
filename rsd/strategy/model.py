"""What agreement says about scores, and what one grade says about other candidates. Pure.

The score of candidate i of an image, in points from 0 to 100:

    score_i = M + c (level - L0) + b (agree_i - level)(1 - 1/n) + h (share_i - mean share)
              + u + g_i + noise

`u` is the image's own, with variance V. `g_i` is what agreement leaves unexplained; candidates
with the same claims err together: Cov(g_i, g_j) = t1 C_ij, and t2 C_ii + t3 more for i = j, with

    C_ij = sum over claims e of both of p_e (1 - p_e) a_i a_j,    a_i = 200 / (size_i + mean size),

p_e the share of the n candidates with claim e. The noise is the grader's, with variance tau2.
With b = h = t1 = 0 this is plain grading with shrinkage. All state is sums, all of it is closed
form: a Bayesian linear mixed model, and the knowledge gradient of Frazier, Powell and Dayanik
("The knowledge-gradient policy for correlated normal beliefs", 2009).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from math import fsum, sqrt
from typing import Final

import msgspec

from rsd.protocol.learned import ConsensusSums
from rsd.strategy.agreement import Claim, Features
from rsd.strategy.linalg import Matrix, Vector, dot, multiply, pack, solve, unpack

#: Distinct candidates of an image between which covariances are kept: 72 x 72 numbers.
MOST_DISTINCT: Final = 72
#: Values that differ by less are a tie, and the lowest index wins it.
TIE: Final = 1e-9
#: What an image counts for after the next one.
FORGET: Final = 0.997

#: Of level, between images, within an image, frequency: points, and points per unit.
PRIOR_WEIGHTS: Final = (70.0, 60.0, 60.0, 0.0)
PRIOR_WEIGHTS_SD: Final = (20.0, 40.0, 40.0, 20.0)
#: Of t1, t2 (both without unit) and t3 (points squared).
PRIOR_SPREAD: Final = (0.6, 0.1, 40.0)
PRIOR_SPREAD_SD: Final = (0.3, 0.2, 40.0)
#: Points squared: no image is the like of another, no candidate known without a grade.
LEAST_IMAGE_VARIANCE: Final = 16.0
LEAST_OWN_VARIANCE: Final = 4.0
#: Points below the median of an image at which a score is cut before it is learned from.
WORST: Final = 40.0

_QUANTILES = (0.168, 0.341, 0.524, 0.728, 0.967, 1.282, 1.834)
_SCALE = sqrt(2 * fsum(z * z for z in _QUANTILES) / 15)
#: Fifteen equally likely values of a standard normal, of variance 1.
NORMAL: Final = tuple(z / _SCALE for z in (*(-z for z in _QUANTILES[::-1]), 0.0, *_QUANTILES))

Utility = Callable[[float], float]


def highest(values: Sequence[float]) -> int:
    """Index of the highest value, of ties the lowest. Raises ValueError when there is none."""
    top = max(values)
    return next(i for i, value in enumerate(values) if value >= top - TIE)


def overlap(
    sets: Sequence[Collection[Claim]], vote: dict[Claim, int], n: int, mean_size: float
) -> Matrix:
    """The matrix C of some candidates, in points squared.

    `vote` counts the candidates with a claim among all n, `mean_size` is their mean number of
    claims. The sums are of integers, so that no order of claims matters.
    """
    numbers: dict[frozenset[Claim], int] = {}
    of = [numbers.setdefault(frozenset(s), len(numbers)) for s in sets]
    weights = {claim: votes * (n - votes) for claim, votes in vote.items()}
    held: dict[Claim, int] = {}
    for s in numbers:
        for claim in s:
            held[claim] = held.get(claim, 0) + 1
    # A claim that all have explains nothing; one of a single set speaks for nobody else.
    shared = [claim for claim, holders in held.items() if holders > 1 and weights[claim]]
    place = {claim: k for k, claim in enumerate(shared)}
    masks = [_bits((place[e] for e in s if e in place), len(shared)) for s in numbers]
    scale = [200.0 / max(len(s) + mean_size, TIE) / n for s in numbers]
    # The weights as binary numbers: a digit of a sum is a count of bits.
    digits = max((weights[claim] for claim in shared), default=0).bit_length()
    planes: list[list[int]] = []
    for b in range(digits):
        plane = _bits((k for k, e in enumerate(shared) if weights[e] >> b & 1), len(shared))
        planes.append([mask & plane for mask in masks])
    table = [[0.0] * len(numbers) for _ in numbers]
    for i, s in enumerate(numbers):
        both = [0] * i
        for b, plane_masks in enumerate(planes):
            mine = plane_masks[i]
            both = [
                total + ((mine & mask).bit_count() << b)
                for total, mask in zip(both, plane_masks, strict=False)
            ]
        table[i][i] = sum(weights[claim] for claim in s) * scale[i] * scale[i]
        for j, total in enumerate(both):
            table[i][j] = table[j][i] = total * scale[i] * scale[j]
    return [[table[i][j] for j in of] for i in of]


def _bits(places: Iterable[int], size: int) -> int:
    """The number with these bits set, all below `size`."""
    found = bytearray(size // 8 + 1)
    for k in places:
        found[k >> 3] |= 1 << (k & 7)
    return int.from_bytes(found, "little")


@dataclass(frozen=True, slots=True)
class Look:
    """The distinct candidates of an image as the model sees them, before any grade."""

    candidates: tuple[int, ...]  #: index among the texts of each distinct candidate
    agree: tuple[float, ...]  #: of each with the other texts, 0 to 1
    share: tuple[float, ...]  #: of the n texts that are equal to it
    overlap: Matrix  #: the matrix C
    level: float  #: mean agreement of the n texts
    n: int  #: texts
    distinct: int  #: different texts, those included that were left out

    @staticmethod
    def of(features: Features, same: Sequence[int], chosen: Sequence[int] | None = None) -> Look:
        """The candidates `chosen`, all different ones by default.

        `same` has the lowest index of an equal text for each text, as `agreement.duplicates` says;
        only such indices may be chosen. Raises ValueError for more than MOST_DISTINCT.
        """
        n = len(same)
        counts: dict[int, int] = {}
        for i in same:
            counts[i] = counts.get(i, 0) + 1
        kept = tuple(sorted(counts)) if chosen is None else tuple(chosen)
        if len(kept) > MOST_DISTINCT:
            raise ValueError(f"{len(kept)} distinct candidates, of at most {MOST_DISTINCT}")
        groups = [features.group[i] for i in kept]
        sets = [features.sets[g] for g in groups]
        total = sum(len(s) * k for s, k in zip(features.sets, features.size, strict=True))
        return Look(
            candidates=kept,
            agree=tuple(features.agree[g] for g in groups),
            share=tuple(counts[i] / n for i in kept),
            overlap=overlap(sets, features.vote, n, total / n) if n else [],
            level=features.level,
            n=n,
            distinct=len(counts),
        )


@dataclass(frozen=True, slots=True)
class Consensus:
    """The model solved from its sums: a constant of an image's decision."""

    weights: tuple[float, ...]  #: M, c, b, h
    spread: tuple[float, ...]  #: t1, t2, t3
    image_variance: float  #: V
    mean_level: float  #: L0
    tau2: float  #: variance of the grader's noise

    @staticmethod
    def of(sums: ConsensusSums, tau2: float, *, voting: bool = True) -> Consensus:
        """Without `voting`, agreement says nothing: plain grading with shrinkage."""
        weights = _posterior(sums.information, sums.moments, PRIOR_WEIGHTS, PRIOR_WEIGHTS_SD)
        if not voting:
            weights[1:] = [0.0, 0.0, 0.0]
        # Every product of residuals stands for two candidates: half of what it seems to say.
        cross = [x / 2 for x in sums.cross]
        moments = [x / 2 for x in sums.cross_moments]
        free = [0, 1, 2] if voting else [2]
        spread = [0.0, 0.0, 0.0]
        while free:
            found = _posterior(cross, moments, PRIOR_SPREAD, PRIOR_SPREAD_SD, free)
            worst = min(range(len(free)), key=found.__getitem__)
            if found[worst] >= 0.0:
                for k, value in zip(free, found, strict=True):
                    spread[k] = value
                break
            del free[worst]
        spread[2] = max(spread[2], LEAST_OWN_VARIANCE)
        return Consensus(
            weights=tuple(weights),
            spread=tuple(spread),
            image_variance=max(sums.image_sum / sums.image_count, LEAST_IMAGE_VARIANCE),
            mean_level=sums.level_sum / sums.level_count,
            tau2=tau2,
        )

    def expected(self, agree: float, share: float, level: float, n: int, distinct: int) -> float:
        """Mean quality, in points, of a candidate of an image before any grade."""
        return dot(self._row(agree, share, level, n, distinct), self.weights)

    def choose(
        self, features: Features, same: Sequence[int], graded: Sequence[int] = ()
    ) -> tuple[int, ...]:
        """The distinct candidates that enter a `Look`, by index: at most MOST_DISTINCT.

        `graded` come first, in the order of their importance; then those that promise most.
        """
        n = len(same)
        counts: dict[int, int] = {}
        for i in same:
            counts[i] = counts.get(i, 0) + 1
        if len(counts) <= MOST_DISTINCT:
            return tuple(sorted(counts))
        known = dict.fromkeys(graded)
        promise = {
            i: self.expected(
                features.agree[features.group[i]], k / n, features.level, n, len(counts)
            )
            for i, k in counts.items()
            if i not in known
        }
        others = sorted(promise, key=lambda i: (-round(promise[i] / TIE), i))
        return tuple(sorted([*known, *others][:MOST_DISTINCT]))

    def prior(self, look: Look) -> tuple[Vector, Matrix]:
        """Mean and covariance of the candidates' quality before any grade; points, and squared."""
        covariance = [[self.image_variance + x for x in row] for row in self.own(look.overlap)]
        return multiply(self.rows(look), self.weights), covariance

    def rows(self, look: Look) -> Matrix:
        """What the weights are multiplied with, for each candidate."""
        return [
            self._row(agree, share, look.level, look.n, look.distinct)
            for agree, share in zip(look.agree, look.share, strict=True)
        ]

    def level_of(self, look: Look) -> float:
        """How much the image's candidates agree; one alone has nobody to agree with."""
        return look.level if look.n > 1 else self.mean_level

    def _row(self, agree: float, share: float, level: float, n: int, distinct: int) -> Vector:
        if n < 2:
            return [1.0, 0.0, 0.0, 0.0]
        within = (agree - level) * (1 - 1 / n)
        return [1.0, level - self.mean_level, within, share - 1 / distinct]

    def own(self, table: Matrix) -> Matrix:
        """Covariance without the image's effect, of a matrix C."""
        t1, t2, t3 = self.spread
        found = [[t1 * x for x in row] for row in table]
        for i, row in enumerate(table):
            found[i][i] += t2 * row[i] + t3
        return found


def _posterior(
    information: Sequence[float],
    moments: Sequence[float],
    mean: Sequence[float],
    sd: Sequence[float],
    free: Sequence[int] | None = None,
) -> Vector:
    """Posterior means of a regression under independent normal priors, the others of `free` 0."""
    rows = unpack(information)
    free = range(len(rows)) if free is None else free
    left = [[rows[i][j] + (sd[i] ** -2.0 if i == j else 0.0) for j in free] for i in free]
    return solve(left, [moments[i] + mean[i] * sd[i] ** -2.0 for i in free])


@dataclass(slots=True)
class Posterior:
    """What is known of the candidates of one image: a Gaussian, narrowed by every grade."""

    mean: Vector
    covariance: Matrix
    tau2: float
    times: list[int] = field(default_factory=list)  #: grades of each candidate

    def __post_init__(self) -> None:
        self.times = self.times or [0] * len(self.mean)

    def copy(self) -> Posterior:
        """One that can be graded without changing this one."""
        return Posterior(list(self.mean), list(self.covariance), self.tau2, list(self.times))

    def grade(self, i: int, score: float | None) -> None:
        """One more grade of candidate i; None: under way, so that only the variances change."""
        row = self.covariance[i]
        total = row[i] + self.tau2
        gains = [x / total for x in row]
        if score is not None:
            off = score - self.mean[i]
            self.mean = [m + g * off for m, g in zip(self.mean, gains, strict=True)]
        # Rows are replaced, never changed: a copy shares them.
        self.covariance = [
            [x - g * y for x, y in zip(old, row, strict=True)]
            for old, g in zip(self.covariance, gains, strict=True)
        ]
        self.times[i] += 1

    def graded(self) -> list[int]:
        """The candidates with a grade."""
        return [i for i, times in enumerate(self.times) if times]

    def gain(self, ids: Sequence[int], utility: Utility) -> Vector:
        """Knowledge gradient: how far one more grade of each of `ids` raises the expected value.

        The value is `utility` of the best mean (points) among graded candidates, the one that is
        graded now included; it must not fall. Before the first grade it is 0.
        """
        done = self.graded()
        now = utility(max(self.mean[i] for i in done)) if done else 0.0
        return [self._value(i, done, utility) - now for i in ids]

    def _value(self, i: int, done: list[int], utility: Utility) -> float:
        """Expected value after a grade of candidate i, in fifteen cases."""
        row, mean = self.covariance[i], self.mean
        deviation = sqrt(row[i] + self.tau2)
        top, slope = mean[i], row[i] / deviation
        for k in done:
            if mean[k] > top:
                top, slope = mean[k], row[k] / deviation
        best = [top + slope * z for z in NORMAL]
        for k in done if self.times[i] else [*done, i]:
            other = row[k] / deviation
            # Both are lines: this one is never the upper one if it is not at an end.
            if abs(other - slope) * NORMAL[-1] > top - mean[k]:
                best = [max(x, mean[k] + other * z) for x, z in zip(best, NORMAL, strict=True)]
        return fsum(map(utility, best)) / len(NORMAL)


def learn_consensus(
    sums: ConsensusSums,
    consensus: Consensus,
    look: Look,
    ids: Sequence[int],
    scores: Sequence[float],
    forget: float = FORGET,
) -> ConsensusSums:
    """The sums after one more image; those of the arms are not touched.

    `ids` are the graded candidates as places in the look, `scores` their first scores; `consensus`
    is what `sums` were solved to. The image's effect is taken out by quasi-demeaning (Fuller and
    Battese, 1973), the spread is learned from products of centred residuals.
    """
    information = [x * forget for x in sums.information]
    moments = [x * forget for x in sums.moments]
    cross = [x * forget for x in sums.cross]
    cross_moments = [x * forget for x in sums.cross_moments]
    image_count, image_sum = sums.image_count * forget, sums.image_sum * forget
    k = len(ids)
    if k:
        middle = _median(scores)
        y = [max(score, middle - WORST) for score in scores]
        every = consensus.rows(look)
        x = [every[i] for i in ids]
        table = [[look.overlap[i][j] for j in ids] for i in ids]
        own = consensus.own(table)
        scale = fsum(own[i][i] for i in range(k)) / k + consensus.tau2
        # How much of the image's mean is taken off: all of it only when images differ endlessly.
        off = 1 - sqrt(scale / (scale + k * consensus.image_variance))
        columns = [_shifted(column, off) for column in zip(*x, strict=True)]
        target = _shifted(y, off)
        products = [[dot(a, b) / scale for b in columns] for a in columns]
        information = _added(information, pack(products))
        moments = _added(moments, [dot(a, target) / scale for a in columns])
        rest = [a - b for a, b in zip(y, multiply(x, consensus.weights), strict=True)]
        mean = fsum(rest) / k
        image_count += 1
        image_sum += mean * mean - fsum(map(fsum, own)) / (k * k) - consensus.tau2 / k
        if k > 1:
            features, seen = _products(table, _shifted(rest, 1.0), consensus.tau2, scale)
            cross = _added(cross, pack([[dot(a, b) for b in features] for a in features]))
            cross_moments = _added(cross_moments, [dot(a, seen) for a in features])
    return msgspec.structs.replace(
        sums,
        information=tuple(information),
        moments=tuple(moments),
        cross=tuple(cross),
        cross_moments=tuple(cross_moments),
        level_count=sums.level_count * forget + 1,
        level_sum=sums.level_sum * forget + consensus.level_of(look),
        image_count=image_count,
        image_sum=image_sum,
    )


def _products(
    table: Matrix, rest: Vector, tau2: float, scale: float
) -> tuple[tuple[Vector, Vector, Vector], Vector]:
    """For each pair of candidates: what t1, t2, t3 are multiplied with, and what was seen."""
    k = len(rest)
    pairs = [(i, j) for i in range(k) for j in range(i, k)]
    centring = [[float(i == j) - 1 / k for j in range(k)] for i in range(k)]
    together = _centred(table)
    alone = _centred([[table[i][j] * (i == j) for j in range(k)] for i in range(k)])
    features = (
        [together[i][j] / scale for i, j in pairs],
        [alone[i][j] / scale for i, j in pairs],
        [centring[i][j] / scale for i, j in pairs],
    )
    return features, [(rest[i] * rest[j] - tau2 * centring[i][j]) / scale for i, j in pairs]


def _centred(table: Matrix) -> Matrix:
    """A symmetric matrix less the means of its rows and of its columns."""
    means = [fsum(row) / len(table) for row in table]
    whole = fsum(means) / len(table)
    return [
        [x - a - b + whole for x, b in zip(row, means, strict=True)]
        for row, a in zip(table, means, strict=True)
    ]


def _shifted(values: Sequence[float], off: float) -> Vector:
    """The values less this share of their mean."""
    mean = off * fsum(values) / len(values)
    return [x - mean for x in values]


def _added(left: Sequence[float], right: Sequence[float]) -> Vector:
    return [a + b for a, b in zip(left, right, strict=True)]


def _median(values: Sequence[float]) -> float:
    """The middle one, or the mean of the two in the middle."""
    rising = sorted(values)
    half = len(rising) // 2
    return rising[half] if len(rising) % 2 else (rising[half - 1] + rising[half]) / 2
