"""The level of work that the host's load allows, with hysteresis. Pure; times are given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rsd.settings.fields import Throttle as ThrottleSettings

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
