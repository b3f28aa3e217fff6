"""What a client costs: CPU seconds per 1,000 candidates generated and graded, memory, disk.

CPU is user and system time of all processes of the client, by the kernel when they are reaped. Two
sizes are run; their difference is the cost of the work itself, what is left is the start. Answers
take 0.2 s on 64 + 64 slots (memory: 256 + 256 slots, 1 s).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import common
import pngs
import tables

KILOBYTES = 300
#: Images of the small and the large run; 8 candidates each.
SMALL, LARGE = 20, 180
#: name: (n, listwise)
KINDS = {"one by one": (1, False), "n = 4": (4, False), "listwise": (1, True)}
PLACES, SECONDS = 64, 0.2
MEMORY_SLOTS, MEMORY_SECONDS, MEMORY_IMAGES = 256, 1.0, 240


def work_of(pictures: list[Path], n: int, listwise: bool) -> common.Work:
    """Twice the requests that the slots take with `n`, as in bench_full."""
    asked = PLACES * 2 // n if n > 1 else PLACES
    return common.Work(
        images=tuple(pictures), n=n, listwise=listwise, gen_workers=asked, grade_workers=PLACES
    )


def memory(
    home: Path, client: str, sim: common.Simulator, pictures: list[Path]
) -> dict[str, float]:
    """Peak PSS in MB of all processes together, and of each kind at that moment."""
    work = common.Work(images=tuple(pictures), gen_workers=MEMORY_SLOTS, grade_workers=MEMORY_SLOTS)
    peak: dict[str, float] = {"all": 0.0}
    with tempfile.TemporaryDirectory(dir=home) as name:
        folder = Path(name)
        command, env = common.command_of(client, folder, sim, work)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, env=env, cwd=common.HOME, stdout=log, stderr=log)
            live = folder / "output/state/live.json"
            while process.poll() is None:
                seen = {pid: common.pss(pid) for pid in common.processes_of(process.pid)}
                if sum(seen.values()) > peak["all"]:
                    roles = {process.pid: "hub"} | _roles(live)
                    peak = {"all": sum(seen.values())}
                    for pid, size in seen.items():
                        role = roles.get(pid, "other")
                        peak[role] = peak.get(role, 0.0) + size
                time.sleep(0.5)
    return peak


def _roles(live: Path) -> dict[int, str]:
    try:
        return {p["pid"]: p["role"] for p in json.loads(live.read_bytes())["processes"]}
    except (OSError, ValueError):
        return {}


def cpu(args: argparse.Namespace, home: Path, report: tables.Report) -> None:
    """The tables of CPU and disk."""
    pictures = {
        size: pngs.make_pictures(
            home / f"pictures-{size}", max(2, int(size * args.scale)), KILOBYTES
        )
        for size in (SMALL, LARGE)
    }
    rows: list[list[str]] = []
    disk: list[list[str]] = []
    loads = []
    options = ("--slots", str(PLACES), "--service-seconds", str(SECONDS))
    with common.simulator(*options, kind=common.Places) as sim:
        for kind in args.kinds:
            tables.print_line(kind)
            found = {
                size: common.rounds(
                    args.clients,
                    args.rounds,
                    sim,
                    work_of(pictures[size], *KINDS[kind]),
                    (PLACES, PLACES),
                    home,
                )
                for size in (SMALL, LARGE)
            }
            loads.append(f"{kind}: {common.strangers(found[LARGE])}")
            costs = {}
            for client in args.clients:
                small, large = (common.median(found[s][client], "cpu") for s in (SMALL, LARGE))
                few, many = (8 * len(pictures[s]) for s in (SMALL, LARGE))
                each = (large - small) / (many - few)
                costs[client] = (1000 * each, 1000 * large / many, max(0.0, small - few * each))
            for client, (marginal, whole, start) in costs.items():
                base = costs.get("aiohttp", (float("nan"),) * 3)
                rows.append(
                    [
                        f"{kind}, {client}",
                        f"{marginal:.2f}",
                        f"{marginal / base[0]:.2f}",
                        f"{start:.2f}",
                        f"{whole:.2f}",
                        f"{whole / base[1]:.2f}",
                    ]
                )
                scale = 640 / (many - few) / 1e6
                made, reached = (
                    common.median(found[LARGE][client], name)
                    - common.median(found[SMALL][client], name)
                    for name in ("written", "reached")
                )
                disk.append(
                    [
                        f"{kind}, {client}",
                        f"{made * scale:.2f}",
                        f"{reached * scale:.2f}",
                    ]
                )
    report.table(
        ["CPU seconds", "per 1,000", "/ aiohttp", "start", "per 1,000 with start", "/ aiohttp"],
        rows,
        f"Medians of {args.rounds} rounds; {many - few:,} candidates between the two runs, "
        f"{many:,} in the large one. " + "; ".join(loads) + ".",
    )
    report.table(
        ["MB written per 640 candidates", "accounted", "reached the device"],
        disk,
        "The kernel accounts what is dirtied, whole folios of several pages for a page, and files "
        "that are removed before they are written. The other figure is what the block device took "
        "until all was there, the file system's journal included.",
    )


def main() -> None:
    """Print the tables."""
    parser = tables.parser(__doc__)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--no-memory", action="store_true", help="leave the memory out")
    args = parser.parse_args()
    report = tables.Report("Cost", args)
    with common.workspace() as home:
        if args.kinds:
            cpu(args, home, report)
        if not args.no_memory:
            pictures = pngs.make_pictures(
                home / "pictures-memory", max(4, int(MEMORY_IMAGES * args.scale)), KILOBYTES
            )
            options = ("--slots", str(MEMORY_SLOTS), "--service-seconds", str(MEMORY_SECONDS))
            with common.simulator(*options, kind=common.Places) as sim:
                peaks = {c: memory(home, c, sim, pictures) for c in args.clients}
            roles = ["all", "hub", "generate", "grade", "writer"]
            report.table(
                ["peak memory (PSS), MB", *roles],
                [
                    [client, *(f"{peak[r]:.0f}" if r in peak else "" for r in roles)]
                    for client, peak in peaks.items()
                ],
                f"{MEMORY_SLOTS} + {MEMORY_SLOTS} slots, {MEMORY_SECONDS:g} s an answer; looked "
                "at twice a second; one run.",
            )
    report.close()


if __name__ == "__main__":
    main()
