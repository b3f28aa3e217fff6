"""What one word, `effort`, stands for. Pure.

`min_gain` is the price of quality: points that must be gained for what one more candidate and its
share of a grading cost. All else of `maximal` follows from wanting the best whatever it costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Numbers of a word."""

    min_gain: float  #: points
    candidates_max: int = 32  #: per image and allotment
    grades_max: int = 12  #: per image and allotment
    first: int | None = None  #: candidates of the first step; None: as prices say
    later: int = 6  #: candidates of each later one
    soft: float = 6.0  #: points of effect by which an arm is taken e times as often
    headroom: float | None = 15.0  #: points above the threshold that still count; None: all
    bonus: float = 20.0  #: points that reaching the threshold is worth


PRESETS: Final = MappingProxyType(
    {
        "economy": Preset(min_gain=4.0),
        "balanced": Preset(min_gain=2.0),
        "thorough": Preset(min_gain=0.5),
        "maximal": Preset(
            min_gain=0.5,
            candidates_max=108,
            grades_max=24,
            first=64,
            later=16,
            soft=20.0,
            headroom=None,
            bonus=0.0,
        ),
    }
)
