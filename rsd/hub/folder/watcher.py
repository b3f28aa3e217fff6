"""The watcher thread: from the folder to stable files.

Events are hints, `lstat` is truth: whatever an event says, the file is looked at. A rescan at
start, every few minutes and after anything was dropped finds what events miss; its slices are
compared with what the writer knows, so that an unchanged file costs one lookup.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from watchdog.events import (
    DirModifiedEvent,
    FileClosedNoWriteEvent,
    FileOpenedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer

from rsd.hub.folder.root import GONE, Root
from rsd.hub.folder.stable import StabilityTable, is_candidate, is_open_folder
from rsd.names import display_path
from rsd.protocol.vocabulary import FileStat
from rsd.settings.fields import Watch
from rsd.system.files import filesystem_type

log = logging.getLogger("rsd")

#: Files compared with the writer at once, and paths of undecided images looked at in one page: the
#: writer answers some twenty times a second while it is busy.
SLICE = 1024
#: Files reported at once.
READY_SLICE = 256
#: Events waiting for the thread; more means that a rescan is needed.
EVENTS_MAX = 50_000
#: A rescan takes at most this share of the time.
SCAN_SHARE = 1 / 20
#: Seconds between two looks whether the folder itself is still the same.
ROOT_SECONDS = 2.0
#: Longest wait of the thread, in seconds.
NAP = 0.5
#: File systems that send no events for what others write.
SILENT = ("nfs", "cifs", "smb", "fuse", "9p", "virtiofs", "afs", "ceph", "glusterfs", "vboxsf")
#: `--once` waits this long for files to become stable.
ONCE_SECONDS = 60.0


class _Handler(FileSystemEventHandler):
    """Leaves the path of every event; an exception here would end watchdog's thread."""

    def __init__(self, put: Callable[[bytes], None]) -> None:
        self._put = put

    def on_any_event(self, event: FileSystemEvent) -> None:
        if isinstance(event, FileOpenedEvent | FileClosedNoWriteEvent | DirModifiedEvent):
            return
        for path in (event.src_path, getattr(event, "dest_path", "")):
            if path:
                self._put(os.fsencode(path))


class _Warnings(logging.Handler):
    """Hears watchdog say that the kernel dropped events: it has no other way of telling."""

    def __init__(self, notify: Callable[[], None]) -> None:
        super().__init__(logging.WARNING)
        self._notify = notify

    def emit(self, record: logging.LogRecord) -> None:
        self._notify()


class Watcher:
    """Calls back from its own thread: `ready(files)`, `gone(paths)`, `compare(files)` (answered by
    `compared`), `list_pending(after)` (answered by `listed`), `scanned(paths)` with `once`.
    """

    def __init__(
        self,
        image_dir: Path,
        settings: Watch,
        *,
        ready: Callable[[tuple[FileStat, ...]], None],
        gone: Callable[[tuple[bytes, ...]], None],
        compare: Callable[[tuple[FileStat, ...]], None],
        list_pending: Callable[[int], None],
        scanned: Callable[[list[bytes]], None],
        once: bool = False,
        limit: int | None = None,
    ) -> None:
        self._root = Root(os.fsencode(image_dir))
        self._settings = settings
        self._ready, self._gone, self._compare = ready, gone, compare
        self._list_pending, self._scanned = list_pending, scanned
        self._once, self._limit = once, limit
        self.mode = self._choose_mode()
        self.scanned_at: float | None = None  #: monotonic, of the last complete scan
        self.away = ""  #: why files that are not found are not gone; "" when they are
        self._table = StabilityTable(
            settings.settle_seconds, 0.0 if once else settings.patience_seconds
        )
        self._events: queue.Queue[bytes] = queue.Queue(maxsize=EVENTS_MAX)
        self._answers: queue.SimpleQueue[tuple[str, object]] = queue.SimpleQueue()
        self._dropped = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
        self._observer: object | None = None
        self._warnings = _Warnings(self._dropped.set)
        self._root_checked = 0.0
        self._scan: Iterator[FileStat] | None = None
        self._scan_cost = 0.0  # seconds of work, without the waits for room and answers
        self._next_scan = 0.0
        self._waiting = False  # for an answer of the writer
        self._found: list[bytes] = []  # with `once`: all paths of the scan
        self._once_until: float | None = None

    @property
    def path(self) -> str:
        """The folder, as text."""
        return os.fsdecode(self._root.path)

    def _absolute(self, path: bytes) -> bytes:
        return self._root.path + b"/" + path

    @property
    def settling(self) -> int:
        """Files that are not ready yet."""
        return len(self._table)

    def start(self) -> None:
        """Begin to watch, with a scan."""
        self._thread.start()

    def stop(self) -> None:
        """End the threads."""
        self._stop.set()
        self._unwatch()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout=2.0)
        self._root.release()

    def compared(self, changed: tuple[FileStat, ...]) -> None:
        """The writer's answer to `compare`; any thread."""
        self._answers.put(("compared", changed))

    def listed(self, paths: tuple[tuple[int, bytes], ...]) -> None:
        """The writer's answer to `list_pending`; any thread."""
        self._answers.put(("listed", paths))

    # ---------------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._turn()
            except Exception:
                # A watcher that dies would forget files in silence; a rescan makes up for it.
                log.exception("watcher: unexpected error; the folder is scanned again")
                self._dropped.set()
                self._scan, self._waiting = None, False
                self._stop.wait(NAP)

    def _turn(self) -> None:
        now = time.monotonic()
        self._check_root(now)
        self._take_events()
        self._take_answers(now)
        self._check_due(now)
        if self._dropped.is_set() and self._scan is None and not self._waiting:
            self._dropped.clear()
            self._next_scan = now
        if self._scan is None and not self._waiting and now >= self._next_scan and self._root.id:
            self._begin_scan(now)
        if self._scan is not None and not self._waiting and self._table.room > SLICE:
            self._continue_scan(now)
        self._finish_once(now)
        self._nap(now)

    def _nap(self, now: float) -> None:
        if self._scan is not None and not self._waiting and self._table.room > SLICE:
            return
        wait = NAP
        due = self._table.next_due()
        if due is not None:
            wait = min(wait, max(0.0, due - now))
        if self._waiting:
            wait = min(wait, 0.02)
        with contextlib.suppress(queue.Empty):
            self._look(self._events.get(timeout=max(wait, 0.005)))

    # ------------------------------------------------------------------------------------- events

    def _put(self, path: bytes) -> None:
        try:
            self._events.put_nowait(path)
        except queue.Full:
            self._dropped.set()

    def _take_events(self) -> None:
        seen: dict[bytes, None] = {}
        with contextlib.suppress(queue.Empty):
            for _ in range(4_096):
                seen[self._events.get_nowait()] = None
        for path in seen:
            self._look(path)

    def _look(self, absolute: bytes) -> None:
        """An event named this path: what is there now?"""
        if not absolute.startswith(self._root.path + b"/"):
            return
        path = absolute[len(self._root.path) + 1 :]
        try:
            about = os.lstat(absolute)
        except OSError as e:
            if e.errno in GONE and not self._root.doubt():
                self._lost(path)
            else:
                self._unreadable(path, e)
                self._dropped.set()
            return
        if stat.S_ISDIR(about.st_mode):
            if all(is_open_folder(part) for part in path.split(b"/")):
                for file in self._walk(path):
                    self._note(file)
        elif stat.S_ISREG(about.st_mode) and is_candidate(path):
            self._note(FileStat(path=path, size=about.st_size, mtime_ns=about.st_mtime_ns))

    def _lost(self, path: bytes) -> None:
        self._table.forget(path)
        if is_candidate(path):
            self._gone((path,))
        elif b"." not in path.rpartition(b"/")[2]:
            self._dropped.set()  # perhaps a folder: the rescan finds what left with it

    def _note(self, file: FileStat) -> None:
        self._table.note(file.path, file.size, file.mtime_ns, time.monotonic())
        if self._table.overflowed:
            self._table.overflowed = False
            self._dropped.set()

    # ------------------------------------------------------------------------------- stable files

    def _check_due(self, now: float) -> None:
        ready: list[FileStat] = []
        for path in self._table.due(now):
            try:
                about = os.lstat(self._absolute(path))
            except OSError as e:
                if e.errno in GONE:
                    self._table.forget(path)
                continue  # any other error: it is looked at again
            if not stat.S_ISREG(about.st_mode):
                self._table.forget(path)
            elif self._table.confirm(path, about.st_size, about.st_mtime_ns, now):
                ready.append(FileStat(path=path, size=about.st_size, mtime_ns=about.st_mtime_ns))
        for k in range(0, len(ready), READY_SLICE):
            self._ready(tuple(ready[k : k + READY_SLICE]))

    # -------------------------------------------------------------------------------------- scans

    def _begin_scan(self, now: float) -> None:
        self._scan_cost = 0.0
        self._scan = self._sorted() if self._once else self._walk(b"")

    def _sorted(self) -> Iterator[FileStat]:
        files = sorted(self._walk(b""), key=lambda file: file.path)
        if self._limit is not None:
            files = files[: self._limit]
        self._found = [file.path for file in files]
        return iter(files)

    def _continue_scan(self, now: float) -> None:
        assert self._scan is not None
        began = time.monotonic()
        files = tuple(file for _, file in zip(range(SLICE), self._scan, strict=False))
        self._waiting = True
        self._scan_cost += time.monotonic() - began
        if files:
            self._compare(files)
        else:
            self._scan = None
            self._list_pending(0)

    def _take_answers(self, now: float) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                kind, answer = self._answers.get_nowait()
                self._waiting = False
                if kind == "compared":
                    for file in answer:  # type: ignore[attr-defined]
                        self._note(file)
                else:
                    self._check_pending(answer, now)  # type: ignore[arg-type]

    def _check_pending(self, rows: tuple[tuple[int, bytes], ...], now: float) -> None:
        """Undecided images whose files are not there any more."""
        if rows and self._root.id:
            self._withdraw(path for _, path in rows)
            last = rows[-1][0]
            if last:
                self._waiting = True
                self._list_pending(last)
                return
        self.scanned_at = now
        pause = (
            self._settings.poll_seconds if self.mode == "polling" else self._settings.rescan_seconds
        )
        self._next_scan = now + max(pause, self._scan_cost / SCAN_SHARE)
        if self._once and self._once_until is None:
            self._once_until = now + ONCE_SECONDS
            self._next_scan = float("inf")

    def _withdraw(self, paths: Iterable[bytes]) -> None:
        """Those of undecided images that are certainly not there any more."""
        lost = []
        for path in paths:
            try:
                os.lstat(self._absolute(path))
            except OSError as e:
                if e.errno in GONE:
                    lost.append(path)
                else:
                    self._unreadable(path, e)
        if lost and (why := self._root.doubt()):
            self._is_away(why)
        elif lost:
            self._gone(tuple(lost))

    def _unreadable(self, path: bytes, error: OSError) -> None:
        log.debug("%s: %s; it is kept", display_path(path), error.strerror)

    def _finish_once(self, now: float) -> None:
        if self._once_until is None:
            return
        late = now >= self._once_until
        if late and self.settling:
            log.warning("%d files are not stable and are left for the next run", self.settling)
        if late or not self.settling:
            self._once_until = None
            self._stop.set()
            self._scanned(self._found)

    def _walk(self, below: bytes) -> Iterator[FileStat]:
        """All candidates below a relative folder; links are not followed."""
        stack = [below]
        while stack:
            folder = stack.pop()
            where = self._absolute(folder) if folder else self._root.path
            try:
                entries = list(os.scandir(where))
            except OSError as e:
                log.warning("cannot list %s: %s", os.fsdecode(where), e.strerror)
                continue
            for entry in entries:
                path = folder + b"/" + entry.name if folder else entry.name
                try:
                    if entry.is_dir(follow_symlinks=False):
                        if is_open_folder(entry.name):
                            stack.append(path)
                    elif is_candidate(path) and entry.is_file(follow_symlinks=False):
                        about = entry.stat(follow_symlinks=False)
                        yield FileStat(path=path, size=about.st_size, mtime_ns=about.st_mtime_ns)
                except OSError:
                    continue

    # -------------------------------------------------------------------------- the folder itself

    def _choose_mode(self) -> str:
        if self._settings.mode != "auto":
            return self._settings.mode
        kind = filesystem_type(Path(self.path))
        return "polling" if kind.startswith(SILENT) else "inotify"

    def _check_root(self, now: float) -> None:
        """A folder that was removed and made again sends no events for ever: watch the new one."""
        if self._root.id is not None and now - self._root_checked < ROOT_SECONDS:
            return
        self._root_checked = now
        before = self._root.id
        if self._root.look():
            self._unwatch()
            if self._root.id is not None:
                if before is None and self.scanned_at is not None:
                    log.warning("image_dir %s is there again", self.path)
                self._watch()
                self._next_scan = now
        if self._root.id is None:
            self._is_away(self._root.why)
        elif not self._root.doubt() and self.away:
            log.warning("image_dir %s is looked at again", self.path)
            self.away = ""
            self._next_scan = now

    def _is_away(self, why: str) -> None:
        if why != self.away:
            self.away = why
            log.error("image_dir %s %s; nothing is withdrawn, it is waited for", self.path, why)

    def _watch(self) -> None:
        if self.mode != "inotify" or self._once:
            return
        observer = Observer()
        try:
            observer.schedule(_Handler(self._put), self.path, recursive=True)
            observer.start()
        except OSError as e:
            self.mode = "polling"
            log.warning(
                "inotify is unavailable (%s); the folder is polled every %.0f s. Raise "
                "fs.inotify.max_user_watches or max_user_instances",
                e.strerror,
                self._settings.poll_seconds,
            )
            return
        self._observer = observer
        logging.getLogger("watchdog").addHandler(self._warnings)

    def _unwatch(self) -> None:
        logging.getLogger("watchdog").removeHandler(self._warnings)
        observer, self._observer = self._observer, None
        if observer is not None:
            with contextlib.suppress(RuntimeError):
                observer.stop()  # type: ignore[attr-defined]
                observer.join(timeout=2.0)  # type: ignore[attr-defined]
