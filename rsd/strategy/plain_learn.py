"""What a decided image teaches about levels, when scores are all that counts. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from math import fsum
from typing import Final

import msgspec

from rsd.protocol.learned import Level, PlainSums, Regression, TemperatureSums
from rsd.strategy.base import Lesson, Seen
from rsd.strategy.levels import levels_of_arm
from rsd.strategy.linalg import pack, unpack
from rsd.strategy.normal import median
from rsd.strategy.plain_model import PlainModel, solve_plain

FORGET: Final = 0.997  #: of all sums but the failures, for each image that comes later
#: A score counts as no more than this many points below the image's median.
OUTLIER: Final = 30.0


def learn_plain(plain: PlainSums, levels: Sequence[Level], lesson: Lesson) -> PlainSums:
    """The sums with one more image. `levels` holds those of the lesson's arms, in the order of the
    regression, which has all of them or none.

    First scores alone count: later ones were bought because of the first. Levels are compared
    within images, as far as images differ more than their candidates do (random effects, estimated
    by quasi-demeaning; Balestra and Nerlove, 1966).
    """
    size = len(levels)
    if not plain.arms.moments:
        nothing = Regression(information=(0.0,) * (size * (size + 1) // 2), moments=(0.0,) * size)
        plain = msgspec.structs.replace(plain, arms=nothing)
    temperatures = _with_failures(plain.temperatures, levels, lesson)
    scored = _scored(levels, lesson)
    if scored:
        model = solve_plain(plain, levels)  # as it was before this image
        plain = _with_scores(plain, model, scored)
        temperatures = _with_spread(temperatures, levels, model, scored)
    return msgspec.structs.replace(plain, temperatures=temperatures)


#: Places of a candidate's levels, that of its temperature, and its first score.
_Scored = tuple[tuple[int, ...], int, float]


def _scored(levels: Sequence[Level], lesson: Lesson) -> list[_Scored]:
    """Candidates that were graded, or whose text was: with the first score of the text."""
    place = {level: i for i, level in enumerate(levels)}
    first: dict[str, float] = {}
    gradable = [seen for seen in lesson.candidates if seen.gradable]
    for seen in gradable:
        if seen.scores:
            first.setdefault(_text(seen), seen.scores[0])
    found: list[_Scored] = []
    for seen in gradable:
        score = first.get(_text(seen))
        if score is not None:
            named = [x for x in levels_of_arm(lesson.recipe, seen.arm) if x in place]
            where = [place[x] for x in named if x.factor == "temperature"]
            if where:
                found.append((tuple(place[x] for x in named), where[0], score))
    if not found:
        return []
    least = median([score for _, _, score in found]) - OUTLIER
    return [(places, t, max(score, least)) for places, t, score in found]


def _text(seen: Seen) -> str:
    return (seen.text or "").rstrip()


def _with_failures(
    old: dict[str, TemperatureSums], levels: Sequence[Level], lesson: Lesson
) -> dict[str, TemperatureSums]:
    """Candidates and visible failures per temperature; a call that failed is neither."""
    names = sorted(level.name for level in levels if level.factor == "temperature")
    sums = {name: old.get(name, TemperatureSums()) for name in names}
    for seen in lesson.candidates:
        if seen.text is None and not seen.rejected:
            continue
        for level in levels_of_arm(lesson.recipe, seen.arm):
            if level.factor == "temperature" and level.name in sums:
                was = sums[level.name]
                sums[level.name] = msgspec.structs.replace(
                    was, drawn=was.drawn + 1.0, failed=was.failed + float(seen.rejected)
                )
    return sums


def _with_scores(plain: PlainSums, model: PlainModel, scored: list[_Scored]) -> PlainSums:
    """Regression and level of images."""
    count = len(scored)
    size = len(plain.arms.moments)
    rows = [[0.0] * size for _ in scored]
    for row, (places, _, _) in zip(rows, scored, strict=True):
        for place in places:
            row[place] = 1.0
    scores = [score - model.mean for _, _, score in scored]
    kept = 1.0 - math.sqrt(model.pool / (model.pool + count * model.variance))
    means = [kept * fsum(column) / count for column in zip(*rows, strict=True)]
    mean = kept * fsum(scores) / count
    rows = [[x - m for x, m in zip(row, means, strict=True)] for row in rows]
    scores = [score - mean for score in scores]
    information = [
        [
            FORGET * old + fsum(row[i] * row[j] for row in rows)
            for j, old in enumerate(unpacked[: i + 1])
        ]
        for i, unpacked in enumerate(unpack(plain.arms.information))
    ]
    moments = tuple(
        FORGET * old + fsum(row[i] * score for row, score in zip(rows, scores, strict=True))
        for i, old in enumerate(plain.arms.moments)
    )
    level = model.mean + fsum(_left(model, scored)) / count
    within = fsum(model.observed[t] for _, t, _ in scored) / count
    return PlainSums(
        arms=Regression(information=pack(information), moments=moments),
        temperatures=plain.temperatures,
        image_count=FORGET * plain.image_count + 1.0,
        image_sum=FORGET * plain.image_sum + level,
        image_square=FORGET * plain.image_square + level**2 - within / count,
    )


def _with_spread(
    old: dict[str, TemperatureSums],
    levels: Sequence[Level],
    model: PlainModel,
    scored: list[_Scored],
) -> dict[str, TemperatureSums]:
    """Squared distances from the image's mean, per temperature."""
    left = _left(model, scored)
    count = len(left)
    mean = fsum(left) / count
    found: dict[str, TemperatureSums] = {}
    for name, was in old.items():
        mine = [
            (x - mean) ** 2
            for x, (_, t, _) in zip(left, scored, strict=True)
            if levels[t].name == name
        ]
        more = count > 1
        found[name] = msgspec.structs.replace(
            was,
            spread_count=FORGET * was.spread_count + more * len(mine) * (count - 1) / count,
            spread_sum=FORGET * was.spread_sum + more * fsum(mine),
        )
    return found


def _left(model: PlainModel, scored: list[_Scored]) -> list[float]:
    """What mean and effects leave of the scores."""
    return [
        score - model.mean - fsum(model.effects[i] for i in places) for places, _, score in scored
    ]
