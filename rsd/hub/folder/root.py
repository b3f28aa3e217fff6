"""The watched folder itself: whether it is there, and whether it is still the same one."""

from __future__ import annotations

import errno
import os

#: Errors that mean that a file is not there. All others (no permission, a disk or a server that
#: fails) say nothing about it.
GONE = (errno.ENOENT, errno.ENOTDIR)


class Root:
    """One folder by path. It is `away` when it cannot be reached, or when an empty folder is in its
    place, as where a file system was unmounted: files that are not found mean nothing then.
    """

    def __init__(self, path: bytes) -> None:
        self.path = path
        self.id: tuple[int, int] | None = None  #: device and inode; None when it is not there
        self.why = ""  #: why it could not be reached at the last look
        self._known: tuple[int, int] | None = None  # the last one that was not doubtful
        self._fd = -1  # held open, so that a new folder cannot get the old one's inode number

    def look(self) -> bool:
        """Look at it; True when it is another one than at the last look, or came or went."""
        found, self.why = self._identity()
        if found == self.id:
            return False
        self.id = found
        self._known = self._known or found
        self.release()
        if found is not None:
            try:
                self._fd = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError:
                self._fd = -1
        return True

    def doubt(self) -> str:
        """Why files that are not found are not gone, in words; "" when they are."""
        found, why = self._identity()
        if found is None:
            return why
        if self._known not in (None, found) and self._is_empty():
            return "is empty, and not the folder that it was: is something not mounted?"
        if found == self.id:
            self._known = found
            return ""
        return "has just changed"

    def release(self) -> None:
        """Hold it no more."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _identity(self) -> tuple[tuple[int, int] | None, str]:
        try:
            about = os.stat(self.path)
        except OSError as e:
            return None, f"is not there ({e.strerror})"
        return (about.st_dev, about.st_ino), ""

    def _is_empty(self) -> bool:
        try:
            with os.scandir(self.path) as entries:
                return next(entries, None) is None
        except OSError:
            return True
