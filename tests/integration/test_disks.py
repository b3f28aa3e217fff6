"""Disks under a running daemon: full, read-only, on the network."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rsd.system import runtime_dir
from tests.disks import fill_up, read_only, remount, share, small_disk
from tests.evidence import record
from tests.integration import disk_runs
from tests.integration.disk_runs import IMAGES, Run
from tests.support import Daemon, draw, wait_for

expected, run = disk_runs.expected, disk_runs.run


def told(why: str, tmp_path: Path) -> str:
    """A reason for the record, without this test's folder."""
    return why.replace(str(tmp_path), "")


def elsewhere(run: Run) -> Path | None:
    """Where the status is while the state takes none."""
    found = list((run.d.output.parent / "run").glob(f"*{runtime_dir.STATUS}"))
    return found[0] if found else None


def test_a_full_disk_under_the_state(
    run: Callable[..., Run], expected: dict[str, Any], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "4m") as disk:
        line = run(RSD_STATE_DIR=str(disk / "state"))
        line.begin()
        fill_up(disk / "ballast")
        why = line.says("state_dir = ", "No space left", f"tmpfs mounted on {disk}")
        assert "work waits" in why
        assert line.status()["running"] and line.status()["bottleneck"] == "disk"
        wait_for(lambda: elsewhere(line), "a status elsewhere")
        paid = line.paused()
        assert str(disk) in line.d.log(), "the log names the disk, too"
        (disk / "ballast").unlink()
        seconds = line.healed()
        wait_for(lambda: elsewhere(line) is None, "the status in its place")
        seen = line.judge(expected)
    record(
        "disks",
        injected="state_dir full in the middle of a run (4 MiB tmpfs)",
        times=1,
        recovery=f"by itself, {seconds:.1f} s after room was made",
        seen=f"{paid[0]} and {paid[1]} answers before the pause, none in it; "
        f"status: {told(why, tmp_path)}",
        **seen,
    )


@pytest.mark.slow
def test_a_full_disk_under_the_results(
    run: Callable[..., Run], expected: dict[str, Any], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "output", "2m") as disk:
        line = run(RSD_STATE_DIR=str(tmp_path / "state"))
        line.begin()
        fill_up(disk / "ballast")
        why = line.says("output_dir = ", "No space left", f"tmpfs mounted on {disk}")
        paid = line.paused()
        assert "cannot write: output_dir" in line.d.log()
        (disk / "ballast").unlink()
        seconds = line.healed()
        seen = line.judge(expected)
        assert not list(disk.rglob("*.rsd-tmp"))
    record(
        "disks",
        injected="output_dir full in the middle of a run (2 MiB tmpfs)",
        times=1,
        recovery=f"by itself, {seconds:.1f} s after room was made",
        seen=f"{paid[0]} and {paid[1]} answers before the pause, none in it; "
        f"status: {told(why, tmp_path)}",
        **seen,
    )


@pytest.mark.slow
def test_a_full_disk_under_the_log_stops_nothing(
    run: Callable[..., Run], expected: dict[str, Any], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "output" / "logs", "64k") as disk:
        line = run(RSD_LOG_LEVEL="DEBUG")
        fill_up(disk / "ballast")
        line.d.start()
        wait_for(lambda: len(line.d.results()) == IMAGES, "all results")
        why = line.says("logs in output_dir = ", "No space left", f"tmpfs mounted on {disk}")
        assert (disk / "rsd.log").read_bytes().count(b"\n") <= 1
        (disk / "ballast").unlink()
        draw(line.d.images / "p000.png", 0)  # the same bytes again: no work, but events
        line.d.process.send_signal(1)  # type: ignore[union-attr]
        wait_for(lambda: b"reloaded" in (disk / "rsd.log").read_bytes(), "lines in the log")
        seconds = line.healed()
        seen = line.judge(expected)
        text = (disk / "rsd.log").read_text()
        assert all(row[:2] == "20" for row in text.splitlines() if row), "whole lines only"
    record(
        "disks",
        injected="logs full from the start (64 KiB tmpfs at OUTPUT/logs)",
        times=1,
        recovery=f"by itself; healthy {seconds:.1f} s after room was made",
        seen=f"work went on, lines on stderr; status: {told(why, tmp_path)}",
        **seen,
    )


@pytest.mark.slow
def test_results_on_a_disk_that_turns_read_only(
    run: Callable[..., Run], expected: dict[str, Any], tmp_path: Path
) -> None:
    with (
        small_disk(tmp_path / "output", "8m") as disk,
        small_disk(tmp_path / "output" / "logs", "1m"),  # an open log would keep it writable
    ):
        line = run(RSD_STATE_DIR=str(tmp_path / "state"))
        line.begin()

        def turned() -> bool:
            try:
                remount(disk, "ro")
            except subprocess.CalledProcessError:
                return False  # a result was being written
            return True

        wait_for(turned, "a moment without an open file")
        why = line.says("output_dir = ", "Read-only file system", f"tmpfs mounted on {disk}")
        paid = line.paused()
        remount(disk, "rw")
        seconds = line.healed()
        seen = line.judge(expected)
    record(
        "disks",
        injected="output_dir remounted read-only in the middle of a run, and writable again",
        times=1,
        recovery=f"by itself, {seconds:.1f} s after the remount",
        seen=f"{paid[0]} and {paid[1]} answers before the pause, none in it; "
        f"status: {told(why, tmp_path)}",
        **seen,
    )


@pytest.mark.slow
def test_a_state_that_takes_no_new_files(
    run: Callable[..., Run], expected: dict[str, Any], tmp_path: Path
) -> None:
    """The spool and the status are refused, while the store's files are open and stay writable."""
    line = run()
    line.begin()
    with read_only(line.state):
        why = line.says("state_dir = ", "Read-only file system", "mounted on")
        wait_for(lambda: elsewhere(line), "a status elsewhere")
        assert line.status()["bottleneck"] == "disk"
    seconds = line.healed()
    assert elsewhere(line) is None
    seen = line.judge(expected)
    record(
        "disks",
        injected="state_dir takes no new files (read-only bind mount), and does so again",
        times=1,
        recovery=f"by itself, {seconds:.1f} s after",
        seen=f"no picture was blamed for the spool; status: {told(why, tmp_path)}",
        **seen,
    )


@pytest.mark.parametrize("setting", ["output_dir", "state_dir"])
@pytest.mark.parametrize("how", ["Read-only file system", "No space left on device"])
def test_unwritable_from_the_start_is_one_line(tmp_path: Path, setting: str, how: str) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        settings = {"RSD_STATE_DIR": str(disk / "state")} if setting == "state_dir" else {}
        d = Daemon(tmp_path, None, "--grading-api", "http://127.0.0.1:9/v1", **settings)
        if setting == "output_dir":
            d.output = disk / "output"
        if how.startswith("No"):
            fill_up(disk / "ballast")
        else:
            remount(disk, "ro")
        done = d.once()
    assert done.returncode == 1, "it may pass: systemd tries again, which it does not after 2"
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"rsd: {setting} = ")
    assert line.endswith(f"{how}; tmpfs mounted on {disk}")
    record(
        "disks",
        injected=f"{setting}: {how} from the start",
        times=1,
        recovery="exit 1, so that systemd tries again",
        seen=told(line, tmp_path),
    )


@pytest.mark.parametrize("given", ["state_dir", "output_dir"])
def test_a_state_on_a_network_share_is_refused(tmp_path: Path, given: str) -> None:
    with share(tmp_path / "share", "sshfs") as folder:
        settings = {"RSD_STATE_DIR": str(folder / "state")} if given == "state_dir" else {}
        d = Daemon(tmp_path, None, "--grading-api", "http://127.0.0.1:9/v1", **settings)
        if given == "output_dir":
            d.output = folder / "results"
        done = d.once()
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("rsd: state_dir = ")
    assert line.endswith("is on fuse.sshfs; put the state on a local disk")
    record(
        "disks",
        injected=f"{given} on a network share (a real FUSE mount that calls itself sshfs)",
        times=1,
        recovery="exit 1",
        seen=told(line, tmp_path),
    )
