"""Decided images as what a strategy learns from, and what was learned of them.

A lesson is read from the image's steps, candidates and grades, as they were when it was decided, so
that all that is learned can be summed up again.
"""

from __future__ import annotations

from typing import Final

import msgspec

from rsd.protocol.facts import StepChosen
from rsd.protocol.learned import Learned, nothing_learned
from rsd.protocol.vocabulary import Candidate, Grade, Recipe, Usage
from rsd.state import view
from rsd.state.records import ImageRecord, LessonRecord, key, lesson_key, prior_key
from rsd.state.transaction import Transaction, decode
from rsd.strategy.base import Lesson, Seen
from rsd.strategy.learn import learn
from rsd.strategy.prior import PRIOR_IMAGES, problem

#: The strategy that learns.
ADAPTIVE: Final = "adaptive"
#: Digits of a key; a longer key of `learned` is that of a prior.
KEY_DIGITS: Final = 16
#: Lessons that are read in one transaction.
PAGE: Final = 64


class _History:
    """What is stored of an image."""

    def __init__(self, txn: Transaction, image: str) -> None:
        prefix = key(image)
        steps = [decode(StepChosen, value) for _, value in txn.scan("steps", prefix=prefix)]
        self.steps = sorted(steps, key=lambda s: s.round)
        made = (decode(Candidate, value) for _, value in txn.scan("candidates", prefix=prefix))
        self.candidates = {c.index: c for c in made}
        given = (decode(Grade, value) for _, value in txn.scan("grades", prefix=prefix))
        self.grades = {(g.index, g.number): g for g in given}


def noted(txn: Transaction, record: ImageRecord, recipe: Recipe) -> tuple[LessonRecord, Lesson]:
    """The lesson of an image that was decided just now by this recipe."""
    history = _History(txn, record.image)
    planned = {p.index for s in history.steps for p in s.samples}
    bought = {
        (g.index, g.number) for s in history.steps if s.rubric == recipe.rubric for g in s.gradings
    }
    assert record.winner is not None and record.score is not None
    row = LessonRecord(
        image=record.image,
        config=record.decided_config,
        rounds=max((s.round + 1 for s in history.steps), default=0),
        winner=record.winner,
        score=record.score,
        expected_score=record.expected_score or 0.0,
        accepted=record.score >= recipe.score_threshold,
        reason=record.stop_reason,
        unmade=tuple(sorted(planned - history.candidates.keys())),
        ungraded=tuple(sorted(bought - history.grades.keys())),
    )
    return row, _lesson(row, history, recipe, record.sha256)


def lesson_of(txn: Transaction, row: LessonRecord) -> Lesson | None:
    """A lesson as it was; None when its image or its recipe is not stored."""
    record, recipe = view.image_record(txn, row.image), view.recipe_of(txn, row.config)
    if record is None or recipe is None:
        return None
    return _lesson(row, _History(txn, row.image), recipe, record.sha256)


def _lesson(row: LessonRecord, history: _History, recipe: Recipe, sha256: str) -> Lesson:
    steps = [s for s in history.steps if s.round < row.rounds]
    unmade, ungraded = set(row.unmade), set(row.ungraded)
    bought: dict[int, list[int]] = {}
    for step in steps:
        if step.rubric == recipe.rubric:
            for grading in step.gradings:
                bought.setdefault(grading.index, []).append(grading.number)
    seen: list[Seen] = []
    generated: list[Usage] = []
    grades: list[Grade] = []
    planned = {p.index: p for s in steps for p in s.samples}
    for index, sample in sorted(planned.items()):
        made = history.candidates.get(index) if index not in unmade else None
        numbers = sorted(set(bought.get(index, ())))
        given = [
            grade
            for number in numbers
            if (index, number) not in ungraded
            and (grade := history.grades.get((index, number))) is not None
            and grade.rubric == recipe.rubric
        ]
        grades += given
        if made is not None:
            generated.append(made.usage)
        seen.append(
            Seen(
                index=index,
                arm=sample.arm,
                explore=sample.explore,
                text=made.content if made is not None else None,
                rejected=made is not None and bool(made.rejected_because),
                scores=tuple(g.score for g in given),
                bought=len(numbers),
            )
        )
    return Lesson(
        recipe=recipe,
        sha256=sha256,
        candidates=tuple(seen),
        winner=row.winner,
        score=row.score,
        expected_score=row.expected_score,
        accepted=row.accepted,
        reason=row.reason,
        generated=tuple(generated),
        graded=_calls(grades, listwise=recipe.listwise),
    )


def _calls(grades: list[Grade], *, listwise: bool) -> tuple[tuple[int, Usage], ...]:
    """Grading calls. Grades of one reply share their time, endpoint and number, to the last bit;
    each has its part of the tokens.
    """
    calls: dict[tuple[object, ...], list[Usage]] = {}
    for grade in grades:
        call = (grade.timestamp, grade.grading_time, grade.endpoint, grade.number)
        calls.setdefault(call if listwise else (grade.index, grade.number), []).append(grade.usage)
    return tuple((len(usages), _sum(usages)) for usages in calls.values())


def _sum(usages: list[Usage]) -> Usage:
    return Usage(
        input_tokens=sum(u.input_tokens for u in usages),
        output_tokens=sum(u.output_tokens for u in usages),
        reasoning_tokens=sum(u.reasoning_tokens for u in usages),
        cached_tokens=sum(u.cached_tokens for u in usages),
    )


def taught(learned: Learned, lesson: Lesson | None) -> tuple[Learned, Exception | None]:
    """What is learned after a lesson, as it will be read from the disk. A lesson that cannot be
    learned keeps its place in the order and changes nothing, today and when all is summed up again:
    a decision is never lost for it.
    """
    try:
        if lesson is None:
            raise LookupError("its image or its recipe is not stored")
        changed = learn(learned, lesson)
        # What is no number would be written as null, and never be read again.
        return msgspec.json.decode(msgspec.json.encode(changed), type=Learned), None
    except Exception as e:  # whatever is wrong with it, the decision is committed
        return learned, e


def first_of(txn: Transaction, learned: str, recipe: Recipe) -> Learned:
    """What a record begins with: what was brought along, or nothing."""
    return txn.load("learned", prior_key(learned), Learned) or nothing_learned(recipe)


def prior_refused(txn: Transaction, prior: Learned) -> str:
    """Why what another run has learned cannot be taken, in words; "" when it can."""
    count = last_number(txn, prior.key)
    if not (why := problem(prior)) and count > PRIOR_IMAGES:
        why = (
            f"{count} images were learned from here already, and what another run has learned "
            f"would weigh as {PRIOR_IMAGES}"
        )
    return why


def records(txn: Transaction) -> tuple[Learned, ...]:
    """What is learned: a record for each models and rubric that were ever in use."""
    rows = txn.scan("learned")
    return tuple(decode(Learned, value) for row, value in rows if len(row) == KEY_DIGITS)


def last_number(txn: Transaction, learned: str) -> int:
    """Lessons of a key."""
    last = txn.last_of("lessons", learned.encode())
    return int.from_bytes(last[KEY_DIGITS:], "big") if last is not None else 0


def last_recipe(txn: Transaction, learned: str) -> Recipe | None:
    """The recipe of the last lesson of a key; None before there is one."""
    number = last_number(txn, learned)
    row = txn.load("lessons", lesson_key(learned, number), LessonRecord) if number else None
    return view.recipe_of(txn, row.config) if row is not None else None


def page(txn: Transaction, learned: str, after: int, until: int) -> list[LessonRecord]:
    """Lessons behind a number, PAGE at most and none behind `until`."""
    count = min(PAGE, until - after)
    if count <= 0:
        return []
    start, prefix = lesson_key(learned, after + 1), learned.encode()
    rows = txn.scan("lessons", start=start, prefix=prefix, limit=count)
    return [decode(LessonRecord, value) for _, value in rows]
