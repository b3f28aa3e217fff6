"""The writer as the process it is: killed at every point, on a full disk, alone."""

from __future__ import annotations

import json
import queue
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from rsd.names import result_name
from rsd.protocol import facts as f
from rsd.protocol.tasks import LogLine
from rsd.protocol.vocabulary import FIRST_QUEUE, FileStat, ImageStatus, image_id
from rsd.protocol.writer_talk import (
    BacklogPage,
    Close,
    Committed,
    ComparePaths,
    ContentFound,
    FindContent,
    FindImages,
    ImagesFound,
    ListPending,
    PathsCompared,
    PendingListed,
    Ping,
    ReadBacklog,
    Reconfigure,
    Recovered,
    WriterUp,
)
from rsd.state.records import ACTIVE
from rsd.state.store import Store
from rsd.system.files import TEMPORARY, InstanceLock, holding
from tests.histories import (
    ADAPTIVE,
    PATHS,
    PRIOR,
    RECIPE,
    FactSource,
    sha,
)
from tests.writer_hub import PATIENCE, SUMMARY, Hub, decided

A, B, C, D = PATHS
#: Files of the long history.
SCRIPT_PATHS = tuple(b"p%d.png" % n for n in range(12))


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    made = Hub(tmp_path)
    yield made
    made.kill()


OPERATIONS = ("enrol", "touch", "take", "take", "work", "work", "end", "crash")


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> list[f.Numbered]:
    """A long history in which all kinds of facts occur and everything comes to its end."""
    store = Store(tmp_path_factory.mktemp("script") / "lmdb")
    source, chance = FactSource(store, paths=SCRIPT_PATHS), random.Random(19)
    for number in range(160):
        if number == 20:  # a reload: what starts from now on is learned from
            source.recipe = ADAPTIVE
            source.add(f.ConfigStored(recipe=ADAPTIVE))
        name = chance.choice(OPERATIONS)
        source.operations[name](chance.randrange(1000))
        if chance.random() < 0.1:
            for record in source.images(ACTIVE)[:1]:  # a reload that changes nothing of its rubric
                source.add(f.ConfigStored(recipe=source.recipe))
                if source.recipe == ADAPTIVE:
                    source.add(f.LearnedImported(learned=PRIOR))
                changed = f.RecipeChanged(image=record.image, config=source.recipe.fingerprint)
                source.add(changed)
            source.conclude_all()
            source.spend(len(source.facts))
            source.operations[chance.choice(["retry", "gone"])](chance.randrange(1000))
    source.conclude_all()
    kinds = {type(n.fact) for n in source.facts}
    assert kinds == {*f.Fact.__args__} - {f.DialectLearned}  # type: ignore[attr-defined]
    with store.reading() as txn:
        assert txn.entries("lessons") >= 7
    classes = {r.status for r in source.images("high_quality", "low_quality", "failed")}
    assert len(classes) == 3, "a script without all outcomes proves little"
    store.close()
    return source.facts


Outcome = tuple[dict[str, dict[bytes, bytes]], dict[str, bytes]]


@pytest.fixture(scope="module")
def undisturbed(script: list[f.Numbered], tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    hub = Hub(tmp_path_factory.mktemp("undisturbed"))
    hub.start()
    hub.wait(WriterUp)
    hub.send(*script)
    hub.close()
    return hub.store(), hub.files()


def test_a_history_becomes_files_and_counters(
    script: list[f.Numbered], undisturbed: Outcome
) -> None:
    stored, files = undisturbed
    strategy = json.loads(files["strategy.json"])
    (record,) = strategy["records"]
    assert record["learned"]["images"] == record["insight"]["images"] == len(stored["lessons"])
    files = {name: data for name, data in files.items() if name != "strategy.json"}
    stats = json.loads(stored["stats"][b"all"])
    assert stats["outbox"] == len(stored["outbox"]) == 0
    folders = [Path(name).parts[0] for name in files]
    for folder in ("high_quality", "low_quality", "failed"):
        assert folders.count(folder) == stats[folder]
    names = [Path(name).name for name in files]
    assert len(set(names)) == len(names), "an image has one result"
    assert set(names) <= {result_name(p) for p in SCRIPT_PATHS}
    for name, data in files.items():
        document = json.loads(data)
        assert document["schema"] == ("rsd.failed/1" if "failed" in name else "rsd.result/1")


POINTS = [
    *("writer.before-commit:1", "writer.before-commit:3"),
    *("writer.before-decision:1", "writer.before-decision:2"),
    *("writer.after-commit:1", "writer.after-commit:2"),
    *("writer.after-replace:1", "writer.after-replace:4"),
    *("writer.outbox-drain:1", "writer.outbox-drain:2"),
    *("files.before-replace:1", "files.before-replace:3"),
]


@pytest.mark.crash
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_point_a_successor_ends_with_the_same(
    hub: Hub, script: list[f.Numbered], undisturbed: Outcome, point: str
) -> None:
    hub.start(point)
    acknowledged = 0
    third = len(script) // 3
    parts = [script[:third], script[third : 2 * third], script[2 * third :]]
    for part in parts:
        hub.send(*part)
        while (message := hub.heard.get(timeout=PATIENCE)) is not None:
            if isinstance(message, WriterUp):
                hub._ever_up = True
            if isinstance(message, Committed):
                acknowledged = max(acknowledged, message.seq)
                if acknowledged >= part[-1].seq:
                    break
        if message is None:
            break
    else:
        hub.pipe.put(Close())  # it dies while it drains the outbox
        hub.pipe.flush()
        assert hub.death() == -signal.SIGKILL
    hub.child.join(PATIENCE)
    assert hub.child.exitcode == -signal.SIGKILL
    hub.start()
    hub.wait(WriterUp)
    hub.send(*[n for n in script if n.seq > acknowledged])
    hub.close()
    assert hub.store() == undisturbed[0]
    assert hub.files() == undisturbed[1]
    assert not [p for p in hub.output.rglob("*") if p.name.endswith(TEMPORARY)]
    assert json.loads((hub.output / "summary.json").read_text())["schema"] == "rsd.summary/1"


@pytest.mark.crash
def test_killed_at_random_again_and_again(
    hub: Hub, script: list[f.Numbered], undisturbed: Outcome
) -> None:
    chance = random.Random(1)
    acknowledged = 0
    for _ in range(8):
        hub.start()
        hub.wait(WriterUp)
        hub.send(*[n for n in script if n.seq > acknowledged])
        time.sleep(chance.random() * 0.1)
        hub.child.kill()
        while (message := hub.heard.get(timeout=PATIENCE)) is not None:
            if isinstance(message, Committed):
                acknowledged = max(acknowledged, message.seq)
        hub.child.join()
    hub.start()
    hub.wait(WriterUp)
    hub.send(*[n for n in script if n.seq > acknowledged])
    hub.close()
    assert (hub.store(), hub.files()) == undisturbed


def test_a_new_hub_is_told_what_is_active_and_the_spool_is_swept(hub: Hub) -> None:
    facts = decided(A, "cat", 90.0)[:-1]
    hub.start()
    up = hub.wait(WriterUp)
    assert (up.stats.seen, up.pid) == (0, hub.child.pid)
    hub.send(*facts)
    hub.committed(len(facts))
    hub.kill()
    for name in (sha("cat"), sha("dog"), "half" + TEMPORARY):
        (hub.state / "spool" / name).write_bytes(b"x")
    second = Hub(hub.state.parent, life="life-1")
    second.start()
    history = second.wait(Recovered)
    assert history.recipe == RECIPE
    assert (history.history.path, len(history.history.grades)) == (A, 1)
    assert second.wait(WriterUp).stats.active == 1
    assert [p.name for p in (hub.state / "spool").iterdir()] == [sha("cat")]
    decision = decided(A, "cat", 90.0)[-1]
    second.send(msgspec.structs.replace(decision, seq=1))
    second.close()
    assert list((hub.state / "spool").iterdir()) == []
    assert [Path(name).parts[0] for name in second.files()] == ["high_quality"]


def test_a_successor_under_a_living_hub_leaves_the_spool_alone(hub: Hub) -> None:
    hub.start()
    hub.wait(WriterUp)
    hub.kill()
    kept = {sha("dog"), "half" + TEMPORARY}
    for name in kept:
        (hub.state / "spool" / name).write_bytes(b"x")
    hub.start()
    hub.wait(WriterUp)
    hub.close()
    assert {p.name for p in (hub.state / "spool").iterdir()} == kept


def test_withdrawn_pictures_leave_the_spool(hub: Hub) -> None:
    hub.start()
    hub.wait(WriterUp)
    hub.send(*decided(A, "cat", 90.0)[:-1])
    for name in (sha("cat"), f"{sha('cat')}.url"):
        (hub.state / "spool" / name).write_bytes(b"x")
    hub.send(f.Numbered(seq=6, fact=f.ImageGone(path=A, time=9.0)))
    hub.close()
    assert list((hub.state / "spool").iterdir()) == []


def test_questions_are_answered_in_their_order_after_the_facts_before_them(hub: Hub) -> None:
    hub.start()
    hub.wait(WriterUp)
    hub.send(*decided(A, "cat", 10.0))
    hub.pipe.put(FindContent(query=1, sha256=sha("cat"), image="00" * 16))
    hub.pipe.flush()
    hub.pipe.put(FindImages(query=2, status=ImageStatus.LOW_QUALITY, count=9))
    hub.pipe.flush()
    enrolled = f.ImageEnrolled(path=B, size=2, mtime_ns=2, time=4.0)
    hub.send(f.Numbered(seq=7, fact=enrolled))
    hub.pipe.put(ReadBacklog(query=3, after=0, count=10))
    hub.pipe.flush()
    hub.pipe.put(ListPending(query=4, after=0, count=10))
    hub.pipe.flush()
    known, other = (
        FileStat(path=B, size=2, mtime_ns=2),
        FileStat(path=C, size=2, mtime_ns=2),
    )
    hub.pipe.put(ComparePaths(query=5, files=(known, other)))
    hub.pipe.flush()
    hub.pipe.put(Ping(query=6))
    hub.pipe.flush()
    mine = image_id(A, 0)
    assert hub.wait(ContentFound) == ContentFound(
        query=1, sha256=sha("cat"), image="00" * 16, owner=mine
    )
    assert hub.wait(ImagesFound) == ImagesFound(query=2, images=(mine,))
    assert [q.path for q in hub.wait(BacklogPage, lambda p: p.query == 3).images] == [B]
    assert hub.wait(PendingListed) == PendingListed(query=4, paths=((FIRST_QUEUE + 2, B),))
    assert hub.wait(PathsCompared) == PathsCompared(query=5, changed=(other,))
    hub.close()


def test_a_successor_waits_for_the_lock_of_a_dying_predecessor(hub: Hub) -> None:
    with holding(InstanceLock(hub.state / "writer.lock")) as taken:
        assert taken
        hub.start()
        with pytest.raises(queue.Empty):
            hub.heard.get(timeout=1.5)
    hub.wait(WriterUp)
    hub.close()


def test_a_state_that_cannot_be_used_is_said_and_exit_4(hub: Hub) -> None:
    (hub.state / "lmdb").mkdir()
    (hub.state / "lmdb/data.mdb").write_bytes(b"something else" * 1000)
    hub.start()
    line = hub.wait(LogLine)
    assert "LMDB" in line.text
    assert hub.death() == 4


def test_the_summary_follows_after_the_interval_and_a_reload(hub: Hub) -> None:
    hub.start()
    hub.wait(WriterUp)
    config = msgspec.structs.replace(SUMMARY, score_threshold=70.0)
    hub.pipe.put(Reconfigure(summary=config, checkpoint_interval=1))
    hub.pipe.flush()
    hub.send(*decided(A, "cat", 90.0))
    hub.committed(6)
    end = time.monotonic() + 8  # less than the ten seconds of an ordinary change
    while True:
        assert time.monotonic() < end
        if (hub.output / "summary.json").exists():
            summary = json.loads((hub.output / "summary.json").read_text())
            if summary["stats"]["processed_samples"]:
                break
        time.sleep(0.05)
    assert summary["config"]["score_threshold"] == 70.0
    assert summary["stats"]["high_quality_count"] == 1


def test_folders_that_somebody_clears_away_come_back(hub: Hub) -> None:
    hub.start()
    hub.wait(WriterUp)
    for folder in ("high_quality", "low_quality", "failed"):
        (hub.output / folder).rmdir()
    hub.send(*decided(A, "cat", 90.0))
    hub.close()
    assert list(hub.files()) == [f"high_quality/{result_name(A)}"]
