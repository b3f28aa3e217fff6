"""Kill every process again and again, at random moments, and count what that costs.

    python -m tests.crash.soak [--kills 80 | --minutes 10] [--seed 1] [--adaptive]

One daemon, fed with distinct pictures for as long as the soak lasts. Generators, graders, the
writer and the hub are killed with SIGKILL in random order at random moments; a killed hub is
started again. At the end the results must equal those of an undisturbed run, each image must have
exactly one, and the calls that were paid twice must stay within what was in flight. Figures are
counted by the simulator and the file system; the exit code is 1 when an invariant breaks.

With `--adaptive` the strategy learns, so that what an image gets depends on those before it: no two
runs are equal. Instead, each image must be decided and learned once, what was learned must be what
the records make of it, bit by bit, no step may be chosen twice, and servers must have made no
candidate that no stored step had asked for.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rsd.protocol.vocabulary import Candidate
from rsd.state.store import Store
from rsd.state.transaction import decode
from tests.evidence import record
from tests.recount import learned_once, planned_once
from tests.support import Daemon, Simulator, draw, essence

#: Slots of each pool, and processes of each; threads of a process are SLOTS / PROCESSES.
SLOTS, PROCESSES = 8, 2
#: Facts that a killed hub may not have had committed (docs/contract.md).
UNCOMMITTED = 128
#: Most candidates of one request (`generation.max_n`).
MOST_AT_ONCE = 16
ROLES = ("generate", "grade", "writer", "hub")
#: Pictures that lie in the folder undecided while the soak lasts.
AHEAD = 40
#: Seconds that the rest may take when the killing is over.
REST = 900.0


def flags(*, adaptive: bool = False) -> tuple[str, ...]:
    """The same for both runs."""
    strategy = ("--strategy", "adaptive") if adaptive else ()
    return ("--gen-workers", str(SLOTS), "--grade-workers", str(SLOTS), *strategy)


def undisturbed(folder: Path, images: int) -> dict[str, Any]:
    """Results of a run that nobody disturbs."""
    sim = Simulator()
    try:
        d = Daemon(folder, sim, *flags())
        for seed in range(images):
            draw(d.images / f"p{seed:05d}.png", seed)
        done = d.once()
        assert done.returncode == 0, done.stderr[-2000:]
        return essence(d.results())
    finally:
        sim.stop()


@dataclass
class Soak:
    """A running daemon that is fed and killed; `images` pictures at least."""

    folder: Path
    seed: int
    images: int
    seconds: float
    adaptive: bool = False
    killed: Counter[str] = field(default_factory=Counter)
    back: dict[str, list[float]] = field(default_factory=lambda: {role: [] for role in ROLES})
    fed: int = 0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.sim = Simulator("--service-seconds", str(self.seconds))
        self.daemon = Daemon(self.folder, self.sim, *flags(adaptive=self.adaptive))
        self._missing: list[tuple[str, int, float]] = []  # role, the pid that died, since when

    def run(self, kills: int | None, minutes: float | None) -> dict[str, Any]:
        """Feed and kill until either limit is reached, let it finish; returns the figures."""
        began = time.monotonic()
        try:
            self.feed()
            self.daemon.start()
            order = self._order(kills)
            while order and (minutes is None or time.monotonic() - began < minutes * 60):
                self._breathe(self.rng.uniform(0.05, 0.6))
                self.feed()
                if self._kill(order[-1]):
                    order.pop()
                    if kills is None and not order:
                        order = self._order(None)
            self._finish()
            return self._figures(began, left=0 if kills is None else len(order))
        finally:
            process = self.daemon.process
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
            self.sim.stop()

    def _order(self, kills: int | None) -> list[str]:
        each = 25 if kills is None else -(-kills // len(ROLES))
        order = [role for role in ROLES for _ in range(each)]
        self.rng.shuffle(order)
        return order[: kills or None]

    def feed(self) -> None:
        """Keep AHEAD pictures undecided in the folder."""
        folders = ("high_quality", "low_quality")
        done = sum(len(list((self.daemon.output / f).glob("*.json"))) for f in folders)
        while self.fed < max(self.images, done + AHEAD):
            draw(self.daemon.images / f"p{self.fed:05d}.png", self.fed)
            self.fed += 1

    def _breathe(self, seconds: float) -> None:
        """Wait, and note when what was killed is back."""
        end = time.monotonic() + seconds
        while True:
            now = time.monotonic()
            living = self.processes()
            for entry in list(self._missing):
                role, dead, since = entry
                count = PROCESSES if role in ("generate", "grade") else 1
                if dead not in living[role] and len(living[role]) >= count:
                    self.back[role].append(now - since)
                    self._missing.remove(entry)
            if now >= end:
                return
            time.sleep(0.05)

    def processes(self) -> dict[str, list[int]]:
        """Role to pids that are up, as the hub published them last and as far as they live; the
        hub counts when all its children are up.
        """
        found: dict[str, list[int]] = {role: [] for role in ROLES}
        process = self.daemon.process
        if process is None or process.poll() is not None:
            return found
        with contextlib.suppress(OSError, ValueError):
            live = json.loads((self.daemon.output / "state/live.json").read_bytes())
            if live["pid"] != process.pid:
                return found
            for child in live["processes"]:
                if child["state"] == "up" and Path(f"/proc/{child['pid']}").exists():
                    found[child["role"]].append(child["pid"])
            if sum(len(pids) for pids in found.values()) >= 2 * PROCESSES + 1:
                found["hub"] = [process.pid]
        return found

    def _kill(self, role: str) -> bool:
        """Kill one of these at once, whatever it is doing; False when none lives yet."""
        process = self.daemon.process
        assert process is not None
        if process.poll() is not None:
            raise AssertionError(f"the hub ended by itself: {self.daemon.log()[-2000:]}")
        if role == "hub":
            process.kill()
            process.wait()
            self.killed[role] += 1
            self._missing = [("hub", process.pid, time.monotonic())]
            time.sleep(self.rng.uniform(0.0, 0.3))
            self.daemon.start()
            return True
        pids = self.processes()[role]
        if not pids:
            return False
        pid = self.rng.choice(pids)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self.killed[role] += 1
            if not any(entry[0] in (role, "hub") for entry in self._missing):
                self._missing.append((role, pid, time.monotonic()))
        return True

    def _finish(self) -> None:
        end = time.monotonic() + REST
        while not self.daemon.settled(self.fed):
            assert time.monotonic() < end, f"not finished: {self.daemon.log()[-3000:]}"
            self._breathe(0.2)

    def _figures(self, began: float, left: int) -> dict[str, Any]:
        d = self.daemon
        status = json.loads((d.output / "state/live.json").read_bytes())
        pids = [pid for role in ROLES if role != "hub" for pid in self.processes()[role]]
        code = d.stop()
        time.sleep(0.5)
        stats = self.sim.stats()
        stored = self._stored() if self.adaptive else {}
        return {
            "images": self.fed,
            "killed": dict(self.killed),
            "left": left,
            "seconds": round(time.monotonic() - began, 1),
            "back": self.back,
            "exit_code": code,
            "orphans": [pid for pid in pids if Path(f"/proc/{pid}").exists()],
            "temporary": [str(p) for p in d.output.rglob("*.rsd-tmp")],
            "spool": [str(p) for p in (d.output / "state/spool").iterdir()],
            "status": status,
            "essence": essence(d.results()),
            "generated": stats["generator"]["children"] - stats["generator"]["probes"],
            "graded": stats["grader"]["children"] - stats["grader"]["probes"],
            "log": d.log(),
            "asked": {role: stats[role]["calls"] for role in ("generator", "grader")},
            **stored,
        }

    def _stored(self) -> dict[str, Any]:
        """What the stopped daemon's state holds, once all that must be so in it is found so."""
        store = Store(self.daemon.output / "state/lmdb", readonly=True)
        try:
            learned, steps = learned_once(store), planned_once(store)
            with store.reading() as txn:
                candidates = [decode(Candidate, v) for _, v in txn.scan("candidates")]
                grades = txn.entries("grades")
                failures = txn.entries("sample_failures") + txn.entries("grade_failures")
        finally:
            store.close()
        again = self.daemon.run("db", "rebuild-stats")
        return {
            "learned": learned,
            "steps": steps,
            "candidates": len(candidates),
            "grades": grades,
            "failures": failures,
            "rebuilt": (again.returncode, again.stdout + again.stderr),
        }


def needed(expected: dict[str, Any]) -> int:
    """Calls to each pool that the results need."""
    return sum(len(entry[3]) for entry in expected.values())


def verdict(figures: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """What is wrong; empty when all invariants hold."""
    wrong: list[str] = []
    killed, images, calls = Counter(figures["killed"]), figures["images"], needed(expected)
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
    counts, candidates = figures["status"]["images"], figures["status"]["candidates"]
    if counts["high_quality"] + counts["low_quality"] != images or counts["seen"] != images:
        wrong.append(f"counters: {counts}")
    if candidates["generated"] != calls or candidates["graded"] != calls:
        wrong.append(f"candidates: {candidates}")
    return wrong + _remains(figures)


def _remains(figures: dict[str, Any]) -> list[str]:
    """What must not be left over, whatever the strategy."""
    wrong = [f"{w}: {figures[w]}" for w in ("orphans", "temporary", "spool") if figures[w]]
    if figures["exit_code"] != 0:
        wrong.append(f"exit code {figures['exit_code']}")
    bugs = figures["log"].split("Traceback")[1:]
    if bugs:
        wrong.append("a traceback in the log: " + bugs[0][:1500])
    if figures["left"]:
        wrong.append(f"{figures['left']} kills were not reached")
    return wrong


def verdict_adaptive(figures: dict[str, Any]) -> list[str]:
    """What is wrong with a soak of the strategy that learns; empty when all invariants hold. That
    nothing was planned or learned twice is asserted where the state is read.
    """
    wrong = _remains(figures)
    images, candidates, grades = (figures[k] for k in ("images", "candidates", "grades"))
    killed, threads = Counter(figures["killed"]), SLOTS // PROCESSES
    for what, have in (("results", len(figures["essence"])), ("learned", figures["learned"])):
        if have != images:
            wrong.append(f"{what}: {have} of {images} images")
    if figures["failures"]:
        wrong.append(f"{figures['failures']} candidates or grades failed")
    if figures["rebuilt"][0] != 0:
        wrong.append(f"db rebuild-stats: {figures['rebuilt'][1]}")
    counts = figures["status"]["images"]
    if counts["high_quality"] + counts["low_quality"] != images or counts["seen"] != images:
        wrong.append(f"counters: {counts}")
    seen = figures["status"]["candidates"]
    if (seen["generated"], seen["failed"]) != (candidates, 0):
        wrong.append(f"candidates: {seen}, stored {candidates}")
    # A candidate that servers made and no step names was drawn by a decision that is not durable.
    if figures["asked"]["generator"]["distinct"] != candidates:
        wrong.append(f"{figures['asked']['generator']} asked for, {candidates} stored")
    # Equal arms share a request: what a process repeats is a thread's request, with all its parts.
    allowed = {
        "generated": (killed["generate"] * threads + killed["hub"] * SLOTS) * MOST_AT_ONCE
        + killed["hub"] * UNCOMMITTED,
        "graded": killed["grade"] * threads + killed["hub"] * (SLOTS + UNCOMMITTED),
    }
    for what, stored in (("generated", candidates), ("graded", grades)):
        if not 0 <= figures[what] - stored <= allowed[what]:
            wrong.append(f"{what}: {figures[what]} for {stored} stored; allowed {allowed[what]}")
    return wrong


def report_adaptive(figures: dict[str, Any], seed: int) -> None:
    """Print the figures, and a row of docs/reliability.md."""
    killed, images = figures["killed"], figures["images"]
    kills, seconds = sum(killed.values()), figures["seconds"]
    more = figures["generated"] - figures["candidates"], figures["graded"] - figures["grades"]
    print(f"seed {seed}: {kills} kills {killed} in {seconds} s, strategy adaptive")
    print(f"{len(figures['essence'])} results of {images} images, {figures['learned']} learned")
    made = f"{figures['candidates']} candidates and {figures['grades']} grades"
    print(f"{figures['steps']} steps, {made}")
    print(f"repeated: {more[0]} candidates, {more[1]} grades")
    print(figures["rebuilt"][1].strip())
    record(
        "soak",
        "the same with the strategy that learns",
        times=kills,
        lost=images - len(figures["essence"]),
        repeated=f"{more[0]} generations, {more[1]} grades",
        recovery=f"{seconds} s in all",
        seen=f"{images} images, each decided and learned once; {figures['steps']} steps, none "
        f"chosen twice; {made}, none unplanned; what was learned equals what the records make of "
        "it, bit by bit",
    )


def report(figures: dict[str, Any], expected: dict[str, Any], seed: int) -> None:
    """Print the figures, and a row of docs/reliability.md for each kind of process."""
    calls, images = needed(expected), figures["images"]
    same = sum(figures["essence"].get(name) == expected[name] for name in expected)
    killed = figures["killed"]
    print(f"seed {seed}: {sum(killed.values())} kills {killed} in {figures['seconds']} s")
    print(f"results {len(figures['essence'])} of {images}; as in the undisturbed run: {same}")
    print(f"generations {figures['generated']} and grades {figures['graded']}; {calls} needed each")
    again = f"{figures['generated'] - calls} generations, {figures['graded'] - calls} grades"
    for role in ROLES:
        back = figures["back"][role]
        if not back:
            continue
        text = f"back after {statistics.median(back):.1f} s (median), {max(back):.1f} s (longest)"
        print(f"{role}: killed {killed.get(role, 0)} times, {text}")
        record(
            "soak",
            f"SIGKILL of {'the hub' if role == 'hub' else 'a ' + role + ' process'}",
            times=killed.get(role, 0),
            lost=images - same,
            repeated="see all",
            recovery=text,
        )
    record(
        "soak",
        "all of it in one run",
        times=sum(killed.values()),
        lost=images - same,
        repeated=again,
        recovery=f"{figures['seconds']} s in all",
        seen=f"{images} images, {calls} calls needed of each pool; {same} results equal to an "
        "undisturbed run, no orphan, no temporary file",
    )


def main() -> int:
    """Print the figures; exit code 1 when an invariant breaks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, help="of all kinds together (default 80)")
    parser.add_argument("--minutes", type=float, help="kill for so long instead")
    parser.add_argument("--images", type=int, default=AHEAD, help="at least")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--adaptive", action="store_true", help="with the strategy that learns")
    parser.add_argument("--seconds", type=float, default=0.2, help="mean service time")
    args = parser.parse_args()
    kills = args.kills or (None if args.minutes else 80)
    one, other = Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp())
    try:
        soak = Soak(other, args.seed, args.images, args.seconds, adaptive=args.adaptive)
        figures = soak.run(kills, args.minutes)
        if args.adaptive:
            report_adaptive(figures, args.seed)
            wrong = verdict_adaptive(figures)
        else:
            expected = undisturbed(one, figures["images"])
            report(figures, expected, args.seed)
            wrong = verdict(figures, expected)
        for problem in wrong:
            print("WRONG:", problem)
        return 1 if wrong else 0
    finally:
        for folder in (one, other):
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
