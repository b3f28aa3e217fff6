"""The only door to the strategies. Pure."""

from __future__ import annotations

from rsd.protocol.learned import Learned
from rsd.protocol.vocabulary import Arm, Recipe
from rsd.strategy import adaptive, fixed
from rsd.strategy.base import CallPrices, ImageState, Step
from rsd.strategy.memory import Memory


def next_step(state: ImageState, memory: Memory | None = None) -> Step:
    """What to do with an image whose round is over. The same for equal states, whatever `memory`
    has kept.
    """
    if state.recipe.strategy == "adaptive":
        return adaptive.next_step(state, memory)
    return fixed.next_step(state)


def first_round(
    recipe: Recipe, learned: Learned | None = None, prices: CallPrices | None = None
) -> list[Arm]:
    """Arms of an image's first round, for an estimate of its requests; equal ones side by side."""
    if recipe.strategy != "adaptive":
        return fixed.plan(recipe, "", recipe.candidates)
    state = ImageState(
        recipe=recipe,
        sha256="",
        planned=0,
        rounds=0,
        allotment=1,
        bought={},
        scores={},
        learned=learned,
        prices=prices,
    )
    step = adaptive.next_step(state)
    return [arm for arm, _ in getattr(step, "samples", ())]
