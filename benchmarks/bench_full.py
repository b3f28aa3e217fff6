"""Are the servers full? rsd, an aiohttp script and the openai client on the same simulator.

(a) 64 + 64 slots, 0.5 s an answer; (b) 256 + 256, 1 s; (c) 256 + 256, 0.25 s, `n` = 4; (d) as (a)
with pictures of 1.5 MB. Others: pictures of 300 kB. Each candidate is graded once. Every client may
have an eighth more requests in flight than there are slots, so that a slot that becomes free
finds one; in (c) twice as many answers, because a request ends with its slowest answer.

The time of an answer is log-normal with sigma 0.5. Ten answers for each slot, as in (b) and (c),
are then mostly beginning and end for every client: the last of 256 takes three times the mean.
Therefore these two have sigma 0.1, and the usual one in (B) and (C).
"""

from __future__ import annotations

import statistics

import common
import pngs
import tables

SCENARIOS = {
    #     slots, seconds, spread, n, kilobytes, images
    "a": (64, 0.5, 0.5, 1, 300, 320),
    "b": (256, 1.0, 0.1, 1, 300, 320),
    "c": (256, 0.25, 0.1, 4, 300, 320),
    "d": (64, 0.5, 0.5, 1, 1500, 320),
    "B": (256, 1.0, 0.5, 1, 300, 320),
    "C": (256, 0.25, 0.5, 4, 300, 320),
}


def main() -> None:
    """Print the table."""
    parser = tables.parser(__doc__)
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    args = parser.parse_args()
    report = tables.Report("Full servers", args)
    rows: list[list[str]] = []
    loads = []
    for name in args.scenarios:
        slots, seconds, spread, n, kilobytes, images = SCENARIOS[name]
        images = max(4, int(images * args.scale))
        tables.print_line(f"scenario {name}")
        with common.workspace() as home:
            pictures = pngs.make_pictures(home / "pictures", images, kilobytes)
            options = ("--slots", str(slots), "--service-seconds", str(seconds))
            options += ("--spread", str(spread))
            with common.simulator(*options, kind=common.Places) as sim:
                more = slots + slots // 8
                work = common.Work(
                    images=tuple(pictures),
                    n=n,
                    gen_workers=slots * 2 // n if n > 1 else more,
                    grade_workers=more,
                )
                found = common.rounds(args.clients, args.rounds, sim, work, (slots, slots), home)
        loads.append(f"({name}) {common.strangers(found)}")
        base = found.get("aiohttp", [])
        for client, runs in found.items():
            busy = statistics.median(max(r.busy.values()) for r in runs)
            whole, served = common.median(runs, "seconds"), common.median(runs, "served")
            ratios = ["", ""]
            if base:  # of each round, which is one moment of a machine that others use, too
                pairs = list(zip(runs, base, strict=True))
                ratios = [
                    f"{statistics.median(r.seconds / b.seconds for r, b in pairs):.2f}",
                    f"{statistics.median(r.served / b.served for r, b in pairs):.2f}",
                ]
            rows.append(
                [
                    f"({name}) {client}",
                    f"{work.total:,}",
                    f"{busy:.1%}",
                    f"{statistics.median(r.ideal / r.served for r in runs):.2f}",
                    f"{served:.1f}",
                    ratios[1],
                    f"{whole:.1f}",
                    ratios[0],
                    f"{max(r.strings for r in runs) / images:g}",
                ]
            )
    report.table(
        [
            "scenario, client",
            "candidates",
            "busy 10-90 %",
            "best/served",
            "served, s",
            "/ aiohttp",
            "whole, s",
            "/ aiohttp",
            "encodings",
        ],
        rows,
        f"Medians of {args.rounds} rounds. Busy: slots of the limiting pool in use between 10 % "
        "and 90 % of that pool's time. Served: from the first picture at the server to the last "
        "answer. "
        "Whole: the life of the process. Best: the work of the limiting pool over its slots. "
        "Encodings: distinct byte strings that were sent, over the pictures. "
        + "; ".join(loads)
        + ".",
    )
    report.close()


if __name__ == "__main__":
    main()
