"""Which process is which, and how many files it may open."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

from rsd.errors import UserError


def process_identity(pid: int) -> str | None:
    """What no other process has, had or will have: this boot, and the ticks from it to the start
    of the process. None when there is none of that pid. The time of day is not in it: a clock that
    is set must not make a process another one.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    if len(fields) < 20 or fields[0] in (b"Z", b"X"):
        return None  # dead, and only not yet collected
    return f"{boot}/{fields[19].decode()}"


def same_process(pid: int, created: object) -> bool:
    """Whether the process that had this pid and identity still lives."""
    now = process_identity(pid)
    return now is not None and now == created


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
