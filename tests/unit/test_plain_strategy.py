"""Which candidates and grades are bought when candidates do not vote."""

from __future__ import annotations

from collections import Counter
from itertools import product

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsd.protocol.learned import Learned, Regression
from rsd.protocol.vocabulary import Arm
from rsd.strategy.base import Buy, CallPrices, Seen, Stop
from rsd.strategy.levels import levels_of
from rsd.strategy.memory import Memory
from rsd.strategy.normal import cumulative, density, expected_gain, median
from rsd.strategy.plain import (
    FIRST,
    GRADES,
    IMAGE_FAILURES,
    LATER,
    TEXT_FAILURES,
    Planner,
    answers_of,
    next_step,
)
from rsd.strategy.plain_learn import learn_plain
from tests.unit.plain_world import LISTWISE, SMALL, arm, image, lesson, nothing, play, seen
from tests.unit.stream import POINTWISE
from tests.unit.world import recipe


def taught() -> Learned:
    """A record of three images. The figures of these tests were computed from the same images by
    an independent implementation with numpy.
    """
    record = nothing()
    lessons = (
        lesson(
            [
                seen(0, arm(0, 0.5), (80.0, 84.0, 70.0)),
                seen(1, arm(0, 1.0), (90.0,)),
                seen(2, arm(1, 0.5), (60.0,)),
                seen(3, arm(1, 1.0), rejected=True, bought=1),
                seen(4, arm(1, 1.0), (10.0,)),
            ]
        ),
        lesson([seen(0, arm(0, 0.5), (75.0,)), seen(1, arm(1, 1.0), (65.0, 60.0))]),
        lesson([seen(0, arm(1, 0.5), (55.0,))]),
    )
    plain = record.plain
    for one in lessons:
        plain = learn_plain(plain, record.levels, one)
    return msgspec.structs.replace(record, plain=plain, repeat_count=11.0, repeat_sum=404.5)


FOUR = (
    seen(0, arm(0, 0.5), (85.0, 75.0)),
    seen(1, arm(0, 1.0), (20.0,)),
    seen(2, arm(1, 0.5), (72.0,)),
)


def test_normal() -> None:
    assert cumulative(0.0) == 0.5
    assert cumulative(1.96) == pytest.approx(0.9750021)
    assert cumulative(-8.0) == pytest.approx(6.220961e-16)
    assert density(1.0) == pytest.approx(0.2419707)
    assert expected_gain(0.0, 2.0, 0.0) == pytest.approx(2.0 * 0.3989423)
    assert expected_gain(50.0, 0.0, 48.0) == 2.0
    assert expected_gain(0.0, 1.0, 60.0) == 0.0
    assert (median([3.0, 1.0]), median([5.0, 1.0, 2.0])) == (2.0, 2.0)


def test_scores_are_shrunk_as_computed_elsewhere() -> None:
    planner = Planner(image(FOUR, learned=taught()))
    posterior = planner.posterior()
    assert posterior.image == pytest.approx(3.9931260401)
    assert posterior.image_variance == pytest.approx(35.8138714862)
    assert posterior.means == pytest.approx([78.8908061657, 27.9705747918, 69.5648254124])
    assert posterior.variances == pytest.approx([15.5220666908, 31.1768462236, 26.8598109189])


def test_values_are_as_computed_elsewhere() -> None:
    planner = Planner(image(FOUR, learned=taught()))
    posterior = planner.posterior()
    chosen = planner.best_arm(planner.model.effects, posterior, set())
    assert chosen is not None
    assert chosen[0] == arm(0, 1.0)
    assert chosen[1:3] == pytest.approx((72.3777704442, 14.4495675113))
    # The other one takes Phi from an approximation with errors up to 5e-4.
    assert planner.gain_of_candidates(6, posterior) == pytest.approx(26.70036, abs=0.01)
    gains = list(planner.gains_of_grades(posterior))
    assert [[a.index for a in who] for _, who in gains] == [[0, 2], [0, 2, 1]]
    assert [gain for gain, _ in gains] == pytest.approx([0.0146114, 0.0146114], abs=2e-3)


def test_gain_is_the_expected_maximum() -> None:
    """By another integral: over the density of the best of so many, in fine steps."""
    planner = Planner(image(FOUR, learned=taught()))
    posterior = planner.posterior()
    chosen = planner.best_arm(planner.model.effects, posterior, set())
    assert chosen is not None
    _, mean, sd, failing = chosen
    best, target, count = max(posterior.means), planner.limits.target, 6

    def below(score: float) -> float:
        return (failing + (1 - failing) * cumulative((score - mean) / sd)) ** count

    width = 0.01
    grid = [best + width * k for k in range(int(60 / width))]
    gain = sum(
        (below(x + width) - below(x)) * (min(x + width / 2, target) - best) for x in grid
    ) + 20 * (1 - below(80.0))
    assert planner.gain_of_candidates(count, posterior) == pytest.approx(gain, abs=0.05)


effects = st.lists(st.floats(-20, 20), min_size=10, max_size=10)


@given(effects, st.booleans(), st.floats(0, 100))
def test_best_arm_is_the_best_of_all(values: list[float], begun: bool, best: float) -> None:
    of = recipe(strategy="adaptive", consensus="off", temperatures=(0.0, 0.7, 1.0))
    candidates = [seen(0, Arm(prompt_key="p1", params=arm(1, 0.0).params), (best,))]
    planner = Planner(image(candidates if begun else [], of=of, rounds=int(begun)))
    posterior = planner.posterior()
    chosen = planner.best_arm(values, posterior, planner._greedy())
    assert chosen is not None
    at = {level: i for i, level in enumerate(levels_of(of))}
    assert len(at) == len(values)
    model = planner.model

    def worth(prompt: tuple[str, int], place: int, p: int, k: int) -> float:
        mean = model.mean + posterior.image + values[prompt[1]] + values[place]
        mean += values[p] + values[k]
        if not begun:
            return mean + 0.8 * model.spread[place] ** 0.5
        new = posterior.image_variance + model.spread[place]
        sd = new / (new + model.repeat) ** 0.5
        return (1 - model.failing[place]) * expected_gain(mean, sd, max(posterior.means))

    all_worths = [
        worth(prompt, place, p, k)
        for prompt, (t, place), (_, p), (_, k) in product(
            planner.prompts, planner.temperatures, planner.top_ps, planner.top_ks
        )
        if (t > 0 or not begun or prompt[0] != "p1")
        and (t > 0 or (p, k) == (planner.top_ps[0][1], planner.top_ks[0][1]))
    ]
    params = chosen[0].params
    mine = worth(
        next(p for p in planner.prompts if p[0] == chosen[0].prompt_key),
        next(i for t, i in planner.temperatures if t == params.temperature),
        next(i for p, i in planner.top_ps if p == params.top_p),
        next(i for k, i in planner.top_ks if k == params.top_k),
    )
    assert mine == pytest.approx(max(all_worths), abs=1e-6)


def test_first_round_is_three_whose_texts_are_seen_before_a_grade_is_bought() -> None:
    explored = 0
    for sha in range(400):
        step = next_step(image(sha256=f"{sha:064x}", rounds=0))
        assert isinstance(step, Buy)
        assert len(step.samples) == 3 and not step.gradings
        flags = [flag for _, flag in step.samples]
        assert not any(flags[1:])
        explored += flags[0]
        arms = [of for of, _ in step.samples]
        firsts = [of for k, of in enumerate(arms) if k == 0 or arms[k - 1] != of]
        assert len(firsts) == len(set(firsts)), "equal arms stand side by side"
    assert explored == pytest.approx(100, abs=35)


def test_uniform_slots_are_uniform() -> None:
    """What is known does not move them."""
    of = recipe(strategy="adaptive", consensus="off")
    record = nothing(of)
    size = len(record.levels)
    sums = Regression(
        information=tuple(1e4 * (i == j) for i in range(size) for j in range(i + 1)),
        moments=tuple(1e6 * (i == 0) for i in range(size)),
    )
    plain = msgspec.structs.replace(record.plain, arms=sums)
    record = msgspec.structs.replace(record, plain=plain)
    uniform: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for sha in range(600):
        step = next_step(image(of=of, learned=record, sha256=f"{sha:064x}", rounds=0))
        assert isinstance(step, Buy)
        for drawn, flag in step.samples:
            (uniform if flag else others)[drawn.prompt_key] += 1
    assert set(others) == {"p1"}
    for key in of.prompts:
        assert uniform[key] / uniform.total() == pytest.approx(1 / 3, abs=0.15)


def test_a_text_is_graded_for_all_who_gave_it() -> None:
    """Trailing white space makes no other text; rejected ones are no answers."""
    same = [
        seen(0, arm(0, 0.5), (70.0,), "a > b"),
        seen(1, arm(1, 0.5), (), "a > b \n", bought=1),
        seen(2, arm(1, 1.0), (90.0,), "a > b\n"),
        seen(3, arm(1, 1.0), (), "other", rejected=True, bought=1),
        seen(4, arm(1, 1.0), (), None),
    ]
    answers = answers_of(same)
    assert [(a.index, a.scores, a.bought) for a in answers] == [(0, (70.0, 90.0), 3)]
    assert not answers_of([])


def test_grades_that_are_lacking_come_first() -> None:
    """After another rubric came into force nothing is graded; equal texts need one grade."""
    candidates = [seen(0, arm(0, 0.5), text="x"), seen(1, arm(0, 0.5), text="x "), *FOUR[2:]]
    assert next_step(image(candidates)) == Buy(gradings=((0, 1),))


def test_leaders_are_graded_again_when_candidates_are_dear() -> None:
    dear = CallPrices(candidate=1e4, grading=2.76, graded=0.57, pointwise=False, list_size=6)
    close = [
        seen(0, arm(0, 0.5), (70.0,)),
        seen(1, arm(0, 1.0), (69.0,)),
        seen(2, arm(1, 0.5), (71.0,)),
    ]
    step = next_step(image(close, prices=dear, learned=taught()))
    assert isinstance(step, Buy) and not step.samples
    assert len(step.gradings) in (2, 3) and list(step.gradings) == sorted(step.gradings)


@pytest.mark.parametrize(("score", "verified"), [(95.0, False), (82.0, True), (70.0, False)])
def test_a_winner_near_the_threshold_is_graded_again(score: float, verified: bool) -> None:
    stingy = msgspec.structs.replace(SMALL, min_gain=1e6)
    candidates = [seen(i, arm(0, 0.5), (score,)) for i in range(3)]
    step = next_step(image(candidates, of=stingy))
    assert step == Buy(gradings=((0, 1),)) if verified else isinstance(step, Stop)
    done = [seen(0, arm(0, 0.5), (score,) * 3), *candidates[1:]]
    assert isinstance(next_step(image(done, of=stingy)), Stop)


def test_what_has_no_grade_is_no_winner() -> None:
    few = msgspec.structs.replace(SMALL, candidates_max=2)
    failed = [seen(0, arm(0, 0.5), rejected=True, bought=1), seen(1, arm(0, 0.5), (), None)]
    assert next_step(image(failed, of=few)) == Stop(None, 0.0, "no_candidate")
    silent = [seen(0, arm(0, 0.5), (), "x", bought=TEXT_FAILURES), failed[1]]
    assert next_step(image(silent, of=few)) == Stop(None, 0.0, "ungraded")


@pytest.mark.parametrize("prices", [LISTWISE, POINTWISE])
@pytest.mark.parametrize("allotment", [1, 2])
def test_a_judge_that_never_answers_is_not_asked_about_ever_more_candidates(
    prices: CallPrices, allotment: int
) -> None:
    stop, bought, candidates = play(
        lambda i, of: (str(i), False), lambda text, n: None, prices=prices, allotment=allotment
    )
    assert stop == Stop(None, 0.0, "ungraded")
    assert len(candidates) == FIRST + LATER * (allotment - 1)
    assert sum(len(b.gradings) for b in bought) <= max(len(candidates), IMAGE_FAILURES * allotment)


def test_what_was_unreadable_is_asked_again_before_more_is_made() -> None:
    stop, bought, _ = play(lambda i, of: (str(i), False), lambda text, n: 90.0 if n else None)
    assert stop.index is not None
    assert [bool(b.samples) for b in bought[:3]] == [True, False, False]


def test_temperature_0_is_asked_once_a_prompt() -> None:
    greedy = msgspec.structs.replace(SMALL, temperatures=(0.0,), min_gain=0.0)
    stop, _bought, candidates = play(
        lambda i, of: (of.prompt_key, False), lambda text, n: 40.0, of=greedy
    )
    assert len(candidates) == 2 and stop.index == 0 and stop.reason == "no_gain"
    assert len({c.arm.prompt_key for c in candidates}) == 2
    again, _, more = play(
        lambda i, of: (of.prompt_key, False), lambda text, n: 40.0, of=greedy, allotment=2
    )
    assert (again.index, len(more)) == (0, 2), "no arm is left, whatever was asked for"


def test_grader_of_one_answer_teaches_to_stop() -> None:
    """Always 85: nothing tells candidates apart, and soon nothing more is expected of them."""
    record = nothing()
    for _ in range(60):
        _, _, candidates = play(lambda i, of: (str(i), False), lambda t, n: 85.0, learned=record)
        plain = learn_plain(record.plain, record.levels, lesson(candidates))
        record = msgspec.structs.replace(record, plain=plain)
    assert record.plain.temperatures["0.5"].spread_sum >= 0.0
    stop, _, candidates = play(lambda i, of: (str(i), False), lambda t, n: 85.0, learned=record)
    assert len(candidates) == 3 and stop.expected_score == pytest.approx(85.0, abs=0.5)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_it_ends_within_its_limits(data: st.DataObject) -> None:
    draw = data.draw
    effort = draw(st.sampled_from(("economy", "balanced", "maximal", "unknown")))
    of = msgspec.structs.replace(
        SMALL,
        temperatures=draw(st.sampled_from(((0.0,), (0.0, 1.0), (0.5, 1.0)))),
        effort=effort,
        min_gain=draw(st.sampled_from((0.0, 0.5, 2.0, 1e9))),
        candidates_max=draw(st.integers(1, 40)),
        grades_max=draw(st.integers(1, 40)),
        score_threshold=draw(st.sampled_from((0.0, 80.0, 100.0))),
    )
    price = st.sampled_from((0.0, 1e-3, 1.7, 1e3))
    prices = CallPrices(
        candidate=draw(price),
        grading=draw(price),
        graded=draw(price),
        pointwise=draw(st.booleans()),
    )
    fails = draw(st.sampled_from((0.0, 0.3, 1.0)))
    unreadable = draw(st.sampled_from((0.0, 0.3, 1.0)))
    variety = draw(st.integers(1, 20))
    scores = draw(
        st.sampled_from((st.just(85.0), st.sampled_from((0.0, 50.0, 100.0)), st.floats(0, 100)))
    )
    chance = draw(st.randoms(use_true_random=False))
    allotment = draw(st.integers(1, 3))

    def write(index: int, of: Arm) -> tuple[str | None, bool]:
        if chance.random() < fails:
            return draw(st.sampled_from(((None, False), ("cut", True))))
        return f"text {chance.randrange(variety)}" + " " * chance.randrange(2), False

    def grade(text: str, number: int) -> float | None:
        return None if chance.random() < unreadable else draw(scores)

    stop, bought, candidates = play(write, grade, of=of, prices=prices, allotment=allotment)
    limits = Planner(image(of=of, allotment=allotment)).limits
    assert len(candidates) <= limits.candidates
    answers = answers_of(candidates)
    if limits.grades is not None:
        assert sum(a.bought for a in answers) <= limits.grades
    assert stop.index is None or candidates[stop.index].gradable
    if stop.index is not None:
        assert 0.0 <= stop.expected_score <= 100.0
        winner = next(a for a in answers if a.kept == stop.index)
        assert winner.scores and candidates[stop.index].scores
    else:
        assert not any(a.scores for a in answers)
    for step in bought:
        assert all(count == 1 for _, count in step.gradings)
        if not step.samples:
            again = {i for i, _ in step.gradings}
            assert again <= {a.index for a in answers}, "only the first of equal texts"
    singles = [
        a for a in answers if sum(_text(c) == _text(candidates[a.index]) for c in candidates) == 1
    ]
    assert all(a.bought <= GRADES for a in singles)


def _text(candidate: Seen) -> str:
    return (candidate.text or "").rstrip()


@given(st.lists(st.floats(0, 100), min_size=3, max_size=12), st.integers(0, 9), st.integers(0, 99))
def test_equal_states_are_decided_alike(scores: list[float], seed: int, sha: int) -> None:
    of = msgspec.structs.replace(SMALL, seed=seed)
    candidates = [seen(i, arm(i % 2, (0.5, 1.0)[i % 3 > 0]), (s,)) for i, s in enumerate(scores)]
    state = image(candidates, of=of, learned=taught(), sha256=f"{sha:064x}")
    again = image(list(candidates), of=of, learned=taught(), sha256=f"{sha:064x}")
    memory = Memory()
    first = next_step(state, memory)
    assert first == next_step(again) == next_step(again, memory)
    assert next_step(image(candidates, of=of, learned=None), memory) == next_step(
        image(candidates, of=of, learned=None)
    )


def test_prices_that_nobody_set_are_assumed() -> None:
    assert isinstance(next_step(image(rounds=0, prices=None)), Buy)
    assert isinstance(next_step(image(FOUR, prices=None)), Buy | Stop)
    free = CallPrices(candidate=0.0, grading=0.0, graded=0.0, pointwise=True)
    assert isinstance(next_step(image(FOUR, prices=free)), Buy)
    assert LISTWISE.grade(7) == pytest.approx(2 * 2.76 + 7 * 0.57)
