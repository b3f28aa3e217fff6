"""A state of format 1 becomes one of format 2, whatever is killed on the way, and is finished."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rsd.errors import StateError
from rsd.protocol.facts import PlannedGrading, StepChosen
from rsd.protocol.vocabulary import FIRST_QUEUE, Candidate, Grade, Recipe
from rsd.state import view
from rsd.state.records import ACTIVE, HIGH, LOW, ImageRecord, OutboxRecord, Tally
from rsd.state.store import Store
from rsd.state.tallies import score_of
from rsd.state.transaction import Transaction, decode
from tests import old_state
from tests.histories import dump
from tests.support import HOME, Daemon, simulator

#: Migrates the state in a folder, three images at a time.
MIGRATE = """
import sys
from pathlib import Path
from rsd.state import migrations, store
migrations.PIECE = 3
store.Store(Path(sys.argv[1])).close()
"""


def migrate(folder: Path, point: str = "") -> int:
    env = {"PYTHONPATH": str(HOME), "RSD_FAILPOINT": point}
    return subprocess.run([sys.executable, "-c", MIGRATE, str(folder)], env=env).returncode


@pytest.fixture
def migrated(tmp_path: Path) -> dict[str, dict[bytes, bytes]]:
    old_state.lay(tmp_path / "undisturbed")
    store = Store(tmp_path / "undisturbed")
    found = dump(store)
    store.close()
    return found


def recipes() -> dict[str, Recipe]:
    return {k.decode(): decode(Recipe, v) for k, v in old_state.rows("configs").items()}


def test_old_recipes_keep_their_fingerprints() -> None:
    assert len(recipes()) == 2
    assert all(recipe.fingerprint == name for name, recipe in recipes().items())


def test_steps_name_their_gradings_and_grades_the_rubric_of_their_candidate(
    migrated: dict[str, dict[bytes, bytes]],
) -> None:
    known = recipes()
    made = {k: decode(Candidate, v) for k, v in migrated["candidates"].items()}
    assert {k: decode(Candidate, v) for k, v in old_state.rows("candidates").items()} == made
    old = old_state.rows("grades")
    assert old.keys() == migrated["grades"].keys()
    for row, value in migrated["grades"].items():
        grade = decode(Grade, value)
        assert grade.rubric == known[made[row[:20]].config].rubric
        assert grade.score == decode(Grade, old[row]).score
    for row, value in migrated["steps"].items():
        step = decode(StepChosen, value)
        assert step.samples == decode(StepChosen, old_state.rows("steps")[row]).samples
        assert step.rubric in {recipe.rubric for recipe in known.values()}
        assert step.gradings == tuple(
            PlannedGrading(index=s.index, number=n) for s in step.samples for n in range(2)
        )


def test_only_grades_of_the_recipes_rubric_still_count(
    migrated: dict[str, dict[bytes, bytes]],
) -> None:
    known = recipes()
    graded, total, buckets = 0, 0.0, 0
    images = {k: decode(ImageRecord, v) for k, v in migrated["images"].items()}
    given: dict[bytes, list[Grade]] = {}
    for row, value in migrated["grades"].items():
        given.setdefault(row[:20], []).append(decode(Grade, value))
    for row, grades in given.items():
        score = score_of(grades, known[images[row[:16]].config].rubric)
        graded += score is not None
        total += score or 0.0
    tallies = {k.decode(): decode(Tally, v) for k, v in migrated["tallies"].items()}
    prompts = [t for name, t in tallies.items() if name.startswith("prompt:")]
    buckets = sum(t.count for name, t in tallies.items() if name.startswith("score:"))
    assert sum(t.graded for t in prompts) == graded == buckets < len(given)
    assert sum(t.score_sum for t in prompts) == pytest.approx(total)
    for record in images.values():
        if record.status in (HIGH, LOW):
            assert record.decided_config == record.config
        elif record.status == ACTIVE and record.decision:
            assert record.decided_config != record.config, "it was decided by the other rubric"


def test_killed_between_any_two_pieces_it_goes_on_where_it_was(
    tmp_path: Path, migrated: dict[str, dict[bytes, bytes]]
) -> None:
    folder = tmp_path / "lmdb"
    old_state.lay(folder)
    deaths = 0
    while code := migrate(folder, "store.migrating:2"):  # each life brings one piece more
        assert code == -signal.SIGKILL
        deaths += 1
    assert deaths >= 3
    store = Store(folder)
    assert dump(store) == migrated
    store.close()


def test_killed_in_the_first_piece_the_old_format_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "lmdb"
    old_state.lay(folder)
    assert migrate(folder, "store.migrating") == -signal.SIGKILL
    reader = Store(folder, readonly=True)
    assert {n: dump(reader)[n] for n in ("steps", "grades", "stats", "meta")} == {
        n: old_state.rows(n) for n in ("steps", "grades", "stats", "meta")
    }
    with reader.reading() as txn:  # `show` works before the daemon has migrated anything
        record = next(
            r
            for r in (decode(ImageRecord, v) for _, v in txn.scan("images"))
            if r.status == HIGH and r.winner is not None
        )
        seen = view.view(txn, record)
    assert record.winner is not None
    assert score_of(seen.grades[record.winner], seen.rubric) == pytest.approx(record.score)
    reader.close()


def test_half_migrated_a_program_that_knows_only_the_old_format_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "lmdb"
    old_state.lay(folder)
    assert migrate(folder, "store.migrating:2") == -signal.SIGKILL
    with monkeypatch.context() as patch:
        patch.setattr("rsd.state.store.SCHEMA", 1)
        with pytest.raises(StateError, match="newer rsd"):
            Store(folder)


def test_the_backlog_moves_up_to_make_room_for_the_lane_before_it(tmp_path: Path) -> None:
    folder = tmp_path / "lmdb"
    old_state.lay(folder)
    store = Store(folder)

    def as_before(txn: Transaction) -> None:
        """All images queued under the numbers of format 1."""
        for number, (row, value) in enumerate(txn.scan("images"), 1):
            record = decode(ImageRecord, value)
            record.queue_seq = number
            txn.put("images", row, record)
            txn.put("backlog", number.to_bytes(8, "big"), row)
        stats = txn.stats()
        stats.backlog_high = number
        txn.put("stats", b"all", stats)
        txn.put("meta", b"schema", b"1")

    store.write(as_before)
    store.close()
    while migrate(folder, "store.migrating:2"):
        pass
    store = Store(folder)
    with store.reading() as txn:
        page = view.backlog_page(txn, 0, 100)
        assert [q.queue_seq for q in page] == [FIRST_QUEUE + n for n in range(1, len(page) + 1)]
        assert len(page) == txn.entries("images")
        assert txn.stats().backlog_high == FIRST_QUEUE + len(page)
    store.close()


@pytest.mark.crash
def test_a_state_of_format_1_is_finished_with_kills_in_the_middle(tmp_path: Path) -> None:
    """Every image gets one result, and nothing that was stored is generated again."""
    with simulator("--service-seconds", "0.05") as sim:
        strict = tmp_path / "strict.json"
        strict.write_text(
            '{"template": "Be very strict. {generated_answer}"}'
        )  # a third rubric, for what starts from now on
        flags = ("--candidates", "3", "--grading-prompt", str(strict))
        d = Daemon(tmp_path, sim, *flags, RSD_GRADING_REPEATS="2")
        old_state.lay(d.output / "state/lmdb")
        old_state.lay_pictures(d.images)
        for point in ("store.migrating", "writer.before-commit:2", "hub.before-reply:8"):
            d.once(RSD_FAILPOINT=point)
        done = d.once()
        assert done.returncode == 1, done.stderr  # one picture is bad
        store = Store(d.output / "state/lmdb", readonly=True)
        after = dump(store)
        store.close()
        for row, value in old_state.rows("candidates").items():
            assert decode(Candidate, after["candidates"][row]) == decode(Candidate, value)
        for row, value in old_state.rows("grades").items():
            assert decode(Grade, after["grades"][row]).score == decode(Grade, value).score
        images = [decode(ImageRecord, v) for v in after["images"].values()]
        known = {k.decode(): decode(Recipe, v) for k, v in after["configs"].items()}
        assert sum(r.status in (HIGH, LOW) for r in images) == 14
        # Those that were decided and filed before have their files in the old folder.
        open_before = {*old_state.rows("active"), *map(_image, old_state.rows("outbox").values())}
        written = [r for r in images if bytes.fromhex(r.image) in open_before]
        assert set(d.results()) == {os.fsdecode(r.path) for r in written}
        assert not after["outbox"]
        for record in images:
            if record.status in (HIGH, LOW) and record.winner is not None:
                prefix = bytes.fromhex(record.image) + record.winner.to_bytes(4, "big")
                grades = [decode(Grade, v) for k, v in after["grades"].items() if k[:20] == prefix]
                rubric = known[record.decided_config].rubric
                assert score_of(grades, rubric) == pytest.approx(record.score)


def _image(row: bytes) -> bytes:
    return bytes.fromhex(decode(OutboxRecord, row).image)
