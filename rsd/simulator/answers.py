"""The simulated models: candidates and grades as pure functions of what is asked.

A candidate is the picture's graph with seeded errors. How many depends on the picture, the prompt
and the parameters; how much two seeds differ depends on temperature, top-p, top-k and min-p. A
grade is computed from the candidate's text alone: edge F1 against the truth, plus noise.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Final

from rsd.simulator.netlist import Edge, Graph, edge_f1, edges_of, lines_of, truth_edges
from rsd.simulator.rules import share

__all__ = [
    "Params",
    "candidate_text",
    "diversity",
    "edge_f1",
    "error_rate",
    "explain",
    "grade",
    "words",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """What an answer is drawn with, as vLLM names it."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float = 0.0
    repetition_penalty: float = 1.0


#: What a Qwen2.5-VL server draws with when a request leaves a parameter out.
MODEL_DEFAULTS: Final = Params(temperature=0.1, top_p=0.001, top_k=1, repetition_penalty=1.05)
#: top-k from which on it no longer narrows what is drawn.
_WIDE_TOP_K: Final = 40
#: Temperature above which an answer may fall apart.
_HOT: Final = 1.3
#: Points that a candidate loses per place in a list, and most of them.
_PLACE_MALUS: Final = 0.5
_MALUS_MAX: Final = 4.0
_LOOKALIKES: Final = {"O": "0", "0": "O", "l": "1", "1": "l", "I": "l", "S": "5", "B": "8"}
_INTRODUCTIONS: Final = (
    "Netlist of the diagram:",
    "Here are the connections that I can see in the picture.",
    "The diagram consists of several blocks. Its connections are:",
)
_WORDS: Final = (
    *("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "haven", "inlet", "jetty"),
    *("knoll", "larch", "maple", "noble", "ocean", "pearl", "quartz", "ridge", "slate", "thorn"),
)


def diversity(params: Params) -> float:
    """How far two seeds may differ, 0 (greedy: not at all) to 1."""
    if params.temperature == 0 or params.top_k == 1:
        return 0.0
    narrow = 1.0 if params.top_k <= 0 else min(1.0, math.log(params.top_k, _WIDE_TOP_K))
    spread = min(1.0, params.temperature) * min(1.0, params.top_p / 0.9)
    return spread * narrow * (1.0 - 0.8 * params.min_p)


def error_rate(pixels: str, prompt: str, params: Params, base_seed: int = 0) -> float:
    """Share of edges that go wrong on average, 0 to 0.9."""
    hard = share("picture", base_seed, pixels)
    clumsy = share("prompt", base_seed, prompt)
    heat = diversity(params) * max(0.0, params.temperature - 0.3)
    penalty = abs(params.repetition_penalty - 1.0)
    return min(0.9, 0.08 + 0.5 * hard + 0.2 * clumsy + 0.14 * heat + 0.3 * penalty)


class _Draws:
    """Random numbers that are the model's greedy choice or the seed's own, by the diversity."""

    def __init__(self, habit: str, seeded: str, mixed: float) -> None:
        self._habit, self._seeded = random.Random(habit), random.Random(seeded)
        self._mixed = mixed

    def number(self) -> float:
        """From 0 up to 1. Both sources advance, so that the draws of two seeds stay in step."""
        habit, own, coin = self._habit.random(), self._seeded.random(), self._seeded.random()
        return own if coin < self._mixed else habit

    def pick(self, items: tuple[str, ...]) -> str:
        """One of the items."""
        return items[int(self.number() * len(items))]


def candidate_text(
    truth: Graph,
    pixels: str,
    prompt: str,
    params: Params,
    seed: int,
    base_seed: int = 0,
) -> str:
    """One answer about a picture. Greedy parameters give the same text for every seed."""
    draws = _draws(params, base_seed, seed, pixels, prompt)
    wrong = error_rate(pixels, prompt, params, base_seed) * (0.4 + 1.2 * draws.number())
    edges: list[Edge] = []
    for edge in truth.edges:
        fate, kind, where = draws.number(), draws.number(), draws.pick(truth.nodes)
        if fate >= wrong:
            edges.append(edge)
        elif kind < 0.4:
            continue
        elif kind < 0.6:
            edges.append(Edge(edge.target, edge.source, edge.label))
        elif kind < 0.8:
            edges.append(Edge(_misread(edge.source, draws.number()), edge.target, edge.label))
        else:
            edges.append(Edge(edge.source, where, edge.label))
    for _ in range(2):
        fate, a, b = draws.number(), draws.pick(truth.nodes), draws.pick(truth.nodes)
        if fate < wrong and a != b:
            edges.append(Edge(a, b))
    text = "\n".join(lines_of(edges, directed=truth.directed)) or "No connections."
    return _dressed(text, params, draws)


def _draws(params: Params, base_seed: int, seed: int, *asked: str) -> _Draws:
    habit = f"{base_seed}|{asked}"
    return _Draws(habit, f"{habit}|{params}|{seed}", diversity(params))


def _misread(label: str, draw: float) -> str:
    """A label with one character mistaken, lost or doubled."""
    at = int(draw * len(label))
    seen = label[at : at + 1]
    if seen in _LOOKALIKES:
        return label[:at] + _LOOKALIKES[seen] + label[at + 1 :]
    if len(label) > 3 and not seen.isspace():
        return label[:at] + label[at + 1 :]
    return label + label[-1:]


def _dressed(text: str, params: Params, draws: _Draws) -> str:
    style, words_ = draws.number(), draws.pick(_INTRODUCTIONS)
    mad = draws.number()
    if mad < 0.4 * max(0.0, params.temperature - _HOT):
        return f"{words_} {words_} The arrows lead from box to box, and so on, and so on."
    if style < 0.12:
        return f"```\n{text}\n```"
    if style < 0.3:
        return f"{words_}\n\n{text}"
    if style < 0.36:
        return "\n".join(f"- {line}" for line in text.splitlines())
    return text


def words(prompt: str, params: Params, seed: int, base_seed: int = 0) -> str:
    """The answer to a prompt without a picture: twelve words, the same for the same seed."""
    greedy = diversity(params) == 0
    rng = random.Random(f"words|{base_seed}|{prompt}|{params}|{'' if greedy else seed}")
    return " ".join(rng.choice(_WORDS) for _ in range(12))


def grade(
    text: str,
    truth: Graph,
    pixels: str,
    *,
    position: int = 0,
    call: int = 0,
    noise: float = 8.0,
    base_seed: int = 0,
) -> float:
    """A grader's score of a candidate, 0 to 100, one decimal.

    100 times the edge F1, plus seeded noise (`noise`: standard deviation in points), less a little
    for a later `position` in a list (from 0; 0 also for a pointwise call). `call` tells repeated
    grades of the same text apart.
    """
    text = text.strip()
    rng = random.Random(f"grade|{base_seed}|{pixels}|{call}|{text}")
    score = 100 * edge_f1(text, truth) + rng.gauss(0, noise)
    score -= min(_MALUS_MAX, _PLACE_MALUS * position)
    return round(min(100.0, max(0.0, score)), 1)


def explain(truth: Graph, text: str) -> str:
    """The grader's words: what is right, invented and missing."""
    got, want = edges_of(text, directed=truth.directed), truth_edges(truth)
    right, extra, lost = len(got & want), len(got - want), len(want - got)
    return (
        f"Simulated judgement: {right} of {len(want)} connections are right, {extra} are not in "
        f"the picture, {lost} are missing."
    )
