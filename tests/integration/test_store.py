"""The store on a real LMDB: facts, counters, damage, growth, readers, full disks."""

from __future__ import annotations

import logging
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import lmdb
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsd.errors import StateError
from rsd.protocol import facts as f
from rsd.protocol.vocabulary import FileStat, RequestDialect, SummaryConfig, image_id
from rsd.protocol.writer_talk import Open
from rsd.state import store as store_module
from rsd.state import view
from rsd.state.records import (
    ACTIVE,
    CLASSES,
    DUPLICATE,
    FAILED,
    HIGH,
    LOW,
    QUEUED,
    REPLACED,
    WITHDRAWN,
    OutboxRecord,
)
from rsd.state.store import StateRefused, Store
from rsd.state.transaction import Transaction, decode
from rsd.writer.apply import Application
from rsd.writer.publish import Publisher
from tests.disks import fill_up, small_disk
from tests.histories import (
    ERROR,
    PATHS,
    RECIPE,
    Teller,
    candidate,
    dump,
    grade,
    info_of,
    recount,
    sha,
    tell,
)
from tests.support import HOME

A, B, C, D = PATHS
#: Where hypothesis makes its many stores: in memory if there is such a place.
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "lmdb")
    yield opened
    opened.close()


@pytest.fixture
def hub(store: Store) -> Iterator[Teller]:
    """A hub's facts; when the test ends, every counter must still be right."""
    teller = Teller(store)
    yield teller
    recount(store)


def work_off(hub: Teller, *, score: float = 90.0) -> None:
    """Bring all active images to a decision with this score."""
    for record in hub.images(ACTIVE):
        first = len(hub.seen(record).candidates)
        hub.say(f.CandidateMade(image=record.image, candidate=candidate(first)))
        hub.say(f.CandidateGraded(image=record.image, grade=grade(first, score)))
        hub.settle(record)


OPERATIONS = (
    *("enrol", "enrol", "touch", "gone", "take", "take", "take"),
    *("work", "work", "work", "end", "crash", "retry", "restart", "spend"),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 999)), min_size=20, max_size=80),
    st.integers(0, 10),
    st.randoms(use_true_random=False),
)
def test_any_history_is_counted_exactly_and_said_again_changes_nothing(
    history: list[tuple[str, int]], again: int, chance: random.Random
) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        one, other = Store(Path(folder) / "one"), Store(Path(folder) / "other")
        hub = Teller(one)
        for name, n in history:
            hub.operations[name](n)
            recount(one)
        before = dump(one)
        if resent := hub.said[-again:] if again else []:
            tell(one, resent, hub.life)  # the writer died before it could acknowledge
        assert dump(one) == before
        told = list(hub.told)
        while told:  # grouped in any way, with each group said twice
            group = [told.pop(0)]
            while told and told[0][0] == group[0][0] and chance.random() < 0.7:
                group.append(told.pop(0))
            for _ in range(2):
                tell(other, [numbered for _, numbered in group], group[0][0])
        assert dump(other) == before
        hub.settle_all()
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
def test_seen_is_the_sum_of_its_classes_whatever_is_said(facts: list[f.Fact]) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        store = Store(Path(folder) / "lmdb")
        for seq, fact in enumerate(facts, 1):
            tell(store, [f.Numbered(seq=seq, fact=fact)], "life")
            with store.reading() as txn:
                stats = txn.stats()
                assert stats.seen == sum(getattr(stats, name) for name in CLASSES)
                assert stats.seen == txn.entries("paths")
                assert all(getattr(stats, name) >= 0 for name in CLASSES)
                assert stats.active == txn.entries("active")
        store.close()


# -------------------------------------------------------------------------- the life of an image


def test_a_touch_changes_nothing_but_the_known_stat(hub: Teller) -> None:
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


def test_new_bytes_are_a_new_version_and_the_old_one_is_history(hub: Teller) -> None:
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
    hub: Teller,
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


def test_withdrawn_and_back_again_it_continues_where_it_was(hub: Teller) -> None:
    image = hub.put(A, "cat").image
    hub.take(0)
    hub.say(f.CandidateMade(image=image, candidate=candidate(0)))
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


def test_the_oldest_duplicate_that_still_is_one_is_taken_up(hub: Teller) -> None:
    for path in (A, B, C, D):
        hub.put(path, "cat")
        hub.take(0)
    assert hub.seen(hub.record(A)).duplicates == [B, C, D]
    assert hub.record(B).of == hub.record(A).image
    hub.put(B, "dog")  # the oldest is a picture of its own by now
    hub.take(0)
    hub.settle(hub.record(A))
    assert hub.record(A).reason == "ungraded"
    assert [hub.record(p).status for p in (A, B, C, D)] == [FAILED, ACTIVE, QUEUED, DUPLICATE]
    hub.take(0)
    assert hub.record(C).status == ACTIVE
    hub.gone(sorted(hub.files).index(C))
    assert [hub.record(p).status for p in (C, D)] == [WITHDRAWN, QUEUED]


def test_a_failed_image_that_could_not_even_be_hashed_starts_anew(hub: Teller) -> None:
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


def test_bad_new_bytes_of_a_decided_image_are_a_failed_version(hub: Teller) -> None:
    hub.put(A, "cat")
    hub.take(0)
    work_off(hub)
    hub.put(A, "broken")
    hub.take(0)
    assert (hub.record(A).version, hub.record(A).status) == (1, FAILED)
    assert (hub.record(A).reason, hub.record(A).sha256) == ("broken", sha("broken"))


def test_retry_of_a_failed_image_keeps_its_answers_and_drops_its_failures(hub: Teller) -> None:
    image = hub.put(A, "cat").image
    hub.take(0)
    hub.say(f.CandidateMade(image=image, candidate=candidate(0)))
    hub.say(f.GradingFailed(image=image, index=0, number=0, error=ERROR, time=1.0))
    hub.say(f.SampleFailed(image=image, index=1, error=ERROR, time=1.0))
    hub.settle(hub.record(A))
    with hub.store.reading() as txn:
        assert view.find_images(txn, b"", "failed") == (image,)
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
    hub.say(f.CandidateGraded(image=image, grade=grade(0, 85.0)))
    hub.settle(hub.record(A))
    assert hub.record(A).status == HIGH


def test_retry_low_adds_a_round_and_the_result_stays_meanwhile(hub: Teller) -> None:
    image = hub.put(A, "cat").image
    hub.take(0)
    work_off(hub, score=10.0)
    with hub.store.reading() as txn:
        assert view.find_images(txn, b"", "low") == view.find_images(txn, A, "") == (image,)
        assert view.find_images(txn, b"nowhere", "") == ()
    hub.retry(0)
    record = hub.record(A)
    assert (record.status, record.allotment, record.filed) == (QUEUED, 2, LOW)
    hub.say(f.ImageRetried(image=image, fresh=True, time=1.0))
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


def test_a_retry_during_a_check_is_not_lost(hub: Teller) -> None:
    hub.put(A, "cat")
    hub.take(0)
    work_off(hub, score=10.0)
    hub.put(A, "cat")
    with hub.store.reading() as txn:
        (checking,) = view.backlog_page(txn, 0, 8)
    hub.retry(0)
    hub.prepare(checking)  # the hub still thinks of it as a mere check
    with hub.store.reading() as txn:
        (again,) = view.backlog_page(txn, checking.queue_seq, 8)
    assert again.status == QUEUED
    hub.prepare(again)
    assert hub.record(A).status == ACTIVE


def test_a_decision_counts_once_and_in_order(hub: Teller) -> None:
    image = hub.put(A, "cat").image
    hub.take(0)
    hub.say(f.CandidateMade(image=image, candidate=candidate(0)))
    hub.say(f.CandidateGraded(image=image, grade=grade(0, 90.0)))
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
    hub.say(decided)
    assert hub.record(A).status == ACTIVE, "there was no first decision"
    hub.settle(hub.record(A))
    hub.say(decided)
    assert (hub.record(A).status, hub.record(A).decision) == (HIGH, 1)


def test_an_older_row_of_the_outbox_writes_nothing_any_more(hub: Teller, tmp_path: Path) -> None:
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


def test_crashes_are_counted_and_a_retry_forgives_them(hub: Teller) -> None:
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


def test_questions_of_the_watcher(hub: Teller) -> None:
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
        assert first == ((0, A), (2, B))
        assert view.pending_paths(txn, 2, 8) == ((3, C),)
        assert view.pending_paths(txn, 3, 8) == ()
        assert view.content_owner(txn, sha("cat")) == image_id(A, 0)
        assert view.content_owner(txn, sha("owl")) is None
        assert [q.path for q in view.backlog_page(txn, 1, 1)] == [B]


def test_profiles_and_recovery(hub: Teller) -> None:
    learned = f.DialectLearned(
        endpoint="http://x/v1", model="m", dialect=RequestDialect(multiple=False)
    )
    hub.say(learned)
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


def test_a_prompt_name_of_any_length_can_be_counted(hub: Teller) -> None:
    hub.put(A, "cat")
    hub.take(0)
    made = msgspec.structs.replace(candidate(0), prompt_key="図" * 1000)
    hub.say(f.CandidateMade(image=hub.record(A).image, candidate=made))
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


# ------------------------------------------------------------------------------------ environment


def test_what_is_stored_is_there_after_reopening(tmp_path: Path) -> None:
    store = Store(tmp_path / "lmdb")
    hub = Teller(store)
    hub.put(A, "cat")
    before = dump(store)
    store.close()
    for readonly in (True, False):
        again = Store(tmp_path / "lmdb", readonly=readonly)
        assert dump(again) == before
        again.close()


def test_an_aborted_transaction_leaves_nothing(store: Store) -> None:
    before = dump(store)

    def work(txn: Transaction) -> None:
        txn.put("meta", b"half", b"1")
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        store.write(work)
    assert dump(store) == before


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "lmdb")
    store.write(lambda txn: txn.put("meta", b"schema", b"99"))
    store.close()
    for readonly in (False, True):
        with pytest.raises(StateError, match="newer rsd"):
            Store(tmp_path / "lmdb", readonly=readonly)


def test_no_state_garbage_and_foreign_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="no state"):
        Store(tmp_path / "none", readonly=True)
    assert not (tmp_path / "none").exists()
    (tmp_path / "garbage").mkdir()
    (tmp_path / "garbage/data.mdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(StateError, match="LMDB"):
        Store(tmp_path / "garbage")
    with lmdb.open(str(tmp_path / "foreign"), max_dbs=2) as env:
        env.open_db(b"theirs")
    for readonly in (False, True):
        with pytest.raises(StateError):
            Store(tmp_path / "foreign", readonly=readonly)
    with lmdb.open(str(tmp_path / "foreign"), max_dbs=2) as env, env.begin() as txn:
        assert [k for k, _ in txn.cursor()] == [b"theirs"], "left alone"


def test_a_damaged_value_is_a_state_error(store: Store) -> None:
    store.write(lambda txn: txn.put("stats", b"all", b"{"))
    with store.reading() as txn, pytest.raises(StateError, match="unreadable"):
        txn.stats()


@pytest.mark.parametrize("kind", sorted(store_module.NETWORK))
def test_network_file_systems_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(store_module, "filesystem_type", lambda _: kind)
    with pytest.raises(StateError, match=kind):
        Store(tmp_path / "lmdb")


def test_doubtful_file_systems_warn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store_module, "filesystem_type", lambda _: "9p")
    with caplog.at_level(logging.WARNING):
        Store(tmp_path / "lmdb").close()
    assert "9p" in caplog.text


def fill(store: Store, count: int, size: int) -> None:
    def work(txn: Transaction) -> None:
        for n in range(count):
            txn.put("meta", b"fill%d" % n, b"z" * size)

    store.write(work)


def reader(path: Path, then: str) -> subprocess.Popen[str]:
    """A process that has opened the store for reading; it does `then` when told to."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom rsd.state.store import Store\n"
        f"store = Store(Path({str(path)!r}), readonly=True)\n"
        "print('open', flush=True)\n"
        "sys.stdin.readline()\n" + then
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=HOME,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    return process


def test_a_full_map_grows_and_a_reader_follows(tmp_path: Path) -> None:
    store = Store(tmp_path / "lmdb", map_size=1 << 20)
    count = "with store.reading() as txn: print(txn.entries('meta'))\n"
    with reader(tmp_path / "lmdb", count) as other:
        fill(store, 200, 50_000)
        out, _ = other.communicate("go\n", timeout=60)
    assert other.returncode == 0
    with store.reading() as txn:
        assert int(out) == txn.entries("meta") >= 200
    store.close()


def test_the_slots_of_dead_readers_are_freed(store: Store) -> None:
    hold = "import time\nwith store.reading():\n print('in', flush=True)\n time.sleep(600)\n"
    with reader(store.path, hold) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdin.write("go\n")
        other.stdin.flush()
        assert other.stdout.readline() == "in\n"
        assert store.reader_check() == 0, "it lives"
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert store.reader_check() == 1


def test_a_writer_killed_in_a_transaction_leaves_nothing_half_written(tmp_path: Path) -> None:
    store = Store(tmp_path / "lmdb")
    before = dump(store)
    store.close()
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom rsd.state.store import Store\n"
        "def work(txn):\n for n in range(500): txn.put('meta', b'half%d' % n, b'z' * 4000)\n"
        " os.kill(os.getpid(), signal.SIGKILL)\n"
        f"Store(Path({str(tmp_path / 'lmdb')!r})).write(work)\n"
    )
    died = subprocess.run([sys.executable, "-c", code], cwd=HOME, check=False)
    assert died.returncode == -signal.SIGKILL
    store = Store(tmp_path / "lmdb")
    assert dump(store) == before
    fill(store, 1, 10)
    store.close()


def test_a_full_disk_is_an_os_error_and_nothing_changes(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "4m") as disk:
        store = Store(disk / "lmdb")
        hub = Teller(store)
        hub.put(A, "cat")
        before = dump(store)
        ballast = disk / "ballast"
        fill_up(ballast)
        with pytest.raises(StateRefused):
            fill(store, 50, 4000)
        assert dump(store) == before
        ballast.unlink()
        fill(store, 50, 4000)
        store.close()


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
    assert stats("two", 1, C) == 2, "said before"


def test_a_file_that_changes_while_it_is_queued_is_looked_at_again(hub: Teller) -> None:
    hub.put(A, "cat")
    with hub.store.reading() as txn:
        (queued,) = view.backlog_page(txn, 0, 8)
    hub.put(A, "dog")  # after its bytes were read, before it is started
    hub.files[A] = "cat"
    hub.prepare(queued)
    hub.files[A] = "dog"
    assert hub.record(A).sha256 == sha("cat")
    hub.settle_all()
    assert hub.record(A).sha256 == sha("dog")


def test_a_duplicate_of_bytes_that_nobody_has_any_more_is_taken_up_itself(hub: Teller) -> None:
    hub.put(A, "cat")
    hub.settle_all()
    copy = hub.put(B, "cat").image
    with hub.store.reading() as txn:
        (queued,) = view.backlog_page(txn, 0, 8)
        owner = view.content_owner(txn, sha("cat"))
    assert owner is not None
    hub.put(A, "dog")
    hub.take(1)  # the owner is replaced before the duplicate is said
    hub.aside(queued, "duplicate", "same_content", sha256=sha("cat"), of=owner, info=info_of("cat"))
    assert (hub.record(B).image, hub.record(B).status) == (copy, QUEUED)
    hub.settle_all()
    assert hub.record(B).starts == 1


def test_a_new_version_that_goes_before_its_decision_takes_the_old_file_along(hub: Teller) -> None:
    hub.put(A, "cat")
    hub.settle_all()
    hub.put(A, "dog")
    hub.take(0)
    before = outbox(hub)
    hub.gone(0)
    assert (hub.record(A).status, hub.record(A).filed) == (WITHDRAWN, "")
    assert outbox(hub)[len(before) :] == [(hub.record(A).image, "")]


def outbox(hub: Teller) -> list[tuple[str, str]]:
    with hub.store.reading() as txn:
        rows = [decode(OutboxRecord, value) for _, value in txn.scan("outbox")]
    return [(row.image, row.destination) for row in rows]
