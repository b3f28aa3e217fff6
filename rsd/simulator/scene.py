"""A scenario, played: which text a seed draws, and which grade a text gets. Pure.

Everything is decided by the scenario, its seed and what is asked: a call that is repeated is
answered alike, in whatever order calls come.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection
from dataclasses import dataclass

from rsd.simulator import world
from rsd.simulator.answers import Params, diversity, explain
from rsd.simulator.netlist import Edge, Graph, edge_f1, edges_of
from rsd.simulator.rules import digest, share
from rsd.simulator.scenario import Scenario, temperature_of
from rsd.simulator.world import Made


@dataclass(frozen=True, slots=True)
class Graded:
    """A grader's verdict of a text."""

    score: float
    explanation: str


def _nearest(temperatures: Collection[str], wanted: float) -> str:
    """The nearest recorded temperature; of two, the lower."""
    known = {name: temperature_of(name) for name in temperatures}
    return min(known, key=lambda name: (round(abs(known[name] - wanted), 9), known[name]))


class Scene:
    """A scenario in use."""

    def __init__(self, scenario: Scenario) -> None:
        """The scenario is valid: `scenario.check` says so."""
        self._scenario = scenario
        self._number = {image.pixels: k for k, image in enumerate(scenario.images)}
        self._keys = {text.strip(): key for key, text in scenario.prompts.items()}
        self._texts: dict[str, dict[str, int]] = {}  # of each picture that was graded

    def __contains__(self, pixels: str) -> bool:
        return pixels in self._number

    # --------------------------------------------------------------------------- candidates

    def candidate(self, pixels: str, prompt: str, params: Params, seed: int) -> Made:
        """The answer that a seed draws. Raises KeyError for a picture of no scenario."""
        number = self._number[pixels]
        if self._scenario.world is not None:
            key = self._key(prompt, self._scenario.prompts)
            return world.made(self._scenario, self._scenario.world, number, key, params, seed)
        image = self._scenario.images[number]
        key = self._key(prompt, image.draws)
        name = _nearest(image.draws[key], params.temperature)
        drawn, place = image.draws[key][name], 0
        if diversity(params) > 0:
            # In an order of its own for each picture and arm: seeds one after the other draw
            # different places, until all are drawn.
            salt = f"order|{self._scenario.seed}|{pixels}|{key}|{name}"
            order = random.Random(salt).sample(range(len(drawn)), len(drawn))
            place = order[seed % len(drawn)]
        return Made(image.texts[drawn[place]], self._scenario.tokens.candidate[1], False)

    def input_tokens(self) -> int:
        """Of asking for candidates."""
        return self._scenario.tokens.candidate[0]

    def _key(self, prompt: str, keys: Collection[str]) -> str:
        """The key of a prompt's text; of an unknown text any one, always the same."""
        known = self._keys.get(prompt.strip())
        if known is not None and known in keys:
            return known
        ordered = sorted(keys)
        return ordered[int(len(ordered) * share("prompt", self._scenario.seed, prompt.strip()))]

    # -------------------------------------------------------------------------------- grades

    def truth(self, pixels: str) -> Graph:
        """What the picture shows. Raises KeyError for a picture of no scenario."""
        image = self._scenario.images[self._number[pixels]]
        if self._scenario.world is not None:
            return world.truth_of(pixels, self._scenario.world.claims)
        names = tuple(dict.fromkeys(name for edge in image.edges for name in edge))
        return Graph(names, tuple(Edge(a, b) for a, b in image.edges))

    def quality(self, pixels: str, text: str) -> float:
        """100 times the F1 of a text's edges."""
        return 100 * edge_f1(text, self.truth(pixels))

    def grades(self, pixels: str, texts: list[str], number: int) -> list[Graded]:
        """The grades of one call; `number` tells gradings of the same texts apart."""
        texts = [text.strip() for text in texts]
        if self._scenario.grader.kind == "recorded":
            return [self._recorded(pixels, text) for text in texts]
        # Whatever order they are shown in, and whoever asks again.
        call = digest(pixels, number, *sorted(texts))
        return [self._noisy(pixels, text, call, len(texts)) for text in texts]

    def grading_tokens(self, count: int) -> tuple[int, int, int]:
        """Of a call with so many texts: input, output, of which reasoning."""
        tokens = self._scenario.tokens
        given = tokens.grading[0] + count * tokens.graded[0]
        return given, tokens.grading[1] + count * tokens.graded[1], tokens.grading[1]

    def _recorded(self, pixels: str, text: str) -> Graded:
        image = self._scenario.images[self._number[pixels]]
        number = self._text_number(pixels, text)
        exact = image.grades[number] if number is not None else None
        if exact is not None:
            return Graded(*exact)
        best: tuple[float, Graded] | None = None
        claims = edges_of(text)
        for known, grade in zip(image.texts, image.grades, strict=True):
            if grade is None:
                continue
            others = edges_of(known)
            both = len(claims) + len(others)
            near = 2 * len(claims & others) / both if both else 0.0
            if best is None or near > best[0]:
                best = near, Graded(*grade)
        return best[1] if best is not None else Graded(0.0, "Nothing like it was recorded.")

    def _noisy(self, pixels: str, text: str, call: str, together: int) -> Graded:
        grader = self._scenario.grader

        def source(*parts: str) -> random.Random:
            return random.Random("|".join(("grade", str(self._scenario.seed), *parts)))

        points = self.quality(pixels, text) + grader.lenient
        points += grader.image_sd * source("image", pixels).gauss(0, 1)
        points += self._misjudged(pixels, text, source("text", pixels, text))
        if together > 1:
            points += grader.call_sd * source("call", call).gauss(0, 1)
        own = source("own", call, text)
        points += grader.tau * own.gauss(0, 1)
        gross, any_score, rounding = own.random(), own.uniform(20, 95), own.random()
        if gross < grader.gross:
            points = any_score
        if points > grader.knee:
            points = grader.knee + grader.slope * (points - grader.knee)
        step = grader.step if rounding < grader.rounded else 1.0
        points = step * math.floor(min(100.0, max(0.0, points)) / step + 0.5)
        return Graded(min(100.0, points), explain(self.truth(pixels), text))

    def _misjudged(self, pixels: str, text: str, source: random.Random) -> float:
        misjudged = self._scenario.images[self._number[pixels]].misjudged
        number = self._text_number(pixels, text)
        if misjudged and number is not None:
            return misjudged[number]
        return self._scenario.grader.text_sd * source.gauss(0, 1)

    def _text_number(self, pixels: str, text: str) -> int | None:
        """Which recorded text of the picture it is; of equal ones the first."""
        if pixels not in self._texts:
            known: dict[str, int] = {}
            for number, each in enumerate(self._scenario.images[self._number[pixels]].texts):
                known.setdefault(each.strip(), number)
            self._texts[pixels] = known
        return self._texts[pixels].get(text)
