"""What an image and the folder will cost, for `check`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rsd.commands.isolated import isolated
from rsd.errors import StateError
from rsd.hub.recipe import MAX_DRAWS
from rsd.pricing import money, prices_of
from rsd.protocol.learned import CallSums, Learned, learned_key, nothing_learned
from rsd.protocol.vocabulary import LISTWISE, POINTWISE, Recipe, Role, TokenPrices, Usage
from rsd.settings.fields import Settings, state_dir
from rsd.state import lessons
from rsd.state.store import Store
from rsd.strategy.base import CallPrices
from rsd.strategy.expected import COUNTED, Takes, counted, takes
from rsd.strategy.presets import PRESETS
from rsd.strategy.prices import assumption, prices_of_calls

#: Calls that the one call counts as which was measured: beside it what is assumed vanishes.
CERTAIN = 1e6


def print_costs(
    out: Console, settings: Settings, recipe: Recipe, spent: Mapping[Role, Usage], count: int
) -> None:
    """What an image takes by the two calls that were measured, and so `count` of them."""
    if set(spent) != set(Role):
        lines: list[str] = ["no estimate: a call failed"]
    elif recipe.strategy == "adaptive":
        lines = list(print_presets(out, settings, recipe, spent, count))
    else:
        lines = fixed_costs(settings, recipe, spent, count)
    for text in lines:
        out.print(f"      {escape(text)}", soft_wrap=True)


def fixed_costs(
    settings: Settings, recipe: Recipe, spent: Mapping[Role, Usage], count: int
) -> list[str]:
    """Of a strategy that makes so many candidates and grades them all."""
    draws = recipe.candidates
    lists = -(-draws // recipe.list_size) if recipe.listwise else draws
    grades = lists * recipe.repeats
    made, graded = spent[Role.GENERATE], spent[Role.GRADE]
    tokens = {
        "generator_input": draws * made.input_tokens,
        "generator_output": draws * made.output_tokens,
        "grader_input": grades * graded.input_tokens,
        "grader_output": grades * graded.output_tokens,
    }
    calls = f"{draws} candidates and {grades} grading calls"
    text = ", ".join(f"{n.replace('_', ' ')} {v}" for n, v in tokens.items())
    lines = [f"an image takes {calls}; about {text} tokens"]
    of_an_image = {
        Role.GENERATE: Usage(
            input_tokens=tokens["generator_input"], output_tokens=tokens["generator_output"]
        ),
        Role.GRADE: Usage(
            input_tokens=tokens["grader_input"], output_tokens=tokens["grader_output"]
        ),
    }
    cost = money(of_an_image, prices_of(settings.prices))
    if cost is not None:
        lines.append(f"that costs about {cost:.4f}; {count} images {cost * count:.2f}")
    else:
        total = sum(tokens.values()) * count
        lines.append(f"{count} images: about {total} tokens (set [prices] for money)")
    return lines


def print_presets(
    out: Console, settings: Settings, recipe: Recipe, spent: Mapping[Role, Usage], count: int
) -> Iterator[str]:
    """A table of all presets, with either kind of grading template; then what is to be said."""
    learned = learned_of(settings, recipe)
    here = counted(learned, recipe)
    weights = prices_of(settings.prices)
    sizes = learned if here is not None else measured(recipe, spent)
    table = Table(box=None, padding=(0, 1), pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    for _ in range(6):
        table.add_column(justify="right", no_wrap=True)
    table.add_row("      effort", "pointwise:", "", "", "listwise:", "", "", style="bold")
    table.add_row("", *("made", "graded", "cost") * 2, style="bold")
    in_force = 0.0
    for effort in PRESETS:
        row = ["      " + effort]
        for template in (POINTWISE, LISTWISE):
            other = msgspec.structs.replace(recipe, grading_template=template)
            prices = prices_of_calls(other, sizes, weights)
            used = effort == recipe.effort and other.listwise == recipe.listwise
            one = here if used and here is not None else bounded(recipe, effort, prices)
            cost = cost_of(one, prices)
            if used:
                in_force = cost
            row += [f"{one.candidates:.1f}", f"{one.grades:.1f}", worth(cost, weights)]
            row[-1] += "*" if used else " "
        table.add_row(*row)
    out.print(table)
    images = "1 image takes" if count == 1 else f"{count} images take"
    sum_of_all = f": {images} about {worth(in_force * count, weights)}"
    yield "* is in force" + (sum_of_all if count else "; no image is to be done")
    if here is None or learned is None:
        yield f"made and graded: as measured on other pictures; from {COUNTED} images on, as here"
        if changed := own_numbers(recipe):
            yield f"that was without {changed}, which changes these numbers"
    else:
        yield f"*: as counted of {learned.images} images here; the others: as measured elsewhere"
    if assumed := assumption(weights):
        yield f"assumed: {assumed}"
    if not has_prices(weights):
        yield "a cost of 1k is that of 1,000 tokens of the grader (set [prices] for money)"


def bounded(recipe: Recipe, effort: str, prices: CallPrices) -> Takes:
    """What an image takes with an effort, within the limits that the settings name themselves, and
    at temperature 0 within one candidate a prompt.
    """
    one, own = takes(effort, prices), PRESETS.get(recipe.effort, PRESETS["balanced"])
    most = len(recipe.prompts) if max(recipe.temperatures) == 0 else MAX_DRAWS
    if recipe.candidates_max != own.candidates_max:
        most = min(most, recipe.candidates_max)
    grades = recipe.grades_max if recipe.grades_max != own.grades_max else MAX_DRAWS
    return Takes(min(one.candidates, most), min(one.grades, grades), min(one.calls, grades))


def own_numbers(recipe: Recipe) -> str:
    """Settings with which nothing was measured, in words."""
    own = PRESETS.get(recipe.effort, PRESETS["balanced"])
    found = []
    if recipe.min_gain != own.min_gain:
        found.append(f"sampling.min_gain = {recipe.min_gain:g}")
    if recipe.consensus != "auto":
        found.append(f"sampling.consensus = {recipe.consensus}")
    return " and ".join(found)


def learned_of(settings: Settings, recipe: Recipe) -> Learned | None:
    """What was learned in the state of these settings, with these models and this rubric."""
    state = state_dir(settings).resolve()
    if not (state / "lmdb" / "data.mdb").exists():
        return None
    try:
        found = isolated(_learned, state, recipe)
    except StateError:
        return None  # which `check` has said already
    return msgspec.json.decode(found, type=Learned | None)


def _learned(state: Path, recipe: Recipe) -> bytes:
    """The record of the recipe; of the model that most was learned of when it names none."""
    with Store(state / "lmdb", readonly=True).reading() as txn:
        records = lessons.records(txn)
    found = [
        one
        for one in records
        if one.key == learned_key(recipe)
        or (not recipe.generator_model and one.rubric == recipe.rubric)
    ]
    return msgspec.json.encode(max(found, key=lambda one: one.images, default=None))


def measured(recipe: Recipe, spent: Mapping[Role, Usage]) -> Learned:
    """The two calls, each of one candidate, as a record of so many that nothing else counts."""

    def sums(usage: Usage) -> CallSums:
        tokens, answer = CERTAIN * usage.input_tokens, CERTAIN * usage.output_tokens
        return CallSums(
            calls=CERTAIN,
            size=CERTAIN,
            size_square=CERTAIN,
            input=tokens,
            input_size=tokens,
            output=answer,
            output_size=answer,
        )

    return msgspec.structs.replace(
        nothing_learned(recipe),
        generating=sums(spent[Role.GENERATE]),
        grading=sums(spent[Role.GRADE]),
    )


def cost_of(one: Takes, prices: CallPrices) -> float:
    """In the unit of the prices."""
    calls = one.grades if prices.pointwise else one.calls
    return one.candidates * prices.candidate + calls * prices.grading + one.grades * prices.graded


def worth(cost: float, weights: Mapping[Role, TokenPrices]) -> str:
    """Money where prices are set, else thousands of tokens of the grader."""
    if has_prices(weights):
        return f"{cost / 1e6:.4f}" if cost < 1e6 else f"{cost / 1e6:.2f}"
    return f"{cost / 1e3:.1f}k"


def has_prices(weights: Mapping[Role, TokenPrices]) -> bool:
    """Whether any price is set."""
    return any(p.input is not None or p.output is not None for p in weights.values())
