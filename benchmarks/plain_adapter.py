"""The strategy without votes, for a study that simulates images: `--policy plain_adapter:factory`.

`factory(level_counts, threshold, seed)` makes a policy of these calls:
`next(image, candidates)` -> ("generate", [(arm, explore), ...]), ("grade", [candidate, ...]) or
("stop", candidate, expected score); `finish(image, candidates)` learns from the image. An arm is a
tuple of level numbers, a candidate `{"arm", "bad", "scores", "explore"}`; what is generated is
graded in the same call.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

HOME = Path(__file__).resolve().parents[1]
if str(HOME) not in sys.path:
    sys.path.insert(0, str(HOME))

from rsd.protocol.learned import nothing_learned  # noqa: E402
from rsd.protocol.vocabulary import LISTWISE, Arm, Recipe, SamplingParams  # noqa: E402
from rsd.strategy import plain  # noqa: E402
from rsd.strategy.base import Buy, CallPrices, ImageState, Lesson, Seen  # noqa: E402
from rsd.strategy.levels import levels_of  # noqa: E402
from rsd.strategy.normal import median  # noqa: E402
from rsd.strategy.plain_learn import learn_plain  # noqa: E402

#: Thousands of tokens, whichever: what the study takes calls to cost.
PRICES = CallPrices(candidate=1.7, grading=2.76, graded=0.57, pointwise=False, list_size=6)


class Adapter:
    """One stream of images."""

    def __init__(self, counts: Sequence[int], threshold: float, seed: int, verify: bool) -> None:
        prompts, temperatures, top_ps, top_ks = counts
        self.recipe = Recipe(
            prompts={f"p{i}": f"Prompt {i}." for i in range(prompts)},
            grading_template=LISTWISE,
            strategy="adaptive",
            candidates=1,
            seed=seed,
            temperatures=tuple(0.5 + 0.1 * i for i in range(temperatures)),
            top_ps=tuple(0.5 + 0.01 * i for i in range(top_ps)),
            top_ks=tuple(10 + i for i in range(top_ks)),
            min_p=0.0,
            repetition_penalty=1.0,
            max_tokens=1024,
            score_threshold=threshold,
            stop_score=None,
            repeats=1,
            list_size=6,
            generator_model="generator",
            grader_model="grader",
            consensus="off",
        )
        levels = levels_of(self.recipe)
        self.learned = msgspec.structs.replace(nothing_learned(self.recipe), levels=levels)
        self.verify = verify
        self.rounds: dict[int, int] = {}

    def next(self, image: int, candidates: list[dict[str, Any]]) -> tuple[Any, ...]:
        """What to do with an image."""
        seen = self._seen(candidates)
        state = ImageState(
            recipe=self.recipe,
            sha256=f"{image:064x}",
            planned=len(seen),
            rounds=self.rounds.get(image, 0),
            allotment=1,
            bought={},
            scores={},
            candidates=seen,
            learned=self.learned,
            prices=PRICES,
        )
        planner = plain.Planner(state)
        step = planner.step()
        self.rounds[image] = state.rounds + 1
        if isinstance(step, Buy) and step.samples:
            return "generate", [(self._numbers(arm), explore) for arm, explore in step.samples]
        if isinstance(step, Buy) and (self.verify or len(step.gradings) > 1):
            return "grade", [index for index, _ in step.gradings]
        if isinstance(step, Buy):
            step = planner.stop(planner.posterior())
        return "stop", step.index, step.expected_score

    def finish(self, image: int, candidates: list[dict[str, Any]]) -> None:
        """Learn from an image."""
        self.rounds.pop(image, None)
        seen = self._seen(candidates)
        lesson = Lesson(
            recipe=self.recipe,
            sha256=f"{image:064x}",
            candidates=seen,
            winner=0,
            score=0.0,
            expected_score=0.0,
            accepted=False,
            reason="no_gain",
            generated=(),
            graded=(),
        )
        learned = self.learned
        again, squares = 0, 0.0
        for c in seen:
            if len(c.scores) > 1:
                middle = median(c.scores)
                near = [min(max(s, middle - 30.0), middle + 30.0) for s in c.scores]
                mean = sum(near) / len(near)
                again += len(near) - 1
                squares += sum((s - mean) ** 2 for s in near)
        self.learned = msgspec.structs.replace(
            learned,
            images=learned.images + 1,
            plain=learn_plain(learned.plain, learned.levels, lesson),
            repeat_count=learned.repeat_count + again,
            repeat_sum=learned.repeat_sum + squares,
        )

    def _seen(self, candidates: list[dict[str, Any]]) -> tuple[Seen, ...]:
        return tuple(
            Seen(
                index=i,
                arm=self._arm(c["arm"]),
                explore=c["explore"],
                text=f"answer {i}",
                rejected=c["bad"],
                scores=() if c["bad"] else tuple(c["scores"]),
                bought=len(c["scores"]),
            )
            for i, c in enumerate(candidates)
        )

    def _arm(self, numbers: Sequence[int]) -> Arm:
        p, t, u, k = numbers
        recipe = self.recipe
        params = SamplingParams(
            temperature=recipe.temperatures[t], top_p=recipe.top_ps[u], top_k=recipe.top_ks[k]
        )
        return Arm(prompt_key=f"p{p}", params=params)

    def _numbers(self, arm: Arm) -> tuple[int, int, int, int]:
        recipe, params = self.recipe, arm.params
        return (
            int(arm.prompt_key[1:]),
            recipe.temperatures.index(params.temperature),
            recipe.top_ps.index(params.top_p),
            recipe.top_ks.index(params.top_k),
        )


def factory(counts: Sequence[int], threshold: float, seed: int) -> Adapter:
    """Winners near the threshold are not graded again: that costs and changes no choice."""
    return Adapter(counts, threshold, seed, verify=False)


def factory_verify(counts: Sequence[int], threshold: float, seed: int) -> Adapter:
    """The strategy as it is."""
    return Adapter(counts, threshold, seed, verify=True)
