"""`daemon.py demo`: the whole job on this machine, with simulated models: no GPU, no key."""

from __future__ import annotations

import argparse
import json
import selectors
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rsd.commands import progress
from rsd.commands.preflight import prepare_output
from rsd.commands.status import status_of
from rsd.errors import UserError
from rsd.hub import recipe, supervisor
from rsd.settings import load, validate
from rsd.settings.fields import Settings, state_dir
from rsd.simulator.server import samples_folder

#: Seconds that the simulator may take to listen.
START_SECONDS = 30.0
#: Seconds that it may take to end.
STOP_SECONDS = 10.0
#: Cells of the table beside the file's name, and characters of `_<id>.json` at the name's end.
OTHER_COLUMNS, TAIL = 54, 18
#: Exit code of a run that Ctrl-C ended.
INTERRUPTED = 130
#: Mean seconds of a simulated call: enough to watch the progress bar.
SERVICE_SECONDS = 0.3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `demo`."""
    parser.add_argument("--output-dir", metavar="DIR", help="default: demo-output/<time>")


def main(args: argparse.Namespace) -> int:
    """Exit codes: 0 files and status agree, 1 they do not."""
    output = Path(args.output_dir or time.strftime("demo-output/%Y%m%d-%H%M%S"))
    if output.exists() and any(output.iterdir()):
        raise UserError(f"--output-dir = {output}: is not empty")
    out = Console(highlight=False)
    out.print("[bold]rsd demo[/]: the models are simulated, pictures, code and files are real.")
    began = time.monotonic()
    home = samples_folder().parent
    simulator = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "rsd.simulator",
            *("--port", "0", "--grader-port", "0"),
            *("--service-seconds", str(SERVICE_SECONDS)),
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=home,
        start_new_session=True,  # Ctrl-C is for the run, which drains; it needs its models for that
    )
    try:
        urls = _urls(simulator)
        settings = load.load(
            {
                "image_dir": str(samples_folder()),
                "output_dir": str(output),
                "prompts": str(home / "prompts/generation_prompts.json"),
                "grading_prompt": str(home / "prompts/grading_prompt.json"),
                "generation.api": [urls["generator"]],
                "grading.api": [urls["grader"]],
                "watch.settle_seconds": 0.5,
            },
            environ={},
        )
        validate.check_for_run(settings)
        prepare_output(settings)
        with closing(progress.shown()) as bar:
            code = supervisor.run(
                settings,
                recipe.load_recipe(settings),
                once=True,
                on_progress=bar.show,
                stderr_log=False,
            )
    finally:
        end(simulator)
    if code == INTERRUPTED:
        return code
    results = render(out, settings)
    problems = compare(settings, results)
    took = f"{time.monotonic() - began:.0f} s"
    where = escape(str(output))
    out.print(f"\nResults, simulated: {where}  ({took})", soft_wrap=True)
    out.print(f"Look at one: python daemon.py show IMAGE --output-dir {where}", soft_wrap=True)
    for problem in problems:
        out.print(f"[red]wrong[/] {escape(problem)}")
    if not problems:
        out.print("Files, status and summary agree.")
    return 1 if problems or code else 0


def _urls(simulator: subprocess.Popen[str]) -> dict[str, str]:
    assert simulator.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(simulator.stdout, selectors.EVENT_READ)
        line = simulator.stdout.readline() if selector.select(START_SECONDS) else ""
    if not line:
        raise UserError("the simulator did not start; `daemon.py simulate` may tell why")
    urls: dict[str, str] = json.loads(line)
    return urls


def end(simulator: subprocess.Popen[str]) -> None:
    """Stop the simulator, and do not wait for ever."""
    simulator.terminate()
    try:
        simulator.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        simulator.kill()
        simulator.wait()
    if simulator.stdout is not None:
        simulator.stdout.close()


def render(out: Console, settings: Settings) -> list[dict[str, Any]]:
    """Print a netlist and the table; returns all result documents."""
    output = Path(settings.output_dir)
    results = []
    table = Table(
        title="Simulated results: <image>_<id>.json in high_quality/ or low_quality/",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("file", no_wrap=True, min_width=4 + TAIL)
    for name in ("graded", "best", "quality", "prompt", "T", "top_p", "top_k"):
        table.add_column(name, no_wrap=True)
    for folder in ("high_quality", "low_quality"):
        for path in sorted((output / folder).glob("*.json")):
            document = msgspec.json.decode(path.read_bytes())
            results.append(document)
            best, scored = document["best_result"], document["all_candidates"]
            graded = [c for c in scored if c["same_as"] is None]
            params = best["params"]
            table.add_row(
                escape(shortened(path.name, out.width - OTHER_COLUMNS)),
                f"{len(graded)} of {len(scored) + document['ungraded_candidates']}",
                f"{best['score']:.1f}",
                document["quality"],
                best["prompt_key"],
                f"{params['temperature']:g}",
                f"{params['top_p']:g}",
                str(params["top_k"]),
            )
    shown = next((d for d in results if "block_simple" in d["image_info"]["filename"]), None)
    shown = shown or (results[0] if results else None)
    if shown is not None:
        best = shown["best_result"]
        name = shown["image_info"]["filename"]
        out.print(f"\nSimulated netlist of {escape(name)}, score {best['score']:.1f}:\n")
        out.print(escape(best["content"]))
        out.print()
    out.print(table)
    return results


def shortened(name: str, width: int) -> str:
    """A result file's name in so many cells of a terminal, or in as many as its id and three more
    need: what is left out is the end of the image's name.
    """
    tail = name[-TAIL:]
    room = max(3, width - cell_len(tail) - 1)
    if cell_len(name) <= room + 1 + cell_len(tail):
        return name
    return set_cell_size(name[:-TAIL], room).rstrip() + "…" + tail


def compare(settings: Settings, results: list[dict[str, Any]]) -> list[str]:
    """Files against status and summary; what differs, in words."""
    output = Path(settings.output_dir)
    images = status_of(state_dir(settings).resolve()).images
    found: list[str] = []
    try:
        summary = msgspec.json.decode((output / "summary.json").read_bytes())["stats"]
    except OSError as e:
        return [f"summary.json: {e.strerror}"]

    def equal(what: str, one: Any, other: Any) -> None:
        if one != other:
            found.append(f"{what}: {one} and {other}")

    for folder, count in (
        ("high_quality", images.high_quality),
        ("low_quality", images.low_quality),
        ("failed", images.failed),
    ):
        files = len(list((output / folder).glob("*.json")))
        equal(f"{folder} files and status", files, count)
        equal(f"{folder} files and summary", files, summary[f"{folder}_count"])
    equal("status seen and its sum", images.seen, images.parts)
    equal("status seen and summary", images.seen, summary["total_samples"])
    both = summary["high_quality_count"] + summary["low_quality_count"]
    equal("summary processed and its sum", summary["processed_samples"], both)
    pictures = [p for p in Path(settings.image_dir).iterdir() if p.suffix in (".png", ".jpg")]
    equal("pictures and results", len(pictures), len(results))
    for document in results:
        best, name = document["best_result"], document["image_info"]["filename"]
        scores = [g["score"] for g in best["grades"]]
        equal(f"{name}: best score and its grades", best["score"], sum(scores) / len(scores))
        same = [c for c in document["all_candidates"] if c["is_best"]] == [best]
        equal(f"{name}: its best candidate is among all", same, True)
    if not results:
        found.append("no picture was processed")
    return found
