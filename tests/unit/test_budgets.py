"""Requests and tokens per minute. Time is an argument."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from rsd.hub.brain.budgets import BURST_SECONDS, Budget
from rsd.protocol.vocabulary import Rates, Usage


def spend(budget: Budget, seconds: int, tokens: tuple[int, int]) -> list[float]:
    """When calls start that end at once and take so much, if as many start as may."""
    starts = []
    for tick in range(seconds * 10):
        now = tick / 10
        while budget.ready(now):
            reserved = budget.started()
            budget.ended(reserved, Usage(input_tokens=tokens[0], output_tokens=tokens[1]))
            starts.append(now)
            assert len(starts) < 100_000
    return starts


def test_without_rates_everything_may_start() -> None:
    budget = Budget(Rates())
    for _ in range(1000):
        assert budget.ready(0.0)
        budget.started()


@settings(deadline=None)
@given(rate=st.integers(1, 6000))
def test_no_more_requests_than_the_rate_and_one_burst(rate: int) -> None:
    starts = spend(Budget(Rates(requests=rate)), 120, (0, 0))
    burst = max(1, rate / 60 * BURST_SECONDS)
    assert 2 * rate - 2 <= len(starts) <= 2 * rate + burst + 1


@settings(deadline=None)
@given(rate=st.integers(6_000, 600_000), size=st.integers(50, 5_000))
def test_no_more_tokens_than_the_rate_and_one_burst(rate: int, size: int) -> None:
    starts = spend(Budget(Rates(output_tokens=rate)), 300, (10, size))
    spent = len(starts) * size
    burst = max(rate / 60 * BURST_SECONDS, size)
    assert spent <= 5 * rate + burst + size
    assert spent >= 4 * rate - burst - size, "the rate is used"


def test_calls_under_way_are_counted_before_they_tell_what_they_took() -> None:
    budget = Budget(Rates(input_tokens=60_000))
    running = 0
    while budget.ready(0.0):
        budget.started()
        running += 1
    assert running <= 60_000 / 60 * BURST_SECONDS / 1_000 + 1


def test_what_was_learned_of_the_sizes_outlives_a_reload() -> None:
    budget = Budget(Rates(input_tokens=60_000))
    for _ in range(100):
        budget.ended(budget.started(), Usage(input_tokens=4_000))
    guess = budget.guess[0]
    assert 3_900 < guess <= 4_000
    budget.change(Rates(input_tokens=120_000))
    assert budget.guess[0] == guess
