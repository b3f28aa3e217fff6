"""Images for the strategy that learns: what models answer and graders say is a function, and a
strategy buys from it until it stops.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from rsd.protocol.learned import Learned
from rsd.protocol.vocabulary import Arm, Recipe, Usage
from rsd.strategy.base import Buy, CallPrices, ImageState, Lesson, Seen, Stop
from rsd.strategy.choose import next_step
from rsd.strategy.memory import Memory
from tests.unit.world import recipe

#: A grade costs 223 candidates: a paid grader and own GPUs.
POINTWISE = CallPrices(candidate=0.029, grading=5.346, graded=1.122, pointwise=True)
LISTWISE = CallPrices(candidate=0.029, grading=5.346, graded=1.122, pointwise=False, list_size=6)

#: Text of a candidate; None: no answer ever came.
Model = Callable[[int, Arm], str | None]
#: Score of a text's n-th grading; None: no grade came.
Grader = Callable[[str, int], float | None]


def adaptive(**changes: object) -> Recipe:
    """A small recipe of the strategy, without audits."""
    values: dict[str, object] = {
        "strategy": "adaptive",
        "score_threshold": 80.0,
        "consensus": "on",
        "audit_share": 0.0,
    }
    return recipe(**(values | changes))


def diagram(*edges: str) -> str:
    """A text with a claim for each pair of letters."""
    return "\n".join(f"{a} --> {b}" for a, b in edges)


@dataclass
class Image:
    """One image, played to its end."""

    model: Model
    grader: Grader
    recipe: Recipe = field(default_factory=adaptive)
    sha256: str = "ab" * 32
    prices: CallPrices | None = POINTWISE
    learned: Learned | None = None
    rejected: Callable[[str], bool] = field(default=lambda text: False)
    allotment: int = 1
    retried_at: int = 0
    rounds: int = 0
    candidates: list[Seen] = field(default_factory=list)
    steps: list[Buy] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)  #: texts that a grader was shown

    def state(self) -> ImageState:
        """What the strategy is told."""
        seen = self.candidates
        return ImageState(
            recipe=self.recipe,
            sha256=self.sha256,
            planned=len(seen),
            rounds=self.rounds,
            allotment=self.allotment,
            bought={c.index: c.bought for c in seen if c.gradable},
            scores={c.index: sum(c.scores) / len(c.scores) for c in seen if c.scores},
            candidates=tuple(seen),
            learned=self.learned,
            prices=self.prices,
            retried_at=self.retried_at,
        )

    def play(self, memory: Memory | None = None, limit: int = 200) -> Stop:
        """Until the strategy stops; AssertionError when it does not."""
        for _ in range(limit):
            step = next_step(self.state(), memory)
            if isinstance(step, Stop):
                return step
            self.take(step)
        raise AssertionError(f"no end after {limit} steps: {self.steps[-3:]}")

    def take(self, step: Buy) -> None:
        """What was bought, comes."""
        self.steps.append(step)
        self.rounds += 1
        for arm, explore in step.samples:
            index = len(self.candidates)
            text = self.model(index, arm)
            bad = text is not None and self.rejected(text)
            seen = Seen(index=index, arm=arm, explore=explore, text=text, rejected=bad)
            self.candidates.append(seen)
        for index, count in step.gradings:
            for _ in range(count):
                self.grade(index)

    def grade(self, index: int) -> None:
        """One grading of a candidate."""
        seen = self.candidates[index]
        if not seen.gradable:
            return
        text = seen.text or ""
        score = self.grader(text, seen.bought)
        self.calls.append(text)
        scores = seen.scores if score is None else (*seen.scores, score)
        self.candidates[index] = replace(seen, scores=scores, bought=seen.bought + 1)

    @property
    def spent(self) -> int:
        """Gradings bought."""
        return sum(c.bought for c in self.candidates)

    def lesson(self, stop: Stop) -> Lesson:
        """What is learned from the image."""
        assert stop.index is not None
        scores = self.candidates[stop.index].scores
        score = sum(scores) / len(scores)
        return Lesson(
            recipe=self.recipe,
            sha256=self.sha256,
            candidates=tuple(self.candidates),
            winner=stop.index,
            score=score,
            expected_score=stop.expected_score,
            accepted=score >= self.recipe.score_threshold,
            reason=stop.reason,
            generated=tuple(
                Usage(input_tokens=900, output_tokens=100) for c in self.candidates if c.text
            ),
            graded=tuple((1, Usage(input_tokens=1500, output_tokens=300)) for _ in self.calls),
        )


def noisy_reader(edges: Sequence[str], share: float, seed: int, **worse: float) -> Model:
    """Reads each edge with the chance `share`, and else turns it round; `worse` takes something
    from the chance of a prompt.
    """

    def model(index: int, arm: Arm) -> str:
        random_ = random.Random(f"{seed}:{index}:{arm.prompt_key}")
        chance = share - worse.get(arm.prompt_key, 0.0)
        return diagram(*(e if random_.random() < chance else e[::-1] for e in edges))

    return model


def honest_grader(edges: Sequence[str], noise: float = 0.0, seed: int = 0) -> Grader:
    """The share of the edges that are right, in points, with noise."""

    def grader(text: str, number: int) -> float:
        right = sum(line in text.splitlines() for line in map(diagram, edges))
        random_ = random.Random(f"{seed}:{text}:{number}")
        return min(max(100.0 * right / len(edges) + random_.gauss(0, noise), 0.0), 100.0)

    return grader


def shas(count: int) -> list[str]:
    """Contents of images."""
    return [f"{i:064x}" for i in range(count)]
