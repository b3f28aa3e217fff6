"""What the adaptive strategy has learned of one generator, one grader and one rubric: sums alone.

A record is changed once per decided image, in the order of the commits, and can be summed up again
from the candidates and grades that are stored. Scores are points from 0 to 100. Square symmetric
matrices are kept as their lower triangles, row by row.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

import msgspec
from msgspec import Struct

from rsd.protocol.vocabulary import Recipe

#: Another way to read claims out of texts is another number: what was learned before says nothing
#: about it.
AGREEMENT_VERSION: Final = 1
#: Candidates of an audit image, and so the longest best-of-k curve.
AUDIT_CANDIDATES: Final = 12


class Level(Struct, frozen=True, kw_only=True, order=True):
    """One value of one factor of an arm."""

    factor: str  #: `prompt`, `temperature`, `top_p` or `top_k`
    name: str  #: the prompt's key, or the number as it is written in JSON
    text: str = ""  #: of a prompt: 8 hex digits of its text, since another text is another prompt


class Regression(Struct, frozen=True, kw_only=True):
    """Effects of levels on quality, images as random effects; `d` levels in the record's order."""

    information: tuple[float, ...] = ()  #: d * (d + 1) / 2
    moments: tuple[float, ...] = ()  #: d


class ConsensusSums(Struct, frozen=True, kw_only=True):
    """What agreement says about scores."""

    information: tuple[float, ...] = (0.0,) * 10  #: of level, between, within, frequency: 4 x 4
    moments: tuple[float, ...] = (0.0,) * 4
    cross: tuple[float, ...] = (0.0,) * 6  #: of what agreement leaves unexplained: 3 x 3
    cross_moments: tuple[float, ...] = (0.0,) * 3
    level_count: float = 2.0  #: agreement of images, two imagined ones first
    level_sum: float = 1.3
    image_count: float = 8.0  #: variance of images around what agreement predicts
    image_sum: float = 1200.0
    arms: Regression = Regression()  #: from posterior means of all candidates
    spread_count: float = 8.0  #: quality within images
    spread_sum: float = 8 * 144.0


class TemperatureSums(Struct, frozen=True, kw_only=True):
    """Spread and visible failures at one temperature."""

    spread_count: float = 8.0
    spread_sum: float = 8 * 144.0
    drawn: float = 20.0
    failed: float = 1.0


class PlainSums(Struct, frozen=True, kw_only=True):
    """What scores alone say, for when candidates do not vote."""

    arms: Regression = Regression()  #: from first scores
    temperatures: dict[str, TemperatureSums] = {}  #: by the name of the level
    image_count: float = 2.0  #: level of images
    image_sum: float = 120.0
    image_square: float = 2 * (60.0**2 + 20.0**2)


class CallSums(Struct, frozen=True, kw_only=True):
    """Tokens of calls, to be weighed with prices. A call has `size` candidates."""

    calls: float = 0.0
    size: float = 0.0
    size_square: float = 0.0
    input: float = 0.0
    input_size: float = 0.0  #: sum of input tokens times size
    output: float = 0.0
    output_size: float = 0.0


class LevelScores(Struct, frozen=True, kw_only=True):
    """First scores of candidates whose arm was drawn uniformly and that were graded in any case."""

    count: int = 0
    sum: float = 0.0
    square: float = 0.0


class Audit(Struct, frozen=True, kw_only=True):
    """Images whose candidates were all drawn uniformly and all graded."""

    images: int = 0
    best: tuple[float, ...] = (0.0,) * AUDIT_CANDIDATES  #: sum over images of E[best of k]
    best_square: tuple[float, ...] = (0.0,) * AUDIT_CANDIDATES
    passing: tuple[float, ...] = (0.0,) * AUDIT_CANDIDATES  #: of P(any of k reaches the threshold)
    passing_square: tuple[float, ...] = (0.0,) * AUDIT_CANDIDATES
    #: Centred products of agreement and score within images: their correlation and slope.
    agreement_square: float = 0.0
    score_square: float = 0.0
    product: float = 0.0


class Counted(Struct, frozen=True, kw_only=True):
    """What happened to the images that were learned from; nothing is estimated, nothing fades."""

    candidates: int = 0
    gradable: int = 0  #: candidates that a grader could have seen
    distinct: int = 0  #: texts among them
    graded: int = 0  #: of these texts
    grades: int = 0
    calls: int = 0  #: of the grader, of which these grades came
    calls_for_all: int = 0  #: that grading every gradable candidate once would have taken
    accepted: int = 0  #: images of high quality
    one_grade: int = 0  #: images decided by a single grade
    unanimous: int = 0  #: images with at least two gradable candidates and one text
    unanimous_score: float = 0.0  #: sum of their winners' scores
    three_graded: int = 0  #: images with three graded texts or more
    saturated: int = 0  #: of these, with three of them at the top score
    tied: int = 0  #: of images with two graded texts or more, those whose best two are equal
    two_graded: int = 0
    winner_score: float = 0.0  #: sum over images
    winner_expected: float = 0.0
    regraded: int = 0  #: texts with several grades
    second_change: float = 0.0  #: sum over them of second score minus first
    fives: int = 0  #: first scores that are multiples of five
    reasons: dict[str, int] = {}  #: why images ended


class Learned(Struct, frozen=True, kw_only=True):
    """All of it."""

    key: str  #: see `learned_key`
    generator_model: str
    grader_model: str
    rubric: str
    agreement_version: int = AGREEMENT_VERSION
    images: int = 0  #: learned here; the version of the record
    prior_images: int = 0  #: learned elsewhere and brought along
    levels: tuple[Level, ...] = ()  #: all that were ever in use; the order of the regressions
    consensus: ConsensusSums = ConsensusSums()
    plain: PlainSums = PlainSums()
    repeat_count: float = 8.0  #: repeatability of the grader: squared deviations of re-gradings
    repeat_sum: float = 8 * 36.0
    generating: CallSums = CallSums()  #: a call is one candidate
    grading: CallSums = CallSums()
    uniform: dict[str, LevelScores] = {}  #: by `factor=name`, and `prompt=..,temperature=..`
    audit: Audit = Audit()
    counted: Counted = Counted()


def learned_key(recipe: Recipe) -> str:
    """16 hex digits: what was learned holds for these models, this rubric and this reading."""
    return key_of(recipe.generator_model, recipe.rubric)


def key_of(generator_model: str, rubric: str) -> str:
    """The key of a record that names these."""
    parts = (generator_model, rubric, AGREEMENT_VERSION)
    return blake2b(msgspec.json.encode(parts), digest_size=8).hexdigest()


def nothing_learned(recipe: Recipe) -> Learned:
    """The record that a recipe begins with."""
    return Learned(
        key=learned_key(recipe),
        generator_model=recipe.generator_model,
        grader_model=recipe.grader_model,
        rubric=recipe.rubric,
    )
