"""What another run has learned, as the beginning of this one: a prior, not truth. Pure.

The sums are scaled so that they weigh as `PRIOR_IMAGES` images: enough to begin well, and little
enough that this run's own images soon say more. What is counted, and what audit images say, is not
brought along: it is a statement about the images that were seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final, TypeVar

import msgspec

from rsd.errors import UserError
from rsd.protocol.learned import (
    AGREEMENT_VERSION,
    ConsensusSums,
    Learned,
    PlainSums,
    Regression,
    key_of,
    nothing_learned,
)
from rsd.protocol.vocabulary import Recipe
from rsd.strategy.arms import Effects, spread_of
from rsd.strategy.model import FORGET, Consensus
from rsd.strategy.plain_model import solve_of

#: Images that a prior weighs as at most.
PRIOR_IMAGES: Final = 50
#: Images that fading sums hold at most.
MEMORY: Final = 1 / (1 - FORGET)
#: Levels of a prior, and temperatures.
LEVELS_MAX: Final = 256

S = TypeVar("S", bound=msgspec.Struct)


def prior_of(found: Learned, recipe: Recipe, *, levels_only: bool = False) -> Learned:
    """What images of `recipe` begin with when another run has learned `found`.

    `levels_only`: only what it says about prompts and parameters, which may hold for other models
    and rubrics, too. Raises UserError when it cannot be used.
    """
    if why := _damage(found):
        raise UserError(f"what was learned elsewhere is damaged: {why}")
    images = found.images + found.prior_images
    if not images:
        raise UserError("nothing was learned there")
    here = nothing_learned(recipe)
    if not levels_only and (why := _difference(found, here)):
        raise UserError(f"{why}; only its levels can be taken (--levels)")
    held = MEMORY * (1 - FORGET**images)
    share = min(1.0, PRIOR_IMAGES / held)
    arms = _scaled(found.consensus.arms, share)
    plain_arms = _scaled(found.plain.arms, share)
    weight = min(images, PRIOR_IMAGES)
    if levels_only:
        return msgspec.structs.replace(
            here,
            prior_images=weight,
            levels=found.levels,
            consensus=ConsensusSums(arms=arms),
            plain=PlainSums(arms=plain_arms),
        )
    spreads = {name: _scaled(t, share) for name, t in found.plain.temperatures.items()}
    consensus = msgspec.structs.replace(_scaled(found.consensus, share), arms=arms)
    plain = _scaled(found.plain, share)
    fresh = Learned.__struct_defaults__  # of the fields that have one, in their order
    defaults = dict(zip(Learned.__struct_fields__[-len(fresh) :], fresh, strict=True))
    return msgspec.structs.replace(
        here,
        prior_images=weight,
        levels=found.levels,
        consensus=consensus,
        plain=msgspec.structs.replace(plain, arms=plain_arms, temperatures=spreads),
        repeat_count=_between(defaults["repeat_count"], found.repeat_count, share),
        repeat_sum=_between(defaults["repeat_sum"], found.repeat_sum, share),
        generating=_scaled(found.generating, share),
        grading=_scaled(found.grading, share),
    )


def _difference(found: Learned, here: Learned) -> str:
    for name, what in (
        ("generator_model", "generator"),
        ("grader_model", "grader"),
        ("rubric", "rubric"),
    ):
        one, other = getattr(found, name), getattr(here, name)
        if one != other:
            return f"it was learned of the {what} {one!r}, and here it is {other!r}"
    if found.agreement_version != AGREEMENT_VERSION:
        return "it was learned by a version of rsd that reads claims in another way"
    return ""


def _between(imagined: float, found: float, share: float) -> float:
    """Sums begin with imagined images, which are not scaled."""
    return imagined + share * (found - imagined)


def _scaled(sums: S, share: float) -> S:
    """The numbers of sums; what is none of these stays as it is."""
    imagined: Any = type(sums)()
    changes: dict[str, Any] = {}
    for name in sums.__struct_fields__:
        zero, value = getattr(imagined, name), getattr(sums, name)
        if isinstance(value, float | int):
            changes[name] = _between(zero, value, share)
        elif isinstance(value, tuple):
            zeros = zero or (0.0,) * len(value)
            pairs = zip(zeros, value, strict=True)
            changes[name] = tuple(_between(a, b, share) for a, b in pairs)
    return msgspec.structs.replace(sums, **changes)


def problem(prior: Learned) -> str:
    """Why a record is no prior, in words; "" when it is one."""
    if prior.key != key_of(prior.generator_model, prior.rubric):
        return "its key is not that of its models and rubric"
    if prior.images or not 0 < prior.prior_images <= PRIOR_IMAGES:
        return f"it must weigh as 1 to {PRIOR_IMAGES} images"
    return _damage(prior)


def _damage(record: Learned) -> str:
    plain, consensus = record.plain, record.consensus
    size = len(record.levels)
    if max(size, len(plain.temperatures)) > LEVELS_MAX:
        return f"it has more than {LEVELS_MAX} levels"
    if len(set(record.levels)) < size:
        return "a level is there twice"
    for sums in (consensus.arms, plain.arms):
        if not _fits(sums, size):
            return "its regressions do not fit its levels"
    plain_sums: Iterable[msgspec.Struct] = plain.temperatures.values()
    for part in (consensus, plain, record.generating, record.grading, *plain_sums):
        if not all(map(math.isfinite, _numbers(part))):
            return "a number of it is not finite"
    lengths = (consensus.information, consensus.moments, consensus.cross, consensus.cross_moments)
    if tuple(map(len, lengths)) != (10, 4, 6, 3):
        return "its sums have the wrong size"
    counts = [
        *(record.images, record.prior_images, record.repeat_count, plain.image_count),
        *(consensus.level_count, consensus.image_count, consensus.spread_count),
        *(n for calls in (record.generating, record.grading) for n in _numbers(calls)),
        *(n for t in plain.temperatures.values() for n in (t.spread_count, t.drawn, t.failed)),
    ]
    if min(counts) < 0:
        return "a count of it is negative"
    return "" if _solvable(record) else "its sums fit no model"


def _solvable(record: Learned) -> bool:
    """Whether the models can be made of it, so that no decision fails for it."""
    levels, consensus = record.levels, record.consensus
    try:
        numbers = [float(level.name) for level in levels if level.factor != "prompt"]
        tau2 = record.repeat_sum / record.repeat_count
        Consensus.of(consensus, tau2)
        Effects.of(consensus.arms, levels, levels, spread_of(consensus))
        solve_of(record, levels)
    except (ArithmeticError, LookupError, ValueError):
        return False
    return tau2 > 0 and all(map(math.isfinite, numbers))


def _fits(sums: Regression, size: int) -> bool:
    """A regression over `size` levels, or over none yet."""
    known = len(sums.moments)
    return known in (0, size) and len(sums.information) == known * (known + 1) // 2


def _numbers(part: msgspec.Struct) -> list[float]:
    found: list[float] = []
    for name in part.__struct_fields__:
        value = getattr(part, name)
        if isinstance(value, float | int):
            found.append(value)
        elif isinstance(value, tuple):
            found += value
        elif isinstance(value, Regression):
            found += _numbers(value)
    return found
