"""Figures of what was learned, against values that were worked out by other ways."""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from rsd.protocol.learned import (
    AUDIT_CANDIDATES,
    Audit,
    ConsensusSums,
    Counted,
    Learned,
    Level,
    LevelScores,
    PlainSums,
    Regression,
    nothing_learned,
)
from rsd.protocol.vocabulary import LISTWISE, POINTWISE, Recipe
from rsd.strategy.base import CallPrices
from rsd.strategy.estimates import mean_of, share_of, student
from rsd.strategy.expected import takes
from rsd.strategy.insight import StrategyDocument, document, insight, relative_cost
from rsd.strategy.levels import levels_of
from rsd.strategy.linalg import pack


def recipe(**changes: Any) -> Recipe:
    """Two prompts, two temperatures, one top-p, two top-k."""
    plain: dict[str, Any] = {
        "prompts": {"p1": "Look.", "p2": "Read."},
        "grading_template": "Grade. " + POINTWISE,
        "strategy": "adaptive",
        "candidates": 2,
        "seed": 0,
        "temperatures": (0.7, 1.0),
        "top_ps": (0.9,),
        "top_ks": (40, -1),
        "min_p": 0.0,
        "repetition_penalty": 1.05,
        "max_tokens": 512,
        "score_threshold": 80.0,
        "stop_score": None,
        "repeats": 1,
        "list_size": 6,
        "generator_model": "reader",
        "grader_model": "judge",
    }
    return Recipe(**plain | changes)


def record(images: int = 40, **changes: Any) -> Learned:
    """A record of that recipe, of which nothing is known but what is given."""
    chosen = recipe()
    return msgspec.structs.replace(
        nothing_learned(chosen), images=images, levels=levels_of(chosen), **changes
    )


def scores_of(values: list[float]) -> LevelScores:
    return LevelScores(count=len(values), sum=sum(values), square=sum(v * v for v in values))


# ------------------------------------------------------------------------------------- statistics


def test_a_mean_and_its_interval_are_those_of_the_textbook() -> None:
    values = [71.0, 80.0, 64.0, 90.0, 77.5, 85.0]
    cell = scores_of(values)
    found = mean_of(cell.count, cell.sum, cell.square, 0.0, 100.0)
    half = 2.571 * statistics.stdev(values) / math.sqrt(6)
    assert found.n == 6 and not found.few
    assert found.mean == pytest.approx(statistics.mean(values))
    assert found.low == pytest.approx(statistics.mean(values) - half)
    assert found.high == pytest.approx(statistics.mean(values) + half)


def test_few_observations_are_marked_and_one_has_no_interval() -> None:
    assert mean_of(0, 0.0, 0.0, 0.0, 100.0).mean is None
    one = mean_of(1, 70.0, 4900.0, 0.0, 100.0)
    assert (one.mean, one.low, one.high, one.few) == (70.0, None, None, True)
    four = mean_of(4, 396.0, 39_216.0, 0.0, 100.0)
    assert four.few and four.high == 100.0, "no score is above 100"


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.706), (10, 2.228), (11, 2.201), (20, 2.086), (120, 1.980)]
)
def test_student_is_that_of_the_tables(freedom: int, expected: float) -> None:
    assert student(freedom) == pytest.approx(expected, abs=3e-3)


def test_a_share_is_possible_whatever_was_counted() -> None:
    # Wilson's interval of 8 of 10, from his formula with z = 1.96: 0.4902 to 0.9433.
    found = share_of(8, 10)
    assert (found.low, found.high) == (
        pytest.approx(0.4902, abs=1e-4),
        pytest.approx(0.9433, abs=1e-4),
    )
    none = share_of(0, 3)
    assert none.mean == none.low == 0.0 and 0.5 < (none.high or 0.0) < 0.6 and none.few
    assert share_of(0, 0).mean is None


# ------------------------------------------------------------------------------------------- arms


def test_the_effect_of_two_levels_is_that_of_a_ridge_regression() -> None:
    """One factor with two levels: both effects are plus and minus half of the shrunk difference."""
    chosen = recipe(temperatures=(0.7,), top_ks=(40,))
    levels = levels_of(chosen)
    d = len(levels)
    # 30 pairs, one candidate of each prompt, p1 better by 8 points: centred x is +-1/2, y +-4.
    information = [[0.0] * d for _ in range(d)]
    for i in range(2):
        for j in range(2):
            information[i][j] = 30 * 2 * 0.25 * (1 if i == j else -1)
    moments = [30 * 2 * 0.5 * 4.0, -30 * 2 * 0.5 * 4.0] + [0.0] * (d - 2)
    learned = msgspec.structs.replace(
        record(30),
        levels=levels,
        consensus=ConsensusSums(
            arms=Regression(information=pack(information), moments=tuple(moments)),
            spread_count=10.0,
            spread_sum=10 * 50.0,
        ),
    )
    found = insight(learned, chosen)
    first, second = (level for level in found.levels if level.factor == "prompt")
    # In the direction (1, -1)/sqrt(2) the precision is 2 * 15 / 50 + 1/36, and the mean follows.
    precision = 30 / 50 + 1 / 36
    along = (120.0 * math.sqrt(2) / 50) / precision
    assert first.effect.mean == pytest.approx(along / math.sqrt(2))
    assert second.effect.mean == pytest.approx(-along / math.sqrt(2))
    half = 1.95996 * math.sqrt(1 / precision) / math.sqrt(2)
    assert first.effect.high == pytest.approx(along / math.sqrt(2) + half)
    assert first.best and not second.best
    alone = next(level for level in found.levels if level.factor == "top_p")
    assert alone.effect.mean == alone.effect.low == alone.effect.high == 0.0, "nothing to compare"


def test_a_level_that_is_drawn_no_more_is_shown_and_never_chosen() -> None:
    old = Level(factor="prompt", name="p0", text="00000000")
    learned = record()
    learned = msgspec.structs.replace(learned, levels=(old, *learned.levels))
    d = len(learned.levels)
    information = [[5.0 * (i == j == 0) for j in range(d)] for i in range(d)]
    arms = Regression(information=pack(information), moments=(90.0, *[0.0] * (d - 1)))
    learned = msgspec.structs.replace(learned, consensus=ConsensusSums(arms=arms))
    found = insight(learned, recipe())
    first = found.levels[0]
    assert first.name == "p0" and not first.in_use and not first.best
    assert (first.effect.mean or 0.0) > 1.0
    assert found.setting is not None and found.setting.prompt == "p1"
    anyhow = insight(learned)
    assert anyhow.levels[0].best, "without a recipe every level counts"


def test_numbers_are_in_order_and_a_new_level_begins_at_the_prior() -> None:
    learned = record()
    later = Level(factor="temperature", name="0.3")
    arms = Regression(information=(1.0,), moments=(3.0,))  # of the first level alone
    learned = msgspec.structs.replace(
        learned, levels=(*learned.levels, later), consensus=ConsensusSums(arms=arms)
    )
    found = [x for x in insight(learned).levels if x.factor in ("temperature", "top_k")]
    assert [x.name for x in found] == ["0.3", "0.7", "1.0", "40", "-1"], "-1 is off"
    assert found[0].effect.mean == 0.0
    # The contrast of three levels whose prior deviation is 4: 4 sqrt(1 - 1/3).
    assert found[0].effect.high == pytest.approx(1.95996 * 4 * math.sqrt(2 / 3))


def test_without_consensus_effects_are_those_of_first_scores() -> None:
    learned = record()
    d = len(learned.levels)
    information = pack([[4.0 * (i == j == 1) for j in range(d)] for i in range(d)])
    arms = Regression(information=information, moments=(0.0, 60.0, *[0.0] * (d - 2)))
    plain = msgspec.structs.replace(learned.plain, arms=arms)
    learned = msgspec.structs.replace(learned, plain=plain)
    voting = insight(learned, recipe()).setting
    alone = insight(learned, recipe(consensus="off")).setting
    assert voting is not None and alone is not None
    assert (voting.prompt, alone.prompt) == ("p1", "p2")


def test_uniform_means_stand_beside_the_effects_and_in_a_table() -> None:
    values = [60.0, 70.0, 75.0, 66.0, 81.0]
    uniform = {
        "prompt=p2": scores_of(values),
        "temperature=0.7": scores_of(values[:2]),
        "prompt=p2,temperature=0.7": scores_of(values[:2]),
        "prompt=a,temperature=1,temperature=1.0": scores_of(values),
    }
    found = insight(record(uniform=uniform), recipe())
    by_name = {(x.factor, x.name): x.uniform for x in found.levels}
    assert by_name["prompt", "p2"].mean == pytest.approx(statistics.mean(values))
    assert not by_name["prompt", "p2"].few and by_name["temperature", "0.7"].few
    assert by_name["prompt", "p1"].mean is None
    cells = [(c.prompt, c.temperature, c.uniform.n) for c in found.cells]
    assert cells == [("a,temperature=1", "1.0", 5), ("p2", "0.7", 2)]


# ---------------------------------------------------------------------------------------- setting


def test_the_setting_is_a_request_for_vllm_and_for_a_client() -> None:
    values = [70.0, 60.0, 80.0, 74.0, 66.0, 70.0]
    learned = record(uniform={"prompt=p1": scores_of(values), "prompt=gone": scores_of([1.0] * 9)})
    found = insight(learned, recipe()).setting
    assert found is not None
    assert found.request == {
        "model": "reader",
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.0,
        "repetition_penalty": 1.05,
        "max_tokens": 512,
    }
    assert found.client == {
        "model": "reader",
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 512,
        "extra_body": {"top_k": 40, "min_p": 0.0, "repetition_penalty": 1.05},
    }
    assert found.prompt_text == "Look."
    # Nothing is known of the effects: the uniform mean of the prompts in use, with the priors'.
    assert found.expected.mean == pytest.approx(70.0) and found.expected.n == 6
    base = 2.571 * statistics.stdev(values) / math.sqrt(6)
    effects = math.sqrt(36 / 2 + 16 / 2 + 0 + 1 / 2)
    assert found.expected.high == pytest.approx(70 + math.hypot(base, 1.95996 * effects))


def test_a_setting_from_four_images_would_be_a_guess() -> None:
    assert insight(record(4), recipe()).setting is None
    assert insight(record(4, prior_images=1), recipe()).setting is not None
    assert insight(record(5), recipe()).setting is not None
    nameless = msgspec.structs.replace(record(5), levels=())
    assert insight(nameless, recipe()).setting is None


# ------------------------------------------------------------------------------ what a price buys


def audit_of(rows: list[list[float]], threshold: float) -> Audit:
    """Sums of images with twelve scores each, by counting every choice of k of them."""
    best = [[0.0] * AUDIT_CANDIDATES for _ in rows]
    passing = [[0.0] * AUDIT_CANDIDATES for _ in rows]
    for i, row in enumerate(rows):
        rising = sorted(row)
        n = len(rising)
        for k in range(1, n + 1):
            ways = math.comb(n, k)
            best[i][k - 1] = sum(
                s * math.comb(j, k - 1) / ways for j, s in enumerate(rising) if j >= k - 1
            )
            below = sum(s < threshold for s in rising)
            passing[i][k - 1] = 1 - math.comb(below, k) / ways

    def sums(table: list[list[float]], power: int) -> tuple[float, ...]:
        return tuple(sum(row[k] ** power for row in table) for k in range(AUDIT_CANDIDATES))

    return Audit(
        images=len(rows),
        best=sums(best, 1),
        best_square=sums(best, 2),
        passing=sums(passing, 1),
        passing_square=sums(passing, 2),
        agreement_square=2.0,
        score_square=5_000.0,
        product=80.0,
    )


def test_the_curve_is_what_drawing_k_of_twelve_gives() -> None:
    dice = random.Random(4)
    rows = [[float(dice.randrange(40, 101, 5)) for _ in range(12)] for _ in range(6)]
    found = insight(record(audit=audit_of(rows, 80.0)), recipe()).curve
    assert [p.k for p in found] == list(range(1, 13))
    assert found[0].best.mean == pytest.approx(statistics.mean(x for row in rows for x in row))
    assert found[11].best.mean == pytest.approx(statistics.mean(max(row) for row in rows))
    tries = [max(dice.sample(row, 3)) for row in rows for _ in range(4_000)]
    assert found[2].best.mean == pytest.approx(statistics.mean(tries), abs=0.5)
    assert found[2].passing.mean == pytest.approx(
        statistics.mean(float(t >= 80) for t in tries), abs=0.02
    )
    half = 2.571 * statistics.stdev(max(row) for row in rows) / math.sqrt(6)
    mean = statistics.mean(max(row) for row in rows)
    assert found[11].best.low == pytest.approx(mean - half)
    assert found[11].best.high == pytest.approx(min(mean + half, 100.0))


def test_plans_have_a_price_in_candidates_that_are_made_and_graded() -> None:
    prices = CallPrices(candidate=1.0, grading=7.0, graded=2.0, pointwise=True)
    assert relative_cost(prices, 1, 1) == 1.0
    assert relative_cost(prices, 16, 2.5) == pytest.approx((16 + 2.5 * 9) / 10)
    lists = CallPrices(candidate=1.0, grading=7.0, graded=2.0, pointwise=False, list_size=6)
    assert relative_cost(lists, 16, 3.0) == pytest.approx((16 + 7 + 6) / 10), "one call"
    assert relative_cost(lists, 16, 12.0) == pytest.approx((16 + 14 + 24) / 10)
    assert relative_cost(lists, 1, 0.0) == pytest.approx(0.1)
    free = CallPrices(candidate=0.0, grading=0.0, graded=0.0, pointwise=True)
    assert relative_cost(free, 1, 1) is None
    counted = Counted(candidates=640, grades=100, winner_score=3_200.0)
    learned = record(counted=counted, audit=audit_of([[80.0] * 12] * 5, 80.0))
    found = {p.name: p for p in insight(learned, recipe(), prices).plans}
    assert found["adaptive, as counted"].cost == pytest.approx((16 + 2.5 * 9) / 10)
    assert found["adaptive, as counted"].score.mean == 80.0
    assert found["best of 6, drawn evenly"].cost == pytest.approx(6.0)
    assert found["best setting, ungraded"].cost == pytest.approx(0.1)
    assert all(p.cost is None for p in insight(learned, recipe()).plans)
    elsewhere = found["thorough, as elsewhere"]
    one = takes("thorough", prices)
    assert (elsewhere.candidates, elsewhere.grades) == (one.candidates, one.grades)
    assert elsewhere.score.mean is None and elsewhere.cost is not None


# ----------------------------------------------------------------------- agreement, grader, spend


def test_the_weight_of_agreement_is_the_prior_until_something_is_learned() -> None:
    signal = insight(record(0), recipe()).signal
    assert signal.weight.mean == pytest.approx(60.0)
    assert signal.weight.high == pytest.approx(60 + 1.95996 * 40)
    assert signal.slope is None and signal.correlation is None
    # 100 observations of a slope of 90 with a variance of the noise that makes each worth 1/400.
    information = pack([[0.25 * (i == j == 2) for j in range(4)] for i in range(4)])
    sums = ConsensusSums(information=information, moments=(0.0, 0.0, 0.25 * 90, 0.0))
    learned = record(consensus=sums, audit=audit_of([[80.0] * 12] * 5, 80.0))
    signal = insight(learned, recipe()).signal
    precision = 0.25 + 1 / 1600
    assert signal.weight.mean == pytest.approx((0.25 * 90 + 60 / 1600) / precision)
    assert signal.weight.low == pytest.approx((signal.weight.mean or 0) - 1.95996 / precision**0.5)
    assert signal.slope == pytest.approx(40.0)
    assert signal.correlation == pytest.approx(80 / math.sqrt(2 * 5_000))


def test_the_grader_is_described_by_what_was_counted() -> None:
    counted = Counted(
        graded=50,
        fives=45,
        two_graded=20,
        tied=5,
        three_graded=10,
        saturated=6,
        regraded=4,
        second_change=-10.0,
    )
    learned = record(counted=counted, repeat_count=12.0, repeat_sum=12 * 25.0)
    found = insight(learned, recipe())
    grader = found.grader
    assert grader.repeatability == pytest.approx(5.0)
    assert (grader.regraded, grader.second_change) == (4, -2.5)
    assert (grader.tied.mean, grader.fives.mean) == (0.25, 0.9)
    assert grader.saturation and any("saturated" in note for note in found.notes)
    half = msgspec.structs.replace(counted, saturated=5)
    assert not insight(record(counted=half), recipe()).grader.saturation
    two = msgspec.structs.replace(counted, saturated=2, three_graded=2)
    assert not insight(record(counted=two), recipe()).grader.saturation, "two images say nothing"


def test_what_was_saved_is_counted_against_grading_every_candidate() -> None:
    counted = Counted(
        candidates=160,
        gradable=150,
        distinct=70,
        graded=20,
        grades=25,
        accepted=8,
        one_grade=4,
        unanimous=5,
        unanimous_score=250.0,
        winner_score=800.0,
        winner_expected=780.0,
        reasons={"no_gain": 6, "agreed": 4},
    )
    found = insight(record(10, counted=counted), recipe())
    spending = found.spending
    assert (spending.candidates, spending.grades) == (16.0, 2.5)
    assert (spending.saved, spending.saved_share) == (125, pytest.approx(125 / 150))
    assert (spending.one_grade.mean, spending.accepted.mean) == (0.4, 0.8)
    assert (spending.winner_score, spending.winner_expected) == (80.0, 78.0)
    assert list(spending.reasons) == ["agreed", "no_gain"]
    assert any("share mistakes" in note for note in found.notes), "unanimous at 50, others above"
    more = msgspec.structs.replace(counted, grades=400)
    assert insight(record(10, counted=more), recipe()).spending.saved == 0


@pytest.mark.parametrize(
    ("alike", "score", "others", "wanted"),
    [
        (5, 50.0, 80.0, True),
        (5, 78.0, 80.0, False),
        (200, 75.0, 80.0, True),
        (4, 50.0, 80.0, False),
    ],
)
def test_shared_mistakes_are_told_only_beyond_chance(
    alike: int, score: float, others: float, wanted: bool
) -> None:
    images = 2 * max(alike, 5)
    rest = images - alike
    counted = Counted(
        unanimous=alike,
        unanimous_score=alike * score,
        winner_score=alike * score + rest * others,
    )
    found = insight(record(images, counted=counted), recipe())
    assert any("share mistakes" in note for note in found.notes) is wanted


def test_what_a_call_of_several_took_is_what_a_plan_costs() -> None:
    lists = recipe(grading_template=LISTWISE)
    prices = CallPrices(candidate=1.0, grading=7.0, graded=2.0, pointwise=False, list_size=6)
    counted = Counted(candidates=160, gradable=160, grades=40, calls=20, calls_for_all=30)
    found = insight(record(10, counted=counted), lists, prices)
    plans = {plan.name: plan.cost for plan in found.plans}
    assert (found.spending.calls, found.spending.calls_saved) == (2.0, 10)
    assert found.spending.calls_saved_share == pytest.approx(1 / 3)
    assert plans["adaptive, as counted"] == pytest.approx((16 + 2 * 7 + 4 * 2) / 10), "two calls"
    one = takes("thorough", prices)
    paid = one.candidates + one.calls * 7 + one.grades * 2
    assert plans["thorough, as elsewhere"] == pytest.approx(paid / 10)


def test_whether_candidates_vote_is_told_and_whose_effects_are_shown() -> None:
    cheap = CallPrices(candidate=10.0, grading=20.0, graded=0.0, pointwise=True)
    dear = replace(cheap, grading=70.0)
    learned = record(40)
    d = len(learned.levels)
    information = pack([[4.0 * (i == j == 1) for j in range(d)] for i in range(d)])
    arms = Regression(information=information, moments=(0.0, 60.0, *[0.0] * (d - 2)))
    learned = msgspec.structs.replace(learned, plain=PlainSums(arms=arms))
    alone, voting = (insight(learned, recipe(), prices) for prices in (cheap, dear))
    assert (alone.signal.votes, alone.signal.grade_price) == (False, 2.0)
    assert (voting.signal.votes, voting.signal.grade_price) == (True, 7.0)
    assert insight(learned, recipe(consensus="off"), dear).signal.votes is False
    assert insight(learned, recipe()).signal.votes is None
    assert insight(learned, recipe(consensus="off")).levels == alone.levels != voting.levels


def test_why_there_are_no_audit_images_is_said() -> None:
    def note(**changes: Any) -> str:
        return next(x for x in insight(record(40), recipe(**changes)).notes if "audit" in x)

    assert "yet (sampling.audit_share)" in note(audit_share=0.02)
    assert "sampling.audit_share is 0" in note(audit_share=0.0)
    assert "sampling.grades_max" in note(audit_share=0.02, grades_max=6)
    assert "temperature above 0" in note(audit_share=0.02, temperatures=(0.0,))


# ----------------------------------------------------------------------------- little or nothing


def test_nothing_learned_is_said_in_words_and_without_a_number() -> None:
    found = insight(nothing_learned(recipe()), recipe())
    assert (found.levels, found.cells, found.curve, found.plans) == ((), (), (), ())
    assert found.setting is None and found.spending.candidates is None
    assert found.notes == ("no image has been decided yet",)
    brought = msgspec.structs.replace(nothing_learned(recipe()), prior_images=30)
    assert insight(brought, recipe()).prior_images == 30


def test_one_image_is_too_little() -> None:
    counted = Counted(candidates=16, gradable=16, distinct=3, graded=1, grades=1, one_grade=1)
    found = insight(record(1, counted=counted), recipe())
    assert found.notes[0] == "too little to say: 1 image"
    assert found.spending.one_grade.few
    assert not any(level.best for level in found.levels)


def test_a_document_is_json_and_comes_back() -> None:
    learned = [record(3), record(7, key="f" * 16, audit=audit_of([[80.0] * 12], 80.0))]
    made = document([(learned[0], recipe()), (learned[1], None)])
    assert [r.learned.images for r in made.records] == [7, 3]
    costs = [[p.cost for p in r.insight.plans] for r in made.records]
    assert all(cost is None for cost in costs[0]), "no recipe, no prices"
    assert all(cost is not None for cost in costs[1])
    data = msgspec.json.encode(made)
    assert msgspec.json.decode(data, type=StrategyDocument) == made
    assert data.startswith(b'{"schema":"rsd.strategy/1"')
