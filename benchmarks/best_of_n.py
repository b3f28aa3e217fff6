"""What rejection sampling gains: mean edge F1 of the kept answers against one greedy answer.

    python benchmarks/best_of_n.py --vllm URL --diagrams DIR [--candidates 16] [--noise 8]

DIR holds NAME.png with NAME.json beside it: {"nodes": [...], "edges": [[from, to], ...]}. rsd runs
twice over it against the vLLM at URL: once with temperature 0 and one candidate, once with
`--candidates` draws at temperature 1. The grader is the simulator, which knows the truth and adds
noise; F1 is computed here from the texts that rsd kept.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HOME))

from rsd.simulator.answers import edge_f1  # noqa: E402
from rsd.simulator.truth import graph_of  # noqa: E402


def run(folder: Path, args: argparse.Namespace, grader: str, *flags: str) -> dict[str, Any]:
    """One run of rsd; result documents by picture."""
    output = folder / f"out-{len(list(folder.iterdir()))}"
    prompts = folder / "prompts.json"
    prompts.write_text(json.dumps({"p1": args.prompt}))
    command = [
        sys.executable,
        str(HOME / "daemon.py"),
        *("run", "--once", "--image-dir", str(folder / "images"), "--output-dir", str(output)),
        *("--vllm-api", args.vllm, "--grading-api", grader, "--prompts", str(prompts)),
        *("--grading-prompt", str(HOME / "prompts/grading_prompt.json")),
        *("--top-p-range", "0.9", "--top-k-range", "40", "--max-tokens", "64"),
        *flags,
    ]
    env = {k: v for k, v in os.environ.items() if not k.startswith("RSD_")}
    env["RSD_WATCH_SETTLE_SECONDS"] = "0.5"
    env["RSD_SAMPLING_STRATEGY"] = "random"
    env["RSD_GRADING_REPEATS"] = str(args.repeats)
    subprocess.run(command, check=True, env=env, stderr=subprocess.DEVNULL, cwd=HOME)
    documents = [json.loads(p.read_text()) for p in output.glob("*_quality/*.json")]
    return {d["image_info"]["filename"]: d for d in documents}


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vllm", required=True)
    parser.add_argument("--diagrams", required=True, type=Path)
    parser.add_argument("--candidates", type=int, default=16)
    parser.add_argument("--noise", type=float, default=8.0)
    parser.add_argument("--repeats", type=int, default=1, help="grades per candidate")
    parser.add_argument("--prompt", default="Write the netlist of this block diagram.")
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    args = parser.parse_args()
    truth = {
        path.with_suffix(".png").name: graph_of(json.loads(path.read_text()))
        for path in args.diagrams.glob("*.json")
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        for picture in truth:
            shutil.copy(args.diagrams / picture, folder / "images")
        simulator = subprocess.Popen(
            [
                sys.executable,
                *("-m", "rsd.simulator", "--port", "0", "--grader-port", "0"),
                *("--noise", str(args.noise), "--truth", str(args.diagrams)),
            ],
            stdout=subprocess.PIPE,
            text=True,
            cwd=HOME,
        )
        try:
            assert simulator.stdout is not None
            grader = json.loads(simulator.stdout.readline())["grader"]
            greedy = run(folder, args, grader, "--temperature-range", "0", "--candidates", "1")
            began = time.monotonic()
            count = str(args.candidates)
            kept = run(folder, args, grader, "--temperature-range", "1.0", "--candidates", count)
            seconds = time.monotonic() - began
        finally:
            simulator.kill()
            simulator.wait()
    assert set(greedy) == set(kept) == set(truth), "every picture has a result"

    def f1(document: dict[str, Any], picture: str) -> float:
        return edge_f1(document["best_result"]["content"], truth[picture])

    gains = [f1(kept[p], p) - f1(greedy[p], p) for p in truth]
    one = statistics.fmean(
        edge_f1(c["content"], truth[p]) for p in truth for c in kept[p]["all_candidates"]
    )
    figures = {
        "pictures": len(truth),
        "candidates": args.candidates,
        "noise": args.noise,
        "repeats": args.repeats,
        "greedy_f1": statistics.fmean(f1(greedy[p], p) for p in truth),
        "one_sample_f1": one,
        "kept_f1": statistics.fmean(f1(kept[p], p) for p in truth),
        "gain": statistics.fmean(gains),
        "gain_95": 1.96 * statistics.stdev(gains) / len(gains) ** 0.5,
        "seconds": round(seconds, 1),
    }
    if args.json:
        print(json.dumps(figures))
    else:
        for key, value in figures.items():
            print(f"{key:>14}  {value:.3f}" if isinstance(value, float) else f"{key:>14}  {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
