"""What a strategy is told of an image, and what it may answer. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from rsd.protocol.facts import Agreement
from rsd.protocol.learned import Learned
from rsd.protocol.vocabulary import Arm, Recipe, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A candidate as a strategy sees it."""

    index: int
    arm: Arm
    explore: bool  #: its arm was drawn uniformly, and it is graded in any case
    text: str | None  #: None: no answer came, and none will
    rejected: bool = False  #: a visible failure that no grader is shown
    scores: tuple[float, ...] = ()  #: its grades under the rubric in force, first to last
    bought: int = 0  #: gradings bought under that rubric, those without a grade included

    @property
    def gradable(self) -> bool:
        """Whether a grader may see it."""
        return self.text is not None and not self.rejected


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPrices:
    """What calls cost, in one unit, whichever: only the relations count."""

    candidate: float  #: generating one
    grading: float  #: a grading call, whatever is in it
    graded: float  #: each candidate of a grading call
    pointwise: bool  #: whether a call grades one candidate
    list_size: int = 1  #: most candidates of a call

    def generate(self, count: int) -> float:
        """Cost of so many candidates."""
        return count * self.candidate

    def grade(self, count: int) -> float:
        """Cost of grading so many candidates once."""
        calls = count if self.pointwise else -(-count // self.list_size)
        return calls * self.grading + count * self.graded


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
    candidates: tuple[Seen, ...] = ()  #: all, by index; only for strategies that learn
    learned: Learned | None = None  #: None: nothing yet
    prices: CallPrices | None = None  #: None: not asked for
    retried_at: int = 0  #: `planned` at the last `retry --low`; only for strategies that learn


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
    agreement: Agreement | None = None


Step = Buy | Stop


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """A decided image, as it is learned from: its candidates as they were at the decision."""

    recipe: Recipe
    sha256: str
    candidates: tuple[Seen, ...]
    winner: int
    score: float
    expected_score: float
    accepted: bool
    reason: str
    generated: tuple[Usage, ...]  #: tokens of each candidate that was made
    #: (candidates, tokens) of each grading call under the rubric.
    graded: tuple[tuple[int, Usage], ...]
