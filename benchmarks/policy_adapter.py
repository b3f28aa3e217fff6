"""Drives the strategy `adaptive` from a study's simulation, in which images and prices are known.

`consensus_factory(level_counts, threshold, seed, price)` has candidates vote, and generations and
gradings bought separately; `plain_adapter.py` goes by scores alone. It returns an object with
`next(image, candidates)` and `finish(image, candidates)`; a candidate is a dict of `arm` (indices
of levels), `scores`, `explore`, and `text` or `bad`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rsd.protocol.learned import Learned, nothing_learned
from rsd.protocol.vocabulary import Arm, Recipe, SamplingParams, Usage
from rsd.strategy.base import Buy, CallPrices, ImageState, Lesson, Seen, Stop
from rsd.strategy.choose import next_step
from rsd.strategy.learn import learn
from rsd.strategy.memory import Memory, Solved

#: Simulated tokens of a call, and of a candidate in it: (input, output).
GENERATION = (1300, 400)
GRADING = ((2060, 700), (420, 150))


def recipe_of(level_counts: Sequence[int], threshold: float, seed: int, **changes: Any) -> Recipe:
    """One level per index: names are the indices, values are spread over what is allowed."""
    prompts, temperatures, top_ps, top_ks = level_counts
    values: dict[str, Any] = {
        "prompts": {f"p{i}": f"prompt {i}" for i in range(prompts)},
        "grading_template": "{generated_answer}",
        "strategy": "adaptive",
        "candidates": 1,
        "seed": seed,
        "temperatures": tuple(round(0.3 + 0.1 * i, 3) for i in range(temperatures)),
        "top_ps": tuple(round(1 - 0.05 * i, 3) for i in range(top_ps)),
        "top_ks": tuple(range(20, 20 + top_ks)),
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "max_tokens": 1024,
        "score_threshold": threshold,
        "stop_score": None,
        "repeats": 1,
        "list_size": 6,
        "generator_model": "simulated",
        "grader_model": "simulated",
        "audit_share": 0.0,
    }
    return Recipe(**(values | changes))


class Adapter:
    """An implementation as a simulation drives it."""

    def __init__(self, recipe: Recipe, prices: CallPrices) -> None:
        self.recipe, self.prices = recipe, prices
        self.learned: Learned = nothing_learned(recipe)
        self.solved = Solved()
        self.memories: dict[int, tuple[Memory, list[int]]] = {}
        self.stops: dict[int, Stop] = {}

    def next(self, image: int, candidates: list[dict[str, Any]]) -> tuple[Any, ...]:
        """What the simulation should do."""
        memory, rounds = self.memories.setdefault(image, (Memory(self.solved), [0]))
        seen = self.seen(candidates)
        step = next_step(
            ImageState(
                recipe=self.recipe,
                sha256=f"{image}",
                planned=len(seen),
                rounds=rounds[0],
                allotment=1,
                bought={c.index: c.bought for c in seen if c.gradable},
                scores={c.index: sum(c.scores) / len(c.scores) for c in seen if c.scores},
                candidates=seen,
                learned=self.learned,
                prices=self.prices,
            ),
            memory,
        )
        rounds[0] += 1
        if isinstance(step, Stop):
            self.stops[image] = step
            return "stop", step.index, step.expected_score
        return self.buy(step)

    def buy(self, step: Buy) -> tuple[Any, ...]:
        """Candidates come back ungraded, so that a step is one or the other."""
        if step.samples:
            return "generate", [(self.indices(arm), explore) for arm, explore in step.samples]
        return "grade", [index for index, count in step.gradings for _ in range(count)]

    def seen(self, candidates: list[dict[str, Any]]) -> tuple[Seen, ...]:
        """Equal texts share their grades in the simulation: the first of them has them here."""
        graded: set[str] = set()
        found = []
        for index, c in enumerate(candidates):
            text = c.get("text", f"candidate {index}")
            scores = () if text in graded else tuple(float(s) for s in c["scores"])
            graded.add(text)
            found.append(
                Seen(
                    index=index,
                    arm=self.arm(c["arm"]),
                    explore=c["explore"],
                    text=text,
                    rejected=c.get("bad", False),
                    scores=() if c.get("bad", False) else scores,
                    bought=len(scores),
                )
            )
        return tuple(found)

    def arm(self, indices: Sequence[int]) -> Arm:
        """The arm of a tuple of indices."""
        r = self.recipe
        p, t, u, k = indices
        params = SamplingParams(temperature=r.temperatures[t], top_p=r.top_ps[u], top_k=r.top_ks[k])
        return Arm(prompt_key=f"p{p}", params=params)

    def indices(self, arm: Arm) -> tuple[int, int, int, int]:
        """The tuple of indices of an arm."""
        r, params = self.recipe, arm.params
        return (
            int(arm.prompt_key[1:]),
            r.temperatures.index(params.temperature),
            r.top_ps.index(params.top_p),
            r.top_ks.index(params.top_k),
        )

    def finish(self, image: int, candidates: list[dict[str, Any]]) -> None:
        """The image is learned from."""
        self.memories.pop(image, None)
        stop = self.stops.pop(image)
        seen = self.seen(candidates)
        index = stop.index or 0
        scores = seen[index].scores or (0.0,)
        score = sum(scores) / len(scores)
        self.learned = learn(
            self.learned,
            Lesson(
                recipe=self.recipe,
                sha256=f"{image}",
                candidates=seen,
                winner=index,
                score=score,
                expected_score=stop.expected_score,
                accepted=score >= self.recipe.score_threshold,
                reason=stop.reason,
                generated=tuple(
                    Usage(input_tokens=GENERATION[0], output_tokens=GENERATION[1]) for _ in seen
                ),
                graded=tuple(
                    (1, Usage(input_tokens=2480, output_tokens=850)) for c in seen for _ in c.scores
                ),
            ),
        )


def consensus_factory(
    level_counts: Sequence[int], threshold: float, seed: int, price: Any, **changes: Any
) -> Adapter:
    """Candidates vote; `price` is the study's."""
    template = "{generated_answer}" if price.pointwise else "{candidate_answers}"
    recipe = recipe_of(
        level_counts, threshold, seed, grading_template=template, consensus="on", **changes
    )
    prices = CallPrices(
        candidate=price.gen(1),
        grading=price.base,
        graded=price.cand,
        pointwise=price.pointwise,
        list_size=1 if price.pointwise else 6,
    )
    return Adapter(recipe, prices)
