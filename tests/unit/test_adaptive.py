"""What the strategy that learns buys, and when it stops."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsd.protocol.learned import AUDIT_CANDIDATES, Learned, nothing_learned
from rsd.protocol.vocabulary import Arm, Role, TokenPrices
from rsd.strategy.adaptive import (
    FIRST_MAX,
    TEXT_GRADES,
    is_audit,
    next_step,
    votes,
)
from rsd.strategy.arms import EXPLORE_SHARE, explores
from rsd.strategy.base import Buy, CallPrices, Stop
from rsd.strategy.choose import first_round
from rsd.strategy.learn import learn
from rsd.strategy.memory import SOLVED_MAX, Memory, Solved
from rsd.strategy.plain import IMAGE_FAILURES
from rsd.strategy.prices import prices_of_calls
from tests.unit.stream import (
    LISTWISE,
    POINTWISE,
    Image,
    adaptive,
    diagram,
    honest_grader,
    noisy_reader,
    shas,
)
from tests.unit.world import recipe

EDGES = ("ab", "bc", "cd", "de", "ea", "af")
UNIFORM = next(sha for sha in shas(100) if explores(adaptive(), sha))
ORDINARY = next(sha for sha in shas(100) if not explores(adaptive(), sha))


def image(**changes: object) -> Image:
    """A reader that is right about four edges of five, and a fair grader."""
    values: dict[str, object] = {
        "model": noisy_reader(EDGES, 0.8, 1),
        "grader": honest_grader(EDGES, 5.0),
        "sha256": ORDINARY,
    }
    return Image(**(values | changes))  # type: ignore[arg-type]


def test_candidates_come_first_and_ungraded() -> None:
    step = next_step(image().state())
    assert isinstance(step, Buy)
    assert len(step.samples) == FIRST_MAX
    assert not step.gradings


def test_dear_candidates_are_fewer() -> None:
    dear = CallPrices(candidate=1.7, grading=2.76, graded=0.57, pointwise=True)
    step = next_step(image(prices=dear).state())
    assert isinstance(step, Buy)
    assert len(step.samples) == 3  # one per prompt


def test_equal_arms_stand_side_by_side() -> None:
    few = adaptive(temperatures=(0.7,), top_ps=(0.9,), top_ks=(40,))
    step = next_step(image(recipe=few).state())
    assert isinstance(step, Buy)
    keys = [arm.prompt_key for arm, _ in step.samples]
    assert [k for i, k in enumerate(keys) if i == 0 or keys[i - 1] != k] == list(
        dict.fromkeys(keys)
    )


@pytest.mark.parametrize("prices", [POINTWISE, LISTWISE])
@pytest.mark.parametrize("score", [0.0, 30.0, 78.0, 85.0, 100.0])
def test_a_unanimous_image_takes_one_grade(prices: CallPrices, score: float) -> None:
    template = "{generated_answer}" if prices.pointwise else "{candidate_answers}"
    alike = image(
        model=lambda index, arm: diagram(*EDGES),
        grader=lambda text, number: score,
        recipe=adaptive(grading_template=template),
        prices=prices,
    )
    stop = alike.play()
    assert (stop.index, stop.reason, alike.spent) == (0, "agreed", 1)
    assert stop.agreement is not None
    assert (stop.agreement.level, stop.agreement.distinct, stop.agreement.winner) == (1.0, 1, 1.0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.3, 1.0), st.booleans())
def test_a_copy_of_a_text_is_never_graded(seed: int, share: float, listwise: bool) -> None:
    template = "{candidate_answers}" if listwise else "{generated_answer}"
    played = image(
        model=noisy_reader(EDGES[:3], share, seed),
        sha256=f"{seed:064x}",
        recipe=adaptive(grading_template=template),
        prices=LISTWISE if listwise else POINTWISE,
    )
    played.play()
    first: dict[str, int] = {}
    for c in played.candidates:
        assert c.text is not None
        assert not c.bought or first.setdefault(c.text, c.index) == c.index
        first.setdefault(c.text, c.index)


def test_white_space_at_the_end_makes_no_other_text() -> None:
    played = image(model=lambda index, arm: diagram(*EDGES) + "\n" * (index % 3))
    assert played.play().reason == "agreed"
    assert played.spent == 1


def test_the_uniform_candidate_is_graded_even_if_it_agrees_with_nobody() -> None:
    def model(index: int, arm: Arm) -> str:
        return diagram("xy", "yz") if index == 0 else diagram(*EDGES)

    played = image(model=model, sha256=UNIFORM)
    played.play()
    assert [c.index for c in played.candidates if c.explore] == [0]
    assert played.candidates[0].bought == 1
    other = image(model=model)
    other.play()
    assert not any(c.explore for c in other.candidates)
    assert other.candidates[0].bought == 0


def test_one_image_in_four_explores() -> None:
    share = sum(explores(adaptive(), sha) for sha in shas(2000)) / 2000
    assert abs(share - EXPLORE_SHARE) < 0.04
    assert not any(explores(adaptive(grades_max=1), sha) for sha in shas(100))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    share=st.floats(0.0, 1.0),
    noise=st.floats(0.0, 30.0),
    effort=st.sampled_from([("economy", 4.0), ("balanced", 2.0), ("thorough", 0.5), ("any", 0.0)]),
    listwise=st.booleans(),
    candidates_max=st.integers(1, 40),
    grades_max=st.integers(1, 16),
    allotment=st.integers(1, 3),
    trouble=st.floats(0.0, 1.0),
)
def test_every_image_ends_within_its_limits(
    seed: int,
    share: float,
    noise: float,
    effort: tuple[str, float],
    listwise: bool,
    candidates_max: int,
    grades_max: int,
    allotment: int,
    trouble: float,
) -> None:
    good, fair = noisy_reader(EDGES, share, seed), honest_grader(EDGES, noise, seed)

    def model(index: int, arm: Arm) -> str | None:
        return None if (seed + 7 * index) % 100 < 30 * trouble else good(index, arm)

    def grader(text: str, number: int) -> float | None:
        return None if (seed + len(text) + number) % 100 < 100 * trouble**2 else fair(text, number)

    played = image(
        model=model,
        grader=grader,
        sha256=f"{seed:064x}",
        allotment=allotment,
        rejected=lambda text: hash_of(text) % 100 < 40 * trouble,
        recipe=adaptive(
            effort=effort[0],
            min_gain=effort[1],
            candidates_max=candidates_max,
            grades_max=grades_max,
            grading_template="{candidate_answers}" if listwise else "{generated_answer}",
        ),
        prices=LISTWISE if listwise else POINTWISE,
    )
    stop = played.play()
    assert len(played.candidates) <= candidates_max * allotment
    assert played.spent <= grades_max * allotment
    assert all(c.bought <= TEXT_GRADES for c in played.candidates)
    if stop.index is None:
        assert stop.reason in ("no_candidate", "ungraded")
        assert not any(c.scores for c in played.candidates)
    else:
        assert played.candidates[stop.index].scores
        assert 0.0 <= stop.expected_score <= 100.0
        assert stop.agreement is not None


def hash_of(text: str) -> int:
    """The same in every process."""
    return sum(map(ord, text)) * 7919


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.3, 1.0))
def test_equal_states_give_equal_steps_whatever_is_remembered(seed: int, share: float) -> None:
    played = image(model=noisy_reader(EDGES, share, seed), sha256=f"{seed:064x}")
    memory = Memory()
    for _ in range(100):
        step = next_step(played.state(), memory)
        assert step == next_step(played.state())
        assert step == next_step(played.state(), Memory(memory.solved))
        if isinstance(step, Stop):
            return
        played.take(step)
    raise AssertionError("no end")


def test_what_is_remembered_is_bounded() -> None:
    solved, made = Solved(), []
    records = [stored(images) for images in range(SOLVED_MAX + 4)]
    for record in (*records, records[-1], records[0]):
        solved.get(record, "images", lambda record=record: made.append(record.images))  # type: ignore[misc]
    assert made == [*range(SOLVED_MAX + 4), 0]  # the newest was kept, the oldest was not


def stored(images: int) -> Learned:
    """A record of so many images."""
    return msgspec.structs.replace(nothing_learned(adaptive()), images=images)


def test_the_kept_candidate_is_better_than_a_random_one_and_grades_are_few() -> None:
    kept, any_, grades = 0.0, 0.0, 0
    truth = honest_grader(EDGES)
    for sha in shas(40):
        played = image(model=noisy_reader(EDGES, 0.75, int(sha, 16)), sha256=sha)
        stop = played.play()
        assert stop.index is not None
        texts = [c.text or "" for c in played.candidates]
        kept += truth(texts[stop.index], 0) or 0.0
        any_ += sum(truth(text, 0) or 0.0 for text in texts) / len(texts)
        grades += played.spent
    assert kept / 40 > any_ / 40 + 15
    assert grades / 40 < 4


def test_a_dearer_point_is_not_bought() -> None:
    def spent(min_gain: float) -> int:
        total = 0
        for sha in shas(20):
            played = image(
                model=noisy_reader((*EDGES, "bg", "gh"), 0.6, int(sha, 16)),
                sha256=sha,
                recipe=adaptive(min_gain=min_gain),
            )
            played.play()
            total += played.spent
        return total

    assert spent(16.0) < spent(4.0) < spent(0.25)


def test_a_list_is_graded_in_one_call() -> None:
    played = image(
        model=noisy_reader(EDGES, 0.7, 5),
        recipe=adaptive(grading_template="{candidate_answers}"),
        prices=LISTWISE,
    )
    played.play()
    sizes = [len(step.gradings) for step in played.steps if step.gradings]
    assert 2 <= max(sizes) <= 6
    assert all(count == 1 for step in played.steps for _, count in step.gradings)


def test_more_time_is_more_candidates_and_grades() -> None:
    played = image(model=lambda index, arm: diagram(*EDGES))
    played.play()
    count, spent = len(played.candidates), played.spent
    played.allotment = 2
    stop = played.play()
    assert stop.reason == "agreed"
    assert len(played.candidates) == count + 6
    assert played.spent == spent + 1


@pytest.mark.parametrize("consensus", ["on", "off"])
@pytest.mark.parametrize("effort", ["balanced", "maximal"])
def test_a_retry_makes_a_round_however_many_there_are(consensus: str, effort: str) -> None:
    wide = adaptive(consensus=consensus, effort=effort, candidates_max=108, min_gain=0.1)
    for number, sha in enumerate(shas(6)):
        model = noisy_reader(EDGES, 0.6, number)
        played = image(recipe=wide, sha256=sha, model=model)
        played.play()
        for allotment in (2, 3):
            count = played.retried_at = len(played.candidates)
            played.allotment = allotment
            played.play()
            assert len(played.candidates) >= count + 6
            assert next_step(played.state()) == played.play(), "and ends when it is made"


def test_grades_of_another_rubric_are_bought_anew() -> None:
    played = image()
    played.play()
    played.candidates = [replace(c, scores=(), bought=0) for c in played.candidates]
    before = len(played.calls)
    stop = played.play()
    assert stop.index is not None
    assert len(played.calls) > before


def test_audit_images_are_uniform_and_graded_whole() -> None:
    audited = adaptive(audit_share=0.05)
    share = sum(is_audit(audited, sha) for sha in shas(2000)) / 2000
    assert abs(share - 0.05) < 0.02
    played = image(recipe=adaptive(audit_share=1.0), model=noisy_reader(EDGES, 0.8, 3))
    stop = played.play()
    assert stop.reason == "audit"
    assert len(played.candidates) == AUDIT_CANDIDATES
    assert all(c.explore for c in played.candidates)
    texts = [c.text for c in played.candidates]
    assert sorted(played.calls) == sorted(t for t in set(texts) if t is not None)
    assert not is_audit(adaptive(audit_share=1.0, candidates_max=AUDIT_CANDIDATES - 1), "ab" * 32)
    assert not is_audit(adaptive(audit_share=1.0, temperatures=(0.0,)), "ab" * 32)


@pytest.mark.parametrize(
    ("listwise", "grader_price", "generator_price", "expected"),
    [(False, 2.75, 0.25, True), (True, 2.75, 0.25, True), (False, 1.0, 1.0, False)],
)
def test_candidates_vote_where_grades_are_dear(
    listwise: bool, grader_price: float, generator_price: float, expected: bool
) -> None:
    template = "{candidate_answers}" if listwise else "{generated_answer}"
    some = adaptive(grading_template=template, consensus="auto")
    known = nothing_learned(some)
    weights = {
        Role.GENERATE: TokenPrices(input=generator_price, output=generator_price),
        Role.GRADE: TokenPrices(input=grader_price, output=grader_price),
    }
    prices = prices_of_calls(some, known, weights)
    assert votes(some, prices) is expected
    assert votes(adaptive(consensus="on"), prices)
    assert not votes(adaptive(consensus="off"), prices)


def test_the_first_round_is_known_beforehand() -> None:
    assert len(first_round(adaptive(), None, POINTWISE)) == FIRST_MAX
    assert len(first_round(recipe())) == 3


def test_a_judge_that_never_answers_ends_the_image() -> None:
    played = image(grader=lambda text, number: None)
    stop = played.play()
    assert (stop.index, stop.reason) == (None, "ungraded")
    assert played.spent == IMAGE_FAILURES


def test_refusals_alone_are_given_up() -> None:
    played = image(model=lambda index, arm: "no", rejected=lambda text: True)
    stop = played.play()
    assert (stop.index, stop.reason) == (None, "no_candidate")
    assert played.spent == 0


@pytest.mark.parametrize("consensus", ["on", "auto"])
@pytest.mark.parametrize(
    "changes",
    [
        {"temperatures": (0.0,)},
        {"temperatures": (0.0,), "prompts": {"p1": "one"}},
        {"temperatures": (0.0, 0.7)},
        {"temperatures": (0.7,), "top_ps": (0.9,), "top_ks": (40,), "prompts": {"p1": "one"}},
        {"temperatures": (0.7, 0.7), "top_ps": (0.9, 0.9), "top_ks": (40, 40)},
        {"candidates_max": 1, "grades_max": 1},
        {"min_gain": 0.0},
        {"effort": "maximal", "min_gain": 0.5, "candidates_max": 108, "grades_max": 24},
    ],
)
def test_odd_recipes_have_a_sensible_result(changes: dict[str, object], consensus: str) -> None:
    for sha in (ORDINARY, UNIFORM):
        played = image(recipe=adaptive(consensus=consensus, **changes), sha256=sha)
        stop = played.play()
        assert stop.index is not None
        greedy = [c.arm.prompt_key for c in played.candidates if c.arm.params.temperature == 0]
        assert len(set(greedy)) == len(greedy)


def test_grades_are_bought_where_no_arm_is_left() -> None:
    """At temperature 0 a prompt answers once. More candidates seem worth more than grades, but
    there are none.
    """
    grades = {}
    for candidates_max in (3, 108):
        cold = adaptive(
            temperatures=(0.0,), effort="maximal", min_gain=0.01, candidates_max=candidates_max
        )
        played = [
            image(recipe=cold, sha256=sha, model=noisy_reader(EDGES, 0.6, k), prices=LISTWISE)
            for k, sha in enumerate(shas(8))
        ]
        assert all(one.play().index is not None for one in played)
        assert all(len(one.candidates) == 3 for one in played)
        grades[candidates_max] = sum(one.spent for one in played)
    assert grades[108] >= grades[3] - 2  # their arms come in another order


@pytest.mark.parametrize(
    "text",
    ["", "I cannot help with that.", "图中有三个模块。", "A -> B\n" * 2000, "x" * 8192, "-" * 8192],
)
def test_odd_texts_have_a_sensible_result(text: str) -> None:
    played = image(model=lambda index, arm: f"{text}{index % 4}" if text else "")
    assert played.play().index is not None


@pytest.mark.parametrize("score", [0.0, 85.0, 100.0])
def test_a_judge_of_one_mind_is_not_asked_long(score: float) -> None:
    record = nothing_learned(adaptive())
    spent = []
    for number, sha in enumerate(shas(40)):
        played = image(
            model=noisy_reader(EDGES, 0.7, number),
            grader=lambda text, number: score,
            sha256=sha,
            learned=record,
        )
        stop = played.play()
        record = learn(record, played.lesson(stop))
        spent.append(played.spent)
    assert sum(spent[20:]) / 20 < 2.5


def test_a_prompt_that_is_gone_keeps_its_vote() -> None:
    played = image()
    step = next_step(played.state())
    assert isinstance(step, Buy)
    played.take(step)
    played.recipe = adaptive(prompts={"p2": "two"})
    stop = played.play()
    assert stop.index is not None
    assert learn(nothing_learned(played.recipe), played.lesson(stop)).images == 1


def test_more_distinct_answers_than_the_model_holds() -> None:
    wide = tuple(a + b for a in "abcdefgh" for b in "mnopqr")
    played = image(
        model=noisy_reader(wide, 0.8, 2),
        grader=honest_grader(wide, 5.0),
        allotment=2,
        recipe=adaptive(effort="maximal", candidates_max=108, grades_max=24, min_gain=0.5),
    )
    stop = played.play()
    assert stop.index is not None
    assert len({c.text for c in played.candidates}) > 72
    record = learn(nothing_learned(played.recipe), played.lesson(stop))
    assert record.counted.distinct == len({c.text for c in played.candidates})
