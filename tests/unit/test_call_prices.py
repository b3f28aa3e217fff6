"""What calls cost, as the strategy sees it."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsd.protocol.learned import CallSums, nothing_learned
from rsd.protocol.vocabulary import Role, TokenPrices, Usage
from rsd.strategy.prices import (
    ASSUMED,
    GENERATOR_WEIGHT,
    assumption,
    learn_calls,
    list_size_of,
    prices_of_calls,
    sizes,
    weigh,
)
from tests.unit.stream import adaptive

PRICED = TokenPrices(input=1.0, output=4.0)


def test_nothing_known_is_as_assumed() -> None:
    prices = prices_of_calls(adaptive(), None, {})
    assert prices.candidate == pytest.approx(170.0)
    assert (prices.grading, prices.graded) == pytest.approx((2760.0, 570.0))
    assert prices.pointwise
    assert prices == prices_of_calls(adaptive(), nothing_learned(adaptive()), {})
    listwise = adaptive(grading_template="{candidate_answers}", list_size=4)
    assert prices_of_calls(listwise, None, {}).list_size == 4
    assert list_size_of(msgspec.structs.replace(listwise, list_size=20)) == 6


@pytest.mark.parametrize(
    ("weights", "generate", "grade", "words"),
    [
        ({}, (0.1, 0.1), (1.0, 1.0), "no prices are set"),
        ({Role.GENERATE: PRICED, Role.GRADE: PRICED}, (1.0, 4.0), (1.0, 4.0), ""),
        ({Role.GENERATE: PRICED}, (1.0, 4.0), (10.0, 40.0), "of the grader"),
        ({Role.GRADE: PRICED}, (0.1, 0.4), (1.0, 4.0), "of the generator"),
        (
            {Role.GENERATE: TokenPrices(input=2.0), Role.GRADE: PRICED},
            (2.0, 2.0),
            (1.0, 4.0),
            "other direction",
        ),
        (
            {Role.GENERATE: TokenPrices(input=0.0, output=0.0), Role.GRADE: PRICED},
            (0.0, 0.0),
            (1.0, 4.0),
            "",
        ),
        (
            {r: TokenPrices(input=0.0, output=0.0) for r in Role},
            (0.1, 0.1),
            (1.0, 1.0),
            "all prices are 0",
        ),
        ({r: TokenPrices() for r in Role}, (0.1, 0.1), (1.0, 1.0), "no prices are set"),
    ],
)
def test_what_is_not_set_is_assumed_and_said(
    weights: dict[Role, TokenPrices],
    generate: tuple[float, float],
    grade: tuple[float, float],
    words: str,
) -> None:
    assert GENERATOR_WEIGHT == 0.1
    price, said = weigh(weights)
    assert price[Role.GENERATE] == pytest.approx(generate)
    assert price[Role.GRADE] == pytest.approx(grade)
    assert words in said and bool(words) == bool(said)
    assert assumption(weights) == said


def calls(sizes_: list[int], call: float, candidate: float) -> tuple[tuple[int, Usage], ...]:
    return tuple(
        (m, Usage(input_tokens=round(call + candidate * m), output_tokens=round(candidate * m)))
        for m in sizes_
    )


def test_sizes_follow_the_calls() -> None:
    sums = CallSums()
    for _ in range(100):
        sums = learn_calls(sums, calls([1, 3, 6], 500, 80), 0.997)
    learned = msgspec.structs.replace(nothing_learned(adaptive()), grading=sums)
    input_, output = sizes(Role.GRADE, learned)
    assert (input_.call, input_.candidate) == pytest.approx((500, 80), rel=0.05)
    assert output.of(3) == pytest.approx(240, rel=0.05)


@pytest.mark.parametrize("size", [1, 6])
def test_calls_of_one_size_teach_the_size_of_others(size: int) -> None:
    sums = learn_calls(CallSums(), calls([size] * 300, 206.0, 42.0), 0.997)  # a tenth as assumed
    learned = msgspec.structs.replace(nothing_learned(adaptive()), grading=sums)
    input_, _ = sizes(Role.GRADE, learned)
    for m in (1, 6):
        assert input_.of(m) == pytest.approx(206.0 + 42.0 * m, rel=0.2)


@given(
    st.lists(
        st.tuples(st.integers(1, 6), st.integers(0, 100_000), st.integers(0, 100_000)), max_size=30
    )
)
def test_no_call_pays(found: list[tuple[int, int, int]]) -> None:
    usage = tuple((m, Usage(input_tokens=a, output_tokens=b)) for m, a, b in found)
    sums = learn_calls(CallSums(), usage, 0.997)
    learned = msgspec.structs.replace(nothing_learned(adaptive()), grading=sums, generating=sums)
    for role in Role:
        for size in sizes(role, learned):
            assert size.call >= -1e-6 and size.candidate >= 0.0
    prices = prices_of_calls(adaptive(), learned, {})
    assert prices.candidate > 0 and prices.grade(1) > 0


def test_candidates_have_no_price_of_a_call() -> None:
    assert ASSUMED[Role.GENERATE][0].call == 0.0
    sums = learn_calls(CallSums(), ((1, Usage(input_tokens=100, output_tokens=20)),) * 996, 1.0)
    learned = msgspec.structs.replace(nothing_learned(adaptive()), generating=sums)
    assert sizes(Role.GENERATE, learned)[0].candidate == pytest.approx((99_600 + 5_200) / 1000)
