"""What the scores of one image say, each by itself: no candidate speaks for another. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Final

from rsd.protocol.learned import Level
from rsd.protocol.vocabulary import Arm, Recipe
from rsd.strategy.base import Seen
from rsd.strategy.levels import levels_of_arm
from rsd.strategy.normal import median
from rsd.strategy.plain_model import PlainModel

#: An outlier says no more than this many points below the median about an image.
OUTLIER: Final = 30.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A text that a grader may see, of whichever candidates gave it."""

    index: int  #: the first of them, which is graded for all
    kept: int  #: the first with grades of its own, else `index`
    arm: Arm
    scores: tuple[float, ...]  #: grades of the text
    bought: int  #: gradings of it, those without a grade included


@dataclass(frozen=True, slots=True)
class Posterior:
    """What an image's scores say; lists are in the order of the graded answers."""

    answers: list[Answer]
    image: float  #: points above what the arms promise
    image_variance: float
    means: list[float]
    variances: list[float]


def answers_of(candidates: Sequence[Seen]) -> list[Answer]:
    """The different texts, by their first candidates; white space at the end makes no text."""
    groups: dict[str, list[Seen]] = {}
    for seen in candidates:
        if seen.text is not None and seen.gradable:
            groups.setdefault(seen.text.rstrip(), []).append(seen)
    return [
        Answer(
            index=same[0].index,
            kept=next((seen.index for seen in same if seen.scores), same[0].index),
            arm=same[0].arm,
            scores=tuple(score for seen in same for score in seen.scores),
            bought=sum(max(seen.bought, len(seen.scores)) for seen in same),
        )
        for same in groups.values()
    ]


def posterior_of(
    recipe: Recipe, place: Mapping[Level, int], model: PlainModel, answers: Sequence[Answer]
) -> Posterior:
    """Every score is shrunk towards what arm and image promise, by how well grades repeat.

    `place` has the model's levels; one that is missing is of no effect.
    """
    graded = [a for a in answers if a.scores]
    if not graded:
        return Posterior([], 0.0, model.variance, [], [])
    scores = [fsum(a.scores) / len(a.scores) for a in graded]
    levels = [[place[x] for x in levels_of_arm(recipe, a.arm) if x in place] for a in graded]
    expected = [model.mean + fsum(model.effects[i] for i in places) for places in levels]
    spreads = [
        next((model.spread[i] for i in places if i in model.spread), model.pool)
        for places in levels
    ]
    noises = [model.repeat / len(a.scores) for a in graded]
    above = [s - e for s, e in zip(scores, expected, strict=True)]
    least = median(above) - OUTLIER
    weights = [1.0 / (s + n) for s, n in zip(spreads, noises, strict=True)]
    variance = 1.0 / (1.0 / model.variance + fsum(weights))
    image = variance * fsum(w * max(a, least) for w, a in zip(weights, above, strict=True))
    trust = [s / (s + n) for s, n in zip(spreads, noises, strict=True)]
    means = [
        min(e + image + rho * (score - e - image), 100.0)
        for e, rho, score in zip(expected, trust, scores, strict=True)
    ]
    variances = [(1.0 - rho) * s for rho, s in zip(trust, spreads, strict=True)]
    return Posterior(graded, image, variance, means, variances)
