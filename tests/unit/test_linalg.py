"""Small linear algebra: against its own definitions, and what it refuses."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsd.strategy.linalg import Matrix, cholesky, dot, inverse, multiply, pack, solve, unpack


def definite(size: int, seed: int) -> Matrix:
    """A positive definite matrix."""
    dice = random.Random(seed)
    root = [[dice.gauss(0, 1) for _ in range(size)] for _ in range(size)]
    return [[dot(a, b) + (i == j) for j, b in enumerate(root)] for i, a in enumerate(root)]


SIZES = st.integers(0, 9)
SEEDS = st.integers(0, 2**32)


@given(SIZES, SEEDS)
@settings(max_examples=50, deadline=None)
def test_definitions(size: int, seed: int) -> None:
    rows = definite(size, seed)
    lower = cholesky(rows)
    assert all(x == 0.0 for i, row in enumerate(lower) for x in row[i + 1 :])
    for i in range(size):
        assert [dot(lower[i], row) for row in lower] == pytest.approx(rows[i])
    x = [random.Random(seed + i).uniform(-9, 9) for i in range(size)]
    assert solve(rows, multiply(rows, x)) == pytest.approx(x)
    inverted = inverse(rows)
    for i in range(size):
        unit = [float(i == j) for j in range(size)]
        assert multiply(rows, inverted[i]) == pytest.approx(unit, abs=1e-9)
        assert inverted[i] == [row[i] for row in inverted]


@given(SIZES, SEEDS)
@settings(max_examples=50, deadline=None)
def test_a_triangle_is_the_matrix(size: int, seed: int) -> None:
    rows = definite(size, seed)
    packed = pack(rows)
    assert len(packed) == size * (size + 1) // 2
    assert unpack(packed) == rows
    assert pack(unpack(packed)) == packed


def test_row_by_row() -> None:
    assert unpack((1.0, 2.0, 3.0, 4.0, 5.0, 6.0)) == [[1, 2, 4], [2, 3, 5], [4, 5, 6]]


@pytest.mark.parametrize("length", [2, 4, 5, 7, 11])
def test_what_is_no_triangle(length: int) -> None:
    with pytest.raises(ValueError, match=f"{length} numbers are no triangle"):
        unpack([0.0] * length)


@pytest.mark.parametrize("rows", [[[0.0]], [[-1.0]], [[1.0, 2.0], [2.0, 1.0]], [[float("nan")]]])
def test_what_is_not_positive_definite(rows: Matrix) -> None:
    for function in (cholesky, inverse, lambda m: solve(m, [1.0] * len(m))):
        with pytest.raises(ValueError, match="not positive definite"):
            function(rows)


def test_the_order_of_terms_does_not_matter() -> None:
    left, right = [1e16, 1.0, -1e16, 1.0], [1.0, 1.0, 1.0, 1.0]
    assert dot(left, right) == dot(left[::-1], right) == 2.0
