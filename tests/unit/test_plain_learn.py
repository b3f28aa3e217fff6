"""What decided images teach about levels when scores are all that counts."""

from __future__ import annotations

from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsd.protocol.learned import Learned, PlainSums
from rsd.strategy.base import Seen
from rsd.strategy.dice import Dice
from rsd.strategy.levels import grown, levels_of
from rsd.strategy.plain_learn import FORGET, learn_plain
from rsd.strategy.plain_model import PlainModel, solve_of, solve_plain
from tests.unit.plain_world import SMALL, arm, lesson, nothing, seen
from tests.unit.test_plain_strategy import taught
from tests.unit.world import recipe

LEVELS = levels_of(SMALL)


def test_sums_are_as_computed_elsewhere() -> None:
    plain = taught().plain
    assert plain.arms.information == pytest.approx(
        (
            *(1.7099775614,),
            *(-1.2750404386, 2.2159786658),
            *(0.7159685614, 0.2249696658, 2.2159786658),
            *(-0.2810314386, 0.7159685614, -1.2750404386, 1.7099775614),
            *(0.4349371227, 0.9409382271, 0.9409382271, 0.4349371227, 1.3758753499),
            *(0.4349371227, 0.9409382271, 0.9409382271, 0.4349371227, 1.3758753499, 1.3758753499),
        ),
        abs=1e-9,
    )
    assert plain.arms.moments == pytest.approx(
        (43.0359867629, -41.2197861677, 8.5105738323, -6.6943732371, 1.8162005952, 1.8162005952)
    )
    cool, hot = plain.temperatures["0.5"], plain.temperatures["1.0"]
    assert (cool.spread_count, hot.spread_count) == pytest.approx((9.917729284, 9.917729284))
    assert (cool.spread_sum, hot.spread_sum) == pytest.approx((1352.8900089746, 2396.5994589746))
    assert (cool.drawn, cool.failed, hot.drawn, hot.failed) == (24.0, 1.0, 24.0, 2.0)
    assert (plain.image_count, plain.image_sum, plain.image_square) == pytest.approx(
        (4.973062946, 314.0168707879, 20451.3064301398)
    )


def test_model_is_as_computed_elsewhere() -> None:
    model = solve_of(taught(), LEVELS)
    assert model.effects == pytest.approx(
        [5.2862113287, -4.6271702913, 0.3975252373, -0.1046181095, 0.0411900648, 0.018306695]
    )
    assert [model.spread[i] for i in (2, 3)] == pytest.approx([99.6385388784, 204.8752740335])
    assert (model.mean, model.variance) == pytest.approx((63.1435544246, 125.3080980585))
    assert model.repeat == pytest.approx(404.5 / 11)


def test_drawn_effects_are_spread_as_they_are_known() -> None:
    """A level of which nothing is known varies by its prior, a known one less."""
    model = solve_of(taught(), LEVELS)
    dice = Dice(0, "", 0, "")
    draws = [model.drawn(dice) for _ in range(4000)]
    for k, sd in ((4, 1.5), (5, 1.0)):
        found = sum((d[k] - model.effects[k]) ** 2 for d in draws) / len(draws)
        assert found == pytest.approx(sd**2, rel=0.1)
    found = sum((d[0] - model.effects[0]) ** 2 for d in draws) / len(draws)
    assert 1.0 < found < 36.0


def learned_from(effects: dict[str, float], images: int) -> PlainModel:
    """A stream of hard and easy images; the last prompt is only ever asked on hard ones."""
    of = recipe(strategy="adaptive", prompts={k: k for k in ("p0", "p1", "p2")}, top_ks=(40,))
    record = nothing(of)
    plain, chance = record.plain, Random(5)
    for k in range(images):
        easy = k % 2 == 0
        level = 75.0 if easy else 45.0
        prompts = (0, 1) if easy else (0, 1, 2)
        candidates = []
        for i in range(6):
            of_arm = arm(chance.choice(prompts), chance.choice(of.temperatures), 0.7)
            score = level + effects[of_arm.prompt_key] + chance.gauss(0, 6)
            candidates.append(seen(i, of_arm, (min(max(score, 0.0), 100.0),)))
        plain = learn_plain(plain, record.levels, lesson(candidates, of))
    return solve_plain(plain, record.levels)


def test_planted_effects_are_found_and_hard_images_blame_no_prompt() -> None:
    model = learned_from({"p0": 8.0, "p1": 0.0, "p2": 8.0}, 200)
    good, bad, rare = model.effects[:3]
    assert good - bad == pytest.approx(8.0, abs=1.5)
    assert rare - bad == pytest.approx(8.0, abs=1.5), "averages would have it 20 points below"
    assert model.mean + sum(model.effects[:3]) / 3 == pytest.approx(65.0, abs=8.0)
    assert model.variance**0.5 == pytest.approx(15.0, abs=3.0)
    for place in (3, 4, 5):
        assert model.spread[place] ** 0.5 == pytest.approx(6.0, abs=1.5)


def test_what_changed_is_learned_anew() -> None:
    """Sums fade: after 300 images the newer ones outweigh the older ones."""
    record = nothing()
    plain = record.plain
    for k in range(600):
        good = int(k >= 300)
        candidates = [
            seen(i, arm(i % 2, 0.5), (70.0 if i % 2 == good else 60.0,)) for i in range(4)
        ]
        plain = learn_plain(plain, record.levels, lesson(candidates))
    model = solve_plain(plain, LEVELS)
    assert model.effects[1] > model.effects[0]


def test_failures_count_and_calls_that_failed_do_not() -> None:
    candidates = [
        seen(0, arm(0, 0.5), rejected=True, bought=1),
        seen(1, arm(0, 0.5), text=None),
        seen(2, arm(0, 1.0), bought=1),
    ]
    before = nothing().plain
    plain = learn_plain(before, LEVELS, lesson(candidates))
    cool, hot = plain.temperatures["0.5"], plain.temperatures["1.0"]
    assert (cool.drawn, cool.failed, hot.drawn, hot.failed) == (21.0, 2.0, 21.0, 1.0)
    assert (plain.image_count, cool.spread_count) == (before.image_count, 8.0), "no score, no more"


def test_equal_texts_share_the_first_score_and_later_grades_say_nothing() -> None:
    shared = [seen(0, arm(0, 0.5), (60.0,), "x"), seen(1, arm(1, 0.5), (), "x \n")]
    own = [seen(0, arm(0, 0.5), (60.0, 100.0), "x"), seen(1, arm(1, 0.5), (60.0,), "y")]
    before = nothing().plain
    assert learn_plain(before, LEVELS, lesson(shared)) == learn_plain(before, LEVELS, lesson(own))


def test_an_outlier_is_drawn_in() -> None:
    """One broken answer does not decide about its prompt."""

    def effect(score: float) -> float:
        scores = (70.0, 72.0, 74.0, score)
        candidates = [seen(i, arm(i // 3, 0.5), (s,)) for i, s in enumerate(scores)]
        plain = learn_plain(nothing().plain, LEVELS, lesson(candidates))
        return solve_plain(plain, LEVELS).effects[1]

    assert effect(0.0) == effect(41.0) < effect(60.0)


def test_candidates_of_prompts_and_levels_that_are_gone() -> None:
    before = nothing().plain
    gone = arm(7, 0.5)
    plain = learn_plain(before, LEVELS, lesson([seen(0, gone, (70.0,)), seen(1, gone, (50.0,))]))
    assert plain.image_count == FORGET * before.image_count + 1
    elsewhere = [seen(0, arm(0, 0.123), (70.0,))]
    assert learn_plain(before, LEVELS, lesson(elsewhere)).image_count == before.image_count


def test_new_levels_start_at_their_prior() -> None:
    """A prompt whose text changed is another prompt; the old one is remembered."""
    record = taught()
    new = msgspec.structs.replace(SMALL, prompts={"p0": "changed", "p1": "one"})
    levels = grown(record.levels, levels_of(new))
    model = solve_of(record, levels)
    assert len(model.effects) == len(LEVELS) + 1
    assert model.effects[:-1] == pytest.approx(solve_of(record, LEVELS).effects)
    assert model.effects[-1] == 0.0
    fresh = solve_plain(learn_plain(PlainSums(), levels, lesson([], new)), levels)
    assert fresh.effects == [0.0] * len(levels)


def test_temperatures_are_as_many_as_levels() -> None:
    """Whatever was in use before."""
    plain = nothing().plain
    for k in range(50):
        of = msgspec.structs.replace(SMALL, temperatures=(k / 10,))
        candidates = [seen(0, arm(0, k / 10), (50.0,))]
        levels = levels_of(of)
        arms = learn_plain(PlainSums(), levels, lesson([], of)).arms
        plain = msgspec.structs.replace(plain, arms=arms)
        plain = learn_plain(plain, levels, lesson(candidates, of))
    assert list(plain.temperatures) == ["4.9"]


def test_sums_that_faded_divide_nothing_by_nothing() -> None:
    """A temperature that was never drawn, after a million images: its prior holds again."""
    of = msgspec.structs.replace(SMALL, temperatures=(0.5, 1.0))
    plain = learn_plain(nothing(of).plain, LEVELS, lesson([seen(0, arm(0, 0.5), (50.0,))], of))
    hot = msgspec.structs.replace(plain.temperatures["1.0"], spread_count=0.0, spread_sum=0.0)
    faded = {**plain.temperatures, "1.0": hot}
    model = solve_plain(msgspec.structs.replace(plain, temperatures=faded), LEVELS, 36.0)
    assert model.observed[3] == 144.0


scores = st.lists(st.floats(0, 100), max_size=3)


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from((0.5, 1.0)), scores), max_size=8))
def test_any_lesson_leaves_a_record_that_can_be_solved(
    drawn: list[tuple[int, float, list[float]]],
) -> None:
    candidates: list[Seen] = [seen(i, arm(p, t), s) for i, (p, t, s) in enumerate(drawn)]
    record: Learned = nothing()
    plain = record.plain
    for _ in range(3):
        plain = learn_plain(plain, LEVELS, lesson(candidates))
        model = solve_plain(plain, LEVELS, 0.0)
        assert model.variance > 0 and all(s > 0 for s in model.spread.values())
    again = record.plain
    for _ in range(3):
        again = learn_plain(again, LEVELS, lesson(list(candidates)))
    assert again == plain, "bit for bit"
    assert msgspec.json.decode(msgspec.json.encode(plain), type=PlainSums) == plain
