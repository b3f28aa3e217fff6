"""Pictures and answers that nobody has: a world of `scenario.World`, played. Pure.

A quality is decided first, then a netlist is made up that has it: as many edges as the picture
has, so that F1 is the share of right ones. Which ones are wrong, and how, is the seed's own.
"""

from __future__ import annotations

import functools
import math
import random
from dataclasses import dataclass
from typing import Final

from rsd.simulator.answers import Params, diversity
from rsd.simulator.netlist import Edge, Graph, lines_of
from rsd.simulator.scenario import Scenario, World

#: Truths that are remembered, a few kilobytes each.
TRUTHS_KEPT: Final = 1_024
_LETTERS: Final = "ABCDFGHKLMPRSTVX"
#: From this temperature on draws fail more often.
_HOT: Final = 1.0
#: Best temperatures lie within.
_COOLEST, _WARMEST = 0.0, 1.3
#: Mean of how far a much worse draw falls, in logits.
_FALL: Final = 1.5
#: Quality of a broken answer, at most.
_BROKEN: Final = 15.0
#: Spread of an answer's length (sigma of its logarithm, corrected mean), shortest, and longest.
_LENGTH_SIGMA, _LENGTH_SHIFT = 0.25, -0.03
_SHORTEST, _LONGEST = 80, 1024


@dataclass(frozen=True, slots=True)
class Made:
    """An answer: its text, its tokens, and whether it is cut off."""

    text: str
    tokens: int
    cut: bool


@functools.lru_cache(maxsize=TRUTHS_KEPT)
def truth_of(pixels: str, claims: int) -> Graph:
    """The directed graph behind a picture, with so many edges."""
    rng = random.Random(f"world truth|{pixels}")
    size = 4 + math.isqrt(2 * claims)
    nodes = tuple(
        f"{rng.choice('ABCDFGHKLMPRSTVX')}{number}" for number in rng.sample(range(100), size)
    )
    pairs = rng.sample([(a, b) for a in nodes for b in nodes if a != b], claims)
    return Graph(nodes, tuple(Edge(a, b) for a, b in pairs))


def made(
    scenario: Scenario, world: World, number: int, key: str, params: Params, seed: int
) -> Made:
    """The answer about the `number`-th picture. Greedy parameters: the same for every seed."""
    pixels = scenario.images[number].pixels
    own = "" if diversity(params) == 0 else str(seed)
    name = (params.temperature, params.top_p, params.top_k)
    rng = random.Random(f"world draw|{scenario.seed}|{pixels}|{key}|{name}|{own}")
    hot = params.temperature >= _HOT
    low, high = world.draw_sd
    z = level(scenario, world, number, key, params)
    z += (low + (high - low) * params.temperature) * rng.gauss(0, 1)
    fall, fell = rng.expovariate(1 / _FALL), rng.random() < world.tail[0] + world.tail[1] * hot
    quality = 100 / (1 + math.exp(-(z - fall if fell else z)))
    broken = rng.random() < world.failures[0] + world.failures[1] * hot
    low_quality, shown = _BROKEN * rng.random(), rng.random() < world.detected
    mean = scenario.tokens.candidate[1]
    tokens = mean * math.exp(_LENGTH_SIGMA * rng.gauss(0, 1) + _LENGTH_SHIFT)
    longest = max(_LONGEST, mean)
    if broken:
        return Made(_text(pixels, world.claims, low_quality, rng), longest, shown)
    tokens = min(max(tokens, min(_SHORTEST, mean)), longest)
    return Made(_text(pixels, world.claims, quality, rng), round(tokens), False)


def level(scenario: Scenario, world: World, number: int, key: str, params: Params) -> float:
    """Quality that a picture's answers of an arm lie around, in logits."""
    pixels, later = scenario.images[number].pixels, 2 * number >= len(scenario.images)
    rng = random.Random(f"world image|{scenario.seed}|{pixels}")
    weights = [weight for weight, _, _ in world.levels]
    _, mean, sd = rng.choices(world.levels, weights)[0]
    base = rng.gauss(mean, sd)
    best = rng.gauss(*world.best_temperature) + (world.later_shift if later else 0.0)
    best = min(max(best, _COOLEST), _WARMEST)
    effects = world.later_prompts if later and world.later_prompts else world.prompts
    taste = random.Random(f"world image x prompt|{scenario.seed}|{pixels}|{key}").gauss(0, 1)
    both = f"world prompt x temperature|{scenario.seed}|{key}|{params.temperature}"
    return (
        base
        + effects[key]
        + world.image_prompt_sd * taste
        + world.prompt_temperature_sd * random.Random(both).gauss(0, 1)
        - world.curvature * (params.temperature - best) ** 2
        + world.top_p * _within(params.top_p, *world.top_ps)
        + world.top_k * _within(params.top_k, *world.top_ks)
    )


def _within(value: float, low: float, high: float) -> float:
    """-1 at the low end and below, 1 at the high end and above; 0 when there is one end only."""
    if not high > low:
        return 0.0
    return min(1.0, max(-1.0, 2 * (value - low) / (high - low) - 1))


def _text(pixels: str, claims: int, quality: float, rng: random.Random) -> str:
    truth = truth_of(pixels, claims)
    wrong = set(rng.sample(range(claims), claims - round(quality * claims / 100)))
    taken = {(edge.source, edge.target) for edge in truth.edges}
    edges: list[Edge] = []
    for number, edge in enumerate(truth.edges):
        if number not in wrong:
            edges.append(edge)
            continue
        free = [name for name in truth.nodes if (edge.source, name) not in taken]
        free = [name for name in free if name != edge.source]
        invented = rng.choice(free) if free else f"Z{number}"
        taken.add((edge.source, invented))
        edges.append(Edge(edge.source, invented))
    return "\n".join(lines_of(edges, directed=True))
