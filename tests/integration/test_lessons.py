"""What is learned of decided images: once, in their order, and again to the last bit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import lmdb
import msgspec
import pytest

from rsd.hub.brain.image import ActiveImage
from rsd.protocol import facts as f
from rsd.protocol.learned import Learned, learned_key
from rsd.protocol.vocabulary import Usage
from rsd.state import lessons, view
from rsd.state.rebuild import Rebuilt, rebuild, replace_records
from rsd.state.records import ACTIVE, HIGH, LOW, prior_key
from rsd.state.store import LATER, NAMES, Store
from rsd.state.transaction import decode
from rsd.strategy.base import Lesson
from rsd.strategy.prior import PRIOR_IMAGES
from tests.histories import (
    ADAPTIVE,
    ERROR,
    PATHS,
    PRIOR,
    RECIPE,
    STRICT,
    FactSource,
    candidate,
    grade,
)
from tests.recount import recount

A, B, C, D = PATHS
KEY = learned_key(ADAPTIVE)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "lmdb")
    yield opened
    opened.close()


@pytest.fixture
def hub(store: Store) -> FactSource:
    """A hub whose strategy learns."""
    source = FactSource(store)
    source.recipe = ADAPTIVE
    source.add(f.ConfigStored(recipe=ADAPTIVE))
    return source


def start(hub: FactSource, path: bytes, content: str) -> str:
    hub.put(path, content)
    hub.take(0)
    return hub.record(path).image


def step(hub: FactSource, image: str, count: int, graded: tuple[int, ...], number: int = 0) -> None:
    """The next step: so many candidates, and gradings of these."""
    seen = hub.seen(hub.images(ACTIVE)[0])
    first = sum(len(s.samples) for s in seen.steps)
    arms = [candidate(i) for i in range(first, first + count)]
    arm = f.Arm(prompt_key="p1", params=candidate(0).params)
    samples = tuple(
        f.PlannedSample(index=c.index, arm=arm, seed=c.index, explore=c.index == 0) for c in arms
    )
    gradings = tuple(f.PlannedGrading(index=i, number=number) for i in graded)
    rubric = hub.recipe.rubric
    chosen = f.StepChosen(
        image=image, round=len(seen.steps), samples=samples, gradings=gradings, rubric=rubric
    )
    hub.add(chosen)


def make(hub: FactSource, image: str, *indices: int) -> None:
    for index in indices:
        hub.add(f.CandidateMade(image=image, candidate=candidate(index)))


def give(hub: FactSource, image: str, scores: dict[int, float], number: int = 0) -> None:
    for index, score in scores.items():
        given = grade(index, score, number=number, rubric=hub.recipe.rubric)
        hub.add(f.CandidateGraded(image=image, grade=given))


def decide(hub: FactSource, path: bytes, score: float = 50.0) -> None:
    record = hub.record(path)
    hub.add(
        f.ImageDecided(
            image=record.image,
            decision=record.decision + 1,
            winner=0,
            score=score,
            expected_score=score - 1,
            quality="high" if score >= 80 else "low",
            reason="no_gain",
            time=9.0,
            agreement=f.Agreement(level=0.5, distinct=2, winner=0.75),
        )
    )


def whole(hub: FactSource, path: bytes, content: str, score: float = 50.0) -> str:
    """An image from its file to its decision."""
    image = start(hub, path, content)
    step(hub, image, 2, ())
    make(hub, image, 0, 1)
    step(hub, image, 0, (0, 1))
    give(hub, image, {0: score, 1: score - 5})
    decide(hub, path, score)
    return image


def record_of(store: Store) -> Learned:
    with store.reading() as txn:
        found = txn.load("learned", KEY.encode(), Learned)
    assert found is not None
    return found


def rows_of(store: Store) -> list[Lesson]:
    with store.reading() as txn:
        rows = lessons.page(txn, KEY, 0, lessons.last_number(txn, KEY))
        found = [lessons.lesson_of(txn, row) for row in rows]
    assert all(lesson is not None for lesson in found)
    return [lesson for lesson in found if lesson is not None]


def summed(store: Store) -> Rebuilt:
    (one,) = rebuild(store)
    return one


def test_a_lesson_is_what_was_seen_at_the_decision(hub: FactSource, store: Store) -> None:
    image = start(hub, A, "cat")
    step(hub, image, 4, ())
    make(hub, image, 0, 1)
    hub.add(f.SampleFailed(image=image, index=2, error=ERROR, time=1.0))
    cut = msgspec.structs.replace(candidate(3), rejected_because="truncated")
    hub.add(f.CandidateMade(image=image, candidate=cut))
    step(hub, image, 0, (0, 1))
    give(hub, image, {0: 50.0})
    hub.add(f.GradingFailed(image=image, index=1, number=0, error=ERROR, time=1.0))
    decide(hub, A)
    (lesson,) = rows_of(store)
    zero, one, two, three = lesson.candidates
    assert (zero.text, zero.scores, zero.bought, zero.explore) == ("answer 0", (50.0,), 1, True)
    assert (one.text, one.scores, one.bought, one.explore) == ("answer 1", (), 1, False)
    assert (two.text, two.gradable) == (None, False)
    assert (three.rejected, three.gradable) == (True, False)
    assert (lesson.winner, lesson.score, lesson.expected_score) == (0, 50.0, 49.0)
    assert (lesson.accepted, lesson.reason) == (False, "no_gain")
    assert lesson.generated == (candidate(0).usage,) * 3
    assert lesson.graded == ((1, grade(0, 50.0).usage),)
    assert hub.record(A).agreement == f.Agreement(level=0.5, distinct=2, winner=0.75)
    recount(store)


def test_what_a_retry_adds_is_neither_learned_nor_part_of_the_lesson(
    hub: FactSource, store: Store
) -> None:
    image = start(hub, A, "cat")
    step(hub, image, 2, (0, 1))
    make(hub, image, 0)
    hub.add(f.SampleFailed(image=image, index=1, error=ERROR, time=1.0))
    give(hub, image, {0: 50.0})
    decide(hub, A)
    before, taught = record_of(store), rows_of(store)
    hub.add(f.ImageRetried(image=image, fresh=True, time=1.0))
    hub.take(0)
    # Failures are forgotten by a retry: what was given up comes after all.
    make(hub, image, 1)
    give(hub, image, {1: 90.0})
    step(hub, image, 1, (2,))
    make(hub, image, 2)
    give(hub, image, {2: 99.0})
    decide(hub, A, 99.0)
    assert (hub.record(A).decision, hub.record(A).learned) == (2, 1)
    assert record_of(store) == before
    assert rows_of(store) == taught
    assert summed(store).equal
    recount(store)


def test_a_fresh_round_begins_where_the_candidates_ended(hub: FactSource, store: Store) -> None:
    image = whole(hub, A, "cat")
    hub.add(f.ImageRetried(image=image, fresh=False, time=1.0))
    assert hub.record(A).retried_at == 0
    hub.take(0)
    decide(hub, A)
    hub.add(f.ImageRetried(image=image, fresh=True, time=1.0))
    hub.take(0)
    step(hub, image, 3, ())
    with store.reading() as txn:
        history = view.history(txn, hub.record(A))
    assert history is not None and (history.allotment, history.retried_at) == (2, 2)
    assert ActiveImage.from_history(history, ADAPTIVE).state().retried_at == 2


def test_images_are_learned_in_the_order_of_their_decisions(hub: FactSource, store: Store) -> None:
    for n, path in enumerate((B, A, C)):
        whole(hub, path, ("cat", "dog", "owl")[n])
    assert [hub.record(p).learned for p in (B, A, C)] == [1, 2, 3]
    assert {hub.record(p).learned_key for p in (A, B, C)} == {KEY}
    assert record_of(store).images == 3
    recount(store)


def test_other_strategies_and_images_without_a_result_teach_nothing(
    hub: FactSource, store: Store
) -> None:
    image = start(hub, A, "cat")
    step(hub, image, 1, (0,))
    hub.add(f.SampleFailed(image=image, index=0, error=ERROR, time=1.0))
    hub.conclude(hub.record(A))
    assert hub.record(A).status == "failed"
    start(hub, B, "dog")
    hub.gone(1)
    hub.recipe = RECIPE
    whole(hub, C, "owl")
    assert rebuild(store) == []
    hub.add(f.ImageRetried(image=image, fresh=False, time=1.0))
    hub.recipe = ADAPTIVE
    hub.take(0)
    make(hub, image, 0)
    give(hub, image, {0: 85.0})
    decide(hub, A, 85.0)
    assert (hub.record(A).status, hub.record(A).learned) == (HIGH, 1)
    recount(store)


def test_another_rubric_is_another_record(hub: FactSource, store: Store) -> None:
    whole(hub, A, "cat")
    hub.recipe = msgspec.structs.replace(STRICT, strategy="adaptive")
    hub.add(f.ConfigStored(recipe=hub.recipe))
    whole(hub, B, "dog")
    assert hub.record(A).learned == hub.record(B).learned == 1
    with store.reading() as txn:
        assert {r.images for r in lessons.records(txn)} == {1}
    assert len(rebuild(store)) == 2
    recount(store)


def test_grades_of_one_reply_are_one_call(hub: FactSource, store: Store) -> None:
    hub.recipe = msgspec.structs.replace(ADAPTIVE, grading_template="{candidate_answers}")
    hub.add(f.ConfigStored(recipe=hub.recipe))
    image = start(hub, A, "cat")
    step(hub, image, 4, (0, 1, 2, 3))
    make(hub, image, 0, 1, 2, 3)
    for index, (seconds, tokens) in enumerate([(0.25, 7), (0.25, 6), (0.5, 5), (0.25, 6)]):
        given = msgspec.structs.replace(
            grade(index, 50.0, rubric=hub.recipe.rubric, time=4.0),
            grading_time=seconds,
            usage=Usage(input_tokens=tokens, output_tokens=1),
        )
        hub.add(f.CandidateGraded(image=image, grade=given))
    decide(hub, A)
    with store.reading() as txn:
        key = learned_key(hub.recipe)
        lesson = lessons.lesson_of(txn, lessons.page(txn, key, 0, 1)[0])
    assert lesson is not None
    assert lesson.graded == (
        (3, Usage(input_tokens=19, output_tokens=3)),
        (1, Usage(input_tokens=5, output_tokens=1)),
    )


def broken(learned: Learned, lesson: Lesson) -> Learned:
    raise ZeroDivisionError("a bug")


def unstorable(learned: Learned, lesson: Lesson) -> Learned:
    return msgspec.structs.replace(learned, images=learned.images + 1, repeat_sum=math.nan)


@pytest.mark.parametrize("bug", [broken, unstorable])
def test_a_lesson_that_fails_costs_neither_its_decision_nor_its_place(
    hub: FactSource, store: Store, monkeypatch: pytest.MonkeyPatch, bug: object
) -> None:
    whole(hub, A, "cat")
    with monkeypatch.context() as patch:
        patch.setattr(lessons, "learn", bug)
        whole(hub, B, "dog")
        assert (hub.record(B).status, hub.record(B).learned) == (LOW, 2)
        assert record_of(store).images == 1
    whole(hub, C, "owl")
    assert record_of(store).images == 2
    found = summed(store)  # by a version without the bug
    assert (found.lessons, found.unlearned, found.equal) == (3, 0, False)
    assert "images" in found.differences
    replace_records(store, [found])
    assert record_of(store).images == 3
    recount(store)


def test_what_is_lost_or_changed_is_seen_and_put_right(hub: FactSource, store: Store) -> None:
    for n, path in enumerate((A, B, C)):
        whole(hub, path, ("cat", "dog", "owl")[n])
    before = record_of(store)
    wrong = msgspec.structs.replace(before, repeat_sum=math.nextafter(before.repeat_sum, 999.0))
    store.write(lambda txn: txn.put("learned", KEY.encode(), wrong))
    found = summed(store)
    assert (found.differences, found.stored, found.summed) == (("repeat_sum",), wrong, before)
    store.write(lambda txn: txn.delete("learned", KEY.encode()) and None)
    assert summed(store).differences == ("all of it",)
    replace_records(store, [summed(store)])
    assert record_of(store) == before
    recount(store)


def test_a_recipe_that_is_lost_takes_its_own_lessons_alone(hub: FactSource, store: Store) -> None:
    whole(hub, A, "cat")
    hub.recipe = msgspec.structs.replace(ADAPTIVE, temperatures=(0.3, 0.5, 1.0))
    hub.add(f.ConfigStored(recipe=hub.recipe))
    whole(hub, B, "dog")
    whole(hub, C, "owl")
    store.write(lambda txn: txn.delete("configs", ADAPTIVE.fingerprint.encode()) and None)
    found = summed(store)
    assert (found.lessons, found.unlearned) == (3, 1)
    assert found.summed is not None and found.summed.images == 2


# ------------------------------------------------------------------------ what another run learned


def test_a_record_begins_with_what_was_brought_along(hub: FactSource, store: Store) -> None:
    hub.add(f.LearnedImported(learned=PRIOR))
    assert record_of(store) == PRIOR
    whole(hub, A, "cat")
    assert (record_of(store).images, record_of(store).prior_images) == (1, 7)
    recount(store)


def test_what_comes_late_is_put_before_the_first_images(hub: FactSource, store: Store) -> None:
    whole(hub, A, "cat")
    whole(hub, B, "dog")
    hub.add(f.LearnedImported(learned=PRIOR))
    assert (record_of(store).images, record_of(store).prior_images) == (2, 7)
    other = msgspec.structs.replace(PRIOR, prior_images=9)
    hub.add(f.LearnedImported(learned=other))
    assert record_of(store).prior_images == 9, "the last one counts"
    recount(store)


def test_what_comes_too_late_or_is_damaged_is_not_taken(
    hub: FactSource, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n, path in enumerate((A, B)):
        whole(hub, path, ("cat", "dog")[n])
    before = record_of(store)
    for wrong in (
        msgspec.structs.replace(PRIOR, prior_images=PRIOR_IMAGES + 1),
        msgspec.structs.replace(PRIOR, images=3),
        msgspec.structs.replace(PRIOR, rubric="another"),
        msgspec.structs.replace(PRIOR, repeat_count=-1.0),
    ):
        hub.add(f.LearnedImported(learned=wrong))
    monkeypatch.setattr("rsd.state.lessons.PRIOR_IMAGES", 1)
    hub.add(f.LearnedImported(learned=PRIOR))
    assert record_of(store) == before
    with store.reading() as txn:
        assert txn.get("learned", prior_key(KEY)) is None
    recount(store)


def test_a_reader_of_a_state_without_lessons_finds_none(tmp_path: Path) -> None:
    old = [name for name in NAMES if name not in LATER]
    env = lmdb.open(str(tmp_path / "lmdb"), max_dbs=len(old))
    for name in old:
        env.open_db(name.encode())
    with env.begin(write=True) as txn:
        txn.put(b"schema", b"2", db=env.open_db(b"meta", txn=txn))
    env.close()
    reader = Store(tmp_path / "lmdb", readonly=True)
    with reader.reading() as txn:
        assert lessons.records(txn) == ()
        assert lessons.last_number(txn, KEY) == 0
        assert txn.get("learned", b"x") is None and txn.entries("lessons") == 0
    assert rebuild(reader) == []
    reader.close()
    writer = Store(tmp_path / "lmdb")
    with writer.reading() as txn:
        assert txn.get("meta", b"schema") == b"3"
        assert [decode(Learned, v) for _, v in txn.scan("learned")] == []
    writer.close()
