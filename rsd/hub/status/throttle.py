"""The level of work that the host's load allows, with hysteresis. Pure; times are given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rsd.settings.fields import Throttle as ThrottleSettings

#: Margins for recovery, so that a level does not flicker: percent of CPU, percent of memory, share
#: of the disk limits.
CPU_MARGIN, MEMORY_MARGIN, DISK_MARGIN = 5.0, 2.0, 1.1
MEBIBYTE: Final = 1024 * 1024
#: Share of the requests left under pressure; it shrinks by the same again every STEP_SECONDS.
SHARE, STEP_SECONDS = 0.5, 30.0
#: Least factors: a busy CPU slows everybody down, scarce memory or disk ends somebody.
CPU_FLOOR, SCARCE_FLOOR = 0.25, 2.0**-10

NORMAL, REDUCED, PAUSED = "normal", "reduced", "paused"


@dataclass(frozen=True, slots=True)
class HostSample:
    """One look. Percentages 0 to 100 of the whole host; `memory_percent` is what is in use."""

    cpu_percent: float  #: busy, without what others do in nice time
    own_cpu_percent: float  #: of that, by the processes of this rsd
    memory_percent: float
    disk_free_bytes: int
    disk: str = ""  #: the folder on the fullest disk


@dataclass(frozen=True, slots=True)
class Pressure:
    """What the host's load allows. `factor`: share of the normal number of requests, 0 to 1."""

    level: str = NORMAL
    factor: float = 1.0
    reason: str = ""  #: figures included; "" when normal


class Throttle:
    """Levels with hysteresis; CPU only ever reduces, memory and disk also pause. CPU counts only
    while this rsd is a cause of it. Times are monotonic seconds, given.
    """

    def __init__(self, settings: ThrottleSettings) -> None:
        self._settings = settings
        self._cpu_high_since: float | None = None
        self._cpu_low_since: float | None = None
        self._cpu_since: float | None = None  # since when it reduces
        self._scarce_since: float | None = None
        self._memory = NORMAL
        self._disk = NORMAL

    def pressure(self, seen: HostSample, now: float) -> Pressure:
        """The verdict on one look."""
        if not self._settings.enabled:
            return Pressure()
        found = [p for p in (self._cpu(seen, now), *self._scarce(seen, now)) if p is not None]
        for level in (PAUSED, REDUCED):
            of_level = [p for p in found if p.level == level]
            if of_level:
                factor = min(p.factor for p in of_level)
                return Pressure(level, factor, "; ".join(p.reason for p in of_level))
        return Pressure()

    def _cpu(self, seen: HostSample, now: float) -> Pressure | None:
        s = self._settings
        caused = seen.own_cpu_percent > s.cpu_share_percent
        if caused and seen.cpu_percent > s.cpu_reduce_percent:
            self._cpu_low_since = None
            self._cpu_high_since = now if self._cpu_high_since is None else self._cpu_high_since
            if self._cpu_since is None and now - self._cpu_high_since >= s.cpu_seconds:
                self._cpu_since = now
        elif not caused or seen.cpu_percent < s.cpu_reduce_percent - CPU_MARGIN:
            self._cpu_high_since = None
            self._cpu_low_since = now if self._cpu_low_since is None else self._cpu_low_since
            if now - self._cpu_low_since >= s.cpu_seconds:
                self._cpu_since = None
        if self._cpu_since is None:
            return None
        factor = _shrunk(now - self._cpu_since, CPU_FLOOR)
        figures = f"CPU at {seen.cpu_percent:.0f} %, rsd's own {seen.own_cpu_percent:.0f} %"
        return Pressure(REDUCED, factor, figures)

    def _scarce(self, seen: HostSample, now: float) -> list[Pressure]:
        available, free = 100.0 - seen.memory_percent, seen.disk_free_bytes / MEBIBYTE
        self._memory, self._disk = self._memory_level(available), self._disk_level(free)
        where = f" for {seen.disk}" if seen.disk else ""
        reasons = (
            (self._memory, f"memory: {available:.0f} % available"),
            (self._disk, f"disk: {free:.0f} MiB free{where}"),
        )
        scarce = [(level, why) for level, why in reasons if level != NORMAL]
        if not scarce:
            self._scarce_since = None
            return []
        if self._scarce_since is None:
            self._scarce_since = now
        factor = _shrunk(now - self._scarce_since, SCARCE_FLOOR)
        return [Pressure(at, 0.0 if at == PAUSED else factor, why) for at, why in scarce]

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


def _shrunk(seconds: float, floor: float) -> float:
    """The factor after so many seconds of pressure."""
    return max(floor, SHARE ** (1 + min(int(seconds / STEP_SECONDS), 30)))


def _stepped(
    level: str, value: float, pause: tuple[float, float], reduce: tuple[float, float]
) -> str:
    """The level for a value that should be high; (enter below, leave above) per level."""
    if value < pause[0] or (level == PAUSED and value < pause[1]):
        return PAUSED
    if value < reduce[0] or (level != NORMAL and value < reduce[1]):
        return REDUCED
    return NORMAL
