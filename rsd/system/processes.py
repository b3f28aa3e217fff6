"""Which process is which, and how many files it may open."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import struct
from pathlib import Path

from rsd.errors import UserError

#: In a state directory: locked as long as its hub lives. Everybody may read it, so it is not the
#: file that keeps a second hub away: whoever can open that one could lock it.
ALIVE = "alive"
#: `struct flock` of fcntl(2), padded to its size: type, whence, start, length, pid.
FLOCK = "hhqqi0q"


def process_identity(pid: int) -> str | None:
    """What no other process of this boot has, had or will have with that pid: the ticks from the
    boot to its start. None when there is none. Neither the time of day is in it, because a clock
    that is set must not make a process another one, nor the boot's id, which containers mask.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    if len(fields) < 20 or fields[0] in (b"Z", b"X"):
        return None  # dead, and only not yet collected
    return fields[19].decode()


def same_process(pid: int, created: object) -> bool:
    """Whether the process that had this pid and identity in this boot still lives."""
    now = process_identity(pid)
    return now is not None and now == created


def hub_lives(pid: int, created: object, state: Path) -> bool:
    """Whether the hub that had this pid and identity still works on a state. Of an earlier boot it
    does not: the lock has gone with it. A lock that cannot be asked decides nothing.
    """
    return same_process(pid, created) and is_held(state / ALIVE) is not False


class AliveLock:
    """The lock by which others see that a hub lives; the kernel releases it whatever kills it."""

    def __init__(self, state: Path) -> None:
        self._path = state / ALIVE
        self._fd = -1

    def hold(self) -> None:
        """Take the lock, if the file system has such locks; raises OSError for a file that cannot
        be made.
        """
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        with contextlib.suppress(OSError):
            os.fchmod(self._fd, 0o644)
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _whole_file())

    def release(self) -> None:
        """Give it back; harmless when it is not held."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def is_held(path: Path) -> bool | None:
    """Whether another holds the lock on a file, without taking it; None when that is unknown."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _whole_file())
    except OSError:
        return None
    finally:
        os.close(fd)
    return bool(struct.unpack(FLOCK, found)[0] != fcntl.F_UNLCK)


def _whole_file() -> bytes:
    return struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


def allow_files(needed: int) -> None:
    """Let this process and its children open so many files. Raises UserError when the hard limit
    is lower: later it would be calls that fail, pictures that cannot be read, and no word why.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard == resource.RLIM_INFINITY or hard >= needed:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
            return
    raise UserError(
        f"open files: the limit is {soft}, these generation.workers, grading.workers and processes "
        f"need {needed} (`ulimit -n`, LimitNOFILE= of the unit)"
    )
