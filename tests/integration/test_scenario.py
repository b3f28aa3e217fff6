"""A scenario, played by the real simulator to the real daemon."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from rsd.simulator.answers import Params
from rsd.simulator.scenario import Scenario, load
from rsd.simulator.scene import Scene
from rsd.simulator.truth import pixels_of
from tests.support import HOME, Daemon, draw, simulator

PROMPTS = {"p1": "First way.", "p2": "Second way."}
IMAGES, CANDIDATES, REPEATS = 6, 6, 2
SETTINGS = {
    "RSD_SAMPLING_STRATEGY": "random",
    "RSD_SAMPLING_CANDIDATES": str(CANDIDATES),
    "RSD_GENERATION_MAX_N": "1",
    "RSD_GRADING_REPEATS": str(REPEATS),
}


def written(folder: Path, kind: str) -> tuple[Path, dict[str, str]]:
    """A scenario about six pictures, and the digest of each one's pixels by its name."""
    (folder / "images").mkdir()
    pictures = [draw(folder / f"images/i{k}.png", k) for k in range(IMAGES)]
    pixels = {path.name: pixels_of(path.read_bytes()) for path in pictures}
    data = {"schema": "rsd.scenario/1", "seed": 3, "prompts": PROMPTS}
    if kind == "world":
        images = [{"pixels": each} for each in pixels.values()]
        document = data | {"world": {"prompts": {"p1": 1.0, "p2": 0.0}}, "images": images}
    else:
        texts = [f"{name} --> B{k}" for name in pixels for k in range(20)]
        images = [
            {
                "pixels": each,
                "edges": [[name, "B1"], [name, "B2"]],
                "texts": texts[20 * k : 20 * k + 20],
                "draws": {"p1": {"0.5": list(range(10))}, "p2": {"0.5": list(range(10, 20))}},
            }
            for k, (name, each) in enumerate(pixels.items())
        ]
        document = data | {"images": images}
    path = folder / "scenario.json"
    path.write_text(json.dumps(document))
    (folder / "prompts.json").write_text(json.dumps(PROMPTS))
    return path, pixels


@pytest.mark.parametrize("kind", ["replay", "world"])
def test_a_run_sees_what_the_scenario_says(tmp_path: Path, kind: str) -> None:
    path, pixels = written(tmp_path, kind)
    scene = Scene(msgspec.json.decode(path.read_bytes(), type=Scenario))
    prompts = str(tmp_path / "prompts.json")
    flags = ("--prompts", prompts, "--temperature-range", "0.5,1.0")
    with simulator("--scenario", str(path)) as sim:
        daemon = Daemon(tmp_path, sim, *flags, **SETTINGS)
        done = daemon.once()
        assert done.returncode == 0, done.stderr
        found = daemon.results()
        assert sim.stats("generator")["calls"]["repeated"] == 0
    assert found.keys() == pixels.keys()
    seen = 0
    for name, document in found.items():
        for one in document["all_candidates"]:
            seen += 1
            params = {k: one["params"][k] for k in ("temperature", "top_p", "top_k")}
            seed = one["params"]["seed"]
            made = scene.candidate(pixels[name], PROMPTS[one["prompt_key"]], Params(**params), seed)
            assert one["content"] == made.text and one["finish_reason"] == "stop"
            assert one["usage"] == {
                "prompt_tokens": 1300,
                "completion_tokens": made.tokens,
                "grading_prompt_tokens": REPEATS * 2480,
                "grading_completion_tokens": REPEATS * 850,
            }
            assert [grade["score"] for grade in one["grades"]] == [
                scene.grades(pixels[name], [made.text], number)[0].score
                for number in range(REPEATS)
            ]
    if kind == "replay":
        assert seen == IMAGES * CANDIDATES
    else:  # what is cut is never graded
        assert IMAGES * CANDIDATES * 0.7 < seen <= IMAGES * CANDIDATES


def test_a_bad_scenario_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    path = tmp_path / "scenario.json"
    path.write_text('{"schema": "rsd.scenario/1", "prompts": {"p1": "One"}, "images": [{}]}')
    done = subprocess.run(
        [sys.executable, str(HOME / "daemon.py"), "simulate", "--scenario", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert f"--scenario {path}: not usable" in done.stderr and "$.images[0]" in done.stderr


#: What `scenarios.py` reads, one picture each.
RECORDS = {
    "replay": {
        "edges": ["A>B"],
        "texts": ["A --> B", "B --> A"],
        "draws": {"p1/0.7": [0, 1], "p2/0.7": [1, 1], "p2/1.0": [0]},
    },
    "recorded": {
        "edges": [["A", "B"]],
        "draws": {"p1/1.0": ["A --> B", "B --> A"], "p2/1.0": ["nothing"]},
        "grades": {"A --> B": [90, "good"], "B --> A": [10, "bad"]},
    },
}


@pytest.mark.parametrize("kind", ["replay", "recorded", "world"])
def test_scenarios_are_written_as_they_are_read(tmp_path: Path, kind: str) -> None:
    source, out = tmp_path / "records.json.gz", tmp_path / "out"
    source.write_bytes(gzip.compress(json.dumps({"one": [RECORDS.get(kind)] * 3}).encode()))
    words = ["drift"] if kind == "world" else [str(source), "--set", "one"]
    script = [sys.executable, str(HOME / "benchmarks/scenarios.py"), kind, *words]
    subprocess.run([*script, "--out", str(out), "--images", "3"], check=True, timeout=60)
    scenario = load(out / "scenario.json.gz")
    pictures = sorted((out / "images").iterdir())
    assert [pixels_of(path.read_bytes()) for path in pictures] == [
        image.pixels for image in scenario.images
    ]
    assert json.loads((out / "prompts.json").read_text()) == scenario.prompts
    ranges = json.loads((out / "settings.json").read_text())
    wanted = {"replay": [0.7], "recorded": [1.0], "world": [0.3, 0.7, 1.0]}
    assert len(pictures) == 3 and ranges["temperatures"] == wanted[kind]
    assert (
        list(scenario.prompts)
        == {
            "replay": ["p1", "p2"],
            "recorded": ["p1"],
            "world": [f"p{k}" for k in range(1, 7)],
        }[kind]
    )
    if kind == "recorded":
        played = Scene(scenario)
        assert played.grades(scenario.images[0].pixels, ["B --> A"], 0)[0].score == 10
