"""The watched folder as the hub's main thread sees it: arrivals, departures, rescans, `--once`.

The watcher lives in threads of its own; this is where what it found becomes events of the brain and
questions to the writer.
"""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable
from pathlib import Path

from rsd.hub.brain.events import Event, FilesSeen, PathsGone, ScanDone
from rsd.hub.folder.watcher import READY_SLICE, SLICE, Watcher
from rsd.names import display_path
from rsd.protocol.facts import ImageEnrolled, ImageGone
from rsd.protocol.status import WatchStatus
from rsd.protocol.vocabulary import FileStat
from rsd.protocol.writer_talk import ComparePaths, ListPending, PathsCompared, PendingListed, Query
from rsd.settings.fields import Settings

#: Slices of arrivals that wait for the hub; the watcher waits when it is full.
ARRIVALS = 16
#: Query numbers of this room; the brain counts from 1.
FIRST_QUERY = 1 << 40


class Folder:
    """Between the watcher's threads and the hub's main thread."""

    def __init__(
        self,
        settings: Settings,
        ask: Callable[[Query], None],
        wake: Callable[[], None],
        *,
        once: bool,
        samples: int | None,
    ) -> None:
        self._arrivals: queue.Queue[Event] = queue.Queue(maxsize=ARRIVALS)
        self._questions: queue.SimpleQueue[Query] = queue.SimpleQueue()
        self._ask, self._wake = ask, wake
        self._query = FIRST_QUERY
        self._limited = samples is not None
        self._running = False
        self._watcher = Watcher(
            Path(settings.image_dir).resolve(),
            settings.watch,
            ready=self._ready,
            gone=self._gone,
            compare=self._compare,
            list_pending=self._list_pending,
            scanned=self._scanned,
            once=once,
            limit=samples,
        )

    def start(self) -> None:
        """Begin to watch."""
        if not self._running:
            self._running = True
            self._watcher.start()

    def stop(self) -> None:
        """Watch no more."""
        if self._running:
            self._running = False
            while not self._arrivals.empty():  # a watcher that waits for room must see the end
                self._arrivals.get_nowait()
            self._watcher.stop()

    def tend(self) -> None:
        """Main thread: pass the watcher's questions on to the writer."""
        while not self._questions.empty():
            self._ask(self._questions.get_nowait())

    def arrivals(self) -> list[Event]:
        """Main thread: what has come since the last call."""
        found: list[Event] = []
        while not self._arrivals.empty() and len(found) < ARRIVALS:
            found.append(self._arrivals.get_nowait())
        return found

    def answered(self, message: PathsCompared | PendingListed) -> None:
        """The writer compared a slice, or listed undecided images."""
        if isinstance(message, PathsCompared):
            self._watcher.compared(message.changed)
        else:
            self._watcher.listed(message.paths)

    def status(self, now: float) -> WatchStatus:
        """`watch` of the status document; `now` is monotonic."""
        scanned = self._watcher.scanned_at
        return WatchStatus(
            path=display_path(os.fsencode(self._watcher.path)),
            mode=self._watcher.mode,
            last_scan_age_seconds=round(now - scanned, 1) if scanned is not None else None,
            settling=self._watcher.settling,
            away=self._watcher.away,
        )

    @property
    def away(self) -> bool:
        """Whether a file that is not found may yet come back with the whole folder."""
        return bool(self._watcher.away)

    # ------------------------------------------------------------------------- on watcher's threads

    def _put(self, event: Event) -> None:
        while self._running:
            try:
                self._arrivals.put(event, timeout=0.2)
            except queue.Full:
                continue
            self._wake()
            return

    def _ready(self, files: tuple[FileStat, ...]) -> None:
        now = time.time()
        facts = tuple(
            ImageEnrolled(path=f.path, size=f.size, mtime_ns=f.mtime_ns, time=now) for f in files
        )
        self._put(FilesSeen(facts=facts))

    def _gone(self, paths: tuple[bytes, ...]) -> None:
        now = time.time()
        for k in range(0, len(paths), READY_SLICE):
            facts = tuple(ImageGone(path=path, time=now) for path in paths[k : k + READY_SLICE])
            self._put(PathsGone(facts=facts))

    def _compare(self, files: tuple[FileStat, ...]) -> None:
        self._query += 1
        self._questions.put(ComparePaths(query=self._query, files=files))
        self._wake()

    def _list_pending(self, after: int) -> None:
        self._query += 1
        self._questions.put(ListPending(query=self._query, after=after, count=SLICE))
        self._wake()

    def _scanned(self, paths: list[bytes]) -> None:
        self._put(ScanDone(only=frozenset(paths) if self._limited else None))
