"""Images as a strategy sees them: states, lessons, and models to play against."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from rsd.protocol.learned import Learned, nothing_learned
from rsd.protocol.vocabulary import Arm, Recipe, SamplingParams
from rsd.strategy.base import Buy, CallPrices, ImageState, Lesson, Seen, Step, Stop
from rsd.strategy.levels import levels_of
from rsd.strategy.plain import next_step
from tests.unit.world import recipe

#: Thousand tokens, with six candidates a call.
LISTWISE = CallPrices(candidate=1.7, grading=2.76, graded=0.57, pointwise=False, list_size=6)
#: Prompts x temperatures 2 x 2, all else alike.
SMALL = recipe(
    strategy="adaptive",
    prompts={"p0": "zero", "p1": "one"},
    temperatures=(0.5, 1.0),
    top_ps=(0.9,),
    top_ks=(40,),
    score_threshold=80.0,
    consensus="off",
)


def arm(prompt: int, temperature: float, top_p: float = 0.9, top_k: int = 40) -> Arm:
    params = SamplingParams(temperature=temperature, top_p=top_p, top_k=top_k)
    return Arm(prompt_key=f"p{prompt}", params=params)


def seen(
    index: int, of: Arm, scores: Sequence[float] = (), text: str | None = "", **changes: object
) -> Seen:
    """A candidate with a text of its own, unless one is given."""
    values: dict[str, object] = {"explore": False, "rejected": False, "bought": len(scores)}
    values.update(changes)
    words = f"text {index}" if text == "" else text
    return Seen(index=index, arm=of, text=words, scores=tuple(scores), **values)  # type: ignore[arg-type]


def image(
    candidates: Sequence[Seen] = (),
    of: Recipe = SMALL,
    learned: Learned | None = None,
    prices: CallPrices | None = LISTWISE,
    **changes: object,
) -> ImageState:
    values: dict[str, object] = {"sha256": "ab" * 32, "rounds": 1, "allotment": 1}
    values.update(changes)
    return ImageState(
        recipe=of,
        planned=len(candidates),
        bought={c.index: c.bought for c in candidates if c.gradable},
        scores={c.index: sum(c.scores) / len(c.scores) for c in candidates if c.scores},
        candidates=tuple(candidates),
        learned=learned,
        prices=prices,
        **values,  # type: ignore[arg-type]
    )


def lesson(candidates: Sequence[Seen], of: Recipe = SMALL) -> Lesson:
    return Lesson(
        recipe=of,
        sha256="ab" * 32,
        candidates=tuple(candidates),
        winner=0,
        score=0.0,
        expected_score=0.0,
        accepted=False,
        reason="no_gain",
        generated=(),
        graded=(),
    )


def nothing(of: Recipe = SMALL) -> Learned:
    """A record of no image, with the recipe's levels."""
    return msgspec.structs.replace(nothing_learned(of), levels=levels_of(of))


#: (index, arm) -> text (None: no answer) and whether it fails visibly.
Writes = Callable[[int, Arm], tuple[str | None, bool]]
#: (text, number of the grade) -> score (None: no grade came of it).
Grades = Callable[[str, int], float | None]


def play(
    writes: Writes,
    grades: Grades,
    steps: int = 400,
    decide: Callable[[ImageState], Step] = next_step,
    **state: object,
) -> tuple[Stop, list[Buy], tuple[Seen, ...]]:
    """An image until it stops: what was bought, and all candidates at the end. As in the hub, what
    failed is shown to no grader. Raises AssertionError when it does not stop.
    """
    candidates: list[Seen] = []
    bought: list[Buy] = []
    for rounds in range(steps):
        step = decide(image(candidates, rounds=rounds, **state))  # type: ignore[arg-type]
        if isinstance(step, Stop):
            return step, bought, tuple(candidates)
        bought.append(step)
        for of, explore in step.samples:
            text, rejected = writes(len(candidates), of)
            made = seen(len(candidates), of, (), text, explore=explore, rejected=rejected)
            candidates.append(made)
        for index, count in step.gradings:
            old = candidates[index]
            if old.text is not None and old.gradable:
                fresh = [grades(old.text, old.bought + k) for k in range(count)]
                scores = old.scores + tuple(s for s in fresh if s is not None)
                candidates[index] = seen(
                    index,
                    old.arm,
                    scores,
                    old.text,
                    explore=old.explore,
                    bought=old.bought + count,
                )
    raise AssertionError("it never stops")
