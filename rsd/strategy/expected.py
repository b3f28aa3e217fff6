"""What an image will take, before any was decided: as measured by replay. Pure.

Method: the strategy itself, with nothing learned before, bought recorded answers of two small
models (six prompts, three temperatures, 400 drawn diagrams) and grades of a simulated grader (off
by 6 points each time, by 4 more that stay with a text). Consensus was `auto`, the threshold 80.
Means over both models. Other pictures and graders take other numbers: from `COUNTED` images on what
was counted here stands for what will be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from rsd.protocol.learned import Learned
from rsd.protocol.vocabulary import Recipe
from rsd.strategy.base import CallPrices

#: Images from which what was counted stands for what will be.
COUNTED: Final = 50


class Takes(NamedTuple):
    """Means per image."""

    candidates: float
    grades: float
    calls: float  #: of the grader


#: What grading a candidate cost, in full calls and in prices of a candidate: tokens of both models
#: alike, nominal prices, generator on own machines.
POINTWISE_AT: Final = (2.0, 22.3, 223.0)
LISTWISE_AT: Final = (0.6, 6.9, 69.4)
#: Effort -> what an image took at these.
POINTWISE: Final = {
    "economy": (
        Takes(3.6, 2.8, 2.8),
        Takes(10.2, 2.0, 2.0),
        Takes(16.8, 2.0, 2.0),
    ),
    "balanced": (
        Takes(5.0, 3.8, 3.8),
        Takes(10.6, 2.4, 2.4),
        Takes(17.6, 2.3, 2.3),
    ),
    "thorough": (
        Takes(7.9, 5.6, 5.6),
        Takes(14.7, 3.4, 3.4),
        Takes(19.5, 3.4, 3.4),
    ),
    "maximal": (
        Takes(9.3, 5.7, 5.7),
        Takes(86.1, 4.9, 4.9),
        Takes(92.0, 4.7, 4.7),
    ),
}
LISTWISE: Final = {
    "economy": (
        Takes(3.8, 2.9, 1.5),
        Takes(9.0, 3.5, 1.1),
        Takes(16.0, 3.6, 1.1),
    ),
    "balanced": (
        Takes(5.0, 3.8, 1.7),
        Takes(9.2, 3.8, 1.2),
        Takes(16.1, 4.0, 1.2),
    ),
    "thorough": (
        Takes(7.7, 6.0, 2.3),
        Takes(10.1, 4.7, 1.4),
        Takes(16.7, 5.0, 1.4),
    ),
    "maximal": (
        Takes(8.9, 6.2, 2.4),
        Takes(66.6, 7.1, 1.6),
        Takes(71.6, 7.0, 1.6),
    ),
}


def takes(effort: str, prices: CallPrices) -> Takes:
    """What an image takes with a preset, as measured; between the prices of grading that were
    tried, in proportion to their logarithm.
    """
    at, table = (POINTWISE_AT, POINTWISE) if prices.pointwise else (LISTWISE_AT, LISTWISE)
    rows = table.get(effort, table["balanced"])
    size = 1 if prices.pointwise else prices.list_size
    each = prices.grade(size) / size
    if each <= 0 or prices.candidate <= 0:
        return rows[0] if each <= 0 else rows[-1]
    return _between(at, rows, each / prices.candidate)


def _between(at: Sequence[float], rows: Sequence[Takes], ratio: float) -> Takes:
    for k in range(1, len(at)):
        if ratio < at[k] or k == len(at) - 1:
            break
    share = math.log(ratio / at[k - 1]) / math.log(at[k] / at[k - 1])
    share = min(max(share, 0.0), 1.0)
    pairs = zip(rows[k - 1], rows[k], strict=True)
    return Takes(*(a + share * (b - a) for a, b in pairs))


def counted(learned: Learned | None, recipe: Recipe) -> Takes | None:
    """What an image took here; None before COUNTED images."""
    if learned is None or learned.images < COUNTED:
        return None
    seen, grading = learned.counted, learned.grading
    grades = seen.grades / learned.images
    size = grading.size / grading.calls if recipe.listwise and grading.calls else 1.0
    return Takes(seen.candidates / learned.images, grades, grades / max(size, 1.0))
