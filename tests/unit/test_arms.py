"""Levels, what is known of their effects, and which arms are drawn."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsd.protocol.learned import ConsensusSums, Level, Regression
from rsd.protocol.vocabulary import Arm, Recipe
from rsd.strategy.arms import ARMS_MAX, Arms, Effects, learn_arms, spread_of, together
from rsd.strategy.dice import Dice
from rsd.strategy.levels import (
    LEVELS_MAX,
    PRIOR_SD,
    grown,
    levels_of,
    levels_of_arm,
    prompt_level,
    regrown,
)
from tests.unit.stream import adaptive


def nothing(recipe: Recipe) -> Effects:
    """The prior."""
    return Effects.of(Regression(), (), levels_of(recipe), 144.0)


def dice(number: int = 0) -> Dice:
    return Dice(0, f"{number}", 0, "test")


def test_levels_are_named_as_json_writes_them() -> None:
    some = adaptive(temperatures=(1.0, 0.3), top_ps=(0.95,), top_ks=(-1, 40), prompts={"a": "x"})
    assert [(x.factor, x.name) for x in levels_of(some)] == [
        ("prompt", "a"),
        ("temperature", "1.0"),
        ("temperature", "0.3"),
        ("top_p", "0.95"),
        ("top_k", "-1"),
        ("top_k", "40"),
    ]
    other = adaptive(prompts={"a": "y"})
    assert levels_of(some)[0] != levels_of(other)[0]


def test_a_value_given_twice_is_one_level() -> None:
    twice = adaptive(temperatures=(0.7, 0.7), top_ks=(40, 40))
    assert len(levels_of(twice)) == len(set(levels_of(twice)))
    assert len(Arms.of(twice).arms) == 3 * 1 * 2 * 1


def test_an_arm_of_a_removed_prompt_has_the_other_levels() -> None:
    some = adaptive()
    gone = msgspec.structs.replace(Arms.of(some).arms[0], prompt_key="gone")
    assert [x.factor for x in levels_of_arm(some, gone)] == ["temperature", "top_p", "top_k"]


def test_levels_grow_and_the_oldest_unused_ones_go() -> None:
    old = tuple(prompt_level(f"p{i}", "text") for i in range(LEVELS_MAX))
    wanted = (old[1], prompt_level("new", "text"))
    both = grown(old, wanted)
    assert len(both) == LEVELS_MAX
    assert both[0] == old[1] and both[-1] == wanted[1]
    assert grown(old, old) == old
    many = tuple(prompt_level(f"q{i}", "text") for i in range(100))
    assert grown((), many) == many  # the recipe's own are all kept


@given(st.lists(st.integers(0, 9), unique=True), st.lists(st.integers(0, 9), unique=True))
def test_sums_of_levels_keep_their_places(before: list[int], after: list[int]) -> None:
    def level(i: int) -> Level:
        return Level(factor="prompt", name=str(i))

    def sums(of: list[int], known: set[int]) -> Regression:
        pairs = ((a, b) for k, a in enumerate(of) for b in of[: k + 1])
        return Regression(
            information=tuple(
                float(min(p) * 100 + max(p) + 1) if known.issuperset(p) else 0.0 for p in pairs
            ),
            moments=tuple(float(a + 1) if a in known else 0.0 for a in of),
        )

    moved = regrown(
        sums(before, set(before)), [level(i) for i in before], [level(i) for i in after]
    )
    assert moved == sums(after, set(before) & set(after))


def test_nothing_known_is_the_prior() -> None:
    some = adaptive()
    effects = nothing(some)
    assert set(effects.mean) == {0.0}
    for i, level in enumerate(effects.levels):
        assert effects.covariance[i][i] == pytest.approx(PRIOR_SD[level.factor] ** 2)


def test_a_planted_effect_is_found() -> None:
    some = adaptive()
    levels, arms = levels_of(some), Arms.of(some)
    planted = {"p1": 8.0, "p2": 0.0, "p3": -8.0}
    sums = ConsensusSums()
    for number in range(150):
        roll = dice(number)
        drawn = arms.uniform(8, (), roll)
        image = 20 * roll.normal()
        quality = [60 + image + planted[a.prompt_key] + 6 * roll.normal() for a in drawn]
        effects = Effects.of(sums.arms, levels, levels, spread_of(sums))
        at = {level: k for k, level in enumerate(levels)}
        rows = [[at[x] for x in levels_of_arm(some, a)] for a in drawn]
        sums = learn_arms(sums, effects, rows, quality, [True, False] * 4, 0.997)
    found = Effects.of(sums.arms, levels, levels, spread_of(sums))
    prompts = found.mean[:3]
    assert [p - sum(prompts) / 3 for p in prompts] == pytest.approx([8, 0, -8], abs=1.5)
    assert max(map(abs, found.mean[3:])) < 2.0
    assert spread_of(sums) == pytest.approx(36.0, rel=0.3)


def test_one_candidate_teaches_nothing_of_arms() -> None:
    some = adaptive()
    levels = levels_of(some)
    sums = learn_arms(ConsensusSums(), nothing(some), [[0, 3, 6, 8]], [50.0], [True], 0.997)
    assert set(sums.arms.moments) == {0.0}
    assert len(sums.arms.moments) == len(levels)


def test_better_arms_are_drawn_more_often_and_all_are_drawn() -> None:
    some = adaptive()
    prior = nothing(some)
    known = Effects(prior.levels, [6.0, 0.0, -6.0, *[0.0] * 7], prior.covariance, [[0.0] * 10] * 10)
    counts: Counter[str] = Counter()
    for number in range(100):
        drawn = Arms.of(some).promising(known, 6.0, 16, (), dice(number))
        assert len(drawn) == 16
        counts.update(a.prompt_key for a in drawn)
    # Weights are as exp(1), 1, exp(-1); no arm is drawn twice before its share is, which evens out.
    assert counts["p1"] / 1600 == pytest.approx(0.57, abs=0.1)
    assert counts["p3"] / 1600 == pytest.approx(0.13, abs=0.05)


def test_a_soft_choice_is_nearly_uniform() -> None:
    some = adaptive()
    known = nothing(some)
    drawn = Arms.of(some).promising(known, 1e6, 36, (), dice())
    assert len(set(drawn)) == 36


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, unique=True),
    st.integers(0, 30),
    st.integers(0, 1000),
    st.booleans(),
)
def test_a_prompt_is_asked_once_at_temperature_0(
    temperatures: list[float], count: int, number: int, uniform: bool
) -> None:
    some = adaptive(temperatures=tuple(temperatures))
    arms = Arms.of(some)
    taken = [next(a for a in arms.arms if a.prompt_key == "p2")]

    def draw() -> list[Arm]:
        if uniform:
            return arms.uniform(count, taken, dice(number))
        return arms.promising(nothing(some), 6.0, count, taken, dice(number))

    drawn = draw()
    assert drawn == draw()
    greedy = Counter(a.prompt_key for a in [*taken, *drawn] if a.params.temperature == 0)
    assert max(greedy.values(), default=0) <= 1
    if max(temperatures) > 0:
        assert len(drawn) == count
    else:
        assert len(drawn) == min(count, 2)


def test_uniform_means_uniform_over_combinations() -> None:
    some = adaptive(temperatures=(0.0, 1.0))  # one arm for four combinations
    arms = Arms.of(some)
    cold = sum(
        arms.uniform(1, (), dice(number))[0].params.temperature == 0 for number in range(2000)
    )
    assert cold / 2000 == pytest.approx(0.5, abs=0.04)


def test_a_vast_product_is_thinned_the_same_way_each_time() -> None:
    vast = adaptive(
        temperatures=tuple(i / 50 for i in range(1, 51)),
        top_ps=tuple(i / 20 for i in range(1, 21)),
        top_ks=tuple(range(1, 31)),
    )
    arms = Arms.of(vast)
    assert len(arms.arms) == ARMS_MAX
    assert arms == Arms.of(vast)
    assert {a.prompt_key for a in arms.arms} == {"p1", "p2", "p3"}
    assert len(arms.promising(nothing(vast), 6.0, 16, (), dice())) == 16


def test_equal_arms_share_a_request() -> None:
    a, b = Arms.of(adaptive()).arms[:2]
    assert together([a, b, a, b, b]) == [a, a, b, b, b]


def test_a_level_that_is_new_or_gone() -> None:
    one, two = adaptive(prompts={"p1": "one"}), adaptive(prompts={"p2": "two"})
    known = levels_of(one)
    size = len(known)
    sums = Regression(
        information=tuple(50.0 * (i == j) for i in range(size) for j in range(i + 1)),
        moments=tuple(float(i) for i in range(size)),
    )
    effects = Effects.of(sums, known, levels_of(two), 36.0)
    assert effects.mean[0] == 0.0
    assert effects.covariance[0][0] == pytest.approx(36.0)
    assert effects.mean[1:] == Effects.of(sums, known, known, 36.0).mean[1:]
