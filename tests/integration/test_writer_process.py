"""The writer as the process it is: killed at every point, on a full disk, alone."""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import random
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from rsd.names import result_name
from rsd.protocol import facts as f
from rsd.protocol.tasks import LogLine
from rsd.protocol.vocabulary import FIRST_QUEUE, FileStat, ImageStatus, SummaryConfig, image_id
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
    Open,
    PathsCompared,
    PendingListed,
    Ping,
    Pong,
    ReadBacklog,
    Reconfigure,
    Recovered,
    WriterBlocked,
    WriterUp,
    from_writer_decoder,
)
from rsd.state.store import Store
from rsd.system.files import TEMPORARY, InstanceLock, holding
from rsd.system.queues import WorkQueue
from rsd.writer import writer
from tests.disks import fill_up, small_disk
from tests.histories import (
    PATHS,
    RECIPE,
    Teller,
    candidate,
    dump,
    grade,
    info_of,
    sha,
)
from tests.recount import recount

A, B, C, D = PATHS
PATIENCE = 60.0
#: Files of the long history.
SCRIPT_PATHS = tuple(b"p%d.png" % n for n in range(12))
SUMMARY = SummaryConfig(
    image_dir="/pictures",
    prompt_keys=("p1", "p2"),
    score_threshold=80.0,
    temperature_range=(0.3, 1.0),
    top_p_range=(0.9,),
    top_k_range=(40,),
)
M = TypeVar("M")


class Hub:
    """The other end of the writer's pipes. `start` again after a death: a successor."""

    def __init__(self, folder: Path, *, life: str = "life-0", output: Path | None = None) -> None:
        self.state, self.output = folder / "state", output or folder / "output"
        self.state.mkdir(exist_ok=True)
        self.life = life
        self.heard: queue.SimpleQueue[Any]
        self.child: SpawnProcess
        self._ever_up = False

    def start(self, failpoint: str = "") -> None:
        context = multiprocessing.get_context("spawn")
        heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.heard = heard
        self.pipe: WorkQueue[Any] = WorkQueue("writer")
        if failpoint:
            os.environ["RSD_FAILPOINT"] = failpoint
        try:
            self.child = context.Process(target=writer.main, args=self.pipe.child_ends)
            self.child.start()
        finally:
            os.environ.pop("RSD_FAILPOINT", None)
        self.pipe.start(from_writer_decoder, heard.put, lambda: heard.put(None))
        self.pipe.put(
            Open(
                state_dir=str(self.state),
                output_dir=str(self.output),
                life=self.life,
                recover=not self._ever_up,
                checkpoint_interval=1000,
                summary=SUMMARY,
            )
        )
        self.pipe.flush()

    def wait(self, kind: type[M], fits: Callable[[M], bool] = lambda _: True) -> M:
        """The next message of this kind that fits; what comes before it is dropped."""
        end = time.monotonic() + PATIENCE
        while True:
            message = self.heard.get(timeout=max(0.0, end - time.monotonic()))
            assert message is not None, f"the writer died before it sent {kind.__name__}"
            if isinstance(message, kind) and fits(message):
                self._ever_up = True
                return message

    def death(self) -> int | None:
        """Wait for its end; the exit code."""
        end = time.monotonic() + PATIENCE
        while self.heard.get(timeout=max(0.0, end - time.monotonic())) is not None:
            pass
        self.child.join(PATIENCE)
        return self.child.exitcode

    def close(self) -> None:
        """An orderly end."""
        self.pipe.put(Close())
        self.pipe.flush()
        assert self.death() == 0

    def kill(self) -> None:
        if self.child.is_alive():
            self.child.kill()
            self.child.join()
        self.pipe.close()

    def say(self, *facts: f.Numbered) -> None:
        for fact in facts:
            self.pipe.put(fact)
            self.pipe.flush()

    def committed(self, seq: int) -> Committed:
        return self.wait(Committed, lambda c: c.seq >= seq)

    def store(self) -> dict[str, dict[bytes, bytes]]:
        opened = Store(self.state / "lmdb", readonly=True)
        try:
            recount(opened)
            return dump(opened)
        finally:
            opened.close()

    def files(self) -> dict[str, bytes]:
        """All that the user sees but the summary, which tells the time."""
        return {
            str(p.relative_to(self.output)): p.read_bytes()
            for p in self.output.rglob("*")
            if p.is_file() and p.name != "summary.json"
        }


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
    teller, chance = Teller(store, paths=SCRIPT_PATHS), random.Random(19)
    for _ in range(160):
        name = chance.choice(OPERATIONS)
        teller.operations[name](chance.randrange(1000))
        if chance.random() < 0.1:
            teller.settle_all()
            teller.spend(len(teller.said))
            teller.operations[chance.choice(["retry", "gone"])](chance.randrange(1000))
    teller.settle_all()
    kinds = {type(n.fact) for n in teller.said}
    assert kinds == {*f.Fact.__args__} - {f.DialectLearned}  # type: ignore[attr-defined]
    classes = {r.status for r in teller.images("high_quality", "low_quality", "failed")}
    assert len(classes) == 3, "a script without all outcomes proves little"
    store.close()
    return teller.said


Outcome = tuple[dict[str, dict[bytes, bytes]], dict[str, bytes]]


@pytest.fixture(scope="module")
def undisturbed(script: list[f.Numbered], tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    hub = Hub(tmp_path_factory.mktemp("undisturbed"))
    hub.start()
    hub.wait(WriterUp)
    hub.say(*script)
    hub.close()
    return hub.store(), hub.files()


def decided(path: bytes, content: str, score: float, seq: int = 1) -> list[f.Numbered]:
    """The facts of one image from its file to its decision."""
    image = image_id(path, 0)
    facts: list[f.Fact] = [
        f.ConfigStored(recipe=RECIPE),
        f.ImageEnrolled(path=path, size=1, mtime_ns=1, time=1.0),
        f.ImageStarted(
            image=image,
            queued_as=image,
            queue_seq=FIRST_QUEUE + 1,
            path=path,
            version=0,
            info=info_of(content),
            config=RECIPE.fingerprint,
            time=2.0,
        ),
        f.CandidateMade(image=image, candidate=candidate(0)),
        f.CandidateGraded(image=image, grade=grade(0, score)),
        f.ImageDecided(
            image=image,
            decision=1,
            winner=0,
            score=score,
            expected_score=score,
            quality="high" if score >= 80 else "low",
            reason="all_drawn",
            time=3.0,
        ),
    ]
    return [f.Numbered(seq=seq + i, fact=fact) for i, fact in enumerate(facts)]


def test_a_history_becomes_files_and_counters(
    script: list[f.Numbered], undisturbed: Outcome
) -> None:
    stored, files = undisturbed
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
        hub.say(*part)
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
    hub.say(*[n for n in script if n.seq > acknowledged])
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
        hub.say(*[n for n in script if n.seq > acknowledged])
        time.sleep(chance.random() * 0.1)
        hub.child.kill()
        while (message := hub.heard.get(timeout=PATIENCE)) is not None:
            if isinstance(message, Committed):
                acknowledged = max(acknowledged, message.seq)
        hub.child.join()
    hub.start()
    hub.wait(WriterUp)
    hub.say(*[n for n in script if n.seq > acknowledged])
    hub.close()
    assert (hub.store(), hub.files()) == undisturbed


def test_a_new_hub_is_told_what_is_active_and_the_spool_is_swept(hub: Hub) -> None:
    facts = decided(A, "cat", 90.0)[:-1]
    hub.start()
    up = hub.wait(WriterUp)
    assert (up.stats.seen, up.pid) == (0, hub.child.pid)
    hub.say(*facts)
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
    second.say(msgspec.structs.replace(decision, seq=1))
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
    hub.say(*decided(A, "cat", 90.0)[:-1])
    for name in (sha("cat"), f"{sha('cat')}.url"):
        (hub.state / "spool" / name).write_bytes(b"x")
    hub.say(f.Numbered(seq=6, fact=f.ImageGone(path=A, time=9.0)))
    hub.close()
    assert list((hub.state / "spool").iterdir()) == []


def test_questions_are_answered_in_their_order_after_the_facts_before_them(hub: Hub) -> None:
    hub.start()
    hub.wait(WriterUp)
    hub.say(*decided(A, "cat", 10.0))
    hub.pipe.put(FindContent(query=1, sha256=sha("cat"), image="00" * 16))
    hub.pipe.flush()
    hub.pipe.put(FindImages(query=2, status=ImageStatus.LOW_QUALITY, count=9))
    hub.pipe.flush()
    enrolled = f.ImageEnrolled(path=B, size=2, mtime_ns=2, time=4.0)
    hub.say(f.Numbered(seq=7, fact=enrolled))
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


def test_an_idle_writer_answers_pings_and_ends_with_its_hub(hub: Hub) -> None:
    hub.start()
    hub.wait(WriterUp)
    hub.pipe.put(Ping(query=3))
    hub.pipe.flush()
    assert hub.wait(Pong) == Pong(query=3, blocked="")
    hub.pipe.close()
    assert hub.death() == 0


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
    hub.say(*decided(A, "cat", 90.0))
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
    hub.say(*decided(A, "cat", 90.0))
    hub.close()
    assert list(hub.files()) == [f"high_quality/{result_name(A)}"]


def test_a_full_disk_under_the_results_loses_nothing(hub: Hub, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        hub.output = disk / "output"
        hub.start()
        hub.wait(WriterUp)
        fill_up(disk / "ballast")
        hub.say(*decided(A, "cat", 90.0))
        assert hub.committed(6).stats.high_quality == 1, "the state is on another disk"
        assert "No space" in hub.wait(WriterBlocked).reason
        hub.say(f.Numbered(seq=7, fact=f.ImageEnrolled(path=B, size=1, mtime_ns=1, time=1.0)))
        hub.committed(7)
        hub.pipe.put(Ping(query=1))
        hub.pipe.flush()
        assert "No space" in hub.wait(Pong).blocked
        (disk / "ballast").unlink()
        assert hub.wait(WriterBlocked).reason == ""
        hub.close()
        assert list(hub.files()) == [f"high_quality/{result_name(A)}"]


def test_a_full_disk_under_the_state_loses_nothing(hub: Hub, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "2m") as disk:
        hub.state = disk / "state"
        hub.state.mkdir()
        hub.start()
        hub.wait(WriterUp)
        fill_up(disk / "ballast")
        image = decided(A, "cat", 90.0)
        long = "resistor " * 40_000
        made = image[3].fact
        assert isinstance(made, f.CandidateMade)
        answer = msgspec.structs.replace(made.candidate, content=long)
        image[3] = f.Numbered(seq=4, fact=msgspec.structs.replace(made, candidate=answer))
        hub.say(*image)
        assert hub.wait(WriterBlocked).reason
        hub.pipe.put(Ping(query=1))
        hub.pipe.flush()
        assert hub.wait(Pong).blocked, "a writer that waits is alive"
        (disk / "ballast").unlink()
        assert hub.wait(WriterBlocked).reason == ""
        assert hub.committed(6).stats.high_quality == 1
        hub.close()
        (document,) = hub.files().values()
        assert json.loads(document)["best_result"]["content"] == long
