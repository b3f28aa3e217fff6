"""The model of scores: numbers of its first implementation, planted worlds, and its edges."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsd.protocol.learned import ConsensusSums
from rsd.strategy.agreement import duplicates, features
from rsd.strategy.linalg import cholesky, dot
from rsd.strategy.model import (
    MOST_DISTINCT,
    NORMAL,
    Consensus,
    Look,
    Posterior,
    highest,
    learn_consensus,
)

DATA = Path(__file__).resolve().parents[1] / "data"
#: Computed once with other code, in which matrices are a library's.
REFERENCE: dict[str, Any] = json.loads((DATA / "consensus_reference.json").read_text("utf-8"))
REPLAY: list[dict[str, Any]] = json.loads(
    gzip.decompress((DATA / "agreement_replay.json.gz").read_bytes())
)


def utility(points: float) -> float:
    """Nothing above 95 counts, and 20 points more from 80 on."""
    return min(max(points, 0.0), 95.0) + (20.0 if points >= 80.0 else 0.0)


def look_at(texts: list[str]) -> Look:
    return Look.of(features(texts), duplicates(texts))


def near(values: object) -> Any:
    return pytest.approx(values, rel=1e-9, abs=1e-9)


def test_the_same_numbers_as_other_code() -> None:
    sums = ConsensusSums()
    for case in REFERENCE["images"]:
        row = REPLAY[case["image"]]
        look = look_at([row["texts"][j] for j in row["candidates"][: case["n"]]])
        model = Consensus.of(sums, case["tau2"])
        assert model.weights == near(case["weights"])
        assert model.spread == near(case["spread"])
        assert model.image_variance == near(case["variance"])
        assert model.mean_level == near(case["mean_level"])
        if look.n > 1:
            assert (look.level, look.agree) == (near(case["level"]), near(case["agree"]))
        assert look.overlap[0] == near(case["overlap_row"])
        mean, covariance = model.prior(look)
        assert (mean, covariance[0]) == (near(case["prior"]), near(case["prior_row"]))
        known = Posterior(mean, covariance, model.tau2)
        first: dict[int, float] = {}
        for i, score in case["grades"]:
            known.grade(i, score)
            if score is not None:
                first.setdefault(i, score)
        assert known.mean == near(case["mean"])
        assert [row[i] for i, row in enumerate(known.covariance)] == near(case["variances"])
        assert known.gain(range(len(mean)), utility) == near(case["gain"])
        ids = sorted(first)
        sums = learn_consensus(sums, model, look, ids, [first[i] for i in ids])
    for name, value in REFERENCE["sums"].items():
        assert getattr(sums, name) == near(value), name


# ---------------------------------------------------------------------------------- planted worlds


class World:
    """Images of six edges; candidates miss some and invent others, more so in harder images."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)

    def image(self, candidates: int = 12) -> tuple[list[str], list[float]]:
        """Texts, and their true F1 from 0 to 100."""
        dice = self.dice
        pairs = [f"n{a} --> n{b}" for a in range(6) for b in range(6) if a != b]
        dice.shuffle(pairs)
        true, false = pairs[:6], pairs[6:14]
        hit, wrong = dice.uniform(0.5, 0.95), dice.uniform(0.02, 0.2)
        texts, quality = [], []
        for _ in range(candidates):
            lines = [e for e in true if dice.random() < hit]
            right = len(lines)
            lines += [e for e in false if dice.random() < wrong]
            quality.append(200 * right / (len(lines) + 6))
            texts.append("\n".join(lines or ["n0 --> n6"]))
        return texts, quality


def test_what_is_planted_is_found() -> None:
    planted = Consensus(
        weights=(65.0, 70.0, 90.0, 0.0),
        spread=(0.8, 0.0, 30.0),
        image_variance=100.0,
        mean_level=0.65,
        tau2=36.0,
    )
    world, sums = World(7), ConsensusSums()
    dice = world.dice
    for _ in range(300):
        texts, _ = world.image()
        look = look_at(texts)
        mean, covariance = planted.prior(look)
        lower = cholesky(covariance)
        normal = [dice.gauss(0, 1) for _ in mean]
        ids = sorted(dice.sample(range(len(mean)), min(6, len(mean))))
        scores = [mean[i] + dot(lower[i], normal) + dice.gauss(0, 6) for i in ids]
        sums = learn_consensus(sums, Consensus.of(sums, 36.0), look, ids, scores)
    found = Consensus.of(sums, 36.0)
    assert found.weights[2] == pytest.approx(90.0, abs=15.0)
    assert found.spread[0] == pytest.approx(0.8, abs=0.25)


def learned_b(seed: int, images: int, permuted: bool) -> dict[int, float]:
    """The weight of agreement within images, after so many."""
    world, sums, found = World(seed), ConsensusSums(), {}
    for count in range(1, images + 1):
        texts, quality = world.image()
        look = look_at(texts)
        of = {text: q for text, q in zip(texts, quality, strict=True)}
        true = [of[texts[i]] for i in look.candidates]
        if permuted:
            world.dice.shuffle(true)
        ids = sorted(world.dice.sample(range(len(true)), min(4, len(true))))
        scores = [true[i] + world.dice.gauss(0, 8) for i in ids]
        sums = learn_consensus(sums, Consensus.of(sums, 64.0), look, ids, scores)
        found[count] = Consensus.of(sums, 64.0).weights[2]
    return found


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_agreement_that_says_nothing_is_not_believed(seed: int) -> None:
    found = learned_b(seed, 400, permuted=True)
    told = learned_b(seed, 100, permuted=False)
    assert abs(found[100]) < 30 and abs(found[400]) < 20
    assert told[100] > 60  # the same images, when scores follow the texts


# ----------------------------------------------------------------------------------- the posterior

MODEL = Consensus.of(ConsensusSums(), 36.0)
TEXTS = ["A --> B\nB --> C", "A --> B\nB --> D", "A --> B", "C --> A\nD --> A", "D --> A"]


def fresh(texts: list[str] = TEXTS, model: Consensus = MODEL) -> Posterior:
    mean, covariance = model.prior(look_at(texts))
    return Posterior(mean, covariance, model.tau2)


def test_a_grade_speaks_for_those_who_claim_the_same() -> None:
    known = fresh()
    before, variances = list(known.mean), [row[i] for i, row in enumerate(known.covariance)]
    known.grade(0, before[0] + 30)
    rise = [after - old for after, old in zip(known.mean, before, strict=True)]
    assert rise[0] > rise[1] > rise[3] > 0
    assert rise[2] > rise[3]
    assert all(
        row[i] < v for i, (row, v) in enumerate(zip(known.covariance, variances, strict=True))
    )
    assert known.times == [1, 0, 0, 0, 0] and known.graded() == [0]


def test_one_alone_is_the_normal_distribution_of_books() -> None:
    known = Posterior([60.0], [[100.0]], 25.0)
    known.grade(0, 80.0)
    assert known.mean == pytest.approx([60 + 20 * 100 / 125])
    assert known.covariance == [pytest.approx([1 / (1 / 100 + 1 / 25)])]


GRADES = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 100)), max_size=8)


@given(GRADES, st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_the_order_of_grades_does_not_matter(
    grades: list[tuple[int, int]], dice: random.Random
) -> None:
    known, other = fresh(), fresh()
    for i, score in grades:
        known.grade(i, score)
    dice.shuffle(grades)
    for i, score in grades:
        other.grade(i, score)
    assert known.mean == pytest.approx(other.mean)
    for row, same in zip(known.covariance, other.covariance, strict=True):
        assert row == pytest.approx(same, abs=1e-9)
    assert known.times == other.times
    cholesky(known.covariance)  # still positive definite


@given(GRADES, st.integers(0, 4))
@settings(max_examples=100, deadline=None)
def test_a_grade_under_way_narrows_and_moves_nothing(grades: list[tuple[int, int]], i: int) -> None:
    known = fresh()
    for k, score in grades:
        known.grade(k, score)
    other = known.copy()
    frozen = json.dumps(astuple(known))
    other.grade(i, None)
    assert other.mean == known.mean
    assert other.covariance[i][i] < known.covariance[i][i]
    assert json.dumps(astuple(known)) == frozen
    assert other.times[i] == known.times[i] + 1


@given(GRADES)
@settings(max_examples=100, deadline=None)
def test_a_grade_is_never_worth_less_than_nothing(grades: list[tuple[int, int]]) -> None:
    known = fresh()
    for k, score in grades:
        known.grade(k, score)
    done = known.graded()
    gains = known.gain(range(5), lambda points: points)
    now = max((known.mean[i] for i in done), default=0.0)
    for i, gain in enumerate(gains):
        # Each of the fifteen cases in turn, and every candidate that may be kept.
        kept = [*done, i]
        deviation = (known.covariance[i][i] + known.tau2) ** 0.5
        cases = [
            max(known.mean[k] + known.covariance[k][i] / deviation * z for k in kept)
            for z in NORMAL
        ]
        assert gain == pytest.approx(sum(cases) / 15 - now, abs=1e-9)
        assert gain >= -1e-9 or not done


def test_nothing_is_worth_a_grade_when_all_is_known() -> None:
    sure = Posterior([90.0, 40.0], [[1e-9, 0.0], [0.0, 1e-9]], 36.0)
    sure.grade(0, 90.0)
    assert sure.gain([0, 1], utility) == pytest.approx([0.0, 0.0], abs=1e-6)


def test_fifteen_values_of_a_standard_normal() -> None:
    assert len(NORMAL) == 15 and list(NORMAL) == sorted(NORMAL)
    assert sum(NORMAL) == pytest.approx(0.0, abs=1e-12)
    assert sum(z * z for z in NORMAL) == pytest.approx(15.0)


def test_ties_go_to_the_lowest() -> None:
    assert highest([1.0, 2.0, 2.0 + 5e-10, 2.0]) == 1
    assert highest([1.0, 2.0, 2.0 + 5e-9]) == 2
    with pytest.raises(ValueError):
        highest([])


# --------------------------------------------------------------------------------------- the edges


def test_overlap_by_hand() -> None:
    look = look_at(TEXTS)
    # A > B has 3 votes of 5, D > A has 2, the others 1; on average a text has 1.6 claims.
    assert look.overlap[0][1] == pytest.approx(0.24 * (200 / 3.6) ** 2)
    assert look.overlap[0][0] == pytest.approx((0.24 + 0.16) * (200 / 3.6) ** 2)
    assert look.overlap[3][4] == pytest.approx(0.24 * (200 / 3.6) * (200 / 2.6))
    assert look.overlap[0][3] == 0.0


def test_claims_of_all_explain_nothing() -> None:
    look = look_at(["A --> B", "a -> b", "[A] --> [B]"])
    assert look.overlap == [[0.0] * 3] * 3 and look.agree == (1.0, 1.0, 1.0)


def test_one_candidate_and_none() -> None:
    look = look_at(["A --> B"])
    mean, covariance = MODEL.prior(look)
    assert mean == [70.0] and covariance == [[150.0 + 40.0]]
    sums = learn_consensus(ConsensusSums(), MODEL, look, [0], [80.0])
    assert sums.level_sum / sums.level_count == pytest.approx(0.65)  # it agreed with nobody
    assert MODEL.prior(look_at([])) == ([], [])


def test_equal_texts_are_one_candidate() -> None:
    look = look_at(["A --> B", "C --> D", "A --> B \n", "A -> B"])
    assert look.candidates == (0, 1, 3) and look.share == (0.5, 0.25, 0.25)
    assert (look.n, look.distinct) == (4, 3)
    # Equal claims in other words share all but what is a candidate's own.
    assert look.overlap[0] == [look.overlap[0][0], 0.0, look.overlap[0][0]]


def test_without_votes_the_prior_is_one_for_all() -> None:
    model = Consensus.of(ConsensusSums(), 36.0, voting=False)
    mean, covariance = model.prior(look_at(TEXTS))
    assert mean == [70.0] * 5
    assert covariance == [[190.0 if i == j else 150.0 for j in range(5)] for i in range(5)]


def test_of_many_the_graded_and_the_promising_enter() -> None:
    texts = [f"A --> B\nB --> n{k}" for k in range(90)] + ["A -> B\nB -> n7"] * 2
    found, same = features(texts), duplicates(texts)
    chosen = MODEL.choose(found, same, graded=[89, 88])
    assert len(chosen) == MOST_DISTINCT and list(chosen) == sorted(chosen)
    assert {88, 89, 7, 90} <= set(chosen)
    assert chosen[:69] == tuple(range(69))  # of equal promise the first ones
    look = Look.of(found, same, chosen)
    assert (look.n, look.distinct, len(look.overlap)) == (92, 91, MOST_DISTINCT)
    whole = MODEL.expected(found.agree[found.group[0]], 1 / 92, found.level, 92, 91)
    assert MODEL.prior(look)[0][0] == pytest.approx(whole)
    with pytest.raises(ValueError, match="91 distinct candidates, of at most 72"):
        Look.of(found, same)
    assert len(MODEL.choose(found, same, graded=range(90))) == MOST_DISTINCT
    assert MODEL.choose(features(TEXTS), duplicates(TEXTS)) == (0, 1, 2, 3, 4)


def test_an_image_without_grades_tells_only_how_much_candidates_agree() -> None:
    look = look_at(TEXTS)
    sums = learn_consensus(ConsensusSums(), MODEL, look, [], [], forget=1.0)
    expected = {"level_count": 3.0, "level_sum": 1.3 + look.level}
    assert sums == ConsensusSums(**expected)


def test_a_score_far_below_the_others_is_cut() -> None:
    look = look_at(TEXTS)
    told = [
        learn_consensus(ConsensusSums(), MODEL, look, [0, 1, 2], [80.0, 75.0, x]) for x in (0, 35)
    ]
    assert told[0] == told[1]
    assert told[0] != learn_consensus(ConsensusSums(), MODEL, look, [0, 1, 2], [80.0, 75.0, 36])


@pytest.mark.parametrize("scores", [[85.0] * 5, [0.0] * 5, [100.0, 0.0] * 3, [10.0, 20.0, 30.0]])
def test_a_grader_with_few_scores_breaks_nothing(scores: list[float]) -> None:
    sums = ConsensusSums()
    look, same = look_at(TEXTS), look_at(["A --> B"] * 4)
    for _ in range(300):
        for seen in (look, same):
            ids = list(range(min(len(seen.candidates), len(scores))))
            model = Consensus.of(sums, 0.5)
            sums = learn_consensus(sums, model, seen, ids, scores[: len(ids)])
    model = Consensus.of(sums, 0.5)
    assert min(model.spread) >= 0 and model.spread[2] >= 4 and model.image_variance >= 16
    mean, covariance = model.prior(look)
    cholesky(covariance)
    assert all(-50 <= m <= 150 for m in mean)


@given(
    st.lists(st.tuples(st.sets(st.integers(0, 4)), st.integers(0, 100)), max_size=12),
    st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_whatever_is_learned_can_be_solved(images: list[tuple[set[int], int]], seed: int) -> None:
    sums, dice, look = ConsensusSums(), random.Random(seed), look_at(TEXTS)
    for ids, level in images:
        model = Consensus.of(sums, dice.choice([0.01, 36.0, 900.0]))
        scores = [float(dice.choice([level, 0, 100])) for _ in ids]
        sums = learn_consensus(sums, model, look, sorted(ids), scores)
    model = Consensus.of(sums, 36.0)
    cholesky(model.prior(look)[1])
    assert len(sums.information) == 10 and len(sums.cross) == 6


SCRIPT = """
import gzip, json, sys
from rsd.protocol.learned import ConsensusSums
from rsd.strategy.agreement import duplicates, features
from rsd.strategy.model import Consensus, Look, Posterior, learn_consensus
sums = ConsensusSums()
for row in json.load(gzip.open(sys.argv[1]))[:20]:
    texts = [row["texts"][j] for j in row["candidates"]]
    look = Look.of(features(texts), duplicates(texts))
    model = Consensus.of(sums, 36.0)
    known = Posterior(*model.prior(look), 36.0)
    known.grade(0, 70.0)
    print(known.mean, known.covariance, known.gain(range(len(known.mean)), float))
    ids = range(min(4, len(known.mean)))
    sums = learn_consensus(sums, model, look, ids, [80.0, 65.0, 90.0, 5.0][: len(ids)])
print(sums)
"""


def test_no_bit_depends_on_the_order_of_a_set() -> None:
    printed = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT, str(DATA / "agreement_replay.json.gz")],
            cwd=DATA.parents[1],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(printed) == 1 and "ConsensusSums" in printed.pop()
