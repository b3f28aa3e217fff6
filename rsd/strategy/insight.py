"""What was learned, in figures for people and programs: from sums alone, so that it costs nothing.

Scores and effects are points from 0 to 100. Intervals hold the mean in 95 of 100 cases. A figure
says from how many observations it comes, and is None as long as nothing can be said.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

from msgspec import Struct

from rsd.protocol.learned import AUDIT_CANDIDATES, Learned
from rsd.protocol.vocabulary import Recipe, Role, TokenPrices
from rsd.strategy.adaptive import grade_price, may_audit, votes
from rsd.strategy.base import CallPrices
from rsd.strategy.estimates import (
    FEW,
    NORMAL,
    Estimate,
    Gaussian,
    mean_of,
    normal,
    posterior,
    ratio,
    share_of,
)
from rsd.strategy.expected import takes
from rsd.strategy.linalg import unpack
from rsd.strategy.model import PRIOR_WEIGHTS, PRIOR_WEIGHTS_SD
from rsd.strategy.presets import PRESETS
from rsd.strategy.prices import prices_of_calls
from rsd.strategy.ranking import (
    Cell,
    LevelInsight,
    Setting,
    cells_of,
    levels_of_learned,
    setting_of,
)

SCHEMA: Final = "rsd.strategy/1"
#: Share of images with three graded texts at the top score from which scores tell too little.
SATURATED: Final = 0.5
#: Sizes of the best-of-k curve that are worth a line among the plans.
PLANNED: Final = (1, 2, 3, 4, 6, 8, 12)


class CurvePoint(Struct, frozen=True, kw_only=True):
    """The best of `k` uniform candidates, all graded; from audit images (n)."""

    k: int
    best: Estimate  #: highest first score; the luck of noisy grades is in it
    passing: Estimate  #: chance that any reaches the threshold, 0 to 1


class Plan(Struct, frozen=True, kw_only=True):
    """A way to spend a price on an image."""

    name: str
    candidates: float
    grades: float  #: candidates graded, with repetitions
    cost: float | None  #: in prices of one candidate that is made and graded alone
    score: Estimate
    passing: Estimate  #: chance that the best reaches the threshold, 0 to 1


class Signal(Struct, frozen=True, kw_only=True):
    """What agreement among candidates says about scores."""

    images: int  #: audit images: uniform candidates, all graded
    slope: float | None  #: points per unit of agreement, within these images
    correlation: float | None  #: within these images, -1 to 1
    weight: Estimate  #: b of the model, points per unit of agreement, learned from all images
    between: Estimate  #: c: the same from image to image
    votes: bool | None  #: whether it counts here (sampling.consensus); None: nobody knows
    grade_price: float | None  #: what a grade costs in a full call, in prices of a candidate


class GraderInsight(Struct, frozen=True, kw_only=True):
    """What the grader's scores are worth. Shares are 0 to 1; None: never looked at."""

    repeatability: float  #: standard deviation of one grade, in points; a guess until `regraded`
    regraded: int  #: texts that were graded several times
    second_change: float | None  #: second score minus first, mean over these: luck of the first
    tied: Estimate  #: images whose best two graded texts have one score
    fives: Estimate  #: first scores that are multiples of five
    saturated: Estimate  #: of images with three graded texts, those with three at the top score
    saturation: bool  #: whether that is more than half: the scores no longer tell texts apart


class Spending(Struct, frozen=True, kw_only=True):
    """What was counted. Means are per image."""

    candidates: float | None
    gradable: float | None
    distinct: float | None
    graded: float | None
    grades: float | None
    saved: int  #: grades that grading every gradable candidate once would have taken beyond those
    saved_share: float | None
    calls: float | None  #: of the grader
    calls_saved: int  #: the same as `saved`, in calls; less than 0 when it took more
    calls_saved_share: float | None
    one_grade: Estimate  #: images decided by a single grade
    unanimous: Estimate  #: images whose gradable candidates have one text
    unanimous_score: float | None  #: mean score of their winners: low means shared mistakes
    accepted: Estimate
    winner_score: float | None  #: mean of grades, as filed
    winner_expected: float | None  #: the same without the luck of the draw
    reasons: dict[str, int]


class Insight(Struct, frozen=True, kw_only=True):
    """All of it."""

    images: int
    prior_images: int
    levels: tuple[LevelInsight, ...]
    cells: tuple[Cell, ...]
    setting: Setting | None
    curve: tuple[CurvePoint, ...]  #: empty without audit images
    plans: tuple[Plan, ...]
    signal: Signal
    grader: GraderInsight
    spending: Spending
    notes: tuple[str, ...]  #: what cannot be said yet, and what a person should look at


class Record(Struct, frozen=True, kw_only=True):
    """One record of a document."""

    learned: Learned
    insight: Insight


class StrategyDocument(Struct, frozen=True, kw_only=True):
    """`OUTPUT/strategy.json`, and what `strategy --export` writes and `--from` reads."""

    schema: str = SCHEMA
    records: tuple[Record, ...] = ()


def document(
    records: Iterable[tuple[Learned, Recipe | None]],
    prices: dict[Role, TokenPrices] | None = None,
) -> StrategyDocument:
    """Records with their figures, the one with most images first. With each its recipe in force,
    where there is one; `prices` are those of the settings.
    """
    ordered = sorted(records, key=lambda pair: (-pair[0].images, pair[0].key))
    return StrategyDocument(
        records=tuple(
            Record(
                learned=learned,
                insight=insight(
                    learned,
                    recipe,
                    prices_of_calls(recipe, learned, prices or {}) if recipe is not None else None,
                ),
            )
            for learned, recipe in ordered
        )
    )


def insight(
    learned: Learned, recipe: Recipe | None = None, prices: CallPrices | None = None
) -> Insight:
    """The figures of a record. `recipe`: what is in force, without it every level counts as in use;
    `prices`: what calls cost, without them no cost is told.
    """
    voting = _voting(recipe, prices)
    levels = levels_of_learned(learned, recipe, votes=voting)
    curve = _curve(learned)
    spending = _spending(learned)
    grader = _grader(learned)
    signal = _signal(learned, voting, prices)
    setting = setting_of(learned, recipe, levels, votes=voting)
    return Insight(
        images=learned.images,
        prior_images=learned.prior_images,
        levels=levels,
        cells=cells_of(learned),
        setting=setting,
        curve=curve,
        plans=_plans(learned, prices, setting, curve, spending),
        signal=signal,
        grader=grader,
        spending=spending,
        notes=_notes(learned, recipe, grader, spending),
    )


def _voting(recipe: Recipe | None, prices: CallPrices | None) -> bool | None:
    """Whether candidates vote, as far as it can be known."""
    if recipe is None:
        return None
    if prices is None:
        return {"on": True, "off": False}.get(recipe.consensus)
    return votes(recipe, prices)


# ------------------------------------------------------------------------------ what a price buys


def _curve(learned: Learned) -> tuple[CurvePoint, ...]:
    audit = learned.audit
    if not audit.images:
        return ()
    rows = zip(audit.best, audit.best_square, audit.passing, audit.passing_square, strict=True)
    return tuple(
        CurvePoint(
            k=k,
            best=mean_of(audit.images, best, best_square, 0.0, 100.0),
            passing=mean_of(audit.images, passing, passing_square, 0.0, 1.0),
        )
        for k, (best, best_square, passing, passing_square) in enumerate(rows, 1)
    )


def _plans(
    learned: Learned,
    prices: CallPrices | None,
    setting: Setting | None,
    curve: Sequence[CurvePoint],
    spending: Spending,
) -> tuple[Plan, ...]:
    """What is known of ways to spend: without a grader, all of k graded, what was done here, and
    what each effort takes of other pictures, without a score.
    """
    found = []
    if setting is not None:
        name = "best setting, ungraded"
        found.append(_plan(name, 1, 0, prices, setting.expected, Estimate()))
    for point in curve:
        if point.k in PLANNED:
            name = f"best of {point.k}, drawn evenly"
            found.append(_plan(name, point.k, point.k, prices, point.best, point.passing))
    if spending.candidates is not None and spending.grades is not None:
        score = Estimate(mean=spending.winner_score, n=learned.images, few=learned.images < FEW)
        name, made, given = "adaptive, as counted", spending.candidates, spending.grades
        found.append(_plan(name, made, given, prices, score, spending.accepted, spending.calls))
    if prices is None:
        return tuple(found)
    for effort in PRESETS:
        one = takes(effort, prices)
        name = f"{effort}, as elsewhere"
        none = Estimate()
        found.append(_plan(name, one.candidates, one.grades, prices, none, none, one.calls))
    return tuple(found)


def _plan(
    name: str,
    candidates: float,
    grades: float,
    prices: CallPrices | None,
    score: Estimate,
    passing: Estimate,
    calls: float | None = None,
) -> Plan:
    return Plan(
        name=name,
        candidates=candidates,
        grades=grades,
        cost=relative_cost(prices, candidates, grades, calls) if prices is not None else None,
        score=score,
        passing=passing,
    )


def relative_cost(
    prices: CallPrices, candidates: float, grades: float, calls: float | None = None
) -> float | None:
    """Cost of an image in prices of one candidate that is made and graded alone; None when nothing
    costs anything. Listwise: `calls` of the grader; None: as full as can be, at least one if any.
    """
    if prices.pointwise:
        calls = grades
    elif calls is None:
        calls = max(grades / prices.list_size, min(grades, 1.0))
    whole = candidates * prices.candidate + calls * prices.grading + grades * prices.graded
    return ratio(whole, prices.generate(1) + prices.grade(1))


# ------------------------------------------------------------------------- agreement, grader, spend


def _weights(learned: Learned) -> Gaussian:
    """M, c, b and h of the consensus model."""
    sums = learned.consensus
    return posterior(unpack(sums.information), sums.moments, PRIOR_WEIGHTS, PRIOR_WEIGHTS_SD)


def _signal(learned: Learned, voting: bool | None, prices: CallPrices | None) -> Signal:
    audit = learned.audit
    spread = math.sqrt(max(audit.agreement_square, 0.0) * max(audit.score_square, 0.0))
    correlation = ratio(audit.product, spread)
    weights = _weights(learned)
    images = learned.images + learned.prior_images
    return Signal(
        images=audit.images,
        slope=ratio(audit.product, audit.agreement_square),
        correlation=None if correlation is None else min(max(correlation, -1.0), 1.0),
        weight=normal(*weights.of([0.0, 0.0, 1.0, 0.0]), images),
        between=normal(*weights.of([0.0, 1.0, 0.0, 0.0]), images),
        votes=voting,
        grade_price=None if prices is None else ratio(grade_price(prices), prices.candidate),
    )


def _grader(learned: Learned) -> GraderInsight:
    counted = learned.counted
    saturated = share_of(counted.saturated, counted.three_graded)
    return GraderInsight(
        repeatability=math.sqrt(max(learned.repeat_sum, 0.0) / max(learned.repeat_count, 1.0)),
        regraded=counted.regraded,
        second_change=ratio(counted.second_change, counted.regraded),
        tied=share_of(counted.tied, counted.two_graded),
        fives=share_of(counted.fives, counted.graded),
        saturated=saturated,
        saturation=not saturated.few and (saturated.mean or 0.0) > SATURATED,
    )


def _spending(learned: Learned) -> Spending:
    counted, images = learned.counted, learned.images
    saved = max(counted.gradable - counted.grades, 0)
    calls_saved = counted.calls_for_all - counted.calls
    return Spending(
        candidates=ratio(counted.candidates, images),
        gradable=ratio(counted.gradable, images),
        distinct=ratio(counted.distinct, images),
        graded=ratio(counted.graded, images),
        grades=ratio(counted.grades, images),
        saved=saved,
        saved_share=ratio(saved, counted.gradable),
        calls=ratio(counted.calls, images),
        calls_saved=calls_saved,
        calls_saved_share=ratio(calls_saved, counted.calls_for_all),
        one_grade=share_of(counted.one_grade, images),
        unanimous=share_of(counted.unanimous, images),
        unanimous_score=ratio(counted.unanimous_score, counted.unanimous),
        accepted=share_of(counted.accepted, images),
        winner_score=ratio(counted.winner_score, images),
        winner_expected=ratio(counted.winner_expected, images),
        reasons=dict(sorted(counted.reasons.items())),
    )


def _notes(
    learned: Learned, recipe: Recipe | None, grader: GraderInsight, spending: Spending
) -> tuple[str, ...]:
    """What cannot be said yet, and what a person should look at."""
    found = []
    if not learned.images:
        return ("no image has been decided yet",)
    if learned.images < FEW:
        found.append(f"too little to say: {_count(learned.images, 'image')}")
    if not learned.audit.images:
        found.append(f"no audit image {_why_none(recipe)}: no best-of-k curve and no correlation")
    elif learned.audit.images < FEW:
        found.append(f"only {_count(learned.audit.images, 'audit image')}: the curve is a guess")
    if not grader.regraded:
        found.append("no text was graded twice yet: the grader's repeatability is a guess")
    if grader.saturation:
        found.append(
            "the grader's scores are saturated: in more than half of the images three texts have "
            "the top score; a stricter rubric would tell them apart"
        )
    if _shares_mistakes(learned):
        found.append(
            "unanimous images score lower than the others: the candidates share mistakes, "
            "which agreement cannot see"
        )
    return tuple(found)


def _why_none(recipe: Recipe | None) -> str:
    """When there will be audit images."""
    if recipe is not None and recipe.audit_share == 0:
        return "as sampling.audit_share is 0"
    if recipe is not None and not may_audit(recipe):
        return (
            f"as they take {AUDIT_CANDIDATES} candidates and grades (sampling.candidates_max, "
            "sampling.grades_max) and a temperature above 0"
        )
    return "yet (sampling.audit_share)"


def _shares_mistakes(learned: Learned) -> bool:
    """Whether unanimous images score lower than the others, by more than chance would."""
    counted = learned.counted
    alike, others = counted.unanimous, learned.images - counted.unanimous
    if min(alike, others) < FEW:
        return False
    sums = learned.consensus
    variance = max(ratio(sums.image_sum, sums.image_count) or 0.0, 0.0)
    chance = NORMAL * math.sqrt(variance * (1 / alike + 1 / others))
    rest = (counted.winner_score - counted.unanimous_score) / others
    return counted.unanimous_score / alike < rest - chance


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
