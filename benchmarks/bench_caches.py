"""Do vLLM's prefix and multimodal caches hit? Real servers, with image affinity and without.

    python benchmarks/bench_caches.py --vllm http://127.0.0.1:PORT/v1 http://127.0.0.1:PORT/v1

Each image gets candidates from two prompts, one request each; the grader is the simulator. Shares
are what the servers' own /metrics counted meanwhile: tokens of prompts, and pictures, found in a
cache. The servers must be fresh or have seen other pictures: every run draws its own.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import common
import tables

from tests.support import make_diagram

COUNTERS = ("prefix_cache_queries", "prefix_cache_hits", "mm_cache_queries", "mm_cache_hits")


def counters(urls: list[str]) -> dict[str, float]:
    """vLLM's counters, all servers together."""
    found = dict.fromkeys(COUNTERS, 0.0)
    for url in urls:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url.removesuffix("/v1") + "/metrics") as answer:
            text = answer.read().decode()
        for name in COUNTERS:
            for value in re.findall(rf"^vllm:{name}_total(?:\{{.*\}})? (\S+)", text, re.MULTILINE):
                found[name] += float(value)
    return found


def draw(args: argparse.Namespace, home: Path, seed: int, affinity: bool) -> list[str]:
    """One pass of rsd over new pictures; a row of the table."""
    images = home / f"images-{seed}"
    images.mkdir()
    for k in range(args.images):
        make_diagram(images / f"d{k:04}.png", seed * 100_000 + k)
    prompts = home / "prompts.json"
    text = common.prompt()
    prompts.write_text(json.dumps({"prompt1": text, "prompt2": f"{text}\nList every connection."}))
    with common.simulator() as simulated, tempfile.TemporaryDirectory(dir=home) as name:
        output = Path(name) / "output"
        flags = ["--image-dir", str(images), "--output-dir", str(output), "--prompts", str(prompts)]
        for url in args.vllm:
            flags += ["--vllm-api", url]
        flags += ["--grading-api", simulated.grader, "--candidates", str(args.candidates)]
        flags += ["--max-tokens", "64", "--temperature-range", "0.7,1.0"]
        flags += ["--gen-workers", str(args.workers)]
        env = common.clean_environment(
            RSD_RUNTIME_DIR=str(Path(name) / "run"),
            RSD_WATCH_SETTLE_SECONDS="0.2",
            RSD_THROTTLE_ENABLED="false",
            RSD_SAMPLING_STRATEGY="random",
            RSD_GENERATION_MAX_N="1",
            RSD_GENERATION_AFFINITY=str(affinity).lower(),
        )
        before, began = counters(args.vllm), time.monotonic()
        command = [sys.executable, str(common.HOME / "daemon.py"), "run", "--once", *flags]
        done = subprocess.run(command, env=env, cwd=common.HOME, capture_output=True, check=False)
        seconds, after = time.monotonic() - began, counters(args.vllm)
        results = sum(len(list((output / q).iterdir())) for q in ("high_quality", "low_quality"))
    if done.returncode:
        raise RuntimeError(done.stderr.decode()[-2000:])
    seen = {name: after[name] - before[name] for name in COUNTERS}
    return [
        "yes" if affinity else "no",
        f"{results}",
        f"{seen['prefix_cache_hits'] / seen['prefix_cache_queries']:.1%}",
        f"{seen['mm_cache_hits'] / seen['mm_cache_queries']:.1%}",
        f"{seen['mm_cache_queries'] - seen['mm_cache_hits']:.0f}",
        f"{seconds:.1f}",
    ]


def main() -> None:
    """Print the table."""
    parser = tables.parser(__doc__)
    parser.add_argument(
        "--vllm", nargs="+", required=True, metavar="URL", help="base URLs, with /v1"
    )
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 10_000)
    args = parser.parse_args()
    report = tables.Report("Caches of a real vLLM", args)
    rows = []
    with common.workspace() as home:
        for k in range(args.rounds):
            for affinity in (True, False):
                rows.append(draw(args, home, args.seed + 2 * k + affinity, affinity))
                tables.print_line(" ".join(rows[-1]))
    columns = ["affinity", "results", "prefix hits", "picture hits", "pictures prepared", "seconds"]
    report.table(
        columns,
        sorted(rows, reverse=True),
        f"{len(args.vllm)} servers, {args.images} images a run, {args.candidates} candidates each "
        "in single requests, two prompts.",
    )
    report.close()


if __name__ == "__main__":
    main()
