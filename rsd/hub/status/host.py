"""The host as psutil sees it, and the thread that looks at it."""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from rsd.hub.status.cgroups import tightest_memory
from rsd.hub.status.throttle import NORMAL, HostSample, Pressure, Throttle
from rsd.protocol.status import ThrottleStatus
from rsd.settings.fields import Throttle as ThrottleSettings

log = logging.getLogger("rsd")

#: Seconds between two looks at the host.
HOST_SECONDS = 2.0

Seen = Callable[[ThrottleStatus], None]


class Host:
    """Looks at the host; CPU is what was used since the look before (0 at the first)."""

    def __init__(self) -> None:
        self._total, self._busy, self._nice = _cpu_seconds()
        self._own, self._own_nice = _own_seconds()

    def sample(self, paths: Iterable[Path]) -> HostSample:
        """One look; a control group's memory limit counts when it is the tighter one."""
        cpu, own = self._cpu()
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
            cpu_percent=cpu,
            own_cpu_percent=own,
            memory_percent=round(used, 1),
            disk_free_bytes=least,
            disk=disk,
        )

    def _cpu(self) -> tuple[float, float]:
        """Percent of the host's CPU since the last look: load, and what of it is ours. Nice time
        is load only where it is ours: others that are nice give way to whoever wants the CPU.
        """
        before = (self._total, self._busy, self._nice, self._own, self._own_nice)
        self._total, self._busy, self._nice = _cpu_seconds()
        self._own, self._own_nice = _own_seconds()
        after = (self._total, self._busy, self._nice, self._own, self._own_nice)
        total, busy, nice, own, own_nice = (
            max(0.0, b - a) for a, b in zip(before, after, strict=True)
        )
        if not total:
            return 0.0, 0.0
        load = busy - max(0.0, nice - own_nice)
        return tuple(round(100.0 * min(1.0, max(0.0, x) / total), 1) for x in (load, own))  # type: ignore[return-value]


def _cpu_seconds() -> tuple[float, float, float]:
    """Seconds of all CPUs since the host's start: (all, busy, of these in nice time)."""
    t = psutil.cpu_times()
    idle = t.idle + getattr(t, "iowait", 0.0)
    busy = t.user + t.nice + t.system + t.irq + t.softirq + t.steal  # guests are in user and nice
    return idle + busy, busy, t.nice


def _own_seconds() -> tuple[float, float]:
    """CPU seconds of this process and all below it, those that have ended included: (all, of these
    in nice time).
    """
    own = nice = 0.0
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            t = process.cpu_times()
            user = t.user + t.children_user
            own += user + t.system + t.children_system
            nice += user if process.nice() > 0 else 0.0
    return own, nice


class LoadWatch:
    """The throttle thread: looks, and passes each verdict to `seen`. A change of level or factor is
    a line of the log.
    """

    def __init__(self, settings: ThrottleSettings, paths: Iterable[Path], seen: Seen) -> None:
        self._throttle = Throttle(settings)
        self._paths, self._seen = tuple(paths), seen
        self._last = Pressure()
        self._stop = threading.Event()

    def start(self) -> None:
        """Begin; the first look is at once: a host that is full must not be filled more."""
        threading.Thread(target=self._run, name="throttle", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()

    def follow(self, settings: ThrottleSettings) -> None:
        """Other settings from now on."""
        self._throttle = Throttle(settings)

    def _run(self) -> None:
        host = Host()
        wait = 0.0
        while not self._stop.wait(wait):
            wait = HOST_SECONDS
            sample = host.sample(self._paths)
            pressure = self._throttle.pressure(sample, time.monotonic())
            self._log_change(pressure, sample)
            self._seen(
                ThrottleStatus(
                    level=pressure.level,
                    factor=pressure.factor,
                    reason=pressure.reason,
                    cpu_percent=sample.cpu_percent,
                    own_cpu_percent=sample.own_cpu_percent,
                    memory_percent=sample.memory_percent,
                    disk_free_bytes=sample.disk_free_bytes,
                )
            )

    def _log_change(self, pressure: Pressure, sample: HostSample) -> None:
        before, self._last = self._last, pressure
        if (before.level, before.factor) == (pressure.level, pressure.factor):
            return
        if pressure.level == NORMAL:
            figures = f"CPU at {sample.cpu_percent:.0f} %, rsd's own {sample.own_cpu_percent:.0f} %"
            figures += f", memory: {100 - sample.memory_percent:.0f} % available"
            log.info("load: normal again (%s)", figures)
        else:
            share = f"{100 * pressure.factor:.3g} % of the requests"
            log.warning("load: %s, %s (%s)", pressure.level, share, pressure.reason)
