"""What calls cost, from the tokens that they took and the prices of the settings. Pure."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from rsd.protocol.learned import CallSums, Learned
from rsd.protocol.vocabulary import Recipe, Role, TokenPrices, Usage
from rsd.strategy.base import CallPrices

#: Most candidates that the policy puts into one grading call: a longer list is read less carefully.
LIST_MAX: Final = 6
#: Calls that the assumed sizes count as.
PSEUDO_CALLS: Final = 4.0
#: Price of a token of the generator, when a token of the grader costs 1 and no prices are set:
#: generators mostly run on own machines, graders are mostly paid for.
GENERATOR_WEIGHT: Final = 0.1


class Size(NamedTuple):
    """Tokens of a call: of any call, and of each candidate in it."""

    call: float
    candidate: float

    def of(self, count: float) -> float:
        """A call with so many candidates."""
        return self.call + self.candidate * count


#: Assumed until calls were made: (input, output).
ASSUMED: Final = {
    Role.GENERATE: (Size(0.0, 1300.0), Size(0.0, 400.0)),
    Role.GRADE: (Size(2060.0, 420.0), Size(700.0, 150.0)),
}


def list_size_of(recipe: Recipe) -> int:
    """Most candidates of a grading call that the policy buys."""
    return min(LIST_MAX, recipe.list_size) if recipe.listwise else 1


def prices_of_calls(
    recipe: Recipe, learned: Learned | None, weights: dict[Role, TokenPrices]
) -> CallPrices:
    """What generating and grading cost, in one unit: money per million tokens when prices are set.

    Sizes of calls are running means, begun with `PSEUDO_CALLS` of an assumed size.
    """
    price, _ = weigh(weights)
    made = list(zip(price[Role.GENERATE], sizes(Role.GENERATE, learned), strict=True))
    grading = list(zip(price[Role.GRADE], sizes(Role.GRADE, learned), strict=True))
    return CallPrices(
        candidate=sum(each * size.of(1) for each, size in made),
        grading=sum(each * size.call for each, size in grading),
        graded=sum(each * size.candidate for each, size in grading),
        pointwise=not recipe.listwise,
        list_size=list_size_of(recipe),
    )


def assumption(weights: dict[Role, TokenPrices]) -> str:
    """What was assumed about prices, as one sentence; empty when all of them are set."""
    return weigh(weights)[1]


def weigh(weights: dict[Role, TokenPrices]) -> tuple[dict[Role, tuple[float, float]], str]:
    """(input, output) prices of a token of each role, and what was assumed about them."""
    known = {role: _pair(weights.get(role)) for role in Role}
    generate, grade = known[Role.GENERATE], known[Role.GRADE]
    ratio = GENERATOR_WEIGHT
    if generate is not None and grade is not None and max(*generate, *grade) > 0:
        said = _one_direction(weights).removeprefix("; ")
        return {Role.GENERATE: generate, Role.GRADE: grade}, said
    if generate is not None and grade is None and max(generate) > 0:
        other = (generate[0] / ratio, generate[1] / ratio)
        said = f"no prices of the grader are set: a generator's token at {ratio:g} of a grader's"
        said += _one_direction(weights)
        return {Role.GENERATE: generate, Role.GRADE: other}, said
    if grade is not None and generate is None and max(grade) > 0:
        other = (grade[0] * ratio, grade[1] * ratio)
        said = f"no prices of the generator are set: its tokens at {ratio:g} of the grader's"
        said += _one_direction(weights)
        return {Role.GENERATE: other, Role.GRADE: grade}, said
    set_to_zero = generate is not None or grade is not None
    said = "all prices are 0" if set_to_zero else "no prices are set"
    return {
        Role.GENERATE: (ratio, ratio),
        Role.GRADE: (1.0, 1.0),
    }, f"{said}: a token of the generator counts {ratio:g}, one of the grader 1 (own GPUs)"


def _one_direction(weights: dict[Role, TokenPrices]) -> str:
    """What is assumed where a role has a price of input or of output only."""
    partly = any((p.input is None) != (p.output is None) for p in weights.values())
    return "; a price that is not set is that of the other direction" if partly else ""


def _pair(price: TokenPrices | None) -> tuple[float, float] | None:
    """Input and output; the one that is not set costs what the other one does."""
    if price is None or (price.input is None and price.output is None):
        return None
    first = price.output if price.input is None else price.input
    second = price.input if price.output is None else price.output
    assert first is not None and second is not None
    return first, second


def sizes(role: Role, learned: Learned | None) -> tuple[Size, Size]:
    """Tokens of a role's calls: (input, output)."""
    sums = CallSums()
    if learned is not None:
        sums = learned.generating if role is Role.GENERATE else learned.grading
    assumed_input, assumed_output = ASSUMED[role]
    return (
        _size(sums, sums.input, sums.input_size, assumed_input),
        _size(sums, sums.output, sums.output_size, assumed_output),
    )


def _size(sums: CallSums, tokens: float, tokens_size: float, assumed: Size) -> Size:
    """Least squares of tokens on the candidates of a call, with `PSEUDO_CALLS` imagined calls: half
    with 1 candidate, half with `LIST_MAX`, of the assumed size times what calls were found to take
    of it. Without that factor calls of one size alone would leave the others as assumed.
    """
    if assumed.call == 0.0:  # generations: a call is one candidate
        total = tokens + PSEUDO_CALLS * assumed.candidate
        return Size(0.0, total / (sums.calls + PSEUDO_CALLS))
    expected = assumed.call * sums.calls + assumed.candidate * sums.size
    typical = PSEUDO_CALLS * assumed.of(sums.size / sums.calls if sums.calls else 1.0)
    factor = (tokens + typical) / (expected + typical)
    half = PSEUDO_CALLS / 2
    n = sums.calls + 2 * half
    sx = sums.size + half * (1 + LIST_MAX)
    sxx = sums.size_square + half * (1 + LIST_MAX**2)
    sy = tokens + factor * half * (assumed.of(1) + assumed.of(LIST_MAX))
    sxy = tokens_size + factor * half * (assumed.of(1) + LIST_MAX * assumed.of(LIST_MAX))
    slope = (n * sxy - sx * sy) / (n * sxx - sx * sx)
    slope = min(max(slope, 0.0), sy / sx)  # neither part of a call is paid back
    return Size((sy - slope * sx) / n, slope)


def learn_calls(sums: CallSums, calls: tuple[tuple[int, Usage], ...], forget: float) -> CallSums:
    """The sums with an image's calls: (candidates, tokens) of each."""
    if not calls:
        return sums
    kept = {name: forget * getattr(sums, name) for name in sums.__struct_fields__}
    for size, usage in calls:
        kept["calls"] += 1.0
        kept["size"] += size
        kept["size_square"] += size * size
        kept["input"] += usage.input_tokens
        kept["input_size"] += usage.input_tokens * size
        kept["output"] += usage.output_tokens
        kept["output_size"] += usage.output_tokens * size
    return msgspec.structs.replace(sums, **kept)
