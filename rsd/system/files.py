"""Files and names: atomic writes, the instance lock, paths that are no UTF-8, crash points."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from rsd.names import display_path
from rsd.system.failpoints import failpoint

#: Suffix of every file that is not finished yet; swept when the writer starts.
TEMPORARY = ".rsd-tmp"
#: Suffixes of a prepared picture in the spool: its data URL, and that of the picture at half size.
ENCODED, HALVED = ".url", ".half.url"


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
    try:
        fd, temporary = tempfile.mkstemp(prefix=".", suffix=TEMPORARY, dir=path.parent)
    except OSError as e:
        e.filename = os.fspath(path)
        raise
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
    except BaseException as e:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(e, OSError):
            e.filename, e.filename2 = os.fspath(path), None  # not the temporary name, nor none
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


def mount_of(path: Path) -> tuple[str, str]:
    """(mount point, type) of the file system that holds a path, which need not exist yet; two
    empty texts when that is not known.
    """
    real = os.path.realpath(os.fsencode(path))
    best, kind = b"", b""
    try:
        with open("/proc/self/mountinfo", "rb") as table:
            for line in table:
                fields = line.split(b" ")
                point = re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), fields[4])
                inside = real == point or real.startswith(point.rstrip(b"/") + b"/")
                if inside and len(point) >= len(best):
                    best, kind = point, fields[fields.index(b"-") + 1]
    except (OSError, ValueError, IndexError):
        return "", ""
    return display_path(best), kind.decode("ascii", "replace")


def filesystem_type(path: Path) -> str:
    """The type of the file system that holds a path (`ext4`, `nfs4`, `fuse.sshfs`); "" unknown."""
    return mount_of(path)[1]


def refusal(setting: str, folder: Path, why: str, inside: Path | None = None) -> str:
    """Why nothing can be written below the folder of a setting, with the file system that it is
    on: whoever has to make room must know where. `inside`: the folder meant, if it is a deeper one.
    """
    point, kind = mount_of(inside or folder)
    where = f"; {kind} mounted on {point}" if kind else ""
    return f"{setting} = {display_path(os.fsencode(inside or folder))}: {why}{where}"


def unwritable(folder: Path) -> str:
    """What the file system itself says against writing into a folder; "" when nothing."""
    try:
        about = os.statvfs(folder)
    except OSError as e:
        return e.strerror or str(e)
    if about.f_flag & os.ST_RDONLY:
        return "Read-only file system"
    return "No space left on device" if not about.f_bavail else ""
