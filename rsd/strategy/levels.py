"""Levels of arms, and where what was learned keeps them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

import msgspec

from rsd.protocol.learned import Level, Regression
from rsd.protocol.vocabulary import Arm, Recipe

#: Standard deviation of a level's effect before anything is known, in points.
PRIOR_SD: Final = {"prompt": 6.0, "temperature": 4.0, "top_p": 1.5, "top_k": 1.0}
#: Levels that a record keeps besides those of the recipe in force: a regression over more would
#: take longer than the calls that it saves.
LEVELS_MAX: Final = 64


def number_name(value: float) -> str:
    """A number as JSON writes it."""
    return msgspec.json.encode(value).decode()


def prompt_level(key: str, text: str) -> Level:
    """Another text under the same key is another level."""
    return Level(factor="prompt", name=key, text=blake2b(text.encode(), digest_size=4).hexdigest())


def levels_of(recipe: Recipe) -> tuple[Level, ...]:
    """The different levels of a recipe, factor by factor."""
    named = [
        *(prompt_level(key, text) for key, text in recipe.prompts.items()),
        *(Level(factor="temperature", name=number_name(t)) for t in recipe.temperatures),
        *(Level(factor="top_p", name=number_name(p)) for p in recipe.top_ps),
        *(Level(factor="top_k", name=number_name(k)) for k in recipe.top_ks),
    ]
    return tuple(dict.fromkeys(named))


def levels_of_arm(recipe: Recipe, arm: Arm) -> tuple[Level, ...]:
    """One level per factor; none of the prompt when the recipe no longer has it."""
    text = recipe.prompts.get(arm.prompt_key)
    params = arm.params
    found = () if text is None else (prompt_level(arm.prompt_key, text),)
    return (
        *found,
        Level(factor="temperature", name=number_name(params.temperature)),
        Level(factor="top_p", name=number_name(params.top_p)),
        Level(factor="top_k", name=number_name(params.top_k)),
    )


def grown(known: tuple[Level, ...], wanted: Sequence[Level]) -> tuple[Level, ...]:
    """The known levels, and behind them those that are new. Of the levels that nobody wants any
    more, the oldest go when there are over `LEVELS_MAX`.
    """
    union = tuple(dict.fromkeys((*known, *wanted)))
    surplus = len(union) - LEVELS_MAX
    if surplus <= 0:
        return union
    needed = set(wanted)
    gone = {level for level in [x for x in known if x not in needed][:surplus]}
    return tuple(level for level in union if level not in gone)


def regrown(old: Regression, before: Sequence[Level], after: Sequence[Level]) -> Regression:
    """The sums of a regression over `before`, for `after`: nothing is known of a new level."""
    if before == after and old.moments:
        return old
    at = {level: i for i, level in enumerate(before)} if old.moments else {}
    places = [at.get(level) for level in after]
    information: list[float] = []
    for row, i in enumerate(places):
        for j in places[: row + 1]:
            if i is None or j is None:
                information.append(0.0)
            else:
                low, high = min(i, j), max(i, j)
                information.append(old.information[high * (high + 1) // 2 + low])
    return Regression(
        information=tuple(information),
        moments=tuple(0.0 if i is None else old.moments[i] for i in places),
    )
