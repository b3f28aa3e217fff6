"""The host: psutil's samples, the throttle's hysteresis, systemd's notifications, process
identity.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable
from pathlib import Path

import psutil

from rsd.hub.status.cgroups import tightest_memory
from rsd.hub.status.throttle import (
    HostSample,
)


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
