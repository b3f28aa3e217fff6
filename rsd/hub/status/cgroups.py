"""Memory limits that containers and services set: control groups of version 1 and 2."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Limits from here on mean none; version 1 says "unlimited" with a huge number.
UNLIMITED = 1 << 60


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes: the limit of a group, and what is in use in it without cache that can be dropped."""

    limit: int
    used: int


@dataclass(frozen=True, slots=True)
class _Version:
    limit: str
    usage: str
    droppable: str


_V1 = _Version("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Version("memory.max", "memory.current", "inactive_file")


def tightest_memory(
    total: int, own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> MemoryUse | None:
    """Of the groups that this process is in, the one nearest to its limit; None when none has a
    limit below `total` bytes. A limit of a parent counts for its children.
    """
    found = [use for folder, files in _groups(own, root) if (use := _read(folder, files))]
    tight = [use for use in found if use.limit < total]
    return max(tight, key=lambda use: use.used / max(1, use.limit), default=None)


def _groups(own: Path, root: Path) -> Iterator[tuple[Path, _Version]]:
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, name = (*line.split(":", 2), "", "")[:3]
        if number == "0" and not controllers:
            base, files = root, _V2
        elif "memory" in controllers.split(","):
            base, files = root / "memory", _V1
        else:
            continue
        # In a container the name may be the host's while the folder shows only its own part: what
        # is not there has no files, and the walk up ends at the part's root.
        folder = base / name.lstrip("/")
        while folder != base and base in folder.parents:
            yield folder, files
            folder = folder.parent
        yield base, files


def _read(folder: Path, files: _Version) -> MemoryUse | None:
    try:
        text = (folder / files.limit).read_text().strip()
        if text == "max" or int(text) >= UNLIMITED:
            return None
        used = int((folder / files.usage).read_text())
        for row in (folder / "memory.stat").read_text().splitlines():
            name, _, value = row.partition(" ")
            if name == files.droppable:
                used -= int(value)
        return MemoryUse(int(text), max(0, used))
    except (OSError, ValueError):
        return None
