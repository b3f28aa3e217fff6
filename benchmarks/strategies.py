"""What strategies cost and bring, through the real daemon: `run --once` on a scenario.

    python benchmarks/scenarios.py replay FILE --set early --images 100 --out DIR
    python benchmarks/strategies.py DIR [--plans ...] [--gradings ...] [--prices ...]

DIR is what `scenarios.py` has written. The simulator plays it; only this program compares what rsd
kept with the truth. `random-6`, one candidate per prompt and all of them graded, is the original
that others are compared with, picture by picture. Plans that buy without looking at the prices run
once and are weighed with each of them; they and the numbers of images in flight after the first
are only crossed with `random-6` and the plans that learn.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import tables

from rsd.simulator.scenario import load
from rsd.simulator.scene import Scene
from rsd.simulator.truth import pixels_of

ORIGINAL = "random-6"
#: Currency per million tokens: generator (input, output), grader (input, output). `own`: a
#: generator on GPUs of one's own at a tenth of the nominal price.
PRICES = {"own": (0.01, 0.04, 1.10, 4.40), "nominal": (0.10, 0.40, 1.10, 4.40)}
NAMES = ("generator_input", "generator_output", "grader_input", "grader_output")
#: Plans that learn, and what they set.
LEARNING: dict[str, dict[str, str]] = {
    "default": {},
    "off": {"CONSENSUS": "off"},
    "on": {"CONSENSUS": "on"},
    **{word: {"EFFORT": word} for word in ("economy", "thorough", "maximal")},
}
PLANS = (ORIGINAL, "random-2", "random-3", "random-12", "grid", "fixed-6", "off", "default")
#: Seconds between two looks at the hub's CPU.
LOOK = 0.1


class Player(common.Simulator):
    """The simulator as it is: pictures are decoded, a scenario knows them by their pixels."""

    program = ("-m", "rsd.simulator")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run: a plan, how it is graded, what it thinks calls cost, images in flight."""

    plan: str
    listwise: bool
    prices: str
    in_flight: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a run, for all images together but `quality`."""

    quality: dict[str, float]  #: 0 to 100 by the picture's name
    tokens: tuple[int, int, int, int]
    candidates: int
    grades: int
    repeated: int  #: of them, those of a text that has one already
    busy: dict[str, float]  #: by role
    hub: float  #: seconds of CPU from the first candidate that was asked for
    seconds: float

    def mean(self) -> float:
        """Quality."""
        return statistics.fmean(self.quality.values())

    def cost(self, prices: str) -> float:
        """Of an image, in thousandths."""
        return paid(self.tokens, prices) / len(self.quality)

    def cost_once(self, prices: str, scene: Scene, listwise: bool) -> float:
        """The same, had equal texts been graded once (whole calls less when they hold one each)."""
        one, none = scene.grading_tokens(1), scene.grading_tokens(0) if listwise else (0, 0, 0)
        spared = paid((0, 0, one[0] - none[0], one[1] - none[1]), prices) * self.repeated
        return self.cost(prices) - spared / len(self.quality)


def paid(tokens: tuple[int, ...], prices: str) -> float:
    """What tokens cost, in thousandths."""
    return sum(t * p for t, p in zip(tokens, PRICES[prices], strict=True)) / 1000


def settings_of_learning(plan: str) -> dict[str, str] | None:
    """What a plan that learns sets, `gain-N` a `min_gain` of N; None for any other plan."""
    kind, _, gain = plan.partition("-")
    return {"MIN_GAIN": gain} if kind == "gain" and gain else LEARNING.get(plan)


def plan_settings(plan: str, ranges: dict[str, Any], prompts: list[str]) -> dict[str, str]:
    """Environment of a plan. Raises SystemExit for one that is none."""
    kind, _, count = plan.partition("-")
    found = {f"{n.upper()}_RANGE": values for n, values in ranges_of(ranges).items()}
    learning = settings_of_learning(plan)
    if learning is not None:
        found |= {"STRATEGY": "adaptive", **learning}
    elif plan == "grid":
        found["STRATEGY"] = "grid"
    elif kind in ("random", "fixed") and count.isdecimal():
        found |= {"STRATEGY": "random", "CANDIDATES": count}
    else:
        words = ", ".join(("random-N, fixed-N, gain-N, grid", *LEARNING))
        raise SystemExit(f"{plan}: none of {words}")
    settings = {f"RSD_SAMPLING_{name}": value for name, value in found.items()}
    if kind == "fixed":  # one way of asking: the first prompt at the middle of each range
        for name, values in ranges_of(ranges).items():
            each = values.split(",")
            settings[f"RSD_SAMPLING_{name.upper()}_RANGE"] = each[len(each) // 2]
        settings["RSD_PROMPT_KEYS"] = prompts[0]
    return settings


def ranges_of(ranges: dict[str, Any]) -> dict[str, str]:
    """The settings' words for what `scenarios.py` has written."""
    words = {"temperature": "temperatures", "top_p": "top_ps", "top_k": "top_ks"}
    return {name: ",".join(map(str, ranges[key])) for name, key in words.items()}


def cpu_of(pid: int) -> float:
    """Seconds that one process has used; 0 when it is gone."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def watched(process: subprocess.Popen[bytes]) -> list[tuple[float, float]]:
    """(monotonic, seconds of the hub's CPU) until the process ends."""
    seen = []
    while process.poll() is None:
        used = cpu_of(process.pid)
        if used:
            seen.append((time.monotonic(), used))
        time.sleep(LOOK)
    return seen


def run(folder: Path, scene: Scene, case: Case, args: argparse.Namespace, home: Path) -> Outcome:
    """One run of the daemon. Raises RuntimeError when it fails."""
    prompts = json.loads((folder / "prompts.json").read_text())
    ranges = json.loads((folder / "settings.json").read_text())
    slots = ("--slots", str(args.slots))
    times = ("--generator-seconds", str(args.seconds[0]), "--grader-seconds", str(args.seconds[1]))
    player = ("--scenario", str(folder / "scenario.json.gz"), *slots, *times)
    with (
        tempfile.TemporaryDirectory(dir=home) as name,
        common.simulator(*player, kind=Player) as sim,
    ):
        output = Path(name) / "output"
        workers = str(args.slots + max(2, args.slots // 8))
        env = common.clean_environment(
            RSD_RUNTIME_DIR=str(Path(name) / "run"),
            RSD_WATCH_SETTLE_SECONDS="0.05",
            RSD_THROTTLE_ENABLED="false",
            RSD_GENERATION_MAX_N="1",  # each candidate pays for its own input, as in PRICES
            RSD_GENERATION_WORKERS=workers,
            RSD_GRADING_WORKERS=workers,
            RSD_SAMPLING_IMAGES_IN_FLIGHT=str(case.in_flight),
            RSD_SAMPLING_SEED=str(args.seed),
            **{
                f"RSD_PRICES_{key.upper()}": str(price)
                for key, price in zip(NAMES, PRICES[case.prices], strict=True)
            },
            **plan_settings(case.plan, ranges, list(prompts)),
        )
        command = [
            *(sys.executable, str(common.HOME / "daemon.py"), "run", "--once"),
            *("--image-dir", str(folder / "images"), "--output-dir", str(output)),
            *("--vllm-api", sim.generator, "--grading-api", sim.grader),
            *("--prompts", str(folder / "prompts.json")),
            *("--grading-prompt", str(common.grading_file(case.listwise))),
        ]
        began = time.monotonic()
        with (Path(name) / "log").open("wb") as log:
            process = subprocess.Popen(command, env=env, cwd=common.HOME, stdout=log, stderr=log)
        looks: list[tuple[float, float]] = []
        watcher = threading.Thread(target=lambda: looks.extend(watched(process)))
        watcher.start()
        watcher.join()
        seconds = time.monotonic() - began
        if process.returncode not in (0, 1):
            text = (Path(name) / "log").read_text("utf-8", "replace")
            raise RuntimeError(f"{case} ended with {process.returncode}: {text[-2000:]}")
        history = sim.ask("history")
        first = history["generator"]["first"]
        before = max((used for at, used in looks if at <= first), default=0.0)
        summary = json.loads((output / "summary.json").read_text())
        return Outcome(
            quality=qualities(folder, output, scene),
            tokens=tuple(summary["tokens"][key] for key in NAMES),  # type: ignore[arg-type]
            candidates=summary["candidates"]["generated"],
            grades=summary["candidates"]["grades"],
            repeated=repeated_of(output),
            busy=common.busy_shares(history, (args.slots, args.slots)),
            hub=looks[-1][1] - before,
            seconds=seconds,
        )


def qualities(folder: Path, output: Path, scene: Scene) -> dict[str, float]:
    """Of what was kept; 0 for a picture that nothing was kept of."""
    found = {path.name: 0.0 for path in (folder / "images").iterdir()}
    for path in output.glob("*_quality/*.json"):
        document = json.loads(path.read_text())
        name = document["image_info"]["filename"]
        if document["best_result"] is not None:
            pixels = pixels_of((folder / "images" / name).read_bytes())
            found[name] = scene.quality(pixels, document["best_result"]["content"])
    return found


def repeated_of(output: Path) -> int:
    """Grades of texts that another candidate of the image has, too, and that has a grade."""
    count = 0
    for path in output.glob("*_quality/*.json"):
        graded = [c for c in json.loads(path.read_text())["all_candidates"] if c["grades"]]
        count += len(graded) - len({one["content"].rstrip() for one in graded})
    return count


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """Every run that is needed, the original first of its kind."""
    plans = [ORIGINAL, *(plan for plan in args.plans if plan != ORIGINAL)]
    for grading, in_flight, plan in itertools.product(args.gradings, args.in_flight, plans):
        learned = settings_of_learning(plan) is not None
        if in_flight != args.in_flight[0] and not learned and plan != ORIGINAL:
            continue
        for prices in args.prices if learned else args.prices[:1]:
            yield Case(
                plan=plan, listwise=grading == "listwise", prices=prices, in_flight=in_flight
            )


def at_cost(curve: list[tuple[float, float]], cost: float) -> float | None:
    """Quality on a curve of (cost, quality), linear in the logarithm of the cost."""
    curve = sorted(curve)
    for (low, less), (high, more) in itertools.pairwise(curve):
        if low <= cost <= high:
            return less + (more - less) * math.log(cost / low) / math.log(high / low)
    return None


def paired(one: Outcome, other: Outcome) -> str:
    """Mean difference with its 95 % interval over the pictures."""
    gains = [quality - other.quality[name] for name, quality in one.quality.items()]
    spread = 1.96 * statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan
    return f"{statistics.fmean(gains):+.1f} ± {spread:.1f}"


def rows(found: dict[Case, Outcome], scene: Scene, args: argparse.Namespace) -> list[list[str]]:
    """The table, one row for each run and price."""
    made = []
    for case, outcome in found.items():
        learned = settings_of_learning(case.plan) is not None
        same = functools.partial(
            Case, listwise=case.listwise, prices=args.prices[0], in_flight=case.in_flight
        )
        original = found[same(plan=ORIGINAL)]
        per_candidate = 1000 * outcome.hub / outcome.candidates
        random = 1000 * original.hub / original.candidates
        for prices in [case.prices] if learned else args.prices:
            curve = [
                (o.cost(prices), o.mean())
                for c, o in found.items()
                if c.plan.startswith("random-") and c.listwise == case.listwise
                if c.in_flight == args.in_flight[0]
            ]
            level = at_cost(curve, outcome.cost(prices)) if learned else None
            count = len(outcome.quality)
            kind = "listwise" if case.listwise else "pointwise"
            once = original.cost_once(prices, scene, case.listwise)
            made.append(
                [
                    f"{case.plan}, {kind}, {prices}, {case.in_flight}",
                    f"{outcome.mean():.1f}",
                    "" if outcome is original else paired(outcome, original),
                    f"{outcome.cost(prices):.2f}",
                    f"{outcome.cost(prices) / original.cost(prices):.2f}",
                    f"{outcome.cost(prices) / once:.2f}",
                    "" if level is None else f"{outcome.mean() - level:+.1f}",
                    f"{outcome.candidates / count:.1f}",
                    f"{outcome.grades / count:.1f}",
                    f"{outcome.busy['generator']:.0%}",
                    f"{outcome.busy['grader']:.0%}",
                    f"{per_candidate:.2f}",
                    f"{per_candidate / random:.2f}",
                    f"{outcome.seconds:.0f}",
                ]
            )
    return made


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("scenario", type=Path, help="the folder that scenarios.py has written")
    add("--plans", nargs="+", default=list(PLANS), help="random-N, fixed-N, grid, gain-N, off, ...")
    gradings = ("pointwise", "listwise")
    add("--gradings", nargs="+", choices=gradings, default=list(gradings))
    add("--prices", nargs="+", choices=PRICES, default=list(PRICES))
    add("--in-flight", nargs="+", type=int, default=[24, 8, 64], help="images; the first for all")
    add("--slots", type=int, default=16, help="answers at once, of each server (16)")
    add("--seconds", nargs=2, type=float, default=[0.25, 0.25], help="mean times of answers")
    add("--seed", type=int, default=0, help="of the daemon")
    add("--markdown", type=Path, metavar="FILE", help="the table as markdown")
    return parser.parse_args()


def main() -> None:
    """Print the table."""
    args = parse()
    scene = Scene(load(args.scenario / "scenario.json.gz"))
    report = tables.Report("Strategies", args)
    found: dict[Case, Outcome] = {}
    with common.workspace() as home:
        for case in cases(args):
            outcome = found[case] = run(args.scenario, scene, case, args, home)
            tables.print_line(
                f"{case}: quality {outcome.mean():.1f} for {outcome.cost(case.prices):.2f}, "
                f"{outcome.seconds:.0f} s"
            )
    report.table(
        [
            "plan",
            "F1",
            "- original",
            "cost",
            "/ original",
            "/ once",
            "- random",
            "made",
            "grades",
            "busy",
            "grader",
            "hub, ms",
            "/ orig.",
            "s",
        ],
        rows(found, scene, args),
        f"{len(next(iter(found.values())).quality)} pictures of {args.scenario.name}; "
        "plan, grader, prices, images in flight. F1 times 100. Original: random-6, paired by "
        "picture with 95 % intervals. Cost: thousandths for an image. Once: against the original "
        "as if it graded equal texts once. Random: what `random` brings at the same cost, between "
        "its runs. Made and grades: of an image. "
        f"Busy: share of {args.slots} slots, between 10 % and 90 % of the server's time; answers "
        f"take {args.seconds[0]:g} and {args.seconds[1]:g} s. Hub: its CPU for a candidate.",
    )
    report.close()


if __name__ == "__main__":
    main()
