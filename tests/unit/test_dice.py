"""Randomness that its name alone determines."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsd.strategy.dice import Dice

DRAWS = 20_000


def drawn(dice: Dice) -> tuple[float, ...]:
    return tuple(dice.uniform() for _ in range(20))


def test_a_stream_is_its_name() -> None:
    names = [(1, "a", 0, "arms"), (2, "a", 0, "arms"), (1, "b", 0, "arms")]
    names += [(1, "a", 1, "arms"), (1, "a", 0, "order")]
    streams = [drawn(Dice(*name)) for name in names]
    assert len(set(streams)) == len(names)
    assert streams == [drawn(Dice(*name)) for name in names]


def test_known_values() -> None:
    """What was decided once is decided so for ever: another stream would be another plan."""
    dice = Dice(0, "ab" * 32, 0, "arms")
    assert [dice.below(1000) for _ in range(5)] == [276, 183, 730, 971, 611]


def test_moments() -> None:
    dice = Dice(0, "", 0, "")
    uniform = [dice.uniform() for _ in range(DRAWS)]
    assert min(uniform) >= 0.0 and max(uniform) < 1.0
    assert abs(sum(uniform) / DRAWS - 0.5) < 5 * math.sqrt(1 / 12 / DRAWS)
    normal = [dice.normal() for _ in range(DRAWS)]
    mean = sum(normal) / DRAWS
    assert abs(mean) < 5 / math.sqrt(DRAWS)
    assert abs(sum(x * x for x in normal) / DRAWS - 1.0) < 5 * math.sqrt(2 / DRAWS)
    pairs = sum(a * b for a, b in zip(normal[::2], normal[1::2], strict=True)) / (DRAWS // 2)
    assert abs(pairs) < 5 / math.sqrt(DRAWS // 2)


@given(st.integers(0, 40), st.integers())
def test_permutation_has_each_number_once(count: int, seed: int) -> None:
    assert sorted(Dice(seed, "", 0, "").permutation(count)) == list(range(count))


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20), st.data())
def test_sample_is_without_replacement_and_prefers_weight(
    weights: list[float], data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, len(weights)))
    chosen = Dice(data.draw(st.integers()), "", 0, "").sample(weights, count)
    assert len(chosen) == len(set(chosen)) == count
    heavy = sum(w > 0 for w in weights)
    assert all(weights[i] > 0 for i in chosen[:heavy])


def test_shares_follow_the_weights() -> None:
    dice = Dice(0, "", 0, "")
    first = [dice.sample((1.0, 3.0, 0.0), 1)[0] for _ in range(4000)]
    assert abs(first.count(1) / 4000 - 0.75) < 5 * math.sqrt(0.75 * 0.25 / 4000)
    assert 2 not in first


def test_too_much_is_refused() -> None:
    with pytest.raises(ValueError, match="2 of 1"):
        Dice(0, "", 0, "").sample((1.0,), 2)
    with pytest.raises(ValueError, match="nothing"):
        Dice(0, "", 0, "").below(0)
