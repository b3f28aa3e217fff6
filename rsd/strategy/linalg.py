"""Small dense linear algebra: matrices are lists of rows, at most some dozens of them. Pure.

Sums are rounded once (`math.fsum`), so that a result does not depend on the order of the terms or
on the version of Python, whose own `sum` has changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum, sqrt
from operator import mul

Vector = list[float]
Matrix = list[list[float]]


def dot(left: Sequence[float], right: Sequence[float]) -> float:
    """Scalar product of two vectors of one length."""
    return fsum(map(mul, left, right))


def multiply(rows: Sequence[Sequence[float]], vector: Sequence[float]) -> Vector:
    """Matrix times vector."""
    return [dot(row, vector) for row in rows]


def pack(rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """The lower triangle of a symmetric matrix, row by row."""
    return tuple(x for i, row in enumerate(rows) for x in row[: i + 1])


def unpack(triangle: Sequence[float]) -> Matrix:
    """The symmetric matrix of a lower triangle. Raises ValueError if the length fits no matrix."""
    size = 0
    while size * (size + 1) // 2 < len(triangle):
        size += 1
    if size * (size + 1) // 2 != len(triangle):
        raise ValueError(f"{len(triangle)} numbers are no triangle")
    rows = [[0.0] * size for _ in range(size)]
    numbers = iter(triangle)
    for i in range(size):
        for j in range(i + 1):
            rows[i][j] = rows[j][i] = next(numbers)
    return rows


def cholesky(rows: Sequence[Sequence[float]]) -> Matrix:
    """Lower triangular L with L L' = rows, which is symmetric; its lower triangle is read.

    Raises ValueError unless the matrix is positive definite.
    """
    lower: Matrix = []
    for i, row in enumerate(rows):
        made: Vector = []
        for j in range(i):
            made.append((row[j] - dot(made, lower[j][:j])) / lower[j][j])
        rest = row[i] - dot(made, made)
        if not rest > 0.0:
            raise ValueError("the matrix is not positive definite")
        made.append(sqrt(rest))
        lower.append(made)
    return [row + [0.0] * (len(lower) - len(row)) for row in lower]


def solve(rows: Sequence[Sequence[float]], right: Sequence[float]) -> Vector:
    """x with rows x = right; raises ValueError unless `rows` is positive definite."""
    lower = cholesky(rows)
    return _substitute(lower, list(zip(*lower, strict=True)), right)


def inverse(rows: Sequence[Sequence[float]]) -> Matrix:
    """The inverse, exactly symmetric; raises ValueError unless `rows` is positive definite."""
    lower = cholesky(rows)
    upper, size = list(zip(*lower, strict=True)), len(lower)
    columns = [
        _substitute(lower, upper, [float(i == j) for i in range(size)], first=j)
        for j in range(size)
    ]
    return [[(columns[i][j] + columns[j][i]) / 2 for j in range(size)] for i in range(size)]


def _substitute(
    lower: Matrix, upper: Sequence[Sequence[float]], right: Sequence[float], first: int = 0
) -> Vector:
    """x with L L' x = right, of which the numbers before `first` are 0; `upper` is L'."""
    size = len(lower)
    half: Vector = [0.0] * first
    for i in range(first, size):
        half.append((right[i] - dot(lower[i], half)) / lower[i][i])  # as far as `half` goes
    found: Vector = []  # the last one first
    for i in reversed(range(size)):
        below = dot(upper[i][:i:-1], found)
        found.append((half[i] - below) / upper[i][i])
    return found[::-1]
