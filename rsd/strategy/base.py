"""What a strategy is told of an image, and what it may answer. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from rsd.protocol.vocabulary import Arm, Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """An image at the end of a round: all that was drawn has its grades, or never will."""

    recipe: Recipe
    sha256: str
    drawn: int  #: candidates asked for so far
    rounds: int
    allotment: int  #: 1, plus one for each `retry --low`
    scores: dict[int, float]  #: candidate index -> mean of its grades


@dataclass(frozen=True, slots=True)
class Sample:
    """Draw these: (arm, explore), in the order of their indices."""

    draws: tuple[tuple[Arm, bool], ...]


@dataclass(frozen=True, slots=True)
class Regrade:
    """Ask for one more grade of each of these candidates."""

    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Stop:
    """The image is finished; `index` is None when nothing was graded."""

    index: int | None
    expected_score: float
    reason: str


Step = Sample | Regrade | Stop
