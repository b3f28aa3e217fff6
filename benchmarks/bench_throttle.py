"""Does the throttle look at the right load? Two questions, on one machine.

1. rsd with the throttle as it is by default, without and with two `nice -n 19` busy loops of
   somebody else: the second may be a tenth slower. The limit for the CPU is looked at after
   2 s instead of 30, so that a short run would show a reduction.
2. rsd as the hog: answers after 2 ms and 256 requests in flight. It must reduce itself.

The simulator runs on the same machine and counts as others. The first needs a machine that is
otherwise idle, and must not be started in nice time.
"""

from __future__ import annotations

import contextlib
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import common
import pngs
import tables

THROTTLE = {"RSD_THROTTLE_ENABLED": "true", "RSD_THROTTLE_CPU_SECONDS": "2"}
NICE = ["nice", "-n", "19", sys.executable, "-c", "while True: pass"]


@contextlib.contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Somebody else's work in idle time."""
    loops = [subprocess.Popen(NICE) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def one(home: Path, sim: common.Simulator, work: common.Work, **more: str) -> tuple[float, str]:
    """(seconds, log) of a pass. Raises RuntimeError when it fails."""
    folder = home / f"run-{time.monotonic_ns()}"
    folder.mkdir()
    sim.ask("reset", {})
    command, env = common.rsd_command(folder, ([sim.generator], [sim.grader]), work, "--once")
    began = time.monotonic()
    done = subprocess.run(
        command, env=env | THROTTLE | more, cwd=common.HOME, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise RuntimeError(f"rsd ended with {done.returncode}: {done.stderr[-2000:]}")
    return time.monotonic() - began, done.stderr


def reductions(log: str) -> list[str]:
    """What the log says about the load."""
    return re.findall(r"load: (.*)", log)


def idle_time(rounds: int, scale: float) -> list[list[str]]:
    """Question 1."""
    alone: list[float] = []
    beside: list[float] = []
    lines: list[str] = []
    with common.workspace() as home, common.simulator("--service-seconds", "0.5") as sim:
        pictures = pngs.make_pictures(home / "pictures", max(4, int(60 * scale)), 300)
        work = common.Work(images=tuple(pictures), gen_workers=16, grade_workers=16)
        for k in range(rounds):
            for loops in (0, 2) if k % 2 else (2, 0):
                with busy_loops(loops):
                    seconds, log = one(home, sim, work)
                (beside if loops else alone).append(seconds)
                lines += reductions(log)
                tables.print_line(
                    f"  round {k + 1}, {loops} loops: {seconds:.1f} s {reductions(log)}"
                )
    slower = statistics.median(beside) / statistics.median(alone) - 1
    return [
        ["alone, seconds", f"{statistics.median(alone):.1f}", ""],
        ["beside two nice loops, seconds", f"{statistics.median(beside):.1f}", ""],
        ["slower by", f"{slower:+.1%}", "10 %"],
        ["reductions in the log", str(len(lines)), "0"],
    ]


def hog(scale: float, percent: float) -> list[list[str]]:
    """Question 2. `percent`: the limit; below what the machine reaches beside others."""
    options = ("--service-seconds", "0.002")
    with (
        common.workspace() as home,
        common.simulator(*options, kind=common.Places) as sim,
    ):
        pictures = pngs.make_pictures(home / "pictures", max(40, int(1500 * scale)), 20)
        work = common.Work(images=tuple(pictures), gen_workers=256, grade_workers=256)
        seconds, log = one(home, sim, work, RSD_THROTTLE_CPU_REDUCE_PERCENT=str(percent))
    found = reductions(log)
    for line in found:
        tables.print_line(f"  {line}")
    return [
        ["rsd as the hog, seconds", f"{seconds:.1f}", ""],
        ["reductions in the log", str(sum("reduced" in x for x in found)), "1 or more"],
        ["first of them", found[0] if found else "none", ""],
    ]


def main() -> None:
    """Print the table."""
    parser = tables.parser(__doc__)
    parser.add_argument("--part", choices=("idle", "hog"), nargs="+", default=["idle", "hog"])
    parser.add_argument("--percent", type=float, default=80, help="limit for the hog (80)")
    args = parser.parse_args()
    if os.nice(0) > 0:
        parser.error("must not be started in nice time")
    report = tables.Report("The throttle", args)
    rows = idle_time(args.rounds, args.scale) if "idle" in args.part else []
    rows += hog(args.scale, args.percent) if "hog" in args.part else []
    report.table(["", "seen", "wanted"], rows)
    report.close()


if __name__ == "__main__":
    main()
