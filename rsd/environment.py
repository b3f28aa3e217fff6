"""What a process was started with, and what others may see of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from rsd.config import SECRETS


def take_environment() -> dict[str, str]:
    """The environment, out of which its keys are taken: no child needs them, and what a process
    was started with can be read in /proc.
    """
    whole = dict(os.environ)
    for name in SECRETS:
        os.environ.pop(name, None)
    with contextlib.suppress(OSError, ValueError, IndexError):  # a kernel that lets nobody write
        _blacken(SECRETS)
    return whole


def _blacken(names: Iterable[str]) -> None:
    """Overwrite values where /proc/PID/environ shows them, of this process and those it forks:
    env_start and env_end of proc(5). The C library must not use these variables any more.
    """
    wanted = {name.encode() for name in names}
    fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    at, end = int(fields[47]), int(fields[48])
    with Path("/proc/self/mem").open("r+b", buffering=0) as memory:
        memory.seek(at)
        for word in memory.read(end - at).split(b"\0"):
            name, _, value = word.partition(b"=")
            if name in wanted:
                memory.seek(at + len(name) + 1)
                memory.write(b"*" * len(value))
            at += len(word) + 1
