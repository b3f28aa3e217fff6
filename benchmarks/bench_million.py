"""What a large backlog costs: memory of the hub, `status`, the start, a rescan.

Every file is a picture of its own (16 x 16, under 100 bytes). What is under a daemon's eyes until
an image's turn comes is its name, size and time only, so large folders are enrolled beforehand with
the writer's own code (`--enrol daemon` lets the daemon do it, and says how long it took); then the
daemon starts, works, and scans the folder again while it works.

    python benchmarks/bench_million.py --images 10000 1000000
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
import pngs
import tables

from rsd.protocol.facts import ImageEnrolled, Numbered
from rsd.state.store import Store
from rsd.state.transaction import Transaction
from rsd.writer.apply import Application

#: Files of one folder, and facts of one transaction.
IN_FOLDER, BATCH = 1_000, 5_000
PLACES, SECONDS, CANDIDATES = 16, 0.2, 4
#: Seconds of work before and after a rescan that it is compared with.
STEADY = 20.0
#: Longest wait for anything, in seconds.
PATIENCE = 3_600.0


def make_files(folder: Path, count: int) -> float:
    """Distinct tiny pictures; returns the seconds it took."""
    began = time.monotonic()
    for first in range(0, count, IN_FOLDER):
        below = folder / f"d{first // IN_FOLDER:05d}"
        below.mkdir(parents=True)
        for k in range(first, min(count, first + IN_FOLDER)):
            with open(f"{below}/p{k:07d}.png", "wb") as file:  # noqa: PTH123
                file.write(pngs.png(16, 16, 1, k, level=0))
    return time.monotonic() - began


def facts(folder: Path) -> Iterator[ImageEnrolled]:
    """Every file as the watcher would report it."""
    now = time.time()
    for below in sorted(os.scandir(folder), key=lambda entry: entry.name):
        for entry in sorted(os.scandir(below.path), key=lambda entry: entry.name):
            about = entry.stat(follow_symlinks=False)
            path = f"{below.name}/{entry.name}".encode()
            yield ImageEnrolled(path=path, size=about.st_size, mtime_ns=about.st_mtime_ns, time=now)


def enrol(folder: Path, state: Path) -> float:
    """Enrol all files with the writer's code; returns the seconds it took."""
    began = time.monotonic()
    state.mkdir(parents=True, exist_ok=True)
    store = Store(state / "lmdb")
    batch: list[ImageEnrolled] = []
    seq = 0

    def work(txn: Transaction) -> None:
        application = Application(txn, "benchmark")
        for number, fact in enumerate(batch, seq + 1):
            application.apply(Numbered(seq=number, fact=fact))
        application.finish()

    for fact in facts(folder):
        batch.append(fact)
        if len(batch) >= BATCH:
            store.write(work)
            seq += len(batch)
            batch.clear()
    if batch:
        store.write(work)
    store.close()
    return time.monotonic() - began


def until(what: str, condition: Any) -> float:
    """Wait; returns the seconds it took."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > PATIENCE:
            raise RuntimeError(f"waited in vain for {what}")
        time.sleep(0.05)
    return time.monotonic() - began


def status_seconds(running: common.Daemon) -> float:
    """`status --json` as a user runs it, median of five."""
    command = [sys.executable, str(common.HOME / "daemon.py"), "status", "--json"]
    command += ["--output-dir", str(running.folder / "output")]
    taken = []
    for _ in range(5):
        began = time.monotonic()
        subprocess.run(
            command,
            cwd=common.HOME,
            env=common.clean_environment(RSD_RUNTIME_DIR=str(running.folder / "run")),
            stdout=subprocess.DEVNULL,
            check=False,
        )
        taken.append(time.monotonic() - began)
    return statistics.median(taken)


def answered(sim: common.Simulator) -> int:
    """Answers of both servers so far."""
    stats = sim.ask("stats")
    return int(stats["generator"]["answered"] + stats["grader"]["answered"])


def rate(sim: common.Simulator, seconds: float) -> float:
    """Answers a second over some time."""
    before, began = answered(sim), time.monotonic()
    time.sleep(seconds)
    return (answered(sim) - before) / (time.monotonic() - began)


def scan_age(running: common.Daemon) -> float | None:
    """Seconds since the last complete scan; None before the first."""
    live = running.live()
    age = live["watch"]["last_scan_age_seconds"] if live else None
    return None if age is None else age + time.time() - live["written"]


def measure(count: int, args: argparse.Namespace) -> dict[str, float]:
    """All figures of one size."""
    figures: dict[str, float] = {}
    with common.workspace() as home:
        folder = home / "pictures"
        tables.print_line(f"{count:,} files: made in {make_files(folder, count):.0f} s")
        with common.simulator("--slots", str(PLACES), "--service-seconds", str(SECONDS)) as sim:
            work = common.Work(
                images=(folder / "x",),
                candidates=CANDIDATES,
                gen_workers=PLACES,
                grade_workers=PLACES,
            )
            running = common.Daemon(home, ([sim.generator], [sim.grader]), work)
            try:
                if args.enrol == "daemon":
                    figures["enrolment"] = enrolment(running, sim, count)
                else:
                    seconds = enrol(folder, home / "output/state")
                    tables.print_line(f"  enrolled beforehand in {seconds:.0f} s")
                figures |= at_work(running, sim, args.rescan_limit)
                figures["status, running, s"] = status_seconds(running)
                running.stop()
                figures["status, stopped, s"] = status_seconds(running)
                state = home / "output/state/lmdb/data.mdb"
                figures["LMDB, MB"] = state.stat().st_blocks * 512 / 1e6
            finally:
                running.kill()
    return figures


def enrolment(running: common.Daemon, sim: common.Simulator, count: int) -> float:
    """Seconds until the daemon has seen every file, the servers being away; then it is killed."""
    sim.stop()
    running.start()
    seconds = until("enrolment", lambda: running.live().get("images", {}).get("seen") == count)
    running.kill()
    sim.start()
    return seconds


def at_work(running: common.Daemon, sim: common.Simulator, limit: float) -> dict[str, float]:
    """Start, first lease, steady work, a rescan; the daemon is left running."""
    figures: dict[str, float] = {}
    began = time.monotonic()
    running.start()
    until("the first lease", lambda: sim.ask("history")["generator"]["first"] is not None)
    figures["first lease after a start, s"] = time.monotonic() - began
    time.sleep(5.0)  # the concurrency finds its level
    scan = until("the scan", lambda: scan_age(running) is not None or _late(began, limit))
    figures["scan at the start, s"] = scan if scan_age(running) is not None else float("inf")
    if scan_age(running) is None:
        during = rate(sim, STEADY)
        figures["answers/s while it scans"] = during
    else:
        figures["scan at the start, s"] = time.monotonic() - began
        before = rate(sim, STEADY)
        # A folder that leaves makes the watcher look at everything again.
        told = time.monotonic()
        (Path(running.work.images[0]).parent / "folder").mkdir()
        (Path(running.work.images[0]).parent / "folder").rmdir()
        first, at = answered(sim), time.monotonic()
        until("the rescan", lambda: (scan_age(running) or 1e9) < time.monotonic() - told - 1.0)
        during = (answered(sim) - first) / max(1e-9, time.monotonic() - at)
        figures["rescan, s"] = time.monotonic() - told
        after = rate(sim, STEADY)
        figures["answers/s without a scan"] = (before + after) / 2
        figures["answers/s during a rescan"] = during
    hub = running.pid_of("hub")
    figures["hub, PSS MB"] = common.pss(hub)
    figures["hub, private MB"] = common.private(hub)
    figures["writer, private MB"] = common.private(running.pid_of("writer"))
    return figures


def _late(began: float, limit: float) -> bool:
    return time.monotonic() - began > limit


def main() -> None:
    """Print the table."""
    parser = tables.parser(__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--enrol", choices=("beforehand", "daemon"), default="beforehand")
    parser.add_argument(
        "--rescan-limit", type=float, default=900.0, help="seconds that a scan is waited for (900)"
    )
    args = parser.parse_args()
    report = tables.Report("A large backlog", args)
    found = {count: measure(count, args) for count in args.images}
    names = list(dict.fromkeys(name for figures in found.values() for name in figures))
    rows = [[name, *(_shown(figures.get(name)) for figures in found.values())] for name in names]
    report.table(["enrolled images", *(f"{count:,}" for count in found)], rows)
    report.close()


def _shown(value: float | None) -> str:
    if value is None:
        return ""
    return "not done" if value == float("inf") else f"{value:,.2f}"


if __name__ == "__main__":
    main()
