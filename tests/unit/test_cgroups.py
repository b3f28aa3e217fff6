"""Limits of control groups, read from folders as the kernel lays them out."""

from __future__ import annotations

from pathlib import Path

import pytest

from rsd.hub.status.cgroups import MemoryUse, tightest_memory

TOTAL = 10_000


def group(folder: Path, version: int, limit: str, used: int, droppable: int = 0) -> None:
    """The files of one group."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    if version == 2:
        names = ("memory.max", "memory.current", "inactive_file")
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {droppable}\nslab 7\n")


def own(tmp_path: Path, *lines: str) -> Path:
    """/proc/self/cgroup."""
    path = tmp_path / "cgroup"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("version", "line", "folder"),
    [(1, "4:cpu,memory:/a/b", "memory/a/b"), (2, "0::/a/b", "a/b")],
)
def test_the_limit_of_the_own_group(tmp_path: Path, version: int, line: str, folder: str) -> None:
    group(tmp_path / folder, version, "4000", 3000, droppable=500)
    assert tightest_memory(TOTAL, own(tmp_path, "9:pids:/x", line), tmp_path) == MemoryUse(
        4000, 2500
    )


def test_a_parent_may_be_nearer_to_its_limit(tmp_path: Path) -> None:
    group(tmp_path / "slice/service", 2, "max", 900)
    group(tmp_path / "slice", 2, "1000", 950)
    assert tightest_memory(TOTAL, own(tmp_path, "0::/slice/service"), tmp_path) == MemoryUse(
        1000, 950
    )


def test_a_container_sees_only_its_own_part(tmp_path: Path) -> None:
    group(tmp_path / "memory", 1, "2000", 100)
    table = own(tmp_path, "4:memory:/docker/0123", "0::/")
    assert tightest_memory(TOTAL, table, tmp_path) == MemoryUse(2000, 100)


@pytest.mark.parametrize(
    ("version", "limit"),
    [(1, "9223372036854771712"), (2, "max"), (2, "10000"), (2, "nonsense")],
)
def test_no_limit_that_matters(tmp_path: Path, version: int, limit: str) -> None:
    group(tmp_path / "memory/a", version, limit, 9999)
    group(tmp_path / "a", version, limit, 9999)
    assert tightest_memory(TOTAL, own(tmp_path, "4:memory:/a", "0::/a"), tmp_path) is None
    assert tightest_memory(TOTAL, tmp_path / "missing", tmp_path) is None
