"""Does rsd find what a server allows? Refusals, queues, an outage. rsd alone, counted by servers.

1. A generator that takes 8 at once and answers 429 above; after a minute and a half it takes 32.
2. A generator with 32 slots that never refuses and queues the rest, as vLLM does; rsd's upper
   bound is 256.
3. Two generators of 32 slots, 32 requests in flight: one is killed, and started again 15 s later.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import common
import pngs
import tables

KILOBYTES, SECONDS = 3, 0.5
#: Seconds between two looks at the servers.
LOOK = 0.25
#: A level counts as reached when the mean over this many seconds is.
HOLD = 5.0


@contextmanager
def daemon(
    home: Path, images: int, urls: tuple[list[str], list[str]], workers: int
) -> Iterator[common.Daemon]:
    """rsd at work on enough pictures for the block."""
    pictures = pngs.make_pictures(home / "pictures", images, KILOBYTES)
    work = common.Work(images=tuple(pictures), gen_workers=workers, grade_workers=workers)
    running = common.Daemon(home, urls, work, {"RSD_ERRORS_PROBE_SECONDS": "1"})
    running.start()
    try:
        yield running
    finally:
        running.stop()


def watch(sim: common.Simulator, seconds: float) -> list[dict[str, Any]]:
    """The generator's figures, look by look."""
    seen = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        seen.append({"at": time.monotonic(), **sim.ask("stats")["generator"]})
        time.sleep(LOOK)
    return seen


def reached(seen: list[dict[str, Any]], level: float) -> float | None:
    """Seconds until the mean of the running answers over HOLD seconds is at the level."""
    for first in seen:
        inside = [s["running"] for s in seen if 0 <= s["at"] - first["at"] <= HOLD]
        full = seen[-1]["at"] - first["at"] >= HOLD
        if full and statistics.fmean(inside) >= level:
            return float(first["at"] - seen[0]["at"])
    return None


def share_of_429(seen: list[dict[str, Any]]) -> float:
    """Of all answers between the first and the last look."""
    before, after = seen[0], seen[-1]
    asked = after["requests"] - before["requests"]
    refused = after["by_status"].get("429", 0) - before["by_status"].get("429", 0)
    return float(refused) / max(1, asked)


def seconds_or_never(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} s"


def refusing(minute: float) -> list[list[str]]:
    """Scenario 1."""
    options = ("--generator-slots", "8", "--max-queue", "0", "--refuse", "429")
    with (
        common.workspace() as home,
        common.simulator(*options, "--service-seconds", str(SECONDS)) as sim,
        daemon(home, int(20 * minute), ([sim.generator], [sim.grader]), 64) as running,
    ):
        _await_work(sim, running)
        first = watch(sim, minute)
        later = watch(sim, minute / 2)
        sim.ask("settings", {"role": "generator", "slots": 32})
        more = watch(sim, minute)
        end = watch(sim, minute / 2)
        wrong = running.live()["images"]["failed"]
    return [
        ["8 allowed: 7 busy after", seconds_or_never(reached(first, 7.0)), "60 s"],
        ["429s in that time", f"{share_of_429(first):.1%}", ""],
        ["busy afterwards, mean", f"{statistics.fmean(s['running'] for s in later):.1f}", "7 to 8"],
        ["429s afterwards", f"{share_of_429(later):.1%}", "2 %"],
        ["32 allowed: 28 busy after", seconds_or_never(reached(more, 28.0)), "60 s"],
        ["busy afterwards, mean", f"{statistics.fmean(s['running'] for s in end):.1f}", ""],
        ["429s afterwards", f"{share_of_429(end):.1%}", ""],
        ["images without a result", str(wrong), "0"],
    ]


def queueing(minute: float) -> list[list[str]]:
    """Scenario 2."""
    options = ("--generator-slots", "32", "--service-seconds", str(SECONDS))
    with (
        common.workspace() as home,
        common.simulator(*options) as sim,
        daemon(home, int(20 * minute), ([sim.generator], [sim.grader]), 256) as running,
    ):
        _await_work(sim, running)
        watch(sim, minute)
        later = watch(sim, minute / 2)
    busy = statistics.fmean(s["running"] for s in later)
    waiting = statistics.fmean(s["waiting"] for s in later)
    return [
        ["32 slots: busy, mean", f"{busy:.1f}", "32"],
        ["waiting, mean", f"{waiting:.1f}", "6.4"],
        ["in flight, most", str(max(s["in_flight"] for s in later)), ""],
    ]


def outage(minute: float) -> list[list[str]]:
    """Scenario 3."""
    options = ("--generator-slots", "32", "--service-seconds", str(SECONDS))
    with (
        common.workspace() as home,
        common.simulator(*options) as one,
        common.simulator(*options) as other,
        common.simulator() as simulated,
    ):
        urls = ([one.generator, other.generator], [simulated.grader])
        with daemon(home, int(25 * minute), urls, 32) as running:
            _await_work(one, running)
            before = watch(one, minute / 3)[-20:]
            shared = statistics.fmean(s["in_flight"] for s in before)
            other.stop()
            alone = watch(one, minute / 4)
            other.start()
            back = watch(other, minute / 2)
            live = running.live()
    moved = next((s["at"] - alone[0]["at"] for s in alone if s["in_flight"] >= 1.5 * shared), None)
    again = next((s["at"] - back[0]["at"] for s in back if s["in_flight"] >= 0.5 * shared), None)
    return [
        ["in flight at each of two, mean", f"{shared:.1f}", "16"],
        ["one killed: the other has 1.5 times as much after", seconds_or_never(moved), "5 s"],
        ["restarted: it has half its share after", seconds_or_never(again), ""],
        ["failed candidates", str(live["candidates"]["failed"]), "0"],
        ["images without a result", str(live["images"]["failed"]), "0"],
    ]


def _await_work(sim: common.Simulator, running: common.Daemon) -> None:
    end = time.monotonic() + 60
    while sim.ask("history")["generator"]["first"] is None:
        if time.monotonic() > end:
            log = (running.folder / "log").read_text("utf-8", "replace")
            raise RuntimeError(f"no picture came to the server: {log[-2000:]}")
        time.sleep(0.05)


SCENARIOS = {"refusing": refusing, "queueing": queueing, "outage": outage}


def main() -> None:
    """Print the tables."""
    parser = tables.parser(__doc__)
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--minute", type=float, default=60.0, help="seconds of a phase (60)")
    args = parser.parse_args()
    report = tables.Report("Limits", args)
    for name in args.scenarios:
        tables.print_line(name)
        report.table([name, "seen", "aim"], SCENARIOS[name](args.minute))
    report.close()


if __name__ == "__main__":
    main()
