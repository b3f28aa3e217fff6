"""What strategies bring on real pixels: two real models behind their servers, pictures with truth.

    python benchmarks/real_models.py PICTURES --generator URL --grader URL --prompts FILE \\
        --grading-prompt FILE [--plans random-6 random-16 default]

PICTURES holds pictures and, beside each, a JSON file with `nodes` and `edges` that only this
program reads. Each plan is a run of the daemon from nothing. Of a plan that learns, the second
table says how soon it left a prompt aside.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import strategies
import tables

from rsd.simulator.netlist import Graph, edge_f1
from rsd.simulator.truth import graph_of

#: Images of a row of the table of prompts.
BLOCK = 25


@dataclass(frozen=True)
class Outcome:
    """What came of a run."""

    quality: dict[str, float]  #: F1 of the kept text times 100, by the picture's name
    random: float  #: mean F1 times 100 of all candidates that were made
    candidates: int
    grades: int
    seconds: float
    prompts: list[Counter[str]]  #: candidates by prompt, for each block of images in their order


def truths_of(folder: Path) -> dict[str, Graph]:
    """Truth by the picture's name."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        picture = path.with_suffix(".png")
        if picture.is_file():
            found[picture.name] = graph_of(json.loads(path.read_text()))
    return found


def run(plan: str, args: argparse.Namespace, truths: dict[str, Graph], home: Path) -> Outcome:
    """One run of the daemon. Raises SystemExit when it fails."""
    images = home / "images"
    if not images.is_dir():
        images.mkdir()
        for name in truths:
            shutil.copy(args.pictures / name, images / name)
    learning = strategies.settings_of_learning(plan)
    if learning is None:
        kind, _, count = plan.partition("-")
        plan_settings = {"STRATEGY": kind, "CANDIDATES": count}
    else:
        plan_settings = {"STRATEGY": "adaptive", **learning}
    with tempfile.TemporaryDirectory(dir=home) as name:
        output = Path(name) / "output"
        env = common.clean_environment(
            RSD_RUNTIME_DIR=str(Path(name) / "run"),
            RSD_WATCH_SETTLE_SECONDS="0.05",
            RSD_THROTTLE_ENABLED="false",
            RSD_GENERATION_WORKERS=str(args.slots),
            RSD_GRADING_WORKERS=str(args.slots),
            RSD_GENERATION_MAX_TOKENS="160",
            RSD_GRADING_MAX_TOKENS="400",
            RSD_GRADING_MODEL=args.grading_model,
            RSD_SAMPLING_SEED=str(args.seed),
            RSD_SAMPLING_TEMPERATURE_RANGE="0.7,1.0",
            RSD_SAMPLING_TOP_P_RANGE="0.9",
            RSD_SAMPLING_TOP_K_RANGE="40",
            **{f"RSD_SAMPLING_{key}": value for key, value in plan_settings.items()},
        )
        command = [
            *(sys.executable, str(common.HOME / "daemon.py"), "run", "--once"),
            *("--image-dir", str(images), "--output-dir", str(output)),
            *("--vllm-api", args.generator, "--grading-api", args.grader),
            *("--prompts", str(args.prompts), "--grading-prompt", str(args.grading_prompt)),
        ]
        began = time.monotonic()
        with (Path(name) / "log").open("wb") as log:
            done = subprocess.run(command, env=env, stdout=log, stderr=log, check=False)
        if done.returncode not in (0, 1):
            raise SystemExit((Path(name) / "log").read_text("utf-8", "replace")[-2000:])
        return _outcome(output, truths, time.monotonic() - began)


def _outcome(output: Path, truths: dict[str, Graph], seconds: float) -> Outcome:
    documents: list[dict[str, Any]] = [
        json.loads(path.read_text()) for path in output.glob("*_quality/*.json")
    ]
    documents.sort(key=lambda one: max(c["timestamp"] for c in one["all_candidates"]))
    quality = dict.fromkeys(truths, 0.0)
    every: list[float] = []
    for one in documents:
        name = one["image_info"]["filename"]
        truth = truths[name]
        quality[name] = 100 * edge_f1(one["best_result"]["content"], truth)
        every += [100 * edge_f1(c["content"], truth) for c in one["all_candidates"]]
    summary = json.loads((output / "summary.json").read_text())
    blocks = [documents[at : at + BLOCK] for at in range(0, len(documents), BLOCK)]
    return Outcome(
        quality=quality,
        random=statistics.fmean(every) if every else 0.0,
        candidates=summary["candidates"]["generated"],
        grades=summary["candidates"]["grades"],
        seconds=seconds,
        prompts=[
            Counter(c["prompt_key"] for one in block for c in one["all_candidates"])
            for block in blocks
        ],
    )


def gain(one: Outcome, other: Outcome) -> str:
    """Mean difference with its 95 % interval over the pictures."""
    gains = [quality - other.quality[name] for name, quality in one.quality.items()]
    spread = 1.96 * statistics.stdev(gains) / len(gains) ** 0.5
    return f"{statistics.fmean(gains):+.1f} ± {spread:.1f}"


def main() -> None:
    """Print the tables."""
    parser = tables.parser(__doc__)
    add = parser.add_argument
    add("pictures", type=Path)
    add("--generator", required=True)
    add("--grader", required=True)
    add("--grading-model", default="judge")
    add("--prompts", type=Path, required=True)
    add("--grading-prompt", type=Path, required=True)
    add("--plans", nargs="+", default=["random-6", "random-16", "default"])
    add("--slots", type=int, default=32, help="requests in flight at each server (32)")
    add("--seed", type=int, default=0, help="of the daemon")
    args = parser.parse_args()
    truths = truths_of(args.pictures)
    report = tables.Report("Real models", args)
    found: dict[str, Outcome] = {}
    with common.workspace() as home:
        for plan in args.plans:
            found[plan] = run(plan, args, truths, home)
            tables.print_line(f"{plan}: {found[plan].seconds:.0f} s")
    first = found[args.plans[0]]
    rows = [
        [
            plan,
            f"{statistics.fmean(o.quality.values()):.1f}",
            "" if o is first else gain(o, first),
            f"{o.random:.1f}",
            f"{o.candidates / len(truths):.1f}",
            f"{o.grades / len(truths):.1f}",
            f"{o.seconds:.0f}",
        ]
        for plan, o in found.items()
    ]
    report.table(
        ["plan", "F1", f"against {args.plans[0]}", "random candidate", "candidates", "grades", "s"],
        rows,
        f"{len(truths)} pictures; F1 x 100 of directed edges; candidates and grades per picture.",
    )
    for plan, o in found.items():
        if strategies.settings_of_learning(plan) is None:
            continue
        keys = sorted(set().union(*o.prompts))
        report.table(
            [f"{plan}: share of candidates", *keys],
            [
                [f"pictures {BLOCK * k + 1} on", *(f"{b[key] / b.total():.0%}" for key in keys)]
                for k, b in enumerate(o.prompts)
            ],
            "In the order in which pictures were decided.",
        )
    report.close()


if __name__ == "__main__":
    main()
