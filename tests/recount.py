"""Every counter of a store against what it counts."""

from __future__ import annotations

from collections import Counter
from statistics import fmean
from typing import TypeVar

import msgspec
import pytest

from rsd.protocol.facts import PlannedSample, StepChosen
from rsd.protocol.vocabulary import Arm, Candidate, Grade, Recipe, Role
from rsd.state.rebuild import rebuild
from rsd.state.records import (
    ACTIVE,
    CLASSES,
    FAILED,
    HIGH,
    LOW,
    QUEUED,
    REPLACED,
    FailureRecord,
    ImageRecord,
    LessonRecord,
    PathRecord,
    Tally,
    key,
    key64,
    lesson_key,
)
from rsd.state.store import Store
from rsd.state.transaction import class_key, decode

K = TypeVar("K", bound=msgspec.Struct)


def recount(store: Store) -> None:
    """Every counter, index and tally equals what it stands for."""
    with store.reading() as txn:
        stats = txn.stats()
        images = {k.hex(): decode(ImageRecord, v) for k, v in txn.scan("images")}
        paths = [decode(PathRecord, v) for _, v in txn.scan("paths")]
        backlog = {k: v.hex() for k, v in txn.scan("backlog")}
        active = {k.hex() for k, _ in txn.scan("active")}
        contents = {k.hex(): v.hex() for k, v in txn.scan("contents")}
        classes = {k for k, _ in txn.scan("classes")}
        tallies = {k.decode(): decode(Tally, v) for k, v in txn.scan("tallies")}
        candidates = {k: decode(Candidate, v) for k, v in txn.scan("candidates")}
        grades: dict[bytes, list[Grade]] = {}
        for k, v in txn.scan("grades"):
            grades.setdefault(k[:20], []).append(decode(Grade, v))
        failures = [
            [decode(FailureRecord, v) for _, v in txn.scan(name)]
            for name in ("sample_failures", "grade_failures")
        ]
        outbox = txn.entries("outbox")
        recipes = {k.decode(): decode(Recipe, v) for k, v in txn.scan("configs")}
    learned_once(store)
    assert stats.seen == sum(getattr(stats, name) for name in CLASSES) == len(paths)
    by_class = Counter(r.status for r in images.values())
    assert {n: getattr(stats, n) for n in CLASSES} == {n: by_class[n] for n in CLASSES}
    assert stats.outbox == outbox
    current = {p.image for p in paths}
    assert {i for i, r in images.items() if r.status != REPLACED} == current
    rows = {key64(r.queue_seq): i for i, r in images.items() if r.queue_seq}
    assert rows == backlog
    assert {i for i, r in images.items() if r.status == QUEUED} <= set(backlog.values())
    assert active == {i for i, r in images.items() if r.status == ACTIVE}
    assert active.isdisjoint(backlog.values())
    assert classes == {
        class_key(r.status, i) for i, r in images.items() if r.status in (FAILED, LOW, HIGH)
    }
    for content, owner in contents.items():
        assert images[owner].sha256 == content
        assert images[owner].status in (QUEUED, ACTIVE, HIGH, LOW)
    for i, record in images.items():
        if record.status in (HIGH, LOW, FAILED):
            assert record.filed == record.status
        if record.status in (ACTIVE, HIGH, LOW):
            assert contents[record.sha256] == i
    assert stats.generated == len(candidates)
    rubrics = {key(i): recipes[r.config].rubric for i, r in images.items() if r.config}
    scores = {}
    for k, given in grades.items():
        counted = [g.score for g in given if g.rubric == rubrics[k[:16]]]
        if counted:
            scores[k] = fmean(counted)
    assert stats.graded == len(scores)
    assert stats.grades == sum(len(g) for g in grades.values())
    assert stats.generation_time == pytest.approx(0.5 * stats.generated)
    assert stats.grading_time == pytest.approx(0.25 * stats.grades)
    unused = {name: t.count for name, t in tallies.items() if name.startswith("unused:")}
    lost = {r: sum(c for n, c in unused.items() if n.split(":")[1] == r) for r in Role}
    assert stats.unused_calls == sum(lost.values())
    kept = [c.usage for c in candidates.values()] + [g.usage for of in grades.values() for g in of]
    paid = stats.generator_input_tokens + stats.grader_input_tokens
    assert paid == sum(u.input_tokens for u in kept) + stats.unused_input_tokens
    paid = stats.generator_output_tokens + stats.grader_output_tokens
    assert paid == sum(u.output_tokens for u in kept) + stats.unused_output_tokens
    assert [stats.sample_failures, stats.grading_failures] == [len(rows) for rows in failures]
    won = {
        key(i) + (r.winner or 0).to_bytes(4, "big"): r
        for i, r in images.items()
        if r.filed in (HIGH, LOW)
    }
    expected: dict[str, Tally] = {}

    def row(name: str) -> Tally:
        return expected.setdefault(name, Tally())

    for k, made in candidates.items():
        for name in (
            f"prompt:{made.prompt_key}",
            f"temperature:{made.params.temperature:g}",
            "top_p:0.9",
            "top_k:40",
        ):
            row(name).generated += 1
            if k in scores:
                row(name).graded += 1
                row(name).score_sum += scores[k]
                if recipes[made.config].strategy == "adaptive" and not made.explore:
                    row(name).selected += 1
                    row(name).selected_sum += scores[k]
            if k in won:
                row(name).wins += 1
                row(name).accepted += won[k].filed == HIGH
        if k in scores:
            row(f"score:{min(95, int(scores[k] // 5) * 5)}").count += 1
        if k in won:
            row(f"best:{min(95, int((won[k].score or 0) // 5) * 5)}").count += 1
    for record in images.values():
        if record.status == FAILED:
            row(f"failed:{record.reason}").count += 1
    for kind, found in zip(("sample_failure", "grading_failure"), failures, strict=True):
        for failure in found:
            row(f"{kind}:{failure.error.reason}").count += 1
    assert set(tallies) == {*expected, *unused}
    for name, tally in expected.items():
        found_tally = msgspec.structs.asdict(tallies[name])
        assert found_tally == pytest.approx(msgspec.structs.asdict(tally)), name


def learned_once(store: Store) -> int:
    """Each image that the strategy that learns has decided is one lesson, and the lessons make what
    is stored, bit by bit. Returns how many there are.
    """
    with store.reading() as txn:
        images = {k.hex(): decode(ImageRecord, v) for k, v in txn.scan("images")}
        lessons = {k: decode(LessonRecord, v) for k, v in txn.scan("lessons")}
        recipes = {k.decode(): decode(Recipe, v) for k, v in txn.scan("configs")}
    marked = {lesson_key(r.learned_key, r.learned): i for i, r in images.items() if r.learned}
    assert marked == {k: row.image for k, row in lessons.items()}
    assert len(set(marked.values())) == len(marked) == sum(bool(r.learned) for r in images.values())
    numbers: dict[bytes, list[int]] = {}
    for k in lessons:
        numbers.setdefault(k[:16], []).append(int.from_bytes(k[16:], "big"))
    assert all(sorted(n) == [*range(1, len(n) + 1)] for n in numbers.values())
    for record in images.values():
        adaptive = recipes[record.decided_config].strategy == "adaptive" if record.decision else 0
        assert bool(record.learned) >= adaptive
    found = rebuild(store)
    assert {one.key.encode() for one in found} >= numbers.keys()
    for one in found:
        assert one.equal, one.differences
        assert one.stored is not None and one.unlearned == 0
        assert one.stored.images == one.lessons == len(numbers.get(one.key.encode(), ()))
    return len(lessons)


def planned_once(store: Store) -> int:
    """No round was chosen twice, no candidate and no grade planned twice, and nothing was made or
    graded that no step had planned. Returns the number of steps.
    """
    with store.reading() as txn:
        steps: dict[str, list[StepChosen]] = {}
        for k, v in txn.scan("steps"):
            steps.setdefault(k[:16].hex(), []).append(decode(StepChosen, v))
        made = {(k[:16].hex(), c.index): c for k, c in _all(txn.scan("candidates"), Candidate)}
        given = {(k[:16].hex(), g.index, g.number): g for k, g in _all(txn.scan("grades"), Grade)}
    samples: dict[tuple[str, int], PlannedSample] = {}
    gradings: dict[tuple[str, int, int], str] = {}
    for image, chosen in steps.items():
        assert [s.round for s in chosen] == [*range(len(chosen))]
        planned = [p for s in chosen for p in s.samples]
        assert [p.index for p in planned] == [*range(len(planned))]
        assert len({p.seed for p in planned}) == len(planned)
        samples |= {(image, p.index): p for p in planned}
        bought = [(image, g.index, g.number, s.rubric) for s in chosen for g in s.gradings]
        assert len({b[:3] for b in bought}) == len(bought)
        gradings |= {b[:3]: b[3] for b in bought}
    for where, candidate in made.items():
        sample = samples[where]
        arm = Arm(prompt_key=candidate.prompt_key, params=candidate.params)
        assert (sample.arm, sample.seed) == (arm, candidate.seed)
    assert {where: g.rubric for where, g in given.items()}.items() <= gradings.items()
    return sum(map(len, steps.values()))


def _all(rows: list[tuple[bytes, bytes]], kind: type[K]) -> list[tuple[bytes, K]]:
    return [(k, decode(kind, v)) for k, v in rows]
