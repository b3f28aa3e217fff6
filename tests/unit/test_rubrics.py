"""Only grades of one rubric compete: after a change of template, grader or effort, and back."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from rsd.hub.brain import events
from rsd.hub.brain.events import Policy
from rsd.protocol.tasks import GradeCandidates
from rsd.protocol.vocabulary import Recipe, Role
from tests.unit.world import Store, World, policy, recipe, role_policy, score

LENIENT, STRICT = "lenient {generated_answer}", "strict {generated_answer}"
LIST = "lenient {candidate_answers}", "strict {candidate_answers}"


def graded_by(with_recipe: Recipe) -> Policy:
    """A policy that asks the grader of this recipe."""
    roles = {
        Role.GENERATE: role_policy(("http://g/v1",), "vlm"),
        Role.GRADE: role_policy(("http://j/v1",), with_recipe.grader_model),
    }
    return policy(with_recipe, roles=roles, reasoning_effort=with_recipe.reasoning_effort)


class Graders(World):
    """A lenient rubric gives 95 to all; a strict one, and any other grader, at most 70."""

    def score(self, task: GradeCandidates, content: str, number: int) -> float:
        if "lenient" in task.template and task.model == "o4-mini" and not task.reasoning_effort:
            return 95.0
        return 0.7 * score(content, number)

    def graded(self, image: str) -> dict[int, dict[str, list[float]]]:
        """Candidate -> rubric -> its grades."""
        found: dict[int, dict[str, list[float]]] = {}
        for (of, index, _), grade in self.store.grades.items():
            if of == image:
                found.setdefault(index, {}).setdefault(grade.rubric, []).append(grade.score)
        return found


def again(store: Store, with_recipe: Recipe, seed: int) -> Graders:
    """A new life, in which a person asks for the image again."""
    store.retry(b"a.png")
    world = Graders(random.Random(seed), graded_by(with_recipe))
    world.store = store
    world.run([])
    return world


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (recipe(grading_template=LENIENT), recipe(grading_template=STRICT)),
        (recipe(grading_template=LENIENT), recipe(grading_template=LENIENT, grader_model="other")),
        (
            recipe(grading_template=LENIENT),
            recipe(grading_template=LENIENT, reasoning_effort="high"),
        ),
        (
            recipe(grading_template=LIST[0], candidates=5, list_size=3, repeats=2),
            recipe(grading_template=LIST[1], candidates=5, list_size=3, repeats=2),
        ),
        (
            recipe(grading_template=LENIENT, stop_score=80.0, candidates=6),
            recipe(grading_template=STRICT, stop_score=80.0, candidates=6),
        ),
    ],
    ids=["template", "model", "effort", "lists", "stop_score"],
)
def test_an_old_lenient_grade_does_not_beat_a_new_strict_one(before: Recipe, after: Recipe) -> None:
    first = Graders(random.Random(1), graded_by(before))
    first.run([b"a.png"])
    (image,) = first.store.decided
    assert first.store.decided[image].score == 95.0
    made = len(first.store.candidates)

    second = again(first.store, after, 2)
    decided = second.store.decided[image]
    graded = second.graded(image)
    new = {i: sum(s) / len(s) for i, of in graded.items() if (s := of.get(after.rubric))}
    assert decided.score == max(new.values()) <= 70.0
    assert decided.winner == min(i for i, mean in new.items() if mean == decided.score)
    assert all(len(grades[before.rubric]) == before.repeats for grades in list(graded.values())[:3])
    assert set(new) == set(graded), "each candidate is graded under the new rubric"
    if before.stop_score is None:
        assert not second.calls and len(second.store.candidates) == made, "nothing made again"

    third = again(second.store, before, 3)
    assert third.store.decided[image].score == 95.0, "the old grades count again"
    if before.stop_score is None:
        assert len(third.store.grades) == len(graded) * 2 * before.repeats, "and are paid for once"


def test_a_retry_under_the_same_rubric_pays_for_nothing() -> None:
    same = recipe(grading_template=STRICT)
    first = Graders(random.Random(1), graded_by(same))
    first.run([b"a.png"])
    (image,) = first.store.decided
    before, grades = first.store.decided[image], len(first.store.grades)
    second = again(first.store, same, 2)
    assert second.store.decided[image].score == before.score
    assert not second.calls and len(second.store.grades) == grades


@pytest.mark.parametrize("template", [LENIENT, LIST[0]], ids=["pointwise", "lists"])
@pytest.mark.parametrize("seed", range(6))
def test_a_reload_in_the_middle_mixes_nothing(template: str, seed: int) -> None:
    before = recipe(grading_template=template, candidates=6, list_size=4)
    # The template stays: an image finishes on the one that it was started with.
    after = recipe(grading_template=STRICT, candidates=6, grader_model="other")
    world = Graders(random.Random(seed), graded_by(before))
    world.open([b"%d.png" % k for k in range(6)])
    for _ in range(5_000):
        if world.store.grades or world.finished:
            break
        world.step()
    assert not world.finished and world.brain.rounds.images
    world.think(events.PolicyChanged(policy=graded_by(after)))
    active = set(world.brain.rounds.images)
    for _ in range(20_000):
        if world.finished:
            break
        world.step()
    assert len(world.store.decided) == 6
    assert set(world.calls.values()) == {1}, "a candidate was made twice"
    new = recipe(grading_template=template, grader_model="other").rubric
    for image in active:
        graded = {i: of[new] for i, of in world.graded(image).items()}
        assert sorted(graded) == list(range(6))
        assert all(len(scores) == 1 for scores in graded.values())
        assert world.store.decided[image].score == max(s[0] for s in graded.values()) <= 70.0


class Lent(Graders):
    """Counts how often each grade was asked for."""

    def __init__(self, seed: int, with_recipe: Recipe) -> None:
        self.asked: Counter[tuple[str, int, int]] = Counter()
        super().__init__(random.Random(seed), graded_by(with_recipe))

    def act(self, action: events.Action) -> None:
        if isinstance(action, events.Assign) and isinstance(action.lease.task, GradeCandidates):
            task = action.lease.task
            self.asked.update((task.image, c.index, c.number) for c in task.candidates)
        super().act(action)


@pytest.mark.parametrize("template", [LENIENT, LIST[0]], ids=["pointwise", "lists"])
def test_a_grader_that_comes_back_at_once_is_asked_for_no_grade_twice(template: str) -> None:
    before = recipe(grading_template=template)
    world = Lent(1, before)
    world.open([b"a.png"])
    while not world.asked:
        world.step()
        assert not world.finished
    (image,) = world.brain.rounds.images.values()
    while not all(c.answered for c in image.candidates.values()):
        worker = next(w for w in world.leases if w.startswith("generate") and world.leases[w])
        lease, task = world.leases[worker].popitem()
        world.think(events.Replied(worker=worker, reply=world.work(lease, task)))
    assert not world.store.grades, "all grades are under way or wait"
    for changed in (recipe(grading_template=template, reasoning_effort="high"), before):
        world.think(events.PolicyChanged(policy=graded_by(changed)))
    world.commit(len(world.facts))  # the step that the other grader wanted among them
    while not world.finished:
        world.step()
    of_before = [g for g in world.store.grades.values() if g.rubric == before.rubric]
    assert len(of_before) == 3
    assert all(world.asked[image.image, g.index, g.number] == 1 for g in of_before)
