"""One active image: what was drawn, what is made, what is graded, what is missing. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from rsd.hub.brain.queue import Work
from rsd.protocol.facts import PlannedSample, StepChosen
from rsd.protocol.tasks import Answer
from rsd.protocol.vocabulary import (
    SEED_SPACE,
    Arm,
    Candidate,
    ImageId,
    ImageInfo,
    Recipe,
    seed_base,
)
from rsd.protocol.writer_talk import ImageHistory
from rsd.strategy.base import Progress
from rsd.strategy.fixed import plan


@dataclass(slots=True)
class Draw:
    """One planned candidate and what became of it."""

    planned: PlannedSample
    round: int
    wanted: int  #: grades
    candidate: Candidate | None = None
    failed: bool = False  #: no answer, and none will be asked for
    grades: dict[int, float] = field(default_factory=dict)  #: number -> score
    failed_grades: set[int] = field(default_factory=set)

    @property
    def gradable(self) -> bool:
        """Whether there is an answer that a grader should see."""
        return self.candidate is not None and not self.candidate.rejected_because

    @property
    def answered(self) -> bool:
        """Whether generation is over for this draw."""
        return self.failed or self.candidate is not None

    def missing(self) -> list[int]:
        """Numbers of the grades that are still to come."""
        if not self.gradable:
            return []
        return [
            n for n in range(self.wanted) if n not in self.grades and n not in self.failed_grades
        ]

    @property
    def settled(self) -> bool:
        """Whether nothing more is expected of this draw."""
        return self.answered and not self.missing()


@dataclass(slots=True)
class ActiveImage:
    """An image between ImageStarted and its end."""

    image: ImageId
    path: bytes
    version: int
    info: ImageInfo
    recipe: Recipe
    config: str
    decision: int = 0  #: decisions made before
    allotment: int = 1
    rounds: int = 0
    draws: dict[int, Draw] = field(default_factory=dict)
    endpoint: str = ""  #: generator endpoint that has the picture in its caches
    grader: str = ""
    choosing: bool = False  #: at a barrier, or its next step is not durable yet
    parked: list[Work] = field(default_factory=list)  #: until its spool file is written again
    last_error: str = ""

    @property
    def sha256(self) -> str:
        """Content of the picture, also the name of its spool file."""
        return self.info.sha256

    @property
    def settled(self) -> bool:
        """The barrier of the round: nothing is missing."""
        return all(d.settled for d in self.draws.values())

    def scores(self) -> dict[int, float]:
        """Candidate index -> mean of its grades."""
        return {
            i: sum(d.grades.values()) / len(d.grades) for i, d in self.draws.items() if d.grades
        }

    def progress(self) -> Progress:
        """What the sampling strategy needs to know."""
        return Progress(
            recipe=self.recipe,
            sha256=self.sha256,
            drawn=len(self.draws),
            rounds=self.rounds,
            allotment=self.allotment,
            scores=self.scores(),
        )

    def plan_round(self, draws: tuple[tuple[Arm, bool], ...]) -> StepChosen:
        """The step that draws these arms at the next free indices."""
        base = seed_base(self.recipe.seed, self.sha256)
        first = max(self.draws, default=-1) + 1
        return StepChosen(
            image=self.image,
            round=self.rounds,
            samples=tuple(
                PlannedSample(index=i, arm=arm, seed=base + i % SEED_SPACE, explore=explore)
                for i, (arm, explore) in enumerate(draws, first)
            ),
        )

    def take_step(self, step: StepChosen) -> None:
        """A step was chosen, or is replayed."""
        self.choosing = False
        self.rounds = max(self.rounds, step.round + 1)
        for planned in step.samples:
            if planned.index not in self.draws:
                self.draws[planned.index] = Draw(planned, step.round, self.recipe.repeats)
        for index in step.regrade:
            if index in self.draws:
                self.draws[index].wanted += 1

    def to_generate(self, indices: list[int], max_n: int) -> list[tuple[int, ...]]:
        """Requests for these draws: neighbours with the same arm share one, up to `max_n`.

        Temperature 0 never shares: vLLM refuses it with `n`, and the answers would be equal.
        """
        requests: list[list[int]] = []
        for index in sorted(indices):
            arm = self.draws[index].planned.arm
            last = requests[-1] if requests else []
            if (
                last
                and last[-1] == index - 1
                and len(last) < max_n
                and self.draws[last[0]].planned.arm == arm
                and arm.params.temperature > 0
            ):
                last.append(index)
            else:
                requests.append([index])
        return [tuple(r) for r in requests]

    def to_grade(self, indices: Iterable[int] | None = None) -> list[tuple[tuple[int, ...], int]]:
        """Grading calls that these answers (default: all) make possible: (indices, grade number).

        Pointwise: one candidate a call. Listwise: a round is judged when it is complete, and its
        lists are always the same, whatever is graded already: a call that is made again after a
        crash must show the judge what the first one did.
        """
        chosen = sorted(self.draws if indices is None else indices)
        if not self.recipe.listwise:
            return [((i,), number) for i in chosen for number in self.draws[i].missing()]
        rounds = sorted({self.draws[i].round for i in chosen})
        return [
            call
            for number in rounds
            if self.round_generated(number)
            for call in self._lists(number)
        ]

    def _lists(self, round_number: int) -> list[tuple[tuple[int, ...], int]]:
        mine = sorted(i for i, d in self.draws.items() if d.round == round_number and d.gradable)
        count = -(-len(mine) // self.recipe.list_size)
        bounds = [k * len(mine) // count for k in range(count + 1)] if count else []
        wanted = max((self.draws[i].wanted for i in mine), default=0)
        return [
            (tuple(mine[a:b]), number)
            for a, b in pairwise(bounds)
            for number in range(wanted)
            if any(number in self.draws[i].missing() for i in mine[a:b])
        ]

    def round_generated(self, round_number: int) -> bool:
        """Whether every draw of a round has its answer or never will."""
        return all(d.answered for d in self.draws.values() if d.round == round_number)

    def answers(self, indices: tuple[int, ...], number: int) -> tuple[Answer, ...]:
        """What a grading call is given."""
        found = []
        for index in indices:
            candidate = self.draws[index].candidate
            if candidate is not None:
                found.append(Answer(index=index, number=number, content=candidate.content))
        return tuple(found)

    @classmethod
    def from_history(
        cls, history: ImageHistory, recipe: Recipe, info: ImageInfo | None = None
    ) -> ActiveImage:
        """Continue where an earlier life ended. Draws whose prompt is gone from the recipe and that
        were never answered count as failed.
        """
        self = cls(
            image=history.image,
            path=history.path,
            version=history.version,
            info=info or history.info,
            recipe=recipe,
            config=recipe.fingerprint,
            decision=history.decision,
            allotment=history.allotment,
        )
        for step in sorted(history.steps, key=lambda s: s.round):
            self.take_step(step)
        for candidate in history.candidates:
            if candidate.index in self.draws:
                self.draws[candidate.index].candidate = candidate
        for grade in history.grades:
            if grade.index in self.draws:
                self.draws[grade.index].grades[grade.number] = grade.score
        for index in history.failed_samples:
            if index in self.draws:
                self.draws[index].failed = True
        for index, number in history.failed_grades:
            if index in self.draws:
                self.draws[index].failed_grades.add(number)
        for draw in self.draws.values():
            if draw.candidate is None and draw.planned.arm.prompt_key not in recipe.prompts:
                draw.failed = True
        return self


def requests_per_image(recipe: Recipe, max_n: int) -> int:
    """Requests that an image's plan takes, draws with the same arm sharing one."""
    info = ImageInfo(sha256="", width=1, height=1, format="", bytes=0)
    sketch = ActiveImage("", b"", 0, info, recipe, "")
    arms = plan(recipe, "", recipe.candidates)
    sketch.take_step(sketch.plan_round(tuple((arm, False) for arm in arms)))
    return max(1, len(sketch.to_generate(list(sketch.draws), max_n)))
