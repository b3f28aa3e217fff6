"""Tokens into money: the one formula, for status, summary and check. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from rsd.protocol.vocabulary import Role, Stats, TokenPrices, Usage
from rsd.settings.fields import Prices


def prices_of(prices: Prices) -> dict[Role, TokenPrices]:
    """The settings' prices, per role."""
    return {
        Role.GENERATE: TokenPrices(input=prices.generator_input, output=prices.generator_output),
        Role.GRADE: TokenPrices(input=prices.grader_input, output=prices.grader_output),
    }


def spent(stats: Stats) -> dict[Role, Usage]:
    """All tokens ever spent, per role."""
    return {
        Role.GENERATE: Usage(
            input_tokens=stats.generator_input_tokens,
            output_tokens=stats.generator_output_tokens,
            reasoning_tokens=stats.generator_reasoning_tokens,
            cached_tokens=stats.generator_cached_tokens,
        ),
        Role.GRADE: Usage(
            input_tokens=stats.grader_input_tokens,
            output_tokens=stats.grader_output_tokens,
            reasoning_tokens=stats.grader_reasoning_tokens,
            cached_tokens=stats.grader_cached_tokens,
        ),
    }


def money(tokens: Mapping[Role, Usage], prices: Mapping[Role, TokenPrices]) -> float | None:
    """What tokens per role cost, in the currency of the prices, to six places.

    None when no price is set; a price that is not set counts as 0. Cached tokens cost what other
    input costs, reasoning tokens what other output costs.
    """
    total, priced = 0.0, False
    for role, price in prices.items():
        usage = tokens.get(role, Usage())
        for count, each in (
            (usage.input_tokens, price.input),
            (usage.output_tokens, price.output),
        ):
            if each is not None:
                priced = True
                total += count * each
    return round(total / 1e6, 6) if priced else None
