"""Are the servers full? rsd, an aiohttp script and the openai client on the same simulator.

(a) 64 + 64 places, 0.5 s an answer; (b) 256 + 256, 1 s; (c) 256 + 256, 0.25 s, `n` = 4, twice as
many answers asked for at once as there are places (a request ends with its slowest answer); (d) as
(a) with pictures of 1.5 MB. Others: pictures of 300 kB. Each candidate is graded once.
"""

from __future__ import annotations

import statistics

import common

SCENARIOS = {
    #     places, seconds, n, kilobytes, images
    "a": (64, 0.5, 1, 300, 160),
    "b": (256, 1.0, 1, 300, 320),
    "c": (256, 0.25, 4, 300, 320),
    "d": (64, 0.5, 1, 1500, 160),
}


def main() -> None:
    """Print the table."""
    parser = common.parser(__doc__)
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    args = parser.parse_args()
    report = common.Report("Full servers", args)
    rows: list[list[str]] = []
    loads = []
    for name in args.scenarios:
        places, seconds, n, kilobytes, images = SCENARIOS[name]
        images = max(4, int(images * args.scale))
        common.say(f"scenario {name}")
        with common.workspace() as home:
            pictures = common.make_pictures(home / "pictures", images, kilobytes)
            options = ("--slots", str(places), "--service-seconds", str(seconds))
            with common.simulator(*options, kind=common.Places) as sim:
                asked = places * 2 // n if n > 1 else places
                work = common.Work(
                    images=tuple(pictures), n=n, gen_workers=asked, grade_workers=places
                )
                found = common.rounds(args.clients, args.rounds, sim, work, (places, places), home)
        loads.append(f"({name}) {common.strangers(found)}")
        base = found.get("aiohttp", [])
        for client, runs in found.items():
            busy = statistics.median(max(r.busy.values()) for r in runs)
            whole, served = common.median(runs, "seconds"), common.median(runs, "served")
            ratios = ["", ""]
            if base:
                ratios = [
                    f"{whole / common.median(base, 'seconds'):.2f}",
                    f"{served / common.median(base, 'served'):.2f}",
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
                    f"{max(r.strings for r in runs)}",
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
        f"Medians of {args.rounds} rounds. Busy: places of the limiting pool in use between 10 % "
        "and 90 % of that pool's time. Served: from the first picture at the server to the last "
        "answer. "
        "Whole: the life of the process. Best: the work of the limiting pool over its places. "
        "Encodings: most distinct byte strings that were sent of one picture. "
        + "; ".join(loads)
        + ".",
    )
    report.close()


if __name__ == "__main__":
    main()
