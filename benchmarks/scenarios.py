"""Scenario files of the simulator, with a picture for each of their images.

    python benchmarks/scenarios.py replay FILE --set NAME --out DIR [--errors plain|claims|shared]
    python benchmarks/scenarios.py recorded FILE --set NAME --out DIR
    python benchmarks/scenarios.py world NAME --out DIR

`replay`: recorded answers of a real model, graded by a simulated grader. FILE is gzipped JSON:
{set: [{"edges": ["A>B"], "texts": [...], "draws": {"p1/0.7": [numbers of texts]}}]}.
`recorded`: answers and grades of real models. FILE: {set: [{"edges": [["A", "B"]], "draws":
{"p1/1.0": [texts]}, "grades": {text: [score, explanation]}}]}; only arms count whose texts all have
a grade. `world`: one of the worlds below, where nothing was recorded.

DIR gets scenario.json.gz, images/, prompts.json, and settings.json with the ranges to draw from.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HOME))

import pngs  # noqa: E402

from rsd.simulator.netlist import edges_of, normalise  # noqa: E402
from rsd.simulator.truth import pixels_of  # noqa: E402

WIDTH, HEIGHT = 64, 48
PROMPTS = tuple(f"p{k}" for k in range(1, 7))
#: Share of edges that a grader holds for the opposite, the same for every text: `claims` errs at
#: random, `shared` where the generator errs (least, and how much more).
CLAIM_ERRORS, SHARED_ERRORS = 0.12, (0.05, 0.4)
#: An arm is usual that nine tenths as many pictures have as the one that most have.
USUAL = 0.9
#: F1 that a misleading answer comes nearest to, and how often it is given instead of the real one.
MISLEADING, MISLED = 0.35, 0.5

#: Worlds: fields of the world and of the grader that differ from the defaults.
WORLDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mixed": ({}, {}),
    "one_good_prompt": ({"effects": (0.9, 0, 0, 0, 0, -0.3)}, {}),
    "all_equal": (
        {
            "effects": (0,) * 6,
            "image_prompt_sd": 0.15,
            "prompt_temperature_sd": 0.0,
            "curvature": 0.0,
            "top_p": 0.0,
            "top_k": 0.0,
            "draw_sd": (0.5, 0.5),
            "tail": (0.06, 0.0),
            "failures": (0.03, 0.0),
        },
        {},
    ),
    "noisy_judge": ({}, {"tau": 12.0, "text_sd": 6.0, "image_sd": 5.0}),
    "hard_clean": (
        {"levels": ((0.15, 1.3, 0.4), (0.35, 0.4, 0.5), (0.5, -0.7, 0.5))},
        {"tau": 3.0, "text_sd": 2.0, "image_sd": 2.0},
    ),
    "easy_saturated": ({"levels": ((0.8, 2.0, 0.5), (0.2, 1.0, 0.5))}, {"lenient": 6.0}),
    "drift": ({"effects_sd": 0.45, "drift": True}, {}),
}


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """What the daemon is to draw from."""

    temperatures: tuple[float, ...]
    top_ps: tuple[float, ...] = (0.9,)
    top_ks: tuple[int, ...] = (40,)


def write(folder: Path, document: dict[str, Any], ranges: Ranges) -> None:
    """Everything that a run needs, into a folder."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(document["images"]):
        data = pngs.png(WIDTH, HEIGHT, 1, number)
        image["pixels"] = pixels_of(data)
        (folder / f"images/i{number:05d}.png").write_bytes(data)
    document |= {"schema": "rsd.scenario/1", "prompts": prompts(document["prompts"])}
    packed = gzip.compress(json.dumps(document).encode(), mtime=0)
    (folder / "scenario.json.gz").write_bytes(packed)
    (folder / "prompts.json").write_text(json.dumps(document["prompts"]))
    (folder / "settings.json").write_text(json.dumps(ranges.__dict__))


def prompts(keys: list[str]) -> dict[str, str]:
    """Texts that tell the keys apart."""
    return {key: f"({key}) Write the netlist of this diagram." for key in keys}


# ----------------------------------------------------------------------------------- recorded


def load(file: Path, name: str) -> list[dict[str, Any]]:
    """The rows of a set."""
    sets = json.loads(gzip.decompress(file.read_bytes()))
    if name not in sets:
        raise SystemExit(f"{file} has no set {name!r}; it has {', '.join(sets)}")
    rows: list[dict[str, Any]] = sets[name]
    return rows


def f1(got: frozenset[tuple[str, str]], want: frozenset[tuple[str, str]]) -> float:
    """Of two sets of edges."""
    both = len(got) + len(want)
    return 2 * len(got & want) / both if both else 1.0


def arms_of(draws: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """`p1/0.7` -> p1 -> 0.7."""
    found: dict[str, dict[str, Any]] = {}
    for arm, drawn in draws.items():
        key, _, temperature = arm.partition("/")
        found.setdefault(key, {})[temperature] = drawn
    return found


def common_ranges(images: list[dict[str, Any]]) -> tuple[list[str], Ranges]:
    """Prompts, and the temperatures that every picture has with all of them; greedy ones are left
    out. As many arms as possible, and of these as many prompts. Draws of other prompts are dropped.
    """
    arms = set.intersection(
        *({(k, t) for k, ts in i["draws"].items() for t in ts if float(t) > 0} for i in images)
    )
    choices = [[k for k in PROMPTS if (k, t) in arms] for t in sorted({t for _, t in arms})]
    best: tuple[int, int, list[str], list[str]] = (0, 0, [], [])
    for keys in choices:
        temperatures = sorted({t for _, t in arms if all((k, t) in arms for k in keys)}, key=float)
        best = max(best, (len(keys) * len(temperatures), len(keys), keys, temperatures))
    for image in images:
        image["draws"] = {key: image["draws"][key] for key in best[2]}
    return best[2], Ranges(temperatures=tuple(float(t) for t in best[3]))


def replayed(
    rows: list[dict[str, Any]], seed: int, errors: str, tau: float, mislead: float
) -> tuple[dict[str, Any], Ranges]:
    """Recorded answers and a simulated grader."""
    images = []
    for number, row in enumerate(rows):
        rng = random.Random(f"{seed}|{number}")
        edges = [tuple(edge.split(">")) for edge in row["edges"]]
        want = frozenset((normalise(a), normalise(b)) for a, b in edges)
        sets = [edges_of(text) for text in row["texts"]]
        draws = row["draws"]
        if rng.random() < mislead:
            wrong = min(range(len(sets)), key=lambda t: abs(f1(sets[t], want) - MISLEADING))
            draws = {
                arm: [wrong if rng.random() < MISLED else t for t in drawn]
                for arm, drawn in draws.items()
            }
        image = {"edges": edges, "texts": row["texts"], "draws": arms_of(draws)}
        if errors != "plain":
            image["misjudged"] = misjudged(draws, sets, want, errors, rng)
        images.append(image)
    keys, ranges = common_ranges(images)
    grader = {"tau": tau}
    return {"seed": seed, "prompts": keys, "grader": grader, "images": images}, ranges


def misjudged(
    draws: dict[str, list[int]],
    sets: list[frozenset[tuple[str, str]]],
    want: frozenset[tuple[str, str]],
    errors: str,
    rng: random.Random,
) -> list[float]:
    """Points per text: F1 against what the grader believes, less F1 against the truth."""
    votes = Counter(edge for drawn in draws.values() for t in drawn for edge in sets[t])
    count = sum(map(len, draws.values()))
    least, more = SHARED_ERRORS
    believed = set()
    for edge in sorted({*votes, *want}):
        true, popular = edge in want, votes[edge] / count
        wrong = least + more * (1 - popular if true else popular)
        if true != (rng.random() < (CLAIM_ERRORS if errors == "claims" else wrong)):
            believed.add(edge)
    return [round(100 * (f1(s, frozenset(believed)) - f1(s, want)), 2) for s in sets]


def recorded(
    rows: list[dict[str, Any]], seed: int, arms: list[str]
) -> tuple[dict[str, Any], Ranges]:
    """Answers and grades of real models, of the pictures that have all of the arms."""
    images = []
    whole = [
        {
            arm: drawn
            for arm, drawn in row["draws"].items()
            if all(text in row["grades"] for text in drawn)
        }
        for row in rows
    ]
    if not arms:
        counts = Counter(a for kept in whole for a in kept if float(a.partition("/")[2]) > 0)
        most = max(counts.values(), default=0)
        arms = [arm for arm, count in counts.items() if count >= USUAL * most]
    for row, kept in zip(rows, whole, strict=True):
        if not arms or not set(arms) <= kept.keys():
            continue
        grades = row["grades"]
        kept = {arm: kept[arm] for arm in arms}
        texts = list(dict.fromkeys(text for drawn in kept.values() for text in drawn))
        number = {text: k for k, text in enumerate(texts)}
        draws = {arm: [number[text] for text in drawn] for arm, drawn in kept.items()}
        images.append(
            {
                "edges": row["edges"],
                "texts": texts,
                "draws": arms_of(draws),
                "grades": [grades[text] for text in texts],
            }
        )
    if not images:
        raise SystemExit("no picture of the set has these arms with grades of all texts")
    keys, ranges = common_ranges(images)
    grader = {"kind": "recorded"}
    return {"seed": seed, "prompts": keys, "grader": grader, "images": images}, ranges


# ------------------------------------------------------------------------------------- worlds


def world(name: str, count: int, seed: int) -> tuple[dict[str, Any], Ranges]:
    """One of WORLDS; the prompts' effects are drawn by the seed where they are not given."""
    fields, grader = WORLDS[name]
    fields = dict(fields)
    rng = random.Random(f"{seed}|effects")
    spread = fields.pop("effects_sd", 0.25)
    effects = fields.pop("effects", None) or tuple(rng.gauss(0, spread) for _ in PROMPTS)
    made = {"prompts": dict(zip(PROMPTS, effects, strict=True)), **fields}
    if made.pop("drift", False):
        later = rng.sample(effects, len(effects))
        made |= {"later_prompts": dict(zip(PROMPTS, later, strict=True)), "later_shift": -0.3}
    images: list[dict[str, Any]] = [{} for _ in range(count)]
    document = {
        "seed": seed,
        "prompts": list(PROMPTS),
        "grader": grader,
        "world": made,
        "images": images,
    }
    ranges = Ranges(temperatures=(0.3, 0.7, 1.0), top_ps=(0.7, 0.9), top_ks=(40, 60, 80))
    return document, ranges


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind in ("replay", "recorded", "world"):
        one = kinds.add_parser(kind)
        if kind == "world":
            one.add_argument("name", choices=WORLDS)
        else:
            one.add_argument("file", type=Path)
            one.add_argument("--set", required=True)
        if kind == "recorded":
            one.add_argument("--arms", nargs="+", default=[], metavar="ARM", help="such as p1/1.0")
        if kind == "replay":
            one.add_argument("--errors", choices=("plain", "claims", "shared"), default="plain")
            one.add_argument("--tau", type=float, default=6.0, help="of each grading, in points")
            one.add_argument("--mislead", type=float, default=0.0, help="share of the pictures")
        one.add_argument("--out", type=Path, required=True)
        one.add_argument("--images", type=int, default=0, help="so many; 0: all, of a world 100")
        one.add_argument("--seed", type=int, default=1)
    return parser.parse_args(words)


def make(args: argparse.Namespace) -> int:
    """The files; how many pictures."""
    if args.kind == "world":
        document, ranges = world(args.name, args.images or 100, args.seed)
    else:
        rows = load(args.file, args.set)
        if args.kind == "recorded":
            document, ranges = recorded(rows, args.seed, args.arms)
        else:
            rows = rows[: args.images or None]
            document, ranges = replayed(rows, args.seed, args.errors, args.tau, args.mislead)
    document["images"] = document["images"][: args.images or None]
    write(args.out, document, ranges)
    return len(document["images"])


def main() -> None:
    """Write the files."""
    args = parse()
    print(f"{args.out}: {make(args)} pictures")


if __name__ == "__main__":
    main()
