"""The host: psutil's samples, the throttle's hysteresis, systemd's notifications, process
identity.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from rsd.errors import UserError
from rsd.hub.cgroups import tightest_memory
from rsd.settings import Throttle as ThrottleSettings

#: Margins for recovery, so that a level does not flicker: percent of CPU, percent of memory, share
#: of the disk limits.
CPU_MARGIN, MEMORY_MARGIN, DISK_MARGIN = 5.0, 2.0, 1.1
MEBIBYTE: Final = 1024 * 1024

NORMAL, REDUCED, PAUSED = "normal", "reduced", "paused"


@dataclass(frozen=True, slots=True)
class HostSample:
    """One look. Percentages 0 to 100; `memory_percent` is what is in use."""

    cpu_percent: float
    memory_percent: float
    disk_free_bytes: int
    disk: str = ""  #: the folder on the fullest disk


def prime() -> None:
    """Before the first sample: CPU load is measured since the last look."""
    psutil.cpu_percent(interval=None)


def sample(paths: Iterable[Path]) -> HostSample:
    """Look at the host; a cgroup's memory limit counts when it is the tighter one."""
    memory = psutil.virtual_memory()
    used = float(memory.percent)
    group = tightest_memory(int(memory.total))
    if group is not None:
        used = max(used, 100.0 * group.used / max(1, group.limit))
    free = []
    for path in paths:
        with contextlib.suppress(OSError):
            free.append((shutil.disk_usage(path).free, str(path)))
    least, disk = min(free, default=(0, ""))
    return HostSample(
        cpu_percent=float(psutil.cpu_percent(interval=None)),
        memory_percent=round(used, 1),
        disk_free_bytes=least,
        disk=disk,
    )


class Throttle:
    """Levels with hysteresis (SPEC 5.11). Times are monotonic seconds, given."""

    def __init__(self, settings: ThrottleSettings) -> None:
        self._settings = settings
        self._cpu_high_since: float | None = None
        self._cpu_low_since: float | None = None
        self._cpu_reduces = False
        self._memory = NORMAL
        self._disk = NORMAL

    def level(self, seen: HostSample, now: float) -> tuple[str, str]:
        """(level, why); CPU only ever reduces, memory and disk also pause."""
        if not self._settings.enabled:
            return NORMAL, ""
        reasons: list[tuple[str, str]] = []
        if self._cpu(seen.cpu_percent, now):
            reasons.append((REDUCED, f"CPU at {seen.cpu_percent:.0f} %"))
        self._memory = self._memory_level(100.0 - seen.memory_percent)
        if self._memory != NORMAL:
            reasons.append((self._memory, f"memory: {100 - seen.memory_percent:.0f} % available"))
        self._disk = self._disk_level(seen.disk_free_bytes / MEBIBYTE)
        if self._disk != NORMAL:
            free = seen.disk_free_bytes / MEBIBYTE
            where = f" for {seen.disk}" if seen.disk else ""
            reasons.append((self._disk, f"disk: {free:.0f} MiB free{where}"))
        for wanted in (PAUSED, REDUCED):
            why = [text for level, text in reasons if level == wanted]
            if why:
                return wanted, "; ".join(why)
        return NORMAL, ""

    def _cpu(self, percent: float, now: float) -> bool:
        s = self._settings
        if percent > s.cpu_reduce_percent:
            self._cpu_low_since = None
            self._cpu_high_since = now if self._cpu_high_since is None else self._cpu_high_since
            if now - self._cpu_high_since >= s.cpu_seconds:
                self._cpu_reduces = True
        elif percent < s.cpu_reduce_percent - CPU_MARGIN:
            self._cpu_high_since = None
            self._cpu_low_since = now if self._cpu_low_since is None else self._cpu_low_since
            if now - self._cpu_low_since >= s.cpu_seconds:
                self._cpu_reduces = False
        return self._cpu_reduces

    def _memory_level(self, available: float) -> str:
        s = self._settings
        return _stepped(
            self._memory,
            available,
            (s.memory_pause_percent, s.memory_pause_percent + MEMORY_MARGIN),
            (s.memory_reduce_percent, s.memory_reduce_percent + MEMORY_MARGIN),
        )

    def _disk_level(self, free: float) -> str:
        s = self._settings
        return _stepped(
            self._disk,
            free,
            (s.disk_pause_mebibytes, s.disk_pause_mebibytes * DISK_MARGIN),
            (s.disk_reduce_mebibytes, s.disk_reduce_mebibytes * DISK_MARGIN),
        )


def _stepped(
    level: str, value: float, pause: tuple[float, float], reduce: tuple[float, float]
) -> str:
    """The level for a value that should be high; (enter below, leave above) per level."""
    if value < pause[0] or (level == PAUSED and value < pause[1]):
        return PAUSED
    if value < reduce[0] or (level != NORMAL and value < reduce[1]):
        return REDUCED
    return NORMAL


class Notifier:
    """systemd's notify protocol (sd_notify(3)): datagrams to NOTIFY_SOCKET; silent without one."""

    def __init__(self) -> None:
        address = os.environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._last = ""
        usec = os.environ.get("WATCHDOG_USEC", "")
        mine = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        #: Seconds within which the watchdog must be fed; None without one.
        self.watchdog_seconds = int(usec) / 1e6 if usec.isdigit() and mine else None

    def _send(self, text: str) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.connect(self._address)
            s.sendall(text.encode())

    def ready(self, status: str) -> None:
        """Start-up, or a reload, is over."""
        self._last = status.replace("\n", " ")
        self._send(f"READY=1\nSTATUS={self._last}")

    def status(self, text: str) -> None:
        """The line that `systemctl status` shows."""
        line = text.replace("\n", " ")
        if line != self._last:
            self._last = line
            self._send(f"STATUS={line}")

    def stopping(self) -> None:
        """The service goes down."""
        self._send("STOPPING=1")

    def reloading(self) -> None:
        """A reload begins; `ready` ends it."""
        usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={usec}")

    def watchdog(self) -> None:
        """Still alive."""
        self._send("WATCHDOG=1")


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
