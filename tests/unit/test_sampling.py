"""The plan of an image, and when it stops."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsd.hub.brain.image import ActiveImage, requests_per_image
from rsd.protocol.vocabulary import SEED_SPACE, SEEDS, ImageInfo, seed_base, seed_of
from rsd.strategy.base import Buy, ImageState, Stop
from rsd.strategy.choose import first_round
from rsd.strategy.fixed import STOP_ROUND, next_step, plan
from tests.unit.world import recipe


def state(**changes: object) -> ImageState:
    values: dict[str, object] = {
        "recipe": recipe(),
        "sha256": "ab" * 32,
        "planned": 0,
        "rounds": 0,
        "allotment": 1,
        "bought": {},
        "scores": {},
    }
    values.update(changes)
    return ImageState(**values)  # type: ignore[arg-type]


@given(st.integers(0, 1000), st.integers(1, 40))
def test_prompts_in_equal_shares_and_parameters_without_replacement(sha: int, count: int) -> None:
    arms = plan(recipe(candidates=count), f"{sha:064x}", count)
    assert len(arms) == count
    shares = Counter(a.prompt_key for a in arms)
    assert max(shares.values()) - min(shares.get(k, 0) for k in ("p1", "p2", "p3")) <= 1
    combinations = 3 * 2 * 2
    for start in range(0, count, combinations):
        block = [a.params for a in arms[start : start + combinations]]
        assert len(set(block)) == len(block)


@given(st.integers(0, 1000), st.integers(1, 30), st.integers(1, 30))
def test_a_longer_plan_continues_a_shorter_one(sha: int, short: int, more: int) -> None:
    content = f"{sha:064x}"
    longer = plan(recipe(), content, short + more)
    assert plan(recipe(), content, short) == longer[:short]


def test_images_differ_and_the_seed_matters() -> None:
    one, other = plan(recipe(), "a" * 64, 12), plan(recipe(), "b" * 64, 12)
    assert one != other
    assert plan(recipe(seed=1), "a" * 64, 12) != one


def test_grid_is_the_full_product_once() -> None:
    arms = plan(recipe(strategy="grid"), "a" * 64, 36)
    assert len(set(arms)) == 36


def test_one_round_of_all_without_a_stop_score() -> None:
    step = next_step(state(recipe=recipe(candidates=12)))
    assert isinstance(step, Buy)
    assert len(step.samples) == 12


def test_rounds_with_a_stop_score_end_at_it() -> None:
    with_stop = recipe(candidates=9, stop_score=80.0)
    first = next_step(state(recipe=with_stop))
    assert isinstance(first, Buy) and len(first.samples) == STOP_ROUND
    low = {0: 10.0, 1: 79.9, 2: 30.0}
    assert isinstance(next_step(state(recipe=with_stop, planned=3, scores=low)), Buy)
    high = {0: 10.0, 1: 80.0, 2: 30.0}
    assert next_step(state(recipe=with_stop, planned=3, scores=high)) == Stop(1, 80.0, "stop_score")


def test_ties_go_to_the_lowest_index_and_nothing_graded_to_none() -> None:
    scores = {2: 50.0, 1: 90.0, 0: 90.0}
    assert next_step(state(planned=3, scores=scores)) == Stop(0, 90.0, "all_drawn")
    assert next_step(state(planned=3)) == Stop(None, 0.0, "all_drawn")


def test_a_second_allotment_draws_as_many_again() -> None:
    step = next_step(state(planned=3, allotment=2, scores={0: 1.0}))
    assert isinstance(step, Buy)
    assert len(step.samples) == 3


def image(**changes: object) -> ActiveImage:
    info = ImageInfo(sha256="ab" * 32, width=1, height=1, format="PNG", bytes=1)
    return ActiveImage("id", b"a.png", 0, info, recipe(**changes), "fp")


def test_equal_draws_share_requests_and_keep_their_own_seeds() -> None:
    sketch = image(
        prompts={"p": "x"}, temperatures=(1.0,), top_ps=(0.9,), top_ks=(40,), candidates=10
    )
    step = next_step(sketch.state())
    assert isinstance(step, Buy)
    sketch.take_step(sketch.plan_step(step))
    requests = sketch.to_generate(list(sketch.candidates), 4)
    assert requests == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9)]
    base = seed_base(0, "ab" * 32)
    assert base % 1024 == 0 and base < 2**31
    assert [d.planned.seed for d in sketch.candidates.values()] == [base + i for i in range(10)]


@given(st.integers(0, 3), st.integers(0, 10**6))
def test_no_two_candidates_share_a_seed(seed: int, sha: int) -> None:
    content, count = f"{sha:064x}", 3 * SEED_SPACE
    seeds = [seed_of(seed, content, i) for i in range(0, count, 97)]
    base = seed_base(seed, content)
    assert seeds[: SEED_SPACE // 97] == [base + i for i in range(0, SEED_SPACE, 97)][:-1]
    assert len(set(seeds)) == len(seeds) and all(0 <= s < SEEDS for s in seeds)
    bases = {seed_of(seed, content, block * SEED_SPACE) for block in range(64)}
    assert len(bases) == 64 and all(base % SEED_SPACE == 0 for base in bases)


def test_no_request_leads_from_one_block_of_seeds_into_the_next() -> None:
    many = image(
        prompts={"p": "x"}, temperatures=(1.0,), top_ps=(0.9,), top_ks=(40,), candidates=1_030
    )
    step = next_step(many.state())
    assert isinstance(step, Buy)
    many.take_step(many.plan_step(step))
    for request in many.to_generate(list(many.candidates), 16):
        seeds = [many.candidates[i].planned.seed for i in request]
        assert seeds == list(range(seeds[0], seeds[0] + len(seeds)))


def test_gradings_are_bought_for_themselves() -> None:
    three = {0: 1, 1: 0, 2: 2}  # candidate -> grades under the rubric in force
    step = next_step(state(recipe=recipe(repeats=2), planned=3, bought=three))
    assert step == Buy(gradings=((0, 1), (1, 2)))
    with pytest.raises(ValueError, match="buys nothing"):
        Buy()


def test_a_step_names_every_grade_that_it_buys() -> None:
    twice = image(repeats=2)
    step = next_step(twice.state())
    assert isinstance(step, Buy)
    chosen = twice.plan_step(step)
    assert chosen.rubric == twice.recipe.rubric
    assert [(g.index, g.number) for g in chosen.gradings] == [
        (i, number) for i in range(3) for number in range(2)
    ]
    twice.take_step(chosen)
    more = twice.plan_step(Buy(gradings=((1, 2),)))
    assert [(g.index, g.number) for g in more.gradings] == [(1, 2), (1, 3)]


def test_temperature_zero_never_shares_a_request() -> None:
    cold = image(prompts={"p": "x"}, temperatures=(0.0,), top_ps=(0.9,), top_ks=(40,), candidates=3)
    step = next_step(cold.state())
    assert isinstance(step, Buy)
    cold.take_step(cold.plan_step(step))
    assert cold.to_generate([0, 1, 2], 16) == [(0,), (1,), (2,)]


def test_requests_per_image_counts_shared_draws_once() -> None:
    shared = recipe(
        prompts={"p": "x"}, temperatures=(1.0,), top_ps=(0.9,), top_ks=(40,), candidates=16
    )
    assert requests_per_image(shared, 16, first_round(shared)) == 1
    assert requests_per_image(recipe(), 16, first_round(recipe())) == 3
