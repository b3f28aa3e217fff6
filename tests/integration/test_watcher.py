"""The watcher on a real folder with real inotify; what it finds is collected as the hub would."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rsd.hub.folder.watcher import Watcher
from rsd.protocol.vocabulary import FileStat
from rsd.settings.fields import Watch
from tests.support import wait_for


class Hub:
    """Answers the watcher as writer and hub would, from what it was told before."""

    def __init__(self, folder: Path, settings: Watch, **options: object) -> None:
        self.known: dict[bytes, tuple[int, int]] = {}
        self.ready: Counter[bytes] = Counter()
        self.gone: list[bytes] = []
        self.done = threading.Event()
        self.scanned: list[bytes] = []
        self.broken = False
        self.watcher = Watcher(
            folder,
            settings,
            ready=self._ready,
            gone=self._gone,
            compare=self._compare,
            list_pending=self._list,
            scanned=self._scanned,
            **options,  # type: ignore[arg-type]
        )

    def _ready(self, files: tuple[FileStat, ...]) -> None:
        if self.broken:
            self.broken = False
            raise RuntimeError("a bug")
        for file in files:
            self.known[file.path] = (file.size, file.mtime_ns)
            self.ready[file.path] += 1

    def _gone(self, paths: tuple[bytes, ...]) -> None:
        for path in paths:
            self.known.pop(path, None)
            self.gone.append(path)

    def _compare(self, files: tuple[FileStat, ...]) -> None:
        changed = [f for f in files if self.known.get(f.path) != (f.size, f.mtime_ns)]
        self.watcher.compared(tuple(changed))

    def _list(self, after: int) -> None:
        rows = [(0, path) for path in self.known] if after == 0 else []
        self.watcher.listed(tuple(rows))

    def _scanned(self, paths: list[bytes]) -> None:
        self.scanned = paths
        self.done.set()


QUICK = Watch(settle_seconds=0.15, rescan_seconds=3600, poll_seconds=0.5, patience_seconds=0.6)
RESCAN = Watch(settle_seconds=0.15, rescan_seconds=1.0, patience_seconds=0.6)

Make = Callable[..., Hub]


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Make]:
    made: list[Hub] = []

    def make(settings: Watch = QUICK, **options: object) -> Hub:
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        hub = Hub(folder, settings, **options)
        made.append(hub)
        hub.watcher.start()
        if not options.get("once"):
            wait_for(lambda: hub.watcher.scanned_at is not None, "the first scan")
        return hub

    yield make
    for hub in made:
        hub.watcher.stop()


def folder_of(hub: Hub) -> Path:
    return Path(hub.watcher.path)


def test_every_way_in_is_noticed_once(watch: Make, tmp_path: Path) -> None:
    hub = watch()
    folder = folder_of(hub)
    (folder / "written.png").write_bytes(b"x" * 100)
    (tmp_path / "moved.png").write_bytes(b"x")
    shutil.move(tmp_path / "moved.png", folder / "moved.png")
    (folder / "part.png.part").write_bytes(b"x")
    (folder / "part.png.part").rename(folder / "part.png")
    (tmp_path / "linked.png").write_bytes(b"x")
    os.link(tmp_path / "linked.png", folder / "linked.png")
    nested = folder / "a/b/c"
    nested.mkdir(parents=True)
    (nested / "deep.png").write_bytes(b"x")
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/inside.png").write_bytes(b"x")
    shutil.move(tmp_path / "dir", folder / "dir")
    expected = {
        b"written.png",
        b"moved.png",
        b"part.png",
        b"linked.png",
        b"a/b/c/deep.png",
        b"dir/inside.png",
    }
    wait_for(lambda: set(hub.ready) == expected, "all six")
    assert set(hub.ready.values()) == {1}


def test_what_is_no_image_is_never_opened_or_reported(watch: Make) -> None:
    hub = watch()
    folder = folder_of(hub)
    os.mkfifo(folder / "pipe.png")
    (folder / "link.png").symlink_to("/etc/passwd")
    (folder / "dir.png").mkdir()
    (folder / ".hidden.png").write_bytes(b"x")
    (folder / "notes.txt").write_bytes(b"x")
    (folder / "loop").symlink_to(folder)
    (folder / "real.png").write_bytes(b"x")
    wait_for(lambda: hub.ready, "the real one")
    assert set(hub.ready) == {b"real.png"}


def test_a_slow_writer_is_waited_for(watch: Make) -> None:
    hub = watch()
    path = folder_of(hub) / "slow.png"
    ticks = threading.Event()
    with path.open("wb") as out:
        for _ in range(20):
            out.write(b"x" * 10)
            out.flush()
            ticks.wait(0.05)
    wait_for(lambda: hub.ready, "the file")
    assert hub.known[b"slow.png"][0] == 200
    assert hub.ready[b"slow.png"] == 1


def test_changes_and_departures(watch: Make) -> None:
    hub = watch()
    folder = folder_of(hub)
    (folder / "a.png").write_bytes(b"one")
    wait_for(lambda: hub.ready[b"a.png"] == 1, "the first")
    (folder / "b.tmp").write_bytes(b"another")
    (folder / "b.tmp").replace(folder / "a.png")
    wait_for(lambda: hub.ready[b"a.png"] == 2, "the second")
    (folder / "a.png").unlink()
    wait_for(lambda: b"a.png" in hub.gone, "the departure")


def test_an_error_in_between_forgets_nothing(watch: Make) -> None:
    hub = watch()
    hub.broken = True
    (folder_of(hub) / "a.png").write_bytes(b"x")
    wait_for(lambda: hub.ready[b"a.png"] == 1, "the file, after the error")


def test_a_folder_made_again_is_watched_again(watch: Make) -> None:
    hub = watch()
    folder = folder_of(hub)
    (folder / "a.png").write_bytes(b"x")
    wait_for(lambda: hub.ready, "the first")
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "b.png").write_bytes(b"x")
    wait_for(lambda: hub.ready[b"b.png"], "a file of the new folder")
    (folder / "c.png").write_bytes(b"x")
    wait_for(lambda: hub.ready[b"c.png"], "an event of the new folder")


def test_without_any_event_the_rescan_finds_all(watch: Make) -> None:
    hub = watch(RESCAN)
    hub.watcher._unwatch()
    folder = folder_of(hub)
    for k in range(1_000):
        (folder / f"{k}.png").write_bytes(b"x")
    wait_for(lambda: len(hub.ready) == 1_000, "all of them")
    gone = folder / "7.png"
    gone.unlink()
    wait_for(lambda: b"7.png" in hub.gone, "the departure")


def test_polling_finds_what_comes_and_changes(watch: Make) -> None:
    settings = Watch(mode="polling", settle_seconds=0.1, poll_seconds=0.3, rescan_seconds=3600)
    hub = watch(settings)
    (folder_of(hub) / "a.png").write_bytes(b"x")
    wait_for(lambda: hub.ready[b"a.png"] == 1, "the file")
    (folder_of(hub) / "a.png").write_bytes(b"longer")
    wait_for(lambda: hub.ready[b"a.png"] == 2, "the change")


def test_a_burst_larger_than_the_settle_table(watch: Make, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(12_000):
        (folder / f"{k}.png").touch()
    settings = Watch(settle_seconds=0.1, rescan_seconds=3600, patience_seconds=0)
    hub = watch(settings)
    for k in range(12_000, 14_000):
        (folder / f"{k}.png").write_bytes(b"x")
    wait_for(lambda: len(hub.ready) == 14_000, "all of the burst")


def test_once_scans_settles_and_says_so(watch: Make, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("c.png", "a.png", "b.png", "empty.png"):
        (folder / name).write_bytes(b"" if name == "empty.png" else b"x")
    hub = watch(QUICK, once=True)
    wait_for(hub.done.is_set, "the end of the scan")
    assert hub.scanned == [b"a.png", b"b.png", b"c.png", b"empty.png"]
    assert set(hub.ready) == set(hub.scanned)


def test_once_with_a_limit_takes_the_first_paths(watch: Make, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(9):
        (folder / f"{k}.png").write_bytes(b"x")
    hub = watch(QUICK, once=True, limit=3)
    wait_for(hub.done.is_set, "the end of the scan")
    assert sorted(hub.ready) == [b"0.png", b"1.png", b"2.png"]


def test_the_folder_is_scanned_again_when_the_kernel_dropped_events(watch: Make) -> None:
    hub = watch()
    first = hub.watcher.scanned_at
    # watchdog's own words; that the kernel drops events for real is in test_hostile.py's burst
    logging.getLogger("watchdog.observers.inotify_c").warning("Inotify queue overflowed")
    wait_for(lambda: hub.watcher.scanned_at != first, "the second scan")
