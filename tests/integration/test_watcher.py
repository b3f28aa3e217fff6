"""The watcher on a real folder with real inotify; what it finds is collected as the hub would."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rsd.hub.folder.watcher import Watcher
from rsd.protocol.vocabulary import FileStat
from rsd.settings.fields import Watch
from tests.support import HOME, wait_for


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


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_file_that_cannot_be_looked_at_is_not_gone(
    watch: Make, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    hub = watch(RESCAN)
    folder = folder_of(hub)
    (folder / "a.png").write_bytes(b"x")
    wait_for(lambda: hub.ready, "the file")
    refused, lstat = threading.Event(), os.lstat

    def refuse(path: Any, **more: Any) -> os.stat_result:
        if os.fsencode(path).endswith(b"a.png"):
            refused.set()
            raise OSError(number, os.strerror(number))
        return lstat(path, **more)

    monkeypatch.setattr("rsd.hub.folder.watcher.os.lstat", refuse)
    scanned = hub.watcher.scanned_at
    (folder / "a.png").touch()  # an event, and the next rescan
    wait_for(lambda: refused.is_set() and hub.watcher.scanned_at != scanned, "two looks")
    monkeypatch.undo()
    assert hub.gone == [] and hub.watcher.away == ""
    (folder / "a.png").unlink()
    wait_for(lambda: hub.gone == [b"a.png"], "its departure")


UNREADABLE = """
import os, sys, time
from pathlib import Path
os.chdir(sys.argv[2])
sys.path.insert(0, sys.argv[2])
from tests.integration.test_watcher import Hub, RESCAN
os.setgid(65534), os.setuid(65534)
hub = Hub(Path(sys.argv[1]), RESCAN)
hub.known = {b"closed/a.png": (1, 1), b"b.png": (1, 1)}
hub.watcher.start()
end = time.monotonic() + 60
while not hub.gone and time.monotonic() < end:
    time.sleep(0.05)
time.sleep(0.5)
print(hub.gone)
hub.watcher.stop()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_folder_that_is_closed_for_us_withdraws_nothing() -> None:
    with tempfile.TemporaryDirectory() as name:
        images = Path(name) / "images"
        (images / "closed").mkdir(parents=True)
        (images / "closed" / "a.png").write_bytes(b"x")
        (images / "closed").chmod(0)
        Path(name).chmod(0o755)
        words = [sys.executable, "-c", UNREADABLE, str(images), str(HOME)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[b'b.png']", done.stdout + done.stderr


def test_a_folder_that_is_gone_takes_nothing_with_it(watch: Make, tmp_path: Path) -> None:
    hub = watch(RESCAN)
    folder = folder_of(hub)
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(b"x")
    wait_for(lambda: len(hub.ready) == 2, "two files")
    folder.rename(tmp_path / "elsewhere")
    wait_for(lambda: "is not there" in hub.watcher.away, "a word about it")
    folder.mkdir()
    wait_for(lambda: "not the folder that it was" in hub.watcher.away, "a word about the new one")
    assert hub.gone == []
    folder.rmdir()
    (tmp_path / "elsewhere").rename(folder)
    wait_for(lambda: not hub.watcher.away, "the old one")
    (folder / "a.png").unlink()
    wait_for(lambda: hub.gone, "a departure")
    assert set(hub.gone) == {b"a.png"}


def test_an_unmounted_folder_is_not_an_empty_one(watch: Make, tmp_path: Path) -> None:
    hub_folder = tmp_path / "images"
    hub_folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "rsd-test", str(hub_folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("cannot mount here")
    mounted = True
    try:
        hub = watch(RESCAN)
        for name in ("a.png", "b.png"):
            (hub_folder / name).write_bytes(b"x")
        wait_for(lambda: len(hub.ready) == 2, "two files")
        subprocess.run(["umount", "-l", str(hub_folder)], check=True)
        mounted = False
        wait_for(lambda: hub.watcher.away, "a word about it")
        scanned = hub.watcher.scanned_at
        wait_for(lambda: hub.watcher.scanned_at != scanned, "another scan")
        assert hub.gone == [], "unmounted, not withdrawn"
        (hub_folder / "c.png").write_bytes(b"x")
        wait_for(lambda: not hub.watcher.away, "somebody who means this folder")
        wait_for(lambda: sorted(hub.gone) == [b"a.png", b"b.png"], "what is not in it")
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(hub_folder)], check=False)


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
