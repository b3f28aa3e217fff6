"""The inbox alone: files and the writer's answers in, questions and facts out."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import msgspec
import pytest

from rsd.hub import inbox as inbox_module
from rsd.hub.inbox import OPEN_MAX, Inbox
from rsd.protocol.facts import ImageRetried, LearnedImported
from rsd.protocol.user_requests import PATHS_MAX, PriorBrought, Retry, UserRequest, in_pieces
from rsd.protocol.vocabulary import ImageId, ImageStatus, image_id
from rsd.protocol.writer_talk import FindImages, ImagesFound, Query
from tests.histories import PRIOR


class World:
    """A hub and a writer that know every path, and a class of images to be paged."""

    def __init__(self, folder: Path, in_class: int = 0) -> None:
        self.folder = folder
        self.asked: list[FindImages] = []
        self.most_asked = 0
        self.facts: list[ImageRetried] = []
        self.seq = 0
        self.in_class = [f"{n:032x}" for n in range(in_class)]
        self.inbox = Inbox(folder, self.ask)

    def ask(self, query: Query) -> None:
        assert isinstance(query, FindImages)
        self.asked.append(query)
        self.most_asked = max(self.most_asked, len(self.asked))

    def lay(self, *requests: UserRequest, stem: str = "a") -> None:
        for number, request in enumerate(requests):
            path = self.folder / f"{stem}{number:06}.json"
            path.write_bytes(msgspec.json.encode(request))

    def names(self) -> list[str]:
        return sorted(p.name for p in self.folder.glob("*.json"))

    def found(self, query: FindImages) -> tuple[ImageId, ...]:
        if query.status is None:
            return tuple(image_id(p, 0) for p in query.paths if not p.startswith(b"unknown"))
        ahead = [i for i in self.in_class if i > query.after]
        return tuple(ahead[: query.count])

    def answer(self) -> None:
        """The writer answers one question; the brain numbers the facts that follow."""
        query = self.asked.pop(0)
        events = self.inbox.on_found(ImagesFound(query=query.query, images=self.found(query)), 9.0)
        for event in events:
            for fact in event.facts:
                assert isinstance(fact, ImageRetried)
                self.seq += 1
                self.facts.append(fact)
                self.inbox.on_numbered(self.seq, fact)

    def run(self) -> None:
        """Until nothing is asked any more; every answer is committed at once."""
        self.inbox.poll()
        while self.asked:
            self.answer()
            self.inbox.on_committed(self.seq)


def test_a_request_is_removed_when_its_facts_are_durable_and_not_before(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.lay(Retry(paths=(b"a.png", b"\xff.png"), fresh=True))
    world.inbox.poll()
    assert world.names(), "it is only read"
    world.answer()
    assert world.names(), "its facts are only on their way"
    world.inbox.on_committed(world.seq - 1)
    assert world.names(), "one of its facts is not durable"
    world.inbox.on_committed(world.seq)
    assert not world.names()
    assert world.facts == [
        ImageRetried(image=image_id(p, 0), fresh=True, first=True, time=9.0)
        for p in (b"a.png", b"\xff.png")
    ]


@pytest.mark.parametrize("dies_after", ["reading", "answer", "half"])
def test_a_hub_that_dies_on_the_way_leaves_the_request_to_the_next(
    tmp_path: Path, dies_after: str
) -> None:
    world = World(tmp_path)
    world.lay(Retry(paths=(b"a.png", b"b.png")))
    world.inbox.poll()
    if dies_after != "reading":
        world.answer()
    if dies_after == "half":
        world.inbox.on_committed(1)
    successor = World(tmp_path)
    successor.run()
    assert len(successor.facts) == 2
    assert not successor.names()


def test_a_hundred_thousand_paths_are_many_small_requests_and_few_questions(
    tmp_path: Path,
) -> None:
    paths = [b"deep/%06d.png" % n for n in range(100_000)]
    requests = in_pieces(paths, fresh=False)
    assert len(requests) == 200
    assert max(len(r.paths) for r in requests) == PATHS_MAX
    world = World(tmp_path)
    world.lay(*requests)
    world.run()
    assert [f.image for f in world.facts] == [image_id(p, 0) for p in paths]
    assert world.most_asked <= OPEN_MAX
    assert not world.names()


def test_a_class_is_taken_page_by_page_each_when_the_one_before_is_durable(tmp_path: Path) -> None:
    world = World(tmp_path, in_class=3 * PATHS_MAX)
    world.lay(Retry(status=ImageStatus.FAILED))
    world.inbox.poll()
    pages = 0
    while world.asked:
        world.answer()
        assert len(world.asked) == 0, "no page before the last one is durable"
        world.inbox.on_committed(world.seq)
        pages += 1
    assert pages == 4, "the last one is empty"
    assert [f.image for f in world.facts] == world.in_class
    assert not any(f.first for f in world.facts), "a class does not go before the backlog"
    assert not world.names()


def test_a_lack_of_files_refuses_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.lay(Retry(paths=(b"a.png",)))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        assert world.inbox._read("a000000.json") is None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert world.names() == ["a000000.json"]
    world.run()
    assert len(world.facts) == 1 and not world.names()


@pytest.mark.parametrize("noted", ["", "nonsense", "00"])
def test_a_class_goes_on_behind_the_page_that_is_durable(tmp_path: Path, noted: str) -> None:
    """Images of the first page may have come to their end again: a fresh round of them is paid."""
    world = World(tmp_path, in_class=3 * PATHS_MAX)
    world.lay(Retry(status=ImageStatus.LOW_QUALITY, fresh=True))
    world.inbox.poll()
    world.answer()
    world.inbox.on_committed(world.seq)  # and then it dies
    world.answer()
    first = [f.image for f in world.facts[:PATHS_MAX]]
    (note,) = tmp_path.glob("*.page")
    if noted:
        note.write_text(noted)  # what a damaged disk may leave
    successor = World(tmp_path, in_class=3 * PATHS_MAX)
    successor.run()
    taken = [f.image for f in successor.facts]
    assert taken == successor.in_class[0 if noted else PATHS_MAX :]
    assert first == successor.in_class[:PATHS_MAX]
    assert not list(tmp_path.iterdir())


def test_what_is_refused_is_kept_with_its_reason_and_blocks_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(tmp_path)
    (tmp_path / "0-no.json").write_bytes(b"{")
    (tmp_path / "1-old.json").write_bytes(b'{"retry":{"paths":[],"status":"low"},"fresh":true}')
    (tmp_path / "2-folder.json").mkdir()
    (tmp_path / "3-link.json").symlink_to("/etc/hostname")
    os.mkfifo(tmp_path / "4-pipe.json")
    with (tmp_path / "5-large.json").open("wb") as large:
        large.truncate(inbox_module.REQUEST_BYTES + 1)
    many = tuple(b"%d" % n for n in range(PATHS_MAX + 1))
    (tmp_path / "6-many.json").write_bytes(msgspec.json.encode(Retry(paths=many)))
    world.lay(Retry(paths=(b"unknown.png",)), stem="7")
    world.lay(Retry(paths=(b"a.png", b"unknown.png")), stem="8")
    world.run()
    assert [f.image for f in world.facts] == [image_id(b"a.png", 0)]
    assert not world.names()
    reasons = {p.name[0]: p.read_text() for p in (tmp_path / "refused").glob("*.reason")}
    assert set(reasons) == set("01234567")
    assert "no plain file" in reasons["2"]
    assert "larger" in reasons["5"]
    assert "none of its images is known" in reasons["7"]
    assert caplog.text.count("is refused") == 8
    assert (tmp_path / "refused/1-old.json").exists()


def test_an_entry_that_cannot_even_be_moved_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "0.json").write_bytes(b"{")
    (tmp_path / "refused").write_bytes(b"a file where the folder should be")
    world = World(tmp_path)
    world.lay(Retry(paths=(b"a.png",)))
    for _ in range(3):
        world.run()
    assert len(world.facts) == 1
    assert world.names() == ["0.json"]
    assert caplog.text.count("is refused") == 1, "said once"


def test_of_refused_requests_the_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox_module, "REFUSED_MAX", 3)
    world = World(tmp_path)
    for n in range(8):
        (tmp_path / f"{n}.json").write_bytes(b"{")
        os.utime(tmp_path / f"{n}.json", (n, n))
    world.run()
    kept = sorted(p.name for p in (tmp_path / "refused").iterdir())
    assert kept == [f"{n}.json{end}" for n in (5, 6, 7) for end in ("", ".reason")]


def test_what_another_run_learned_is_a_fact_without_a_question(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.lay(PriorBrought(learned=PRIOR), Retry(paths=(b"a.png",)))
    (event,) = world.inbox.poll()
    assert event.facts == (LearnedImported(learned=PRIOR),)
    assert len(world.asked) == 1, "the request behind it is in work, too"
    assert world.inbox.poll() == [], "it is handed out once"
    world.inbox.on_numbered(5, event.facts[0])
    world.inbox.on_committed(4)
    assert len(world.names()) == 2
    world.inbox.on_committed(5)
    assert len(world.names()) == 1


def test_a_damaged_prior_is_refused_with_the_reason(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.lay(PriorBrought(learned=msgspec.structs.replace(PRIOR, prior_images=10**9)))
    assert world.inbox.poll() == []
    assert not world.names()
    (reason,) = (tmp_path / "refused").glob("*.reason")
    assert "1 to 50 images" in reason.read_text()
