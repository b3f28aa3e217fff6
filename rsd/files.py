"""Files and names: atomic writes, the instance lock, paths that are no UTF-8, crash points."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path

#: A result's stem is cut to this many bytes, so that `<stem>_<id>.json.tmp` fits into 255.
STEM_BYTES = 180
#: Suffix of every file that is not finished yet; swept when the writer starts.
TEMPORARY = ".rsd-tmp"


def failpoint(name: str, number: int = signal.SIGKILL) -> None:
    """Kill this process (with SIGKILL) if the environment names this point (crash tests only).

    `RSD_FAILPOINT=name` kills at the first passage, `name:3` at the third.
    """
    wanted = os.environ.get("RSD_FAILPOINT")
    if wanted is None:
        return
    point, _, count = wanted.partition(":")
    if point != name:
        return
    _passages[name] = _passages.get(name, 0) + 1
    if _passages[name] == int(count or 1):
        os.kill(os.getpid(), number)


_passages: dict[str, int] = {}


def write_atomically(
    path: Path,
    data: bytes,
    *,
    mode: int = 0o644,
    durable: bool = True,
    before: Callable[[], None] | None = None,
) -> None:
    """Replace `path` by `data` so that a reader sees the old bytes or the new, never a mixture.

    Temporary file in the same directory, fsync, rename, fsync of the directory. POSIX promises the
    atomicity of the rename, not that the bytes are on disk before it: hence both fsyncs.
    `durable=False` leaves the fsyncs out, for files that are written again in seconds. `before` is
    called when only the rename is left to be done.
    """
    fd, temporary = tempfile.mkstemp(prefix=".", suffix=TEMPORARY, dir=path.parent)
    try:
        with open(fd, "wb") as out:
            out.write(data)
            os.fchmod(out.fileno(), mode)
            if durable:
                out.flush()
                os.fsync(out.fileno())
        failpoint("files.before-replace")
        if before is not None:
            before()
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if durable:
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make renames and removals in this directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sweep_temporary(folder: Path) -> int:
    """Remove unfinished files left by a killed writer; returns how many."""
    count = 0
    for entry in os.scandir(folder):
        if entry.name.endswith(TEMPORARY) and entry.is_file(follow_symlinks=False):
            os.unlink(entry.path)
            count += 1
    return count


class InstanceLock:
    """An `flock` held for a process's life; the kernel releases it whatever kills the process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def acquire(self, *, blocking: bool = False) -> bool:
        """Take the lock; False when another process holds it (never with `blocking`)."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if blocking else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(fd)
            return False
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        return True

    def note(self, text: str) -> None:
        """Write a line for humans into the lock file; it decides nothing."""
        if self._fd is not None:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, text.encode(), 0)

    def release(self) -> None:
        """Give the lock back; harmless when it is not held."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


@contextlib.contextmanager
def holding(lock: InstanceLock, *, blocking: bool = False) -> Iterator[bool]:
    """Hold a lock for a block; yields whether it was taken."""
    taken = lock.acquire(blocking=blocking)
    try:
        yield taken
    finally:
        if taken:
            lock.release()


def filesystem_type(path: Path) -> str:
    """The type of the file system that holds a path (`ext4`, `nfs4`, `fuse.sshfs`); "" unknown."""
    real = os.path.realpath(path)
    best, kind = "", ""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
            for line in table:
                fields = line.split(" ")
                point = fields[4].encode().decode("unicode_escape")
                inside = real == point or real.startswith(point.rstrip("/") + "/")
                if inside and len(point) >= len(best):
                    best, kind = point, fields[fields.index("-") + 1]
    except (OSError, ValueError, IndexError):
        return ""
    return kind


def display_path(path: bytes) -> str:
    r"""A path as text that any terminal, log or JSON file can hold (`\xNN` for odd bytes)."""
    text = path.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def result_name(path: bytes) -> str:
    """`<stem>_<id>.json` of a relative path: one name per path, safe as a file name anywhere."""
    name = path.rpartition(b"/")[2]
    stem = name.rpartition(b".")[0] or name
    text = stem[:STEM_BYTES].decode("utf-8", "ignore" if _is_utf8(stem) else "replace")
    safe = "".join(c if c.isprintable() and c not in "/\\\ufffd" else "_" for c in text)
    while len(safe.encode()) > STEM_BYTES:
        safe = safe[:-1]
    return f"{safe}_{blake2b(path, digest_size=6).hexdigest()}.json"


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
