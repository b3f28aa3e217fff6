"""How many requests a second when the servers answer at once: the client's own ceiling.

The simulator takes a good part of the two cores; it is the same for every client.
"""

from __future__ import annotations

import statistics

import common
import pngs
import tables

#: Kilobytes of a picture: one that costs next to nothing, and the usual one.
SIZES = (3, 300)
PLACES, IMAGES = 64, 240


def main() -> None:
    """Print the table."""
    args = tables.parser(__doc__).parse_args()
    report = tables.Report("Ceiling", args)
    rows: list[list[str]] = []
    loads = []
    for kilobytes in SIZES:
        tables.print_line(f"{kilobytes} kB")
        with common.workspace() as home:
            images = max(4, int(IMAGES * args.scale))
            pictures = pngs.make_pictures(home / "pictures", images, kilobytes)
            with common.simulator(kind=common.Places) as sim:
                work = common.Work(images=tuple(pictures), gen_workers=PLACES, grade_workers=PLACES)
                found = common.rounds(args.clients, args.rounds, sim, work, (0, 0), home)
        loads.append(common.strangers(found))
        speed = {
            client: statistics.median(r.requests / r.served for r in runs)
            for client, runs in found.items()
        }
        for client, each in speed.items():
            base = speed.get("aiohttp", float("nan"))
            cpu = statistics.median(1000 * r.cpu / r.requests for r in found[client])
            rows.append(
                [f"{kilobytes} kB, {client}", f"{each:,.0f}", f"{each / base:.2f}", f"{cpu:.2f}"]
            )
    report.table(
        ["service time 0", "requests/s", "/ aiohttp", "client's CPU ms per request"],
        rows,
        f"Medians of {args.rounds} rounds, {PLACES} + {PLACES} requests in flight, "
        f"{2 * work.total:,} requests, from the first to the last at the servers; the CPU holds "
        "the start of the client. " + "; ".join(loads) + ".",
    )
    report.close()


if __name__ == "__main__":
    main()
