"""What a strategy is told of an image, and what it may answer. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from rsd.protocol.vocabulary import Arm, Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageState:
    """An image at the end of a round: all that was bought has come, or never will."""

    recipe: Recipe
    sha256: str
    planned: int  #: candidates bought so far, and the index of the next one
    rounds: int
    allotment: int  #: 1, plus one for each `retry --low`
    bought: dict[int, int]  #: candidate that a grader may see -> its gradings under the rubric
    scores: dict[int, float]  #: candidate -> mean of its grades under the recipe's rubric


@dataclass(frozen=True, slots=True, kw_only=True)
class Buy:
    """Candidates and gradings, each bought for itself. Raises ValueError when it is neither."""

    #: (arm, explore), for the indices from `ImageState.planned` on.
    samples: tuple[tuple[Arm, bool], ...] = ()
    #: (candidate, how many more grades), of old candidates and of those of this step.
    gradings: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if not self.samples and not self.gradings:
            raise ValueError("a step that buys nothing would never end")


@dataclass(frozen=True, slots=True)
class Stop:
    """The image is finished; `index` is None when nothing was graded."""

    index: int | None
    expected_score: float
    reason: str


Step = Buy | Stop
