"""Kill every process again and again, at random moments, and count what that costs.

    python -m tests.crash.soak [--kills 20] [--images 300] [--seed 1]

One run of the daemon on distinct pictures; generators, graders, the writer and the hub are each
killed with SIGKILL so many times, and a killed hub is started again. The results must equal those
of an undisturbed run, each image must have exactly one, and the calls that were paid twice must
stay within what the design allows. Figures are counted by the simulator and the file system.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.support import Daemon, Simulator, draw, essence

#: Slots of each pool, and processes of each; threads of a process are SLOTS / PROCESSES.
SLOTS, PROCESSES = 8, 2
#: Facts that a killed hub may not have had committed (SPEC 5.1).
UNCOMMITTED = 128
ROLES = ("generate", "grade", "writer", "hub")


def undisturbed(folder: Path, images: int) -> dict[str, Any]:
    """Results of a run that nobody disturbs."""
    sim = Simulator()
    try:
        d = Daemon(folder, sim, *flags())
        fill(d.images, images)
        done = d.once()
        assert done.returncode == 0, done.stderr[-2000:]
        return essence(d.results())
    finally:
        sim.stop()


def flags() -> tuple[str, ...]:
    """The same for both runs."""
    return ("--gen-workers", str(SLOTS), "--grade-workers", str(SLOTS))


def fill(folder: Path, images: int) -> None:
    """Distinct pictures."""
    for seed in range(images):
        draw(folder / f"p{seed:05d}.png", seed)


def processes_of(d: Daemon) -> dict[str, list[int]]:
    """Role to pids, as the hub published them last and as far as they live."""
    found: dict[str, list[int]] = {role: [] for role in ROLES}
    if d.process is not None and d.process.poll() is None:
        found["hub"] = [d.process.pid]
    with contextlib.suppress(OSError, ValueError):
        live = json.loads((d.output / "state/live.json").read_bytes())
        if live["pid"] == found["hub"][0]:
            for child in live["processes"]:
                if child["pid"] and Path(f"/proc/{child['pid']}").exists():
                    found[child["role"]].append(child["pid"])
    return found


def soak(folder: Path, images: int, kills: int, seed: int, seconds: float) -> dict[str, Any]:
    """The disturbed run; returns the figures."""
    rng = random.Random(seed)
    sim = Simulator("--service-seconds", str(seconds))
    d = Daemon(folder, sim, *flags())
    fill(d.images, images)
    killed: Counter[str] = Counter()
    began = time.monotonic()
    try:
        d.start()
        plan = [role for role in ROLES for _ in range(kills)]
        rng.shuffle(plan)
        while plan:
            time.sleep(rng.uniform(0.2, 1.2))
            if d.process is None or d.process.poll() is not None:
                d.start()
                continue
            if d.settled(images):
                break
            role = plan[-1]
            pids = processes_of(d)[role]
            if not pids:
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(rng.choice(pids), signal.SIGKILL)
                killed[role] += 1
                plan.pop()
            if role == "hub":
                d.process.wait()
                time.sleep(rng.uniform(0.0, 0.5))
                d.start()
        end = time.monotonic() + 600
        while not d.settled(images):
            assert time.monotonic() < end, f"not finished: {d.log()[-3000:]}"
            time.sleep(0.2)
        status = json.loads((d.output / "state/live.json").read_bytes())
        pids = [pid for role in ("generate", "grade", "writer") for pid in processes_of(d)[role]]
        code = d.stop()
        time.sleep(0.5)
        stats = sim.stats()
    finally:
        if d.process is not None and d.process.poll() is None:
            d.process.kill()
            d.process.wait()
        sim.stop()
    return {
        "killed": dict(killed),
        "left": len(plan),
        "seconds": round(time.monotonic() - began, 1),
        "exit_code": code,
        "orphans": [pid for pid in pids if Path(f"/proc/{pid}").exists()],
        "temporary": [str(p) for p in d.output.rglob("*.rsd-tmp")],
        "status": status,
        "essence": essence(d.results()),
        "repeated_generations": stats["generator"]["calls"]["repeated"],
        "generated": stats["generator"]["children"] - stats["generator"]["probes"],
        "graded": stats["grader"]["children"] - stats["grader"]["probes"],
        "log": d.log(),
    }


def verdict(figures: dict[str, Any], expected: dict[str, Any], images: int) -> list[str]:
    """What is wrong; empty when all invariants hold."""
    wrong: list[str] = []
    killed = Counter(figures["killed"])
    calls = sum(len(e[3]) for e in expected.values())
    threads = SLOTS // PROCESSES
    # A killed worker repeats at most its threads, a killed hub at most the slots of both pools and
    # the facts that were not committed; a killed writer nothing.
    allowed = {
        "generated": killed["generate"] * threads + killed["hub"] * (SLOTS + UNCOMMITTED),
        "graded": killed["grade"] * threads + killed["hub"] * (SLOTS + UNCOMMITTED),
    }
    if figures["essence"] != expected:
        names = [n for n in expected if figures["essence"].get(n) != expected[n]]
        wrong.append(f"{len(names)} results differ from the undisturbed run: {names[:5]}")
    for what, most in allowed.items():
        repeated = figures[what] - calls
        if not 0 <= repeated <= most:
            wrong.append(f"{what}: {repeated} calls beyond the {calls} needed; allowed {most}")
    counts = figures["status"]["images"]
    if counts["high_quality"] + counts["low_quality"] != images or counts["seen"] != images:
        wrong.append(f"counters: {counts}")
    if figures["status"]["candidates"]["generated"] != calls:
        wrong.append(f"candidates: {figures['status']['candidates']}")
    for what in ("orphans", "temporary"):
        if figures[what]:
            wrong.append(f"{what}: {figures[what]}")
    if figures["exit_code"] != 0:
        wrong.append(f"exit code {figures['exit_code']}")
    if "Traceback" in figures["log"]:
        wrong.append("a traceback in the log: " + figures["log"].partition("Traceback")[2][:1500])
    return wrong


def main() -> int:
    """Print the figures; exit code 1 when an invariant breaks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="kills of each kind of process")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.4, help="mean service time")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        expected = undisturbed(Path(one), args.images)
        figures = soak(Path(other), args.images, args.kills, args.seed, args.seconds)
    wrong = verdict(figures, expected, args.images)
    calls = sum(len(e[3]) for e in expected.values())
    print(f"images {args.images}, kills {figures['killed']} ({figures['left']} not reached)")
    same = sum(figures["essence"].get(name) == expected[name] for name in expected)
    print(f"results {len(figures['essence'])}, equal to the undisturbed run {same}")
    print(f"generations {figures['generated']} for {calls} needed")
    print(f"grades {figures['graded']} for {calls} needed; {figures['seconds']} s")
    for problem in wrong:
        print("WRONG:", problem)
    if figures["left"] and not wrong:
        print("WRONG: the run ended before all kills; give more --images or --seconds")
    return 1 if wrong or figures["left"] else 0


if __name__ == "__main__":
    sys.exit(main())
