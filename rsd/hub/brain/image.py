"""One active image: what was planned, what is made, what is graded, what is missing. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import msgspec

from rsd.hub.brain.queue import Work, WorkKind
from rsd.protocol.facts import PlannedGrading, PlannedSample, StepChosen
from rsd.protocol.learned import Learned
from rsd.protocol.tasks import CandidateText
from rsd.protocol.vocabulary import Arm, Candidate, ImageId, ImageInfo, Recipe, seed_of
from rsd.protocol.writer_talk import ImageHistory
from rsd.strategy.base import Buy, CallPrices, ImageState, Seen
from rsd.strategy.memory import Memory


@dataclass(slots=True)
class Grading:
    """One grade that was bought, and what became of it."""

    rubric: str
    round: int  #: of the step that bought it
    score: float | None = None
    failed: bool = False  #: no grade, and none will be asked for

    @property
    def over(self) -> bool:
        """Whether nothing more is expected of it."""
        return self.failed or self.score is not None


@dataclass(slots=True)
class CandidateState:
    """One planned candidate and what became of it."""

    planned: PlannedSample
    round: int
    candidate: Candidate | None = None
    failed: bool = False  #: no answer, and none will be asked for
    gradings: dict[int, Grading] = field(default_factory=dict)  #: by number, of all rubrics

    @property
    def gradable(self) -> bool:
        """Whether there is an answer that a grader should see."""
        return self.candidate is not None and not self.candidate.rejected_because

    @property
    def answered(self) -> bool:
        """Whether generation is over."""
        return self.failed or self.candidate is not None

    @property
    def next_number(self) -> int:
        """The number of the next grade."""
        return max(self.gradings, default=-1) + 1

    def bought(self, rubric: str) -> int:
        """Gradings of a rubric, whatever became of them."""
        return sum(g.rubric == rubric for g in self.gradings.values())

    def missing(self, rubric: str) -> list[int]:
        """Numbers of a rubric's grades that are still to come."""
        if not self.gradable:
            return []
        found = [n for n, g in self.gradings.items() if not g.over and g.rubric == rubric]
        found.sort()
        return found

    def awaits(self, number: int, rubric: str) -> bool:
        """Whether this grade of it is still to come."""
        grading = self.gradings.get(number)
        if grading is None or grading.over or grading.rubric != rubric:
            return False
        return self.gradable

    def complete(self, rubric: str) -> bool:
        """Whether neither an answer nor a grade of this rubric is still to come."""
        if self.candidate is None:
            return self.failed
        if self.candidate.rejected_because:
            return True
        for grading in self.gradings.values():  # looked at with every reply: no generator
            if not grading.over and grading.rubric == rubric:
                return False
        return True

    def score(self, rubric: str) -> float | None:
        """Mean of the grades of a rubric."""
        scores = [
            g.score for g in self.gradings.values() if g.rubric == rubric and g.score is not None
        ]
        return sum(scores) / len(scores) if scores else None

    def seen(self, rubric: str) -> Seen:
        """As a strategy that learns sees it."""
        made = self.candidate
        mine = [g for _, g in sorted(self.gradings.items()) if g.rubric == rubric]
        return Seen(
            index=self.planned.index,
            arm=self.planned.arm,
            explore=self.planned.explore,
            text=made.content if made is not None else None,
            rejected=made is not None and bool(made.rejected_because),
            scores=tuple(g.score for g in mine if g.score is not None),
            bought=len(mine),
        )


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
    retried_at: int = 0  #: candidates planned when another round was asked for last
    rounds: int = 0
    candidates: dict[int, CandidateState] = field(default_factory=dict)
    endpoint: str = ""  #: generator endpoint that has the picture in its caches
    grader: str = ""
    choosing: bool = False  #: at a barrier, or its next step is not durable yet
    #: Calls until their spool file is written again: that of the half picture, or of the whole.
    parked: dict[bool, list[Work]] = field(default_factory=lambda: {False: [], True: []})
    crashes: int = 0  #: workers that died decoding it
    last_error: str = ""
    rubric: str = ""  #: of the grades that count
    memory: Memory | None = None  #: of a strategy that learns; begun with its first step

    def __post_init__(self) -> None:
        self.rubric = self.recipe.rubric

    @property
    def sha256(self) -> str:
        """Content of the picture, also the name of its spool file."""
        return self.info.sha256

    @property
    def round_complete(self) -> bool:
        """The barrier of the round: nothing is missing."""
        return all(candidate.complete(self.rubric) for candidate in self.candidates.values())

    def grade_as(self, current: Recipe) -> bool:
        """Take over the grader of the settings: its calls go to that one, whatever the image was
        started with. The template stays. True when that is another rubric.
        """
        own, other = self.recipe, current
        if (own.grader_model, own.reasoning_effort) == (other.grader_model, other.reasoning_effort):
            return False
        recipe = with_grader(self.recipe, current)
        changed = recipe.rubric != self.rubric
        self.recipe, self.config, self.rubric = recipe, recipe.fingerprint, recipe.rubric
        return changed

    def generate_with(self, model: str) -> None:
        """The server has named its model, where the recipe names none."""
        self.recipe = msgspec.structs.replace(self.recipe, generator_model=model)
        self.config = self.recipe.fingerprint

    def unpark_grading(self) -> None:
        """Forget the grading calls that wait for the picture."""
        for calls in self.parked.values():
            calls[:] = [work for work in calls if work.kind is not WorkKind.GRADE]

    def missing(self, index: int) -> list[int]:
        """Numbers of a candidate's grades that are still to come."""
        return self.candidates[index].missing(self.rubric)

    def awaits(self, index: int, number: int) -> bool:
        """Whether this grade of a candidate is still to come."""
        return self.candidates[index].awaits(number, self.rubric)

    def scores(self) -> dict[int, float]:
        """Candidate index -> mean of its grades."""
        found = ((i, c.score(self.rubric)) for i, c in self.candidates.items())
        return {i: score for i, score in found if score is not None}

    @property
    def learns(self) -> bool:
        """Whether its strategy looks at texts and at what was learned."""
        return self.recipe.strategy == "adaptive"

    def state(self, learned: Learned | None = None, prices: CallPrices | None = None) -> ImageState:
        """What the strategy needs to know."""
        seen: tuple[Seen, ...] = ()
        if self.learns:
            seen = tuple(c.seen(self.rubric) for _, c in sorted(self.candidates.items()))
        return ImageState(
            recipe=self.recipe,
            sha256=self.sha256,
            planned=self._next_index,
            rounds=self.rounds,
            allotment=self.allotment,
            retried_at=self.retried_at,
            bought={i: c.bought(self.rubric) for i, c in self.candidates.items() if c.gradable},
            scores=self.scores(),
            candidates=seen,
            learned=learned,
            prices=prices,
        )

    @property
    def _next_index(self) -> int:
        return max(self.candidates, default=-1) + 1

    def plan_step(self, buy: Buy) -> StepChosen:
        """The step that buys this: candidates at the next free indices, grades with the next free
        numbers. The candidates of a list are graded under one number.
        """
        first, seed = self._next_index, self.recipe.seed
        samples = tuple(
            PlannedSample(index=i, arm=arm, seed=seed_of(seed, self.sha256, i), explore=explore)
            for i, (arm, explore) in enumerate(buy.samples, first)
        )
        free = {
            i: self.candidates[i].next_number if i in self.candidates else 0
            for i, _ in buy.gradings
        }
        if self.recipe.listwise:
            free = dict.fromkeys(free, max(free.values(), default=0))
        gradings = tuple(
            PlannedGrading(index=i, number=number)
            for i, count in buy.gradings
            for number in range(free[i], free[i] + count)
        )
        return StepChosen(
            image=self.image,
            round=self.rounds,
            samples=samples,
            gradings=gradings,
            rubric=self.rubric,
        )

    def take_step(self, step: StepChosen) -> None:
        """A step was chosen, or is replayed."""
        self.choosing = False
        self.rounds = max(self.rounds, step.round + 1)
        for planned in step.samples:
            self.candidates.setdefault(planned.index, CandidateState(planned, step.round))
        for grading in step.gradings:
            candidate = self.candidates.get(grading.index)
            if candidate is not None:
                new = Grading(step.rubric, step.round)
                candidate.gradings.setdefault(grading.number, new)

    def to_generate(self, indices: list[int], max_n: int) -> list[tuple[int, ...]]:
        """Requests for these candidates: neighbours with the same arm and consecutive seeds share
        one, up to `max_n`.

        Temperature 0 never shares: vLLM refuses it with `n`, and the answers would be equal.
        """
        requests: list[list[int]] = []
        for index in sorted(indices):
            planned = self.candidates[index].planned
            last = requests[-1] if requests else []
            first = self.candidates[last[0]].planned if last else planned
            if (
                last
                and last[-1] == index - 1
                and len(last) < max_n
                and first.arm == planned.arm
                and first.seed + len(last) == planned.seed
                and planned.arm.params.temperature > 0
            ):
                last.append(index)
            else:
                requests.append([index])
        return [tuple(r) for r in requests]

    def to_grade(self, indices: Iterable[int] | None = None) -> list[tuple[tuple[int, ...], int]]:
        """Grading calls that these candidates (default: all) make possible: (indices, number).

        Pointwise: one candidate a call. Listwise: what a step buys is graded when all of it is
        generated, and its lists are always the same, whatever is graded already: a call that is
        made again after a crash must show the grader what the first one did.
        """
        chosen = sorted(self.candidates if indices is None else indices)
        if not self.recipe.listwise:
            return [((i,), number) for i in chosen for number in self.missing(i)]
        rounds = {
            grading.round
            for i in chosen
            for grading in self.candidates[i].gradings.values()
            if grading.rubric == self.rubric
        }
        return [call for number in sorted(rounds) for call in self._lists(number)]

    def _lists(self, round_number: int) -> list[tuple[tuple[int, ...], int]]:
        members: dict[int, list[int]] = {}  # grade number -> candidates
        for index, candidate in sorted(self.candidates.items()):
            for number, grading in candidate.gradings.items():
                if grading.round == round_number and grading.rubric == self.rubric:
                    if not candidate.answered:
                        return []
                    if candidate.gradable:
                        members.setdefault(number, []).append(index)
        calls = []
        for number, mine in members.items():
            count = -(-len(mine) // self.recipe.list_size)
            bounds = [k * len(mine) // count for k in range(count + 1)]
            for a, b in pairwise(bounds):
                if any(self.awaits(i, number) for i in mine[a:b]):
                    calls.append((tuple(mine[a:b]), number))
        return sorted(calls, key=lambda call: (call[0][0], call[1]))

    def answers(self, indices: tuple[int, ...], number: int) -> tuple[CandidateText, ...]:
        """What a grading call is given."""
        found = []
        for index in indices:
            candidate = self.candidates[index].candidate
            if candidate is not None:
                found.append(CandidateText(index=index, number=number, content=candidate.content))
        return tuple(found)

    @classmethod
    def from_history(
        cls, history: ImageHistory, recipe: Recipe, info: ImageInfo | None = None
    ) -> ActiveImage:
        """Continue where an earlier life ended. Candidates that were never made and whose prompt is
        gone from the recipe count as failed.
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
            retried_at=history.retried_at,
            crashes=history.crashes,
        )
        for step in sorted(history.steps, key=lambda s: s.round):
            self.take_step(step)
        for made in history.candidates:
            if made.index in self.candidates:
                self.candidates[made.index].candidate = made
        for grade in history.grades:
            if grade.index in self.candidates:
                gradings = self.candidates[grade.index].gradings
                bought = gradings.get(grade.number)
                round_number = bought.round if bought is not None else 0
                gradings[grade.number] = Grading(grade.rubric, round_number, grade.score)
        for index in history.failed_samples:
            if index in self.candidates:
                self.candidates[index].failed = True
        for index, number in history.failed_grades:
            if index in self.candidates and number in self.candidates[index].gradings:
                self.candidates[index].gradings[number].failed = True
        for candidate in self.candidates.values():
            if (
                candidate.candidate is None
                and candidate.planned.arm.prompt_key not in recipe.prompts
            ):
                candidate.failed = True
        return self


def with_grader(recipe: Recipe, current: Recipe) -> Recipe:
    """A recipe whose candidates are graded by the grader of another one."""
    return msgspec.structs.replace(
        recipe, grader_model=current.grader_model, reasoning_effort=current.reasoning_effort
    )


def requests_per_image(recipe: Recipe, max_n: int, arms: Iterable[Arm]) -> int:
    """Requests that candidates of these arms take, those with the same arm sharing one."""
    info = ImageInfo(sha256="", width=1, height=1, format="", bytes=0)
    sketch = ActiveImage("", b"", 0, info, recipe, "")
    sketch.take_step(sketch.plan_step(Buy(samples=tuple((arm, False) for arm in arms))))
    return max(1, len(sketch.to_generate(list(sketch.candidates), max_n)))
