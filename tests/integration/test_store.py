"""The store on a real LMDB: facts, counters, damage, growth, readers, full disks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from rsd.protocol import facts as f
from rsd.protocol.vocabulary import (
    FIRST_QUEUE,
    FileStat,
    RequestDialect,
    SummaryConfig,
    image_id,
)
from rsd.protocol.writer_talk import Open
from rsd.state import cursor, view
from rsd.state.records import (
    ACTIVE,
    DUPLICATE,
    FAILED,
    HIGH,
    LOW,
    QUEUED,
    REPLACED,
    WITHDRAWN,
    OutboxRecord,
)
from rsd.state.store import Store
from rsd.state.transaction import Transaction, decode
from rsd.writer.apply import Application
from rsd.writer.publish import Publisher
from tests.histories import (
    ERROR,
    PATHS,
    RECIPE,
    FactSource,
    candidate,
    grade,
    info_of,
    sha,
)
from tests.recount import recount

A, B, C, D = PATHS
#: Where hypothesis makes its many stores: in memory if there is such a place.
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "lmdb")
    yield opened
    opened.close()


@pytest.fixture
def hub(store: Store) -> Iterator[FactSource]:
    """A hub's facts; when the test ends, every counter must still be right."""
    source = FactSource(store)
    yield source
    recount(store)


def work_off(hub: FactSource, *, score: float = 90.0) -> None:
    """Bring all active images to a decision with this score."""
    for record in hub.images(ACTIVE):
        first = len(hub.seen(record).candidates)
        hub.add(f.CandidateMade(image=record.image, candidate=candidate(first)))
        hub.add(f.CandidateGraded(image=record.image, grade=grade(first, score)))
        hub.conclude(record)


# -------------------------------------------------------------------------- the life of an image


def test_a_touch_changes_nothing_but_the_known_stat(hub: FactSource) -> None:
    record = hub.put(A, "cat")
    assert (record.status, record.version, record.image) == (QUEUED, 0, image_id(A, 0))
    hub.take(0)
    work_off(hub)
    assert hub.record(A).status == HIGH
    hub.put(A, "cat")
    assert hub.record(A).status == HIGH, "its class stays until the check has an outcome"
    with hub.store.reading() as txn:
        (queued,) = view.backlog_page(txn, 0, 8)
    assert (queued.status, queued.sha256, queued.started) == (HIGH, sha("cat"), True)
    hub.take(0)
    assert hub.record(A).decision == 1
    assert not hub.record(A).queue_seq


def test_new_bytes_are_a_new_version_and_the_old_one_is_history(hub: FactSource) -> None:
    old = hub.put(A, "cat")
    hub.take(0)
    work_off(hub)
    hub.put(A, "dog")
    hub.take(0)
    new = hub.record(A)
    assert (new.image, new.version, new.status) == (image_id(A, 1), 1, ACTIVE)
    assert [(v.image, v.status) for v in hub.seen(new).versions] == [(old.image, REPLACED)]
    assert len(hub.seen(hub.seen(new).versions[0]).candidates) == 1
    work_off(hub, score=10.0)
    assert hub.record(A).status == LOW


def test_a_file_that_changes_while_it_is_active_is_checked_after_its_decision(
    hub: FactSource,
) -> None:
    hub.put(A, "cat")
    hub.take(0)
    hub.put(A, "dog")
    hub.put(A, "owl")
    record = hub.record(A)
    assert (record.status, record.recheck, record.queue_seq) == (ACTIVE, True, 0)
    work_off(hub)
    assert hub.record(A).queue_seq
    hub.take(0)
    assert (hub.record(A).version, hub.record(A).sha256) == (1, sha("owl"))


def test_withdrawn_and_back_again_it_continues_where_it_was(hub: FactSource) -> None:
    image = hub.put(A, "cat").image
    hub.take(0)
    hub.add(f.CandidateMade(image=image, candidate=candidate(0)))
    hub.gone(0)
    assert (hub.record(A).status, hub.record(A).reason) == (WITHDRAWN, "file_removed")
    hub.put(A, "cat")
    with hub.store.reading() as txn:
        (queued,) = view.backlog_page(txn, 0, 8)
        found = view.content_found(txn, 1, sha("cat"), image)
    assert queued.started
    assert found.owner is None
    assert found.history is not None
    assert [c.index for c in found.history.candidates] == [0]
    assert found.recipe == RECIPE
    hub.take(0)
    assert (hub.record(A).status, hub.record(A).starts) == (ACTIVE, 2)


def test_the_oldest_duplicate_that_still_is_one_is_taken_up(hub: FactSource) -> None:
    for path in (A, B, C, D):
        hub.put(path, "cat")
        hub.take(0)
    assert hub.seen(hub.record(A)).duplicates == [B, C, D]
    assert hub.record(B).of == hub.record(A).image
    hub.put(B, "dog")  # the oldest is a picture of its own by now
    hub.take(0)
    hub.conclude(hub.record(A))
    assert hub.record(A).reason == "ungraded"
    assert [hub.record(p).status for p in (A, B, C, D)] == [FAILED, ACTIVE, QUEUED, DUPLICATE]
    hub.take(0)
    assert hub.record(C).status == ACTIVE
    hub.gone(sorted(hub.files).index(C))
    assert [hub.record(p).status for p in (C, D)] == [WITHDRAWN, QUEUED]


def test_a_failed_image_that_could_not_even_be_hashed_starts_anew(hub: FactSource) -> None:
    hub.put(A, "unreadable")
    hub.take(0)
    assert (hub.record(A).status, hub.record(A).sha256) == (FAILED, "")
    hub.put(A, "unreadable")
    hub.take(0)
    assert (hub.record(A).status, hub.record(A).queue_seq) == (FAILED, 0)
    hub.put(A, "cat")
    hub.take(0)
    assert (hub.record(A).status, hub.record(A).version, hub.record(A).filed) == (ACTIVE, 0, "")
    work_off(hub)
    assert hub.record(A).status == HIGH


def test_bad_new_bytes_of_a_decided_image_are_a_failed_version(hub: FactSource) -> None:
    hub.put(A, "cat")
    hub.take(0)
    work_off(hub)
    hub.put(A, "broken")
    hub.take(0)
    assert (hub.record(A).version, hub.record(A).status) == (1, FAILED)
    assert (hub.record(A).reason, hub.record(A).sha256) == ("broken", sha("broken"))


def test_retry_of_a_failed_image_keeps_its_answers_and_drops_its_failures(hub: FactSource) -> None:
    image = hub.put(A, "cat").image
    hub.take(0)
    hub.add(f.CandidateMade(image=image, candidate=candidate(0)))
    hub.add(f.GradingFailed(image=image, index=0, number=0, error=ERROR, time=1.0))
    hub.add(f.SampleFailed(image=image, index=1, error=ERROR, time=1.0))
    hub.conclude(hub.record(A))
    with hub.store.reading() as txn:
        assert cursor.images_of(txn, FAILED, "", 9) == (image,)
    hub.retry(0)
    with hub.store.reading() as txn:
        (queued,) = view.backlog_page(txn, 0, 8)
        found = view.content_found(txn, 1, sha("cat"), image)
        assert txn.stats().sample_failures == txn.stats().grading_failures == 0
    assert queued.status == QUEUED
    assert found.recipe is None, "it is finished on today's settings"
    assert found.history is not None
    assert [c.index for c in found.history.candidates] == [0]
    assert found.history.failed_samples == found.history.failed_grades == ()
    assert hub.record(A).filed == ""
    hub.take(0)
    hub.add(f.CandidateGraded(image=image, grade=grade(0, 85.0)))
    hub.conclude(hub.record(A))
    assert hub.record(A).status == HIGH


def test_retry_low_adds_a_round_and_the_result_stays_meanwhile(hub: FactSource) -> None:
    image = hub.put(A, "cat").image
    hub.take(0)
    work_off(hub, score=10.0)
    with hub.store.reading() as txn:
        assert cursor.images_of(txn, LOW, "", 9) == cursor.images_at(txn, (A,)) == (image,)
        assert cursor.images_at(txn, (b"nowhere",)) == ()
    hub.retry(0)
    record = hub.record(A)
    assert (record.status, record.allotment, record.filed) == (QUEUED, 2, LOW)
    hub.add(f.ImageRetried(image=image, fresh=True, time=1.0))
    assert hub.record(A).allotment == 2, "it is on its way already"
    hub.take(0)
    hub.gone(0)
    assert hub.record(A).status == LOW, "its result outlives the picture"
    hub.put(A, "cat")
    hub.take(0)
    hub.retry(0)
    hub.take(0)
    work_off(hub)
    record = hub.record(A)
    assert (record.status, record.decision, record.winner) == (HIGH, 2, 1)


def test_a_retry_during_a_check_is_not_lost(hub: FactSource) -> None:
    hub.put(A, "cat")
    hub.take(0)
    work_off(hub, score=10.0)
    hub.put(A, "cat")
    with hub.store.reading() as txn:
        (checking,) = view.backlog_page(txn, 0, 8)
    hub.retry(0)
    hub.prepare(checking)  # the hub still thinks of it as a mere check
    with hub.store.reading() as txn:
        (again,) = view.backlog_page(txn, 0, 8)
    assert again.status == QUEUED
    assert again.queue_seq < FIRST_QUEUE < checking.queue_seq, "a person named it"
    hub.prepare(again)
    assert hub.record(A).status == ACTIVE


def test_a_decision_counts_once_and_in_order(hub: FactSource) -> None:
    image = hub.put(A, "cat").image
    hub.take(0)
    hub.add(f.CandidateMade(image=image, candidate=candidate(0)))
    hub.add(f.CandidateGraded(image=image, grade=grade(0, 90.0)))
    decided = f.ImageDecided(
        image=image,
        decision=2,
        winner=0,
        score=90.0,
        expected_score=90.0,
        quality="high",
        reason="",
        time=1.0,
    )
    hub.add(decided)
    assert hub.record(A).status == ACTIVE, "there was no first decision"
    hub.conclude(hub.record(A))
    hub.add(decided)
    assert (hub.record(A).status, hub.record(A).decision) == (HIGH, 1)


def test_an_older_row_of_the_outbox_writes_nothing(hub: FactSource, tmp_path: Path) -> None:
    hub.put(A, "cat")
    hub.take(0)
    work_off(hub, score=10.0)
    hub.retry(0)
    hub.take(0)
    work_off(hub)
    assert hub.record(A).status == HIGH
    opening = Open(
        state_dir=str(tmp_path),
        output_dir=str(tmp_path / "output"),
        life="life-0",
        recover=True,
        checkpoint_interval=1,
        summary=SummaryConfig(
            image_dir="/pictures",
            prompt_keys=(),
            score_threshold=80.0,
            temperature_range=(),
            top_p_range=(),
            top_k_range=(),
        ),
    )
    publisher = Publisher(hub.store, opening)
    assert publisher.pending == 2
    for left, files in ((1, []), (0, ["high_quality"])):
        publisher.drain(1)
        assert publisher.pending == left
        assert [p.parent.name for p in (tmp_path / "output").glob("*/*")] == files


def test_crashes_are_counted_and_a_retry_forgives_them(hub: FactSource) -> None:
    hub.put(A, "unreadable")
    for _ in range(3):
        hub.crash(0)
    hub.restart(0)
    hub.crash(0)
    with hub.store.reading() as txn:
        assert view.backlog_page(txn, 0, 1)[0].crashes == 4
    hub.take(0)
    hub.retry(0)
    assert hub.record(A).crashes == 0


def test_questions_of_the_watcher(hub: FactSource) -> None:
    for path in PATHS:
        hub.put(path, "cat" if path == A else "dog")
    hub.take(0)
    hub.gone(sorted(hub.files).index(D))
    with hub.store.reading() as txn:
        known = [txn.load("paths", key, view.PathRecord) for key, _ in txn.scan("paths")]
        files = tuple(
            FileStat(path=p.path, size=p.size, mtime_ns=p.mtime_ns) for p in known if p is not None
        )
        assert [c.path for c in view.changed_files(txn, files)] == [D], "it was gone"
        newer = tuple(FileStat(path=p, size=1, mtime_ns=7) for p in (A, b"new.png"))
        assert view.changed_files(txn, newer) == newer
        first = view.pending_paths(txn, 0, 1)
        assert first == ((0, A), (FIRST_QUEUE + 2, B))
        assert view.pending_paths(txn, FIRST_QUEUE + 2, 8) == ((FIRST_QUEUE + 3, C),)
        assert view.pending_paths(txn, FIRST_QUEUE + 3, 8) == ()
        assert view.content_owner(txn, sha("cat")) == image_id(A, 0)
        assert view.content_owner(txn, sha("owl")) is None
        assert [q.path for q in view.backlog_page(txn, 1, 1)] == [B]


def test_profiles_and_recovery(hub: FactSource) -> None:
    learned = f.DialectLearned(
        endpoint="http://x/v1", model="m", dialect=RequestDialect(multiple=False)
    )
    hub.add(learned)
    image = hub.put(C, "cat").image
    hub.take(0)
    hub.work(1)
    hub.work(1)
    with hub.store.reading() as txn:
        assert view.dialects(txn) == (learned,)
        assert view.active_images(txn) == [image]
        found = view.recovered(txn, image)
    assert found is not None
    assert found.recipe == RECIPE
    assert found.history.path == C
    assert [s.round for s in found.history.steps] == [0]
    assert [c.index for c in found.history.candidates] == [0]


def test_a_prompt_name_of_any_length_can_be_counted(hub: FactSource) -> None:
    hub.put(A, "cat")
    hub.take(0)
    made = msgspec.structs.replace(candidate(0), prompt_key="図" * 1000)
    hub.add(f.CandidateMade(image=hub.record(A).image, candidate=made))
    with hub.store.reading() as txn:
        (row,) = [k for k, _ in txn.scan("tallies", prefix=b"prompt:")]
        assert row.decode().startswith("prompt:図")
        (key,) = [k for k, _ in txn.scan("candidates")]
    hub.store.write(lambda txn: _forget(txn, key, row))


def _forget(txn: Transaction, candidate_key: bytes, row: bytes) -> None:
    """Leave the store as `recount` can check it: without the odd candidate."""
    txn.delete("candidates", candidate_key)
    stats = txn.stats()
    stats.generated -= 1
    stats.generation_time = 0.0
    stats.generator_input_tokens = stats.generator_output_tokens = 0
    txn.put("stats", b"all", stats)
    for name, _ in txn.scan("tallies"):
        txn.delete("tallies", name)


def test_facts_of_an_older_life_do_not_hide_those_of_a_new_one(store: Store) -> None:
    def stats(life: str, seq: int, path: bytes) -> int:
        seen = 0

        def work(txn: Transaction) -> None:
            nonlocal seen
            application = Application(txn, life)
            fact = f.ImageEnrolled(path=path, size=1, mtime_ns=1, time=1.0)
            application.apply(f.Numbered(seq=seq, fact=fact))
            seen = application.finish().seen

        store.write(work)
        return seen

    assert stats("one", 5, A) == 1
    assert stats("two", 1, B) == 2
    assert stats("two", 1, C) == 2, "applied before"


def test_a_file_that_changes_while_it_is_queued_is_looked_at_again(hub: FactSource) -> None:
    hub.put(A, "cat")
    with hub.store.reading() as txn:
        (queued,) = view.backlog_page(txn, 0, 8)
    hub.put(A, "dog")  # after its bytes were read, before it is started
    hub.files[A] = "cat"
    hub.prepare(queued)
    hub.files[A] = "dog"
    assert hub.record(A).sha256 == sha("cat")
    hub.conclude_all()
    assert hub.record(A).sha256 == sha("dog")


def test_bytes_that_change_while_their_new_version_is_read_are_looked_at_again(
    hub: FactSource,
) -> None:
    hub.put(A, "cat")
    hub.take(0)
    work_off(hub)
    hub.put(A, "dog")
    with hub.store.reading() as txn:
        (queued,) = view.backlog_page(txn, 0, 8)
    hub.put(A, "owl")
    hub.files[A] = "dog"
    hub.prepare(queued)
    hub.files[A] = "owl"
    hub.conclude_all()
    assert hub.record(A).sha256 == sha("owl")


def test_a_duplicate_of_bytes_that_nobody_has_any_more_is_taken_up_itself(hub: FactSource) -> None:
    hub.put(A, "cat")
    hub.conclude_all()
    copy = hub.put(B, "cat").image
    with hub.store.reading() as txn:
        (queued,) = view.backlog_page(txn, 0, 8)
        owner = view.content_owner(txn, sha("cat"))
    assert owner is not None
    hub.put(A, "dog")
    hub.take(1)  # the owner is replaced before the duplicate is known
    hub.aside(queued, "duplicate", "same_content", sha256=sha("cat"), of=owner, info=info_of("cat"))
    assert (hub.record(B).image, hub.record(B).status) == (copy, QUEUED)
    hub.conclude_all()
    assert hub.record(B).starts == 1


def test_a_new_version_that_goes_undecided_takes_the_old_file_along(
    hub: FactSource,
) -> None:
    hub.put(A, "cat")
    hub.conclude_all()
    hub.put(A, "dog")
    hub.take(0)
    before = outbox(hub)
    hub.gone(0)
    assert (hub.record(A).status, hub.record(A).filed) == (WITHDRAWN, "")
    assert outbox(hub)[len(before) :] == [(hub.record(A).image, "")]


def outbox(hub: FactSource) -> list[tuple[str, str]]:
    with hub.store.reading() as txn:
        rows = [decode(OutboxRecord, value) for _, value in txn.scan("outbox")]
    return [(row.image, row.destination) for row in rows]
