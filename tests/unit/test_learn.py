"""What decided images teach."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from math import comb
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsd.protocol.learned import AUDIT_CANDIDATES, Learned, nothing_learned
from rsd.protocol.vocabulary import Arm
from rsd.strategy.arms import Effects, spread_of
from rsd.strategy.learn import any_of, best_of, learn
from rsd.strategy.model import Consensus
from tests.unit.stream import Image, adaptive, diagram, honest_grader, noisy_reader, shas

EDGES = ("ab", "bc", "cd", "de", "ea", "af", "bg", "ch")
HOME = Path(__file__).parents[2]


def stream(count: int, learned: Learned | None = None, **changes: object) -> Learned:
    """The record after so many images, each bought with what the ones before have taught."""
    recipe = adaptive(**changes)
    record = learned or nothing_learned(recipe)
    for number, sha in enumerate(shas(count)):
        image = Image(
            model=noisy_reader(EDGES, 0.85, number, p3=0.35),
            grader=honest_grader(EDGES, 5.0, number),
            recipe=recipe,
            sha256=sha,
            learned=record,
        )
        record = learn(record, image.lesson(image.play()))
    return record


def test_the_same_images_teach_the_same_bit_for_bit() -> None:
    first, second = stream(12), stream(12)
    assert first == second
    assert msgspec.json.encode(first) == msgspec.json.encode(second)


def test_no_hash_seed_of_python_changes_a_bit() -> None:
    code = (
        "import hashlib, msgspec; from tests.unit.test_learn import stream; "
        "print(hashlib.sha256(msgspec.json.encode(stream(3, audit_share=0.3))).hexdigest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=HOME,
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_it_survives_being_stored() -> None:
    record = stream(5, audit_share=0.5)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(record), type=Learned) == record


def test_a_bad_prompt_is_found_out() -> None:
    record = stream(60)
    sums = record.consensus
    effects = Effects.of(sums.arms, record.levels, record.levels, spread_of(sums))
    prompts = {x.name: effects.mean[k] for k, x in enumerate(record.levels) if x.factor == "prompt"}
    assert prompts["p3"] < min(prompts["p1"], prompts["p2"]) - 6
    assert record.images == 60
    consensus = Consensus.of(sums, record.repeat_sum / record.repeat_count)
    assert consensus.weights[2] > 30  # agreement tells quality here


def test_counts_are_exact() -> None:
    recipe = adaptive()
    image = Image(
        model=lambda index, arm: diagram("ab", "bc") if index % 4 else diagram("ab", "cb"),
        grader=lambda text, number: 85.0,
        sha256=shas(1)[0],
        recipe=recipe,
    )
    stop = image.play()
    counted = learn(nothing_learned(recipe), image.lesson(stop)).counted
    assert counted.candidates == counted.gradable == len(image.candidates)
    assert counted.distinct == 2
    assert counted.grades == image.spent
    assert counted.calls == len(image.lesson(stop).graded)
    assert counted.calls_for_all == counted.gradable, "one candidate a call"
    assert counted.graded == sum(bool(c.scores) for c in image.candidates)
    assert counted.fives == counted.graded
    assert counted.accepted == 1
    assert counted.one_grade == (image.spent == 1)
    assert counted.reasons == {stop.reason: 1}
    assert counted.winner_score == 85.0


def test_repeats_teach_how_much_the_grader_varies() -> None:
    recipe = adaptive()
    image = Image(model=lambda index, arm: diagram("ab"), grader=lambda text, number: 50.0)
    lesson = image.lesson(image.play())
    first = lesson.candidates[0]
    twice = replace(first, scores=(40.0, 60.0, 50.0), bought=3)
    record = learn(
        nothing_learned(recipe), replace(lesson, candidates=(twice, *lesson.candidates[1:]))
    )
    assert record.repeat_count == 8 + 2
    assert record.repeat_sum == pytest.approx(8 * 36 + 200)
    assert record.counted.regraded == 1
    assert record.counted.second_change == 20.0


def test_uniform_candidates_fill_the_tables_and_no_others() -> None:
    record = stream(40)
    rows = record.uniform
    by_prompt = sum(row.count for name, row in rows.items() if "," not in name and "prompt" in name)
    by_pair = sum(row.count for name, row in rows.items() if "," in name)
    assert by_prompt == by_pair > 0
    assert sum(row.count for name, row in rows.items() if name.startswith("top_k=")) == by_pair
    assert by_pair < 40  # one in four, of which each has one


@given(st.lists(st.integers(0, 100).map(float), min_size=1, max_size=8))
def test_best_of_k_is_the_mean_over_all_choices(scores: list[float]) -> None:
    for k, value in enumerate(best_of(scores), 1):
        every = [max(c) for c in combinations(scores, k)]
        assert value == pytest.approx(sum(every) / len(every))


@given(st.integers(0, 8), st.integers(1, 8))
def test_any_of_k_is_the_share_of_choices(passing: int, n: int) -> None:
    passing = min(passing, n)
    flags = [i < passing for i in range(n)]
    for k, value in enumerate(any_of(passing, n), 1):
        assert value == pytest.approx(sum(map(any, combinations(flags, k))) / comb(n, k))


def test_audit_images_make_the_curve() -> None:
    record = stream(30, audit_share=0.4)
    audit = record.audit
    assert audit.images == record.counted.reasons["audit"] > 5
    curve = [x / audit.images for x in audit.best]
    assert len(curve) == AUDIT_CANDIDATES
    assert curve == sorted(curve)
    assert audit.product > 0  # who agrees is right
    correlation = audit.product / (audit.agreement_square * audit.score_square) ** 0.5
    assert 0.2 < correlation <= 1.0


def test_an_audit_with_a_missing_grade_is_left_out() -> None:
    recipe = adaptive(audit_share=1.0)

    def grader(text: str, number: int) -> float | None:
        return None if text == diagram("ab", "cb") else 70.0

    def model(index: int, arm: Arm) -> str:
        return diagram("ab", "bc") if index else diagram("ab", "cb")

    image = Image(model=model, grader=grader, recipe=recipe)
    stop = image.play()
    assert stop.reason == "audit"
    assert learn(nothing_learned(recipe), image.lesson(stop)).audit.images == 0


def test_a_visible_failure_of_an_audit_is_worth_nothing() -> None:
    recipe = adaptive(audit_share=1.0)
    image = Image(
        model=lambda index, arm: "bad" if index % 2 else diagram("ab", "bc"),
        grader=lambda text, number: 90.0,
        recipe=recipe,
        rejected=lambda text: text == "bad",
    )
    record = learn(nothing_learned(recipe), image.lesson(image.play()))
    assert record.audit.best[0] == pytest.approx(45.0)
    assert record.audit.best[-1] == 90.0
    assert record.audit.passing[0] == pytest.approx(0.5)


def test_prompts_come_and_go() -> None:
    record = stream(8)
    other = stream(8, record, prompts={"p2": "two", "p4": "four"})
    assert other.images == 16
    names = [x.name for x in other.levels if x.factor == "prompt"]
    assert names == ["p1", "p2", "p3", "p4"]
    assert len(other.consensus.arms.moments) == len(other.levels)
    back = stream(4, other)
    assert back.levels == other.levels


def test_prices_are_learned() -> None:
    record = stream(5)
    assert 0 < record.generating.calls <= record.counted.candidates
    assert record.generating.input / record.generating.calls == pytest.approx(900)
    assert record.grading.input / record.grading.calls == pytest.approx(1500)
