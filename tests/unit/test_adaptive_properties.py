"""What holds for the strategy that learns whatever models answer and graders say."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsd.protocol.learned import AUDIT_CANDIDATES, Learned
from rsd.protocol.vocabulary import Arm, Recipe
from rsd.strategy.adaptive import TEXT_GRADES, is_audit, next_step
from rsd.strategy.base import Buy, CallPrices, ImageState, Step, Stop
from rsd.strategy.choose import next_step as the_door
from rsd.strategy.learn import learn
from rsd.strategy.levels import LEVELS_MAX
from rsd.strategy.memory import Memory
from tests.unit.plain_world import LISTWISE, Grades, Writes, arm, image, lesson, nothing, play, seen
from tests.unit.world import recipe

HOME = Path(__file__).resolve().parents[2]
EDGES = ("ab", "bc", "cd", "de", "ea", "af", "fg")
#: A paid grader and own GPUs.
DEAR = CallPrices(candidate=0.029, grading=5.346, graded=1.122, pointwise=True)
LISTS = replace(DEAR, pointwise=False, list_size=6)


def adaptive(**changes: object) -> Recipe:
    values: dict[str, object] = {
        "strategy": "adaptive",
        "score_threshold": 80.0,
        "consensus": "on",
        "audit_share": 0.0,
    }
    return recipe(**(values | changes))


def diagrams(chance: random.Random, share: float = 0.7) -> Writes:
    """Diagrams whose edges are each right with this chance."""

    def write(index: int, of: Arm) -> tuple[str, bool]:
        edges = (e if chance.random() < share else e[::-1] for e in EDGES)
        return "\n".join(f"{e[0]} -> {e[1]}" for e in edges), False

    return write


def fair(chance: random.Random, noise: float = 5.0) -> Grades:
    """The share of right edges, with noise."""
    right = {f"{e[0]} -> {e[1]}" for e in EDGES}

    def grade(text: str, number: int) -> float:
        found = 100 * sum(line in right for line in text.splitlines()) / len(EDGES)
        return min(max(found + chance.gauss(0, noise), 0.0), 100.0)

    return grade


def sha(number: int) -> str:
    return f"{number:064x}"


def test_first_candidates_of_audit_images_are_uniform_too() -> None:
    """The lot that makes an image one of the audit is low: it must not choose the arm as well."""
    of = adaptive(audit_share=0.02)
    first: Counter[str] = Counter()
    for number in range(6000):
        if is_audit(of, sha(number)):
            step = next_step(image(of=of, sha256=sha(number), rounds=0))
            assert isinstance(step, Buy) and len(step.samples) == AUDIT_CANDIDATES
            first[step.samples[0][0].prompt_key] += 1
    assert first.total() > 80
    for key in of.prompts:
        assert first[key] / first.total() == pytest.approx(1 / 3, abs=0.2)


@pytest.mark.parametrize("prices", [DEAR, LISTS])
def test_a_list_fits_into_one_call_and_nothing_is_made_that_nobody_grades(
    prices: CallPrices,
) -> None:
    template = "{generated_answer}" if prices.pointwise else "{candidate_answers}"
    for number in range(60):
        of = adaptive(
            grades_max=2 + number % 9, min_gain=0.5, grading_template=template, list_size=6
        )
        chance = random.Random(number)
        spent = 0
        _, bought, candidates = play(
            diagrams(chance),
            fair(chance),
            decide=next_step,
            of=of,
            prices=prices,
            sha256=sha(number),
        )
        for step in bought:
            explored = any(candidates[i].explore for i, _ in step.gradings)
            most = 1 + explored if prices.pointwise else 6
            assert len(step.gradings) <= most
            assert not step.samples or spent < of.grades_max
            spent += len(step.gradings)


TEXTS = (
    st.just("a -> b\nb -> c")
    | st.sampled_from(("a -> b", "a -> b \n", "a -> b\n\n", "b -> a", "", " ", "I cannot help."))
    | st.text(max_size=40)
)
SCORES = st.sampled_from((st.just(85.0), st.just(0.0), st.just(100.0), st.floats(0, 100)))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_it_ends_within_its_limits(data: st.DataObject) -> None:
    """All rejected, no answer at all, no grade ever, one text for all, prices of 0: whatever."""
    draw = data.draw
    of = adaptive(
        consensus=draw(st.sampled_from(("on", "off", "auto"))),
        effort=draw(st.sampled_from(("economy", "balanced", "maximal", "unknown"))),
        min_gain=draw(st.sampled_from((0.0, 0.5, 2.0, 1e9))),
        candidates_max=draw(st.integers(1, 20)),
        grades_max=draw(st.integers(1, 20)),
        temperatures=draw(st.sampled_from(((0.0,), (0.0, 1.0), (0.7,)))),
        prompts=dict.fromkeys(draw(st.sampled_from((("p1",), ("p1", "p2", "p3")))), "text"),
        score_threshold=draw(st.sampled_from((0.0, 80.0, 100.0))),
        audit_share=draw(st.sampled_from((0.0, 1.0))),
        grading_template=draw(st.sampled_from(("{candidate_answers}", "{generated_answer}"))),
        list_size=draw(st.sampled_from((2, 6, 26))),
    )
    price = st.sampled_from((0.0, 1e-3, 1.7, 1e3))
    prices = CallPrices(
        candidate=draw(price),
        grading=draw(price),
        graded=draw(price),
        pointwise=not of.listwise,
        list_size=min(6, of.list_size) if of.listwise else 1,
    )
    texts, scores = draw(st.lists(TEXTS, min_size=1, max_size=8)), draw(SCORES)
    failing, rejecting, unreadable = (draw(st.sampled_from((0.0, 0.3, 1.0))) for _ in range(3))
    chance = draw(st.randoms(use_true_random=False))
    allotment = draw(st.integers(1, 3))

    def write(index: int, of_arm: Arm) -> tuple[str | None, bool]:
        if chance.random() < failing:
            return None, False
        return chance.choice(texts), chance.random() < rejecting

    def grade(text: str, number: int) -> float | None:
        return None if chance.random() < unreadable else draw(scores)

    memory = Memory()

    def decide(state: ImageState) -> Step:
        step = the_door(state, memory)
        assert step == the_door(state), "what is remembered decides nothing"
        return step

    number = draw(st.integers(0, 99))
    stop, bought, candidates = play(
        write,
        grade,
        decide=decide,
        of=of,
        prices=draw(st.sampled_from((prices, None))),
        allotment=allotment,
        sha256=sha(number),
        learned=draw(st.sampled_from((None, nothing(of)))),
    )
    assert len(candidates) <= of.candidates_max * allotment
    assert all(of_arm in arms_of(of) for step in bought for of_arm, _ in step.samples)
    greedy = [c.arm.prompt_key for c in candidates if c.arm.params.temperature == 0]
    assert len(greedy) == len(set(greedy))
    if stop.index is None:
        assert stop.reason in ("no_candidate", "ungraded") and stop.agreement is None
        assert not any(c.scores for c in candidates)
    else:
        assert candidates[stop.index].scores, "the winner has grades of its own"
        assert 0.0 <= stop.expected_score <= 100.0
        assert stop.agreement is not None
        assert 0.0 <= stop.agreement.level <= 1.0
    record = learn(nothing(of), lesson(candidates, of))
    assert record.images == 1
    assert msgspec.json.decode(msgspec.json.encode(record), type=Learned) == record
    more = image(candidates, of=of, learned=record, prices=prices)
    assert next_step(more) == next_step(more, memory)


def arms_of(of: Recipe) -> set[Arm]:
    """All arms of a recipe whose other ranges are those of the small one."""
    return {
        Arm(prompt_key=key, params=arm(0, t, p, k).params)
        for key in of.prompts
        for t in of.temperatures
        for p in of.top_ps
        for k in of.top_ks
    }


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.integers(2, 3))
def test_more_was_asked_for(number: int, listwise: bool, allotment: int) -> None:
    """What `retry --low` asks for is made and graded, and no answer is lost by it."""
    template = "{candidate_answers}" if listwise else "{generated_answer}"
    of = adaptive(grading_template=template)
    chance = random.Random(number)
    prices = LISTS if listwise else DEAR
    write, grade = diagrams(chance), fair(chance)
    first, _, before = play(
        write, grade, decide=next_step, of=of, prices=prices, sha256=sha(number)
    )
    again = next_step(
        image(before, of=of, prices=prices, sha256=sha(number), rounds=9, allotment=allotment)
    )
    least = 3 + 6 * (allotment - 1)
    assert isinstance(first, Stop)
    assert isinstance(again, Buy) or len(before) >= least
    _, _, after = play(
        write,
        grade,
        decide=next_step,
        of=of,
        prices=prices,
        sha256=sha(number),
        allotment=allotment,
    )
    assert len(after) >= 16 + 6 * (allotment - 1)
    assert sum(c.bought for c in after) >= allotment
    assert all(c.bought <= TEXT_GRADES for c in after)


def test_scores_that_are_all_equal_teach_no_nonsense() -> None:
    """A grader that always says 85: effects vanish, one grade an image is enough."""
    of = adaptive()
    record = nothing(of)
    grades = []
    for number in range(80):
        chance = random.Random(number)
        stop, _, candidates = play(
            diagrams(chance),
            lambda text, n: 85.0,
            decide=next_step,
            of=of,
            prices=DEAR,
            sha256=sha(number),
            learned=record,
        )
        record = learn(record, lesson(candidates, of))
        grades.append(sum(c.bought for c in candidates))
        assert stop.index is not None
    assert stop.expected_score == pytest.approx(85.0, abs=2.0)
    assert sum(grades[-20:]) <= 40


STREAM = """
import hashlib, random
import msgspec
from rsd.strategy.adaptive import next_step
from rsd.strategy.learn import learn
from tests.unit import test_adaptive_properties as t
record = t.nothing(t.adaptive())
trace = []
for number in range(12):
    of = t.adaptive(consensus="off" if number % 4 == 3 else "on")
    chance = random.Random(number)
    stop, bought, candidates = t.play(
        t.diagrams(chance), t.fair(chance), decide=next_step, of=of,
        prices=t.LISTWISE if number % 4 == 3 else t.DEAR, sha256=t.sha(number), learned=record,
    )
    record = learn(record, t.lesson(candidates, of))
    trace.append((stop, bought))
print(hashlib.sha256(repr(trace).encode() + msgspec.json.encode(record)).hexdigest())
"""


def test_nothing_depends_on_the_order_of_hashes() -> None:
    """Sets of texts are iterated in another order in every process; no decision may be."""
    found = set()
    for seed in ("0", "1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", STREAM],
            cwd=HOME,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(done.stdout)
    assert len(found) == 1


def test_a_candidate_alone_has_nobody_to_agree_with() -> None:
    of = adaptive(candidates_max=1)
    stop, _, candidates = play(
        lambda i, a: ("a -> b", False), lambda t, n: 90.0, decide=next_step, of=of, prices=DEAR
    )
    assert (stop.index, len(candidates)) == (0, 1)
    assert sum(c.bought for c in candidates) <= TEXT_GRADES
    assert stop.agreement is not None and stop.agreement.distinct == 1


def test_the_winner_is_one_that_was_graded_itself() -> None:
    """The first of equal texts lost its grade, another one has it."""
    same = [
        seen(0, arm(1, 0.3, 0.7), (), "a -> b", bought=4),
        seen(1, arm(1, 0.3, 0.7), (90.0,), "a -> b \n"),
        seen(2, arm(1, 0.3, 0.7), (), "a -> b", rejected=True),
    ]
    for consensus in ("on", "off"):
        of = adaptive(consensus=consensus, min_gain=1e9)
        step = next_step(image(same, of=of, prices=LISTWISE))
        assert isinstance(step, Stop) and step.index == 1


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 10**6), st.data())
def test_recipes_may_change_between_images(number: int, data: st.DataObject) -> None:
    """Prompts come, go, and are reworded; what was learned is never about another one, and the
    record stays small.
    """
    record = nothing(adaptive())
    for step in range(30):
        keys = data.draw(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=4, unique=True))
        of = adaptive(
            prompts={key: f"text {data.draw(st.integers(0, 20))}" for key in keys},
            temperatures=data.draw(st.sampled_from(((0.0,), (0.0, 0.5), (0.7, 1.0)))),
            consensus=data.draw(st.sampled_from(("on", "off"))),
            grades_max=3,
            candidates_max=5,
        )
        chance = random.Random(number + step)
        stop, _, candidates = play(
            diagrams(chance), fair(chance), decide=next_step, of=of, prices=DEAR, learned=record
        )
        asked = data.draw(st.sampled_from((of, adaptive(prompts={"a": "text 0"}))))
        record = learn(record, lesson(candidates, asked))
        assert stop.index is not None
        levels = len(record.levels)
        assert levels <= LEVELS_MAX and len(set(record.levels)) == levels
        for sums in (record.consensus.arms, record.plain.arms):
            assert len(sums.moments) == levels
            assert len(sums.information) == levels * (levels + 1) // 2
        known = {x.name for x in record.levels if x.factor == "temperature"}
        assert set(record.plain.temperatures) <= known
    assert record.images == 30
