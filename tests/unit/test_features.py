"""What a set of texts agrees on: by hand, whatever the order, and against every pair."""

from __future__ import annotations

import gzip
import json
import random
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsd.strategy.agreement import Features, Reader, duplicates, features

#: 50 pictures, and for each 32 candidates of two small models under six prompts.
REPLAY = Path(__file__).resolve().parents[1] / "data/agreement_replay.json.gz"
REFUSAL = "I'm sorry, I cannot help with that."


def replayed() -> list[list[str]]:
    rows: list[dict[str, Any]] = json.loads(gzip.decompress(REPLAY.read_bytes()))
    return [[row["texts"][j] for j in row["candidates"]] for row in rows]


def agree(found: Features) -> list[float]:
    """Of each text."""
    return [found.agree[g] for g in found.group]


def test_agreement_by_hand() -> None:
    found = features(["A --> B\nB --> C", "a -> b", "B --> C\nA --> B ", "C --> A"])
    assert found.kind == "claims"
    assert found.group == (0, 1, 0, 2) and found.size == (2, 1, 1)
    # Of the three others, two have A > B and one has B > C; these have 1 + 2 + 1 claims.
    assert agree(found) == pytest.approx([2 * 3 / 3 / (2 + 4 / 3), 2 * 2 / 3 / (1 + 5 / 3), 0.6, 0])
    assert found.level == pytest.approx((0.6 + 0.5 + 0.6 + 0.0) / 4)
    assert found.vote == {("a", ">", "b"): 3, ("b", ">", "c"): 2, ("c", ">", "a"): 1}


def test_equal_answers_agree_wholly_and_one_alone_with_nobody() -> None:
    assert agree(features(["A --> B", "[a] -> [b]", "A -> B."])) == [1.0, 1.0, 1.0]
    assert agree(features(["A --> B"])) == [0.0]
    empty = features([])
    assert empty.level == 0.0 and empty.group == ()


def test_one_refusal_among_answers_agrees_with_nobody() -> None:
    found = features(["A --> B"] * 8 + [REFUSAL, REFUSAL])
    assert found.kind == "claims"
    assert agree(found)[8:] == [0.0, 0.0] and agree(found)[0] > 0.8
    # Those that say nothing are one answer only when they say it alike.
    other = features(["A --> B"] * 8 + [REFUSAL, "No.", REFUSAL + "\n"])
    assert other.group[8] == other.group[10] != other.group[9]


def test_without_claims_wording_counts() -> None:
    prose = ["电源连接到电机。", "电源连接到电机！", "控制器读取传感器。"]
    found = features(prose)
    assert found.kind == "words"
    first, second, third = agree(found)
    assert first == second > third
    mixed = features(["A --> B"] * 3 + ["The pump is blue.", "The pump is red."])
    assert mixed.kind == "words"  # three of five are too few
    assert features(["A --> B"] * 4 + [REFUSAL]).kind == "claims"  # four of five are not


def test_duplicates_end_alike() -> None:
    assert duplicates(["x", "y", "x \n", " x", "y\t", "", " "]) == (0, 1, 0, 3, 1, 5, 5)
    assert duplicates([]) == ()


def test_a_reader_reads_only_what_is_new() -> None:
    first, *_ = replayed()
    reader = Reader()
    for count in range(len(first) + 1):
        assert features(first[:count], reader) == features(first[:count])


LINES = st.sampled_from(
    ["A --> B", "B --> C", "A -- C", "c <-> d", "A -> B : x", "- a feeds d", "R = 5", "Hm.", ""]
)
TEXTS = st.lists(st.lists(LINES, max_size=5).map("\n".join), max_size=12)


@given(TEXTS, st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_order_does_not_matter(texts: list[str], dice: random.Random) -> None:
    order = list(range(len(texts)))
    dice.shuffle(order)
    found, other = features(texts), features([texts[i] for i in order])
    assert agree(other) == [agree(found)[i] for i in order]
    assert (other.level, other.kind, other.vote) == (found.level, found.kind, found.vote)
    assert [other.sets[g] for g in other.group] == [found.sets[found.group[i]] for i in order]


@given(st.lists(st.one_of(st.text(max_size=60), *[LINES] * 2), max_size=12))
@settings(max_examples=200, deadline=None)
def test_agreement_is_a_share(texts: list[str]) -> None:
    found = features(texts)
    assert all(0.0 <= a <= 1.0 for a in (*found.agree, found.level))
    assert sum(found.size) == len(texts) == len(found.group)
    assert len(found.sets) == len(found.size) == len(found.agree)


@given(TEXTS)
@settings(max_examples=100, deadline=None)
def test_agreement_is_what_it_says(texts: list[str]) -> None:
    found = features(texts)
    sets = [found.sets[g] for g in found.group]
    for i, own in enumerate(sets):
        others = sets[:i] + sets[i + 1 :]
        if not own or not others:
            assert agree(found)[i] == 0.0
            continue
        votes = sum(Fraction(sum(e in s for s in others), len(others)) for e in own)
        mean_size = Fraction(sum(map(len, others)), len(others))
        assert agree(found)[i] == pytest.approx(float(2 * votes / (len(own) + mean_size)))


def test_votes_order_candidates_as_pairs_do() -> None:
    """The mean F1 with each other candidate, which takes a step for every pair."""
    images = replayed()
    assert len(images) == 50
    same_best = 0
    for texts in images:
        found = features(texts)
        sets = [found.sets[g] for g in found.group]
        mean = [
            sum(2 * len(a & b) / (len(a) + len(b)) for j, b in enumerate(sets) if j != i) / 31
            for i, a in enumerate(sets)
        ]
        votes = agree(found)
        best = max(range(len(texts)), key=votes.__getitem__)
        same_best += mean[best] >= max(mean) - 1e-9
        assert mean[best] >= max(mean) - 0.002
        for i, j in combinations(range(len(texts)), 2):
            if abs(mean[i] - mean[j]) > 0.03:
                assert (mean[i] > mean[j]) == (votes[i] > votes[j])
    assert same_best >= 49
