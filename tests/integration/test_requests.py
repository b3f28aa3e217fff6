"""Requests on real states: very many of them, with a hub and without, and deaths on the way."""

from __future__ import annotations

import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from rsd.protocol import facts as f
from rsd.protocol.user_requests import Retry, in_pieces
from rsd.protocol.vocabulary import FIRST_QUEUE, ImageStatus, image_id
from rsd.state import cursor
from rsd.state.records import FAILED, QUEUED
from rsd.state.store import Store
from rsd.writer.offline import apply_requests
from tests.evidence import record
from tests.histories import apply_facts
from tests.support import Daemon, draw, simulator, wait_for

MANY = 100_000


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state of a hundred thousand failed images."""
    state = tmp_path_factory.mktemp("state")
    store = Store(state / "lmdb")
    seq = 0
    for start in range(0, MANY, 5_000):
        facts: list[f.Numbered] = []
        for n in range(start, start + 5_000):
            path = b"%06d.png" % n
            for fact in (
                f.ImageEnrolled(path=path, size=1, mtime_ns=1, time=1.0),
                f.ImageSetAside(image=image_id(path, 0), status="failed", reason="why", time=1.0),
            ):
                seq += 1
                facts.append(f.Numbered(seq=seq, fact=fact))
        apply_facts(store, facts, "life")
    store.close()
    return state


def counts(state: Path) -> tuple[int, int]:
    store = Store(state / "lmdb", readonly=True)
    with store.reading() as txn:
        found = txn.stats()
        assert found.seen == MANY
        assert txn.entries("backlog") == found.queued
    store.close()
    return found.failed, found.queued


@pytest.mark.slow
def test_a_hundred_thousand_paths_without_a_hub(failed: Path) -> None:
    assert counts(failed) == (MANY, 0)
    paths = [b"%06d.png" % n for n in range(0, MANY, 2)]
    began = time.monotonic()
    assert apply_requests(failed, in_pieces(paths, fresh=False)) == MANY // 2
    assert counts(failed) == (MANY // 2, MANY // 2)
    assert apply_requests(failed, [Retry(status=ImageStatus.FAILED)]) == MANY // 2
    assert counts(failed) == (0, MANY)
    assert time.monotonic() - began < 120
    store = Store(failed / "lmdb", readonly=True)
    lanes: Counter[bool] = Counter()
    for image in cursor.all_images(store):
        assert image.status == QUEUED
        lanes[image.queue_seq < FIRST_QUEUE] += 1
    assert lanes == {True: MANY // 2, False: MANY // 2}, "named ones go first, a class does not"
    middle = image_id(b"%06d.png" % 7, 0)
    behind = [r.image for r in cursor.all_images(store, after=middle, page=100)]
    assert behind == sorted(behind)
    assert min(behind) > middle
    store.close()


@pytest.mark.crash
def test_thousands_of_names_with_a_hub_that_dies_on_the_way(tmp_path: Path) -> None:
    with simulator() as sim:
        d = Daemon(tmp_path, sim)
        names = [f"bad{n:04}.png" for n in range(1_200)]
        for name in names:
            (d.images / name).write_bytes(b"no picture: " + name.encode() * 8)
        d.start()
        wait_for(lambda: d.settled(len(names)), "all failed")
        d.stop()
        process = d.start(RSD_FAILPOINT="hub.request:2")
        wait_for(lambda: d.settled(len(names)), "up again")
        before = time.time()
        done = d.run("retry", *names)
        assert done.returncode == 0, done.stderr
        assert "1200 images are taken up again" in done.stdout
        assert process.wait(timeout=60) == -signal.SIGKILL
        requests = d.output / "state/requests"
        assert list(requests.glob("*.json")), "what was not durable is still there"
        d.start()
        wait_for(lambda: not list(requests.glob("*.json")), "requests")
        wait_for(lambda: d.settled(len(names)), "all failed again")
        assert d.stop() == 0
        assert not (requests / "refused").exists()
    store = Store(d.output / "state/lmdb", readonly=True)
    ended = [(r.status, r.ended_at > before) for r in cursor.all_images(store)]
    store.close()
    assert ended == [(FAILED, True)] * len(names), "each was tried again"
    record(
        "points",
        "hub, between taking a request of a user and its commit",
        times=1,
        lost=0,
        repeated=0,
        recovery="the next hub",
        seen=f"each of {len(names)} named images was tried again",
    )


def test_a_named_image_does_not_wait_behind_the_backlog(tmp_path: Path) -> None:
    with simulator("--slots", "2", "--service-seconds", "0.3") as sim:
        d = Daemon(tmp_path, sim, "--candidates", "1", "--gen-workers", "2", "--grade-workers", "2")
        draw(d.images / "early.png", 1)
        d.start()
        wait_for(lambda: d.settled(1), "the first")
        for n in range(400):
            draw(d.images / f"late{n:03}.png", n + 2)
        wait_for(lambda: d.live().get("images", {}).get("queued", 0) > 300, "a backlog")
        assert d.run("retry", "early.png").returncode == 0

        def again() -> bool:
            return d.results().get("early.png", {}).get("decision") == 2

        wait_for(again, "its second decision", 30)
        assert d.live()["images"]["queued"] > 200, "most of the others still wait"
        d.stop()


def test_a_request_that_cannot_be_handed_over_is_said(tmp_path: Path) -> None:
    with simulator() as sim:
        d = Daemon(tmp_path, sim)
        (d.images / "bad.png").write_bytes(b"no picture" * 20)
        d.start()
        wait_for(lambda: d.settled(1), "the failure")
        requests = d.output / "state/requests"
        requests.rmdir()
        requests.write_bytes(b"")  # a file where the folder should be
        done = d.run("retry", "--failed")
        d.stop()
        assert done.returncode == 1
        assert "requests" in done.stderr
        assert "taken up" not in done.stdout
