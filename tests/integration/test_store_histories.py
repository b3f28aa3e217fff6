"""Any history of facts, applied to a real store: counters are exact, and twice is once."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from rsd.protocol import facts as f
from rsd.protocol.vocabulary import image_id
from rsd.state.records import CLASSES, DUPLICATE, FAILED, WITHDRAWN, Tally
from rsd.state.results import result_document
from rsd.state.store import Store
from rsd.state.transaction import decode
from tests.histories import PATHS, FactSource, apply_facts, candidate, dump, grade, info_of, sha
from tests.recount import recount

#: Where hypothesis makes its many stores: in memory if there is such a place.
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None

OPERATIONS = (
    *("enrol", "enrol", "touch", "gone", "take", "take", "take"),
    *("work", "work", "work", "end", "crash", "retry", "restart", "spend", "rubric"),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 999)), min_size=20, max_size=80),
    st.integers(0, 10),
    st.randoms(use_true_random=False),
)
def test_any_history_is_counted_exactly_and_twice_is_once(
    history: list[tuple[str, int]], again: int, chance: random.Random
) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        one, other = Store(Path(folder) / "one"), Store(Path(folder) / "other")
        hub = FactSource(one)
        for name, n in history:
            hub.operations[name](n)
            recount(one)
        before = dump(one)
        if resent := hub.facts[-again:] if again else []:
            apply_facts(one, resent, hub.life)  # the writer died before it could acknowledge
        assert dump(one) == before
        left = list(hub.all_facts)
        while left:  # grouped in any way, with each group sent twice
            group = [left.pop(0)]
            while left and left[0][0] == group[0][0] and chance.random() < 0.7:
                group.append(left.pop(0))
            for _ in range(2):
                apply_facts(other, [numbered for _, numbered in group], group[0][0])
        assert dump(other) == before
        hub.conclude_all()
        recount(one)
        one.close()
        other.close()


IDS = st.sampled_from([image_id(p, v) for p in PATHS[:2] for v in range(2)])
TIMES = st.just(1.0)
ANY_FACT = st.one_of(
    st.builds(
        f.ImageEnrolled,
        path=st.sampled_from(PATHS[:2]),
        size=st.integers(0, 2),
        mtime_ns=st.just(0),
        time=TIMES,
    ),
    st.builds(f.ImageGone, path=st.sampled_from(PATHS[:2]), time=TIMES),
    st.builds(f.ImageChecked, image=IDS, queue_seq=st.integers(0, 4)),
    st.builds(
        f.ImageStarted,
        image=IDS,
        queued_as=IDS,
        queue_seq=st.integers(0, 4),
        path=st.sampled_from(PATHS[:2]),
        version=st.integers(0, 1),
        info=st.sampled_from([info_of("cat"), info_of("dog")]),
        config=st.just("c"),
        time=TIMES,
    ),
    st.builds(
        f.ImageSetAside,
        image=IDS,
        status=st.sampled_from([FAILED, DUPLICATE, WITHDRAWN]),
        reason=st.just("why"),
        sha256=st.sampled_from([sha("cat"), sha("dog")]),
        queue_seq=st.none() | st.integers(0, 4),
        queued_as=IDS | st.just(""),
        path=st.sampled_from(PATHS[:2]),
        version=st.integers(0, 1),
        time=TIMES,
    ),
    st.builds(
        f.ImageDecided,
        image=IDS,
        decision=st.integers(0, 2),
        winner=st.just(0),
        score=st.floats(0, 100),
        expected_score=st.just(0.0),
        quality=st.sampled_from(["high", "low"]),
        reason=st.just(""),
        time=TIMES,
    ),
    st.builds(f.ImageRetried, image=IDS, fresh=st.booleans(), time=TIMES),
    st.builds(f.DecodeCrashed, image=IDS),
    st.builds(f.CandidateMade, image=IDS, candidate=st.just(candidate(0))),
    st.builds(f.CandidateGraded, image=IDS, grade=st.just(grade(0, 50.0))),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(ANY_FACT, max_size=40))
def test_seen_is_the_sum_of_its_classes_whatever_comes(facts: list[f.Fact]) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        store = Store(Path(folder) / "lmdb")
        for seq, fact in enumerate(facts, 1):
            apply_facts(store, [f.Numbered(seq=seq, fact=fact)], "life")
            with store.reading() as txn:
                stats = txn.stats()
                assert stats.seen == sum(getattr(stats, name) for name in CLASSES)
                assert stats.seen == txn.entries("paths")
                assert all(getattr(stats, name) >= 0 for name in CLASSES)
                assert stats.active == txn.entries("active")
        store.close()


def test_under_another_rubric_old_grades_are_history_and_the_tallies_move() -> None:
    """An old lenient 95 must not beat a new strict 70, nor be counted beside it."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        store = Store(Path(folder) / "lmdb")
        hub = FactSource(store)
        image = hub.put(PATHS[0], "cat").image
        hub.take(0)
        for index, score in enumerate((95.0, 60.0)):
            hub.add(f.CandidateMade(image=image, candidate=candidate(index)))
            hub.add(f.CandidateGraded(image=image, grade=grade(index, score)))
        hub.conclude(hub.record(PATHS[0]))
        assert buckets(store) == {"score:60": 1, "score:95": 1, "best:95": 1}
        hub.rubric(1)
        hub.retry(0)
        assert buckets(store) == {"score:60": 1, "score:95": 1, "best:95": 1}, "as it is on file"
        hub.take(0)
        assert buckets(store) == {"best:95": 1}, "the old scores are taken out when it starts"
        recount(store)
        assert result(hub)["best_result"]["score"] == 95.0, "the file still shows its decision"
        strict = hub.recipe.rubric
        for index, score in enumerate((40.0, 70.0)):
            given = grade(index, score, number=1, rubric=strict)
            hub.add(f.CandidateGraded(image=image, grade=given))
        late = grade(0, 90.0, number=2)  # asked for before the change: history
        hub.add(f.CandidateGraded(image=image, grade=late))
        assert buckets(store) == {"score:40": 1, "score:70": 1, "best:95": 1}
        hub.conclude(hub.record(PATHS[0]))
        assert buckets(store) == {"score:40": 1, "score:70": 1, "best:70": 1}
        document = result(hub)
        assert document["best_result"]["index"] == 1
        assert document["rubric"] == strict
        first = document["all_candidates"][0]
        assert (first["score"], [g["score"] for g in first["grades"]]) == (40.0, [95.0, 40.0, 90.0])
        assert [g["rubric"] == strict for g in first["grades"]] == [False, True, False]
        assert first["score_explanation"] == "because 40"
        recount(store)
        store.close()


def test_an_active_image_with_another_grader_is_scored_by_its_rubric() -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        store = Store(Path(folder) / "lmdb")
        hub = FactSource(store)
        image = hub.put(PATHS[0], "cat").image
        hub.take(0)
        hub.add(f.CandidateMade(image=image, candidate=candidate(0)))
        hub.add(f.CandidateGraded(image=image, grade=grade(0, 95.0)))
        hub.rubric(1)
        for _ in range(2):
            hub.add(f.RecipeChanged(image=image, config=hub.recipe.fingerprint))
            assert not buckets(store)
            recount(store)
        given = grade(0, 70.0, number=1, rubric=hub.recipe.rubric)
        hub.add(f.CandidateGraded(image=image, grade=given))
        assert buckets(store) == {"score:70": 1}
        hub.conclude(hub.record(PATHS[0]))
        assert result(hub)["best_result"]["score"] == 70.0
        recount(store)
        changed = f.RecipeChanged(image=image, config="")
        hub.add(changed)
        assert result(hub)["best_result"]["score"] == 70.0, "a decided image stays as it is"
        store.close()


def buckets(store: Store) -> dict[str, int]:
    with store.reading() as txn:
        rows = {k.decode(): decode(Tally, v) for k, v in txn.scan("tallies")}
    return {name: t.count for name, t in rows.items() if t.count}


def result(hub: FactSource) -> dict[str, Any]:
    return result_document(hub.seen(hub.record(PATHS[0])), "/pictures")
