"""Candidates and gradings that are bought in steps of their own, as `adaptive` does."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import pytest

from rsd.hub.brain.image import ActiveImage
from rsd.protocol.facts import StepChosen
from rsd.protocol.vocabulary import Arm, Candidate, Grade, Recipe, SamplingParams, Usage
from rsd.protocol.writer_talk import ImageHistory
from rsd.strategy.base import Buy
from tests.unit.world import info_of, recipe

POINTWISE, LISTWISE = "{generated_answer}", "{candidate_answers}"
ARM, OTHER = (
    Arm(prompt_key=key, params=SamplingParams(temperature=1.0, top_p=0.9, top_k=40))
    for key in ("p1", "p2")
)


def adaptive(**changes: object) -> Recipe:
    return recipe(strategy="adaptive", **changes)


class Bought:
    """An image, what was bought for it, and what a history of it would hold."""

    def __init__(self, with_recipe: Recipe) -> None:
        info = info_of(b"a.png")
        fingerprint = with_recipe.fingerprint
        self.image = ActiveImage("id", b"a.png", 0, info, with_recipe, fingerprint)
        self.steps: list[StepChosen] = []
        self.grades: list[Grade] = []
        self.failed: list[tuple[int, int]] = []

    def buy(self, samples: Iterable[Arm] = (), gradings: Iterable[int] = ()) -> StepChosen:
        """One step, as it is chosen and then durable."""
        chosen = tuple((arm, k == 0) for k, arm in enumerate(samples))
        step = self.image.plan_step(
            Buy(samples=chosen, gradings=tuple((i, 1) for i in gradings)),
        )
        self.steps.append(step)
        self.image.take_step(step)
        return step

    def make(self, *texts: str, rejected: str = "") -> None:
        """The answers of the candidates that have none."""
        waiting = [c for c in self.image.candidates.values() if not c.answered]
        for state, text in zip(waiting, texts, strict=True):
            arm = state.planned.arm
            state.candidate = Candidate(
                index=state.planned.index,
                round=state.round,
                prompt_key=arm.prompt_key,
                params=arm.params,
                seed=state.planned.seed,
                content=text,
                finish_reason="stop",
                rejected_because=rejected,
                generation_time=0.0,
                usage=Usage(),
                model="vlm",
                endpoint="",
                config="",
                explore=state.planned.explore,
                timestamp=0.0,
            )

    def give(self, index: int, number: int, score: float | None) -> None:
        """A grade; None: it is given up."""
        grading = self.image.candidates[index].gradings[number]
        if score is None:
            grading.failed = True
            self.failed.append((index, number))
            return
        grading.score = score
        grade = Grade(
            index=index,
            number=number,
            score=score,
            explanation="",
            grading_time=0.0,
            usage=Usage(),
            model="o4-mini",
            endpoint="",
            timestamp=0.0,
            rubric=grading.rubric,
        )
        self.grades.append(grade)

    def resumed(self) -> ActiveImage:
        """From its history, in another life."""
        made = (c.candidate for c in self.image.candidates.values())
        history = ImageHistory(
            image="id",
            path=b"a.png",
            version=0,
            sha256=self.image.sha256,
            info=self.image.info,
            config=self.image.config,
            decision=0,
            allotment=1,
            steps=tuple(self.steps),
            candidates=tuple(c for c in made if c is not None),
            grades=tuple(self.grades),
            failed_samples=(),
            failed_grades=tuple(self.failed),
        )
        return ActiveImage.from_history(history, self.image.recipe)


@pytest.mark.parametrize("template", [POINTWISE, LISTWISE])
def test_candidates_without_gradings_end_their_round(template: str) -> None:
    bought = Bought(adaptive(grading_template=template))
    step = bought.buy(samples=[ARM, ARM, OTHER])
    assert not step.gradings and [s.explore for s in step.samples] == [True, False, False]
    assert bought.image.to_generate([0, 1, 2], 16) == [(0, 1), (2,)], "equal arms share a request"
    assert not bought.image.round_complete
    bought.make("A --> B", "A --> B", "B --> A")
    assert bought.image.round_complete and not bought.image.to_grade()
    seen = bought.image.state().candidates
    assert [(c.text, c.explore, c.bought) for c in seen] == [
        ("A --> B", True, 0),
        ("A --> B", False, 0),
        ("B --> A", False, 0),
    ]


def test_a_list_holds_candidates_of_several_rounds_under_one_number() -> None:
    bought = Bought(adaptive(grading_template=LISTWISE, list_size=6))
    bought.buy(samples=[ARM, OTHER])
    bought.make("a", "b")
    bought.buy(gradings=[1])
    assert bought.image.to_grade() == [((1,), 0)]
    bought.give(1, 0, 40.0)
    bought.buy(samples=[ARM, OTHER])
    bought.make("c", "d")
    step = bought.buy(gradings=[0, 1, 3])
    assert {(g.index, g.number) for g in step.gradings} == {(0, 1), (1, 1), (3, 1)}
    assert bought.image.to_grade() == [((0, 1, 3), 1)] == bought.resumed().to_grade()
    bought.give(0, 1, 70.0)
    assert bought.image.to_grade() == [((0, 1, 3), 1)], "a call made again shows the same list"
    bought.give(3, 1, 10.0)
    bought.give(1, 1, None)
    assert bought.image.round_complete and not bought.image.to_grade()
    scores = [(c.scores, c.bought) for c in bought.image.state().candidates]
    assert scores == [((70.0,), 1), ((40.0,), 2), ((), 0), ((10.0,), 1)]
    more = bought.buy(gradings=[0])
    assert [(g.index, g.number) for g in more.gradings] == [(0, 2)], "no number twice"


def test_a_long_list_is_cut_as_the_settings_say() -> None:
    bought = Bought(adaptive(grading_template=LISTWISE, list_size=3))
    bought.buy(samples=[ARM] * 5)
    bought.make(*"abcde")
    bought.buy(gradings=range(5))
    assert bought.image.to_grade() == [((0, 1), 0), ((2, 3, 4), 0)]


@pytest.mark.parametrize("template", [POINTWISE, LISTWISE])
def test_a_history_gives_the_same_state_at_every_point(template: str) -> None:
    bought = Bought(adaptive(grading_template=template))

    def same() -> None:
        again = bought.resumed()
        assert again.state() == bought.image.state()
        assert again.to_grade() == bought.image.to_grade()
        assert again.round_complete == bought.image.round_complete

    bought.buy(samples=[ARM, OTHER, OTHER])
    same()
    bought.make("a", "b", "c")
    same()
    bought.buy(gradings=[0, 2])
    same()
    bought.give(2, 0, 55.0)
    same()
    bought.give(0, 0, None)
    same()
    bought.buy(gradings=[0, 2])
    same()
    bought.give(0, 1, 30.0)
    bought.give(2, 1, 65.0)
    same()
    bought.buy(samples=[OTHER])
    bought.make("", rejected="empty")
    same()
    last = bought.image.state().candidates[-1]
    assert last.rejected and not last.gradable and last.text == ""
    assert [c.scores for c in bought.image.state().candidates[:3]] == [(30.0,), (), (55.0, 65.0)]


def test_another_rubric_makes_the_grades_history() -> None:
    bought = Bought(adaptive())
    bought.buy(samples=[ARM, OTHER])
    bought.make("a", "b")
    bought.buy(gradings=[0, 1])
    bought.give(0, 0, 90.0)
    assert bought.image.grade_as(msgspec.structs.replace(bought.image.recipe, grader_model="x"))
    assert bought.image.round_complete, "what is missing is of the former rubric"
    assert [(c.scores, c.bought) for c in bought.image.state().candidates] == [((), 0), ((), 0)]
    step = bought.buy(gradings=[0])
    assert [(g.index, g.number) for g in step.gradings] == [(0, 1)]


def test_other_strategies_are_told_no_texts() -> None:
    bought = Bought(recipe())
    bought.buy(samples=[ARM])
    bought.make("a")
    assert bought.image.state().candidates == ()
