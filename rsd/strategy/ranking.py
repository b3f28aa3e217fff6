"""Which levels of an arm are good, and which arm to use without a grader. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from msgspec import Struct

from rsd.protocol.learned import Learned, LevelScores
from rsd.protocol.vocabulary import Recipe
from rsd.strategy.arms import LEAST_SPREAD, Effects, spread_of
from rsd.strategy.estimates import (
    FEW,
    NORMAL,
    Estimate,
    Gaussian,
    mean_of,
    normal,
    ratio,
)
from rsd.strategy.levels import levels_of

#: Factors of an arm, in the order in which they are shown.
FACTORS: Final = ("prompt", "temperature", "top_p", "top_k")


class LevelInsight(Struct, frozen=True, kw_only=True):
    """One value of one factor."""

    factor: str
    name: str
    text: str  #: of a prompt: 8 hex digits of its text
    in_use: bool  #: whether the recipe still draws it
    best: bool  #: of the values in use, the one with the highest effect
    #: Points above the mean of the factor's values in use, from all images (n). Shrunk to 0.
    effect: Estimate
    #: Mean first score of candidates that were drawn uniformly and graded in any case: unbiased.
    #: The interval takes those of one audit image for independent.
    uniform: Estimate


class Cell(Struct, frozen=True, kw_only=True):
    """Uniform candidates of one prompt at one temperature."""

    prompt: str
    temperature: str
    uniform: Estimate


class Setting(Struct, frozen=True, kw_only=True):
    """The arm to use where no grader is at hand: one candidate, which is kept as it is."""

    prompt: str
    prompt_text: str
    #: Uniform mean plus the effects of its levels: the grader's score to expect of one candidate.
    expected: Estimate
    request: dict[str, Any]  #: keys of a vLLM request body
    client: dict[str, Any]  #: the same as arguments of an OpenAI client


def _effects(learned: Learned, votes: bool | None) -> Gaussian:
    """Effects of all levels: from all candidates, or where they do not vote from first scores."""
    if votes is False:
        arms, spreads = learned.plain.arms, learned.plain.temperatures.values()
        variance = ratio(sum(t.spread_sum for t in spreads), sum(t.spread_count for t in spreads))
        spread = max(variance or 0.0, LEAST_SPREAD)
    else:
        arms, spread = learned.consensus.arms, spread_of(learned.consensus)
    found = Effects.of(arms, learned.levels, learned.levels, spread)
    return Gaussian(found.mean, found.covariance)


def _in_use(learned: Learned, recipe: Recipe | None) -> set[int]:
    """Positions of the levels that a recipe draws."""
    if recipe is None:
        return set(range(len(learned.levels)))
    drawn = set(levels_of(recipe))
    return {i for i, level in enumerate(learned.levels) if level in drawn}


def levels_of_learned(
    learned: Learned, recipe: Recipe | None, *, votes: bool | None = None
) -> tuple[LevelInsight, ...]:
    """Every level of the record, factor by factor; `votes`: whether candidates do."""
    images = learned.images + learned.prior_images
    effects = _effects(learned, votes)
    used = _in_use(learned, recipe)
    found = []
    for factor in FACTORS:
        own = _ordered(learned, factor)
        pool = [i for i in own if i in used]
        best = max(pool, key=lambda i: (effects.mean[i], -i), default=-1)
        for i in own:
            level = learned.levels[i]
            contrast = _contrast(len(learned.levels), i, pool)
            found.append(
                LevelInsight(
                    factor=factor,
                    name=level.name,
                    text=level.text,
                    in_use=i in used,
                    best=i == best and images >= FEW,
                    effect=normal(*effects.of(contrast), images),
                    uniform=_uniform(learned, f"{factor}={level.name}"),
                )
            )
    return tuple(found)


def _ordered(learned: Learned, factor: str) -> list[int]:
    """Positions of a factor's levels: prompts as they came, numbers by size; a top-k of -1 is off,
    which is the largest.
    """
    own = [i for i, level in enumerate(learned.levels) if level.factor == factor]
    if factor == "prompt":
        return own
    numbers = {i: float(learned.levels[i].name) for i in own}
    return sorted(own, key=lambda i: numbers[i] if numbers[i] >= 0 else math.inf)


def _contrast(count: int, of: int, pool: Sequence[int]) -> list[float]:
    """Weights of the effects: one level against the mean of those in use."""
    weights = [0.0] * count
    for i in pool:
        weights[i] -= 1.0 / len(pool)
    weights[of] += 1.0
    return weights


def _uniform(learned: Learned, key: str) -> Estimate:
    cell = learned.uniform.get(key, LevelScores())
    return mean_of(cell.count, cell.sum, cell.square, 0.0, 100.0)


def cells_of(learned: Learned) -> tuple[Cell, ...]:
    """The uniform candidates, by prompt and temperature."""
    found = []
    for key in sorted(learned.uniform):
        prompt, both, temperature = key.rpartition(",temperature=")
        if both and prompt.startswith("prompt="):
            name = prompt.removeprefix("prompt=")
            found.append(Cell(prompt=name, temperature=temperature, uniform=_uniform(learned, key)))
    return tuple(found)


def setting_of(
    learned: Learned,
    recipe: Recipe | None,
    levels: Sequence[LevelInsight],
    *,
    votes: bool | None = None,
) -> Setting | None:
    """The best level of each factor; None as long as a choice would be a guess."""
    best = {level.factor: level for level in levels if level.best}
    if set(best) != set(FACTORS):
        return None
    prompt = best["prompt"].name
    request: dict[str, Any] = {
        "temperature": float(best["temperature"].name),
        "top_p": float(best["top_p"].name),
        "top_k": int(best["top_k"].name),
    }
    if recipe is not None:
        request["min_p"] = recipe.min_p
        request["repetition_penalty"] = recipe.repetition_penalty
        request["max_tokens"] = recipe.max_tokens
    standard = ("temperature", "top_p", "max_tokens")
    client: dict[str, Any] = {k: v for k, v in request.items() if k in standard}
    client["extra_body"] = {k: v for k, v in request.items() if k not in standard}
    if recipe is not None and recipe.generator_model:
        request = {"model": recipe.generator_model} | request
        client = {"model": recipe.generator_model} | client
    return Setting(
        prompt=prompt,
        prompt_text=recipe.prompts.get(prompt, "") if recipe is not None else "",
        expected=_expected(learned, recipe, best, votes),
        request=request,
        client=client,
    )


def _expected(
    learned: Learned, recipe: Recipe | None, best: dict[str, LevelInsight], votes: bool | None
) -> Estimate:
    """Mean of the uniform candidates plus what the best levels are above the mean of theirs."""
    used = _in_use(learned, recipe)
    names = dict.fromkeys(learned.levels[i].name for i in _ordered(learned, "prompt") if i in used)
    cells = [learned.uniform.get(f"prompt={name}", LevelScores()) for name in names]
    base = mean_of(
        sum(c.count for c in cells),
        sum(c.sum for c in cells),
        sum(c.square for c in cells),
        -math.inf,
        math.inf,
    )
    if base.mean is None or base.high is None:
        return Estimate(n=base.n)
    effects = _effects(learned, votes)
    weights = [0.0] * len(learned.levels)
    for factor, level in best.items():
        pool = [i for i in _ordered(learned, factor) if i in used]
        mine = next(
            i
            for i in pool
            if (learned.levels[i].name, learned.levels[i].text) == (level.name, level.text)
        )
        own = _contrast(len(weights), mine, pool)
        weights = [a + b for a, b in zip(weights, own, strict=True)]
    above, variance = effects.of(weights)
    half = math.hypot(base.high - base.mean, NORMAL * math.sqrt(max(variance, 0.0)))
    mean = base.mean + above
    return Estimate(
        mean=_clipped(mean),
        low=_clipped(mean - half),
        high=_clipped(mean + half),
        n=base.n,
        few=base.few,
    )


def _clipped(score: float) -> float:
    return min(max(score, 0.0), 100.0)
