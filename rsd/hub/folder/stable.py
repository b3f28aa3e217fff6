"""Which names are images, and when a file is complete. Pure: times and stats are given.

A file is ready when nothing was heard of it for `settle_seconds` and its size and mtime are what
they were at the last look. Close events are not trusted: a file moved in has none, one held open
has it late.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Final

EXTENSIONS: Final = frozenset(
    (b".jpg", b".jpeg", b".png", b".bmp", b".tif", b".tiff", b".webp", b".gif", b".avif", b".jp2")
)
#: Names that programs give to what is not finished, or not meant for anybody.
TEMPORARY: Final = (
    b"~",
    b".part",
    b".partial",
    b".crdownload",
    b".download",
    b".opdownload",
    b".filepart",
    b".aria2",
    b".tmp",
    b".temp",
    b".swp",
    b".swx",
    b".bak",
    b".lock",
)
#: Folders that file managers, NAS systems and synchronisers keep for themselves.
JUNK: Final = frozenset((b"@eadir", b"__macosx", b"lost+found", b"#recycle", b"$recycle.bin"))
#: Least seconds between two looks at a file.
AGAIN_SECONDS: Final = 0.01
#: Files that may be in the table at once; more are found by the next rescan.
CAPACITY: Final = 10_000


def is_candidate(path: bytes) -> bool:
    """Whether a relative path has the name of an image that rsd takes."""
    *folders, name = path.split(b"/")
    if not all(is_open_folder(folder) for folder in folders):
        return False
    low = name.lower()
    if name.startswith((b".", b"#")) or low.endswith(TEMPORARY):
        return False
    _, dot, extension = low.rpartition(b".")
    return dot + extension in EXTENSIONS


def is_open_folder(name: bytes) -> bool:
    """Whether a folder of this name is looked into."""
    return not name.startswith(b".") and name.lower() not in JUNK


@dataclass(slots=True)
class _Entry:
    size: int
    mtime_ns: int
    quiet_since: float
    empty_since: float | None
    due: float = 0.0  #: when it is looked at; other times of it in the heap are void


class StabilityTable:
    """Files on their way. The caller stats what is `due` and tells the table by `confirm`."""

    def __init__(self, settle_seconds: float, patience_seconds: float) -> None:
        self._quiet = settle_seconds
        self._patience = patience_seconds
        self._entries: dict[bytes, _Entry] = {}
        self._due: list[tuple[float, bytes]] = []
        self.overflowed = False  #: a file found no room: a rescan is needed

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def room(self) -> int:
        """Files that may still enter."""
        return CAPACITY - len(self._entries)

    def note(self, path: bytes, size: int, mtime_ns: int, now: float) -> None:
        """Something happened to a file: its quiet time begins again."""
        entry = self._entries.get(path)
        if entry is None:
            if len(self._entries) >= CAPACITY:
                self.overflowed = True
                return
            entry = _Entry(size, mtime_ns, now, now if size == 0 else None)
            self._entries[path] = entry
            self._schedule(path, entry, now + self._quiet)
            return
        entry.quiet_since = now
        entry.size, entry.mtime_ns = size, mtime_ns

    def forget(self, path: bytes) -> None:
        """The file is gone."""
        self._entries.pop(path, None)

    def due(self, now: float, limit: int = 1_000) -> list[bytes]:
        """Files to be looked at now; each comes back until `confirm` or `forget` lets it go, also
        when the look failed.
        """
        found: list[bytes] = []
        while self._due and self._due[0][0] <= now and len(found) < limit:
            at, path = heapq.heappop(self._due)
            entry = self._entries.get(path)
            if entry is None or entry.due != at:
                continue
            if entry.quiet_since + self._quiet > now:
                self._schedule(path, entry, entry.quiet_since + self._quiet)
            else:
                self._schedule(path, entry, now + max(self._quiet, AGAIN_SECONDS))
                found.append(path)
        return found

    def _schedule(self, path: bytes, entry: _Entry, at: float) -> None:
        entry.due = at
        heapq.heappush(self._due, (at, path))

    def confirm(self, path: bytes, size: int, mtime_ns: int, now: float) -> bool:
        """The look at a due file; True when it is ready, and then it has left the table."""
        entry = self._entries.get(path)
        if entry is None:
            return False
        if (entry.size, entry.mtime_ns) == (size, mtime_ns):
            waits = entry.empty_since is not None and size == 0
            if not waits or now - (entry.empty_since or now) >= self._patience:
                del self._entries[path]
                return True
        else:
            entry.quiet_since = now
            entry.size, entry.mtime_ns = size, mtime_ns
        if size:
            entry.empty_since = None
        elif entry.empty_since is None:
            entry.empty_since = now
        return False

    def next_due(self) -> float | None:
        """When the next look is due."""
        return self._due[0][0] if self._due else None
