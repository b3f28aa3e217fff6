"""A clock that is set while the daemon works: the time of day decides nothing."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from rsd.system.processes import process_identity
from tests.evidence import record
from tests.support import Daemon, draw, essence, simulator, wait_for

IMAGES, CANDIDATES = 12, 4
FLAGS = ("--candidates", str(CANDIDATES), "--gen-workers", "4", "--grade-workers", "4")
DAY, WEEK = 86_400, 7 * 86_400

#: The time of day is the true one plus the seconds in a file; every other clock is left alone.
SHIM = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int64_t shift(void) {
    static int64_t *seconds;
    if (!seconds) {
        const char *path = getenv("CLOCK_FILE");
        int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
        void *map = fd < 0 ? MAP_FAILED : mmap(0, sizeof *seconds, PROT_READ, MAP_SHARED, fd, 0);
        if (fd >= 0) close(fd);
        if (map == MAP_FAILED) return 0;
        seconds = map;
    }
    return *seconds;
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    int result = syscall(SYS_clock_gettime, clock, at);
    if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        at->tv_sec += shift();
    return result;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"""


class Clock:
    """The time of day of the processes that are started with `settings`."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("cc") is None:
            pytest.skip("needs a C compiler")
        source, library = folder / "shim.c", folder / "shim.so"
        source.write_text(SHIM)
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-o", str(library), str(source)],
            check=True,
            capture_output=True,
        )
        self._file = folder / "clock"
        self.set(0)
        self.settings = {"LD_PRELOAD": str(library), "CLOCK_FILE": str(self._file)}
        told = subprocess.run(
            ["date", "+%s"], env=os.environ | self.settings, capture_output=True, check=False
        )
        if told.returncode:
            pytest.skip("needs LD_PRELOAD")

    def set(self, seconds: int) -> None:
        """So many seconds from the true time, at once and for all processes."""
        if not self._file.exists():
            self._file.write_bytes(bytes(8))
        with self._file.open("r+b", buffering=0) as out:
            out.write(struct.pack("=q", seconds))

    def now(self) -> float:
        """What they believe."""
        done = subprocess.run(
            ["date", "+%s"], env=os.environ | self.settings, capture_output=True, check=True
        )
        return float(done.stdout)


def fill(d: Daemon) -> None:
    for seed in range(IMAGES):
        draw(d.images / f"p{seed:03d}.png", seed)


def finished(d: Daemon) -> dict[str, Any] | None:
    """The status, once all is done and counted."""
    document = d.status()
    images = document.get("images", {"seen": 0})
    if images["seen"] != IMAGES or images["queued"] or images["active"]:
        return None
    return document


@pytest.mark.slow
def test_a_day_ahead_and_a_week_back_in_the_middle_of_a_run(tmp_path: Path) -> None:
    clock = Clock(tmp_path)
    with simulator() as sim:
        calm = tmp_path / "calm"
        calm.mkdir()
        undisturbed = Daemon(calm, sim, *FLAGS)
        fill(undisturbed)
        assert undisturbed.once().returncode == 0
        expected = essence(undisturbed.results())
    jumps = 0
    with simulator("--service-seconds", "0.1") as sim:
        d = Daemon(tmp_path, sim, *FLAGS, RSD_ERRORS_MAX_ATTEMPTS="1000", **clock.settings)
        fill(d)
        for role in ("generator", "grader"):  # items that wait, and whose age is counted
            sim.fault(role, "error", rate=0.3)
        process = d.start()
        try:
            wait_for(lambda: len(d.results()) >= 2, "the first results")
            for shift in (DAY, -WEEK, WEEK, 0, 400 * DAY, -DAY):
                clock.set(shift)
                assert abs(clock.now() - time.time() - shift) < 60
                jumps += 1
                before = sim.stats("generator")["answered"]
                wait_for(
                    lambda before=before: (  # type: ignore[misc]
                        sim.stats("generator")["answered"] > before or finished(d)
                    ),
                    "more answers",
                )
                document = d.status()
                assert document["running"] and document["pid"] == process.pid
                # four of these faults in a row are an outage, whatever the clock says
                # (and a document may be from before the first call, 2 s ago)
                usual = ("500:", "not reached yet")
                assert all(any(u in r for u in usual) for r in document["reasons"]), document
                assert 0 <= document["uptime_seconds"] < DAY
            document = wait_for(lambda: finished(d), "all results")
            clock.set(0)
            results = d.results()
            assert essence(results) == expected
            stamps = [c["timestamp"] for r in results.values() for c in r["all_candidates"]]
            assert max(stamps) - min(stamps) > DAY, "the daemon saw the jumps"
            assert d.failures() == {}
            stats = sim.stats()
            repeated = sum(
                stats[role]["children"] - stats[role]["probes"] - IMAGES * CANDIDATES
                for role in ("generator", "grader")
            )
            assert repeated == 0
            errors = sum(sim.struck().values())
            assert errors > 0
            assert d.stop() == 0
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    assert "Traceback" not in d.log()
    assert "lease" not in d.log()
    record(
        "disks",
        injected="the time of day jumps a day ahead, a week back, 400 days ahead, in mid-run",
        times=jumps,
        lost=0,
        repeated=repeated,
        recovery="none needed: nothing expired, hung or was asked again",
        seen=f"{errors} items waited after errors meanwhile (max_age_hours = 24); "
        "status healthy after each jump",
    )


@pytest.mark.slow
def test_a_frozen_hub_is_found_although_the_clock_went_back(tmp_path: Path) -> None:
    clock = Clock(tmp_path)
    with simulator() as sim:
        d = Daemon(tmp_path, sim, *FLAGS, **clock.settings)
        process = d.start()
        try:
            wait_for(lambda: d.status().get("health") == "ok", "a healthy daemon")
            process.send_signal(signal.SIGSTOP)
            clock.set(-WEEK)
            document = wait_for(lambda: (s := d.status())["health"] == "degraded" and s, "its word")
            assert document["running"]
            assert document["reasons"][0].startswith("the hub has not responded for ")
        finally:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()
    assert d.status()["running"] is False


def test_which_process_it_is_does_not_depend_on_the_clock() -> None:
    """The boot time in /proc/stat moves when the clock is set; ticks since the boot do not."""
    identity = process_identity(os.getpid())
    assert identity is not None
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    assert 0 <= int(identity) / os.sysconf("SC_CLK_TCK") <= uptime
