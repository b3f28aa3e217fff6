"""Which candidates next, and when to stop. Pure: no clock, no file, no randomness of its own.

The plan of an image is a function of its content, `--seed` and its recipe alone, so that a copy of
a file or a restart continues the same plan.
"""

from __future__ import annotations

from hashlib import blake2b
from itertools import product
from typing import TypeVar

from rsd.protocol.vocabulary import Arm, Recipe, SamplingParams
from rsd.strategy.base import Buy, ImageState, Step, Stop

T = TypeVar("T")

#: Candidates of a round when a stop score may end the image after it. Small rounds save calls,
#: large ones keep more requests in flight; three is the first round of the adaptive policy's study.
STOP_ROUND = 3


def next_step(state: ImageState) -> Step:
    """The only door: what to do with an image whose round is over."""
    recipe = state.recipe
    lacking = {i: recipe.repeats - bought for i, bought in sorted(state.bought.items())}
    if any(count > 0 for count in lacking.values()):
        # They were graded under another rubric, or less often.
        return Buy(gradings=tuple((i, count) for i, count in lacking.items() if count > 0))
    best = winner(state.scores)
    stop_score = recipe.stop_score
    if stop_score is not None and best is not None and state.scores[best] >= stop_score:
        return Stop(best, state.scores[best], "stop_score")
    wanted = recipe.candidates * state.allotment
    if state.planned < wanted:
        end = wanted if stop_score is None else min(wanted, state.planned + STOP_ROUND)
        arms = plan(recipe, state.sha256, wanted)[state.planned : end]
        return Buy(
            samples=tuple((arm, False) for arm in _together(arms)),
            gradings=tuple((i, recipe.repeats) for i in range(state.planned, end)),
        )
    return Stop(best, state.scores[best] if best is not None else 0.0, "all_drawn")


def winner(scores: dict[int, float]) -> int | None:
    """The candidate with the highest score; of equal ones the lowest index."""
    return min(scores, key=lambda i: (-scores[i], i), default=None)


def plan(recipe: Recipe, sha256: str, count: int) -> list[Arm]:
    """The arms of the first `count` candidates of an image.

    `random`: prompts in equal shares, parameters taken without replacement from the product of the
    ranges (a new shuffle begins when all are used). `grid`: the product itself, prompt by prompt.
    """
    combinations = [
        SamplingParams(
            temperature=t,
            top_p=p,
            top_k=k,
            min_p=recipe.min_p,
            repetition_penalty=recipe.repetition_penalty,
        )
        for t, p, k in product(recipe.temperatures, recipe.top_ps, recipe.top_ks)
    ]
    prompts = list(recipe.prompts)
    if recipe.strategy == "grid":
        grid = [Arm(prompt_key=k, params=c) for k in prompts for c in combinations]
        return [grid[i % len(grid)] for i in range(count)]
    keys: list[str] = []
    while len(keys) < count:
        cycle = len(keys) // len(prompts)
        keys += _shuffled(prompts, f"{recipe.seed}:{sha256}:prompt:{cycle}")
    params: list[SamplingParams] = []
    while len(params) < count:
        block = len(params) // len(combinations)
        params += _shuffled(combinations, f"{recipe.seed}:{sha256}:params:{block}")
    pairs = zip(keys[:count], params, strict=False)
    return [Arm(prompt_key=k, params=p) for k, p in pairs]


def _shuffled(items: list[T], salt: str) -> list[T]:
    """A permutation that depends on the salt alone, the same on every Python."""

    def key(i: int) -> bytes:
        return blake2b(f"{salt}:{i}".encode(), digest_size=8).digest()

    return [items[i] for i in sorted(range(len(items)), key=key)]


def _together(arms: list[Arm]) -> list[Arm]:
    """Equal arms side by side, so that they can share one request with `n`."""
    first: dict[Arm, int] = {}
    for arm in arms:
        first.setdefault(arm, len(first))
    return sorted(arms, key=first.__getitem__)
