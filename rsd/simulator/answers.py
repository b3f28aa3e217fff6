"""The simulated models: candidates and grades as pure functions of what is asked.

A candidate is the picture's graph with seeded errors, whose amount depends on the prompt and on the
sampling parameters; its grade is computed from its text: edge F1 against the truth, plus noise.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from rsd.simulator.truth import Graph

_WORDS: Final = [
    "amber",
    "birch",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "grove",
    "haven",
    "inlet",
    "jetty",
    "knoll",
    "larch",
]
_EDGE = re.compile(r"^\s*(?:[-*•]\s+|\d+[.)]\s+)?(.+?)\s*(<-->|<->|-->|->|<--|<-|--)\s*(.+?)\s*$")


@dataclass(frozen=True, slots=True)
class Params:
    """What a request draws with."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    repetition_penalty: float = 1.0


def _share(text: str) -> float:
    """A number from 0 to 1 that a text decides."""
    return int.from_bytes(blake2b(text.encode(), digest_size=4).digest(), "big") / 0xFFFFFFFF


def candidate_text(graph: Graph, pixels: str, prompt: str, params: Params, seed: int) -> str:
    """One answer. At temperature 0 the seed makes no difference."""
    cold = params.temperature == 0
    drawn = "cold" if cold else f"{params}:{seed}"
    rng = random.Random(f"{pixels}:{prompt}:{drawn}")
    wide = 1.0 if params.top_k <= 0 else min(1.0, params.top_k / 50)
    spread = params.temperature * (0.4 + 0.6 * params.top_p) * (0.5 + 0.5 * wide)
    wrong = (0.10 + 0.30 * _share(f"prompt:{prompt}")) * (0.4 + 1.6 * _share(f"hard:{pixels}"))
    if not cold:
        wrong = wrong * max(0.0, 1 + 0.8 * spread * rng.gauss(0, 1)) + 0.03 * spread
    wrong = min(0.85, wrong)
    lines = []
    for start, end, label in graph.edges:
        if rng.random() < wrong:
            kind = rng.random()
            if kind < 0.5:
                continue
            if kind < 0.75 and graph.directed:
                start, end = end, start
            elif kind < 0.9:
                start = misread(start, rng)
            else:
                end = rng.choice(graph.nodes)
        arrow = "-->" if graph.directed else "--"
        lines.append(f"{start} {arrow} {end}" + (f" : {label}" if label else ""))
    if rng.random() < wrong and len(graph.nodes) > 1:
        a, b = rng.sample(graph.nodes, 2)
        lines.append(f"{a} {'-->' if graph.directed else '--'} {b}")
    text = "\n".join(lines) or "no connections"
    style = rng.random()
    if style < 0.15:
        return f"```\n{text}\n```"
    if style < 0.25:
        return f"Netlist of the diagram:\n\n{text}"
    return text


def misread(label: str, rng: random.Random) -> str:
    """A label with one character wrong."""
    if not label:
        return "?"
    at = rng.randrange(len(label))
    return label[:at] + rng.choice("0O1lI8BS5Z") + label[at + 1 :]


def words(prompt: str, params: Params, seed: int) -> str:
    """The answer to a prompt without a picture."""
    rng = random.Random(f"{prompt}:{params}:{'' if params.temperature == 0 else seed}")
    return " ".join(rng.choice(_WORDS) for _ in range(8))


def _name(text: str) -> str:
    return " ".join(text.strip().strip("`*\"'[]").casefold().split())


def edges_of(text: str) -> set[tuple[str, str]]:
    """The directed edges that an answer claims; lines that are no edge are left out."""
    found: set[tuple[str, str]] = set()
    for line in text.splitlines():
        match = _EDGE.match(line)
        if match is None:
            continue
        start, arrow, rest = match.groups()
        end = rest.partition(" : ")[0]
        a, b = _name(start), _name(end)
        if not a or not b:
            continue
        if arrow in ("-->", "->", "<->", "<-->", "--"):
            found.add((a, b))
        if arrow in ("<--", "<-", "<->", "<-->", "--"):
            found.add((b, a))
    return found


def edge_f1(text: str, graph: Graph) -> float:
    """F1 of the directed edges, 0 to 1; an undirected edge counts in both directions."""
    want: set[tuple[str, str]] = set()
    for start, end, _ in graph.edges:
        want.add((_name(start), _name(end)))
        if not graph.directed:
            want.add((_name(end), _name(start)))
    got = edges_of(text)
    if not got and not want:
        return 1.0
    return 2 * len(got & want) / (len(got) + len(want))


def grade(text: str, graph: Graph, pixels: str, *, position: int, call: int, noise: float) -> float:
    """100 times the F1 plus noise (standard deviation in points), 0 to 100, one decimal.

    `position` in a list adds a little bias; `call` is the request's seed, so that repeated grades
    differ.
    """
    rng = random.Random(f"grade:{pixels}:{text}:{position}:{call}")
    score = 100 * edge_f1(text, graph) + rng.gauss(0, noise) - 0.5 * position
    return round(min(100.0, max(0.0, score)), 1)
