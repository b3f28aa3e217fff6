"""Fingerprints that are stored must stay what they are; rubrics name a way of grading."""

from __future__ import annotations

import msgspec
import pytest

from rsd.pricing import money
from rsd.protocol.vocabulary import Recipe, Role, TokenPrices, Usage, rubric_of

#: A recipe as format 1 stored it, and the name that it was stored under.
STORED = b"""{"prompts":{"p1":"What is this?"},"grading_template":"Grade {generated_answer}",
"strategy":"random","candidates":8,"seed":7,"temperatures":[0.3,1.0],"top_ps":[0.9],"top_ks":[40],
"min_p":0.0,"repetition_penalty":1.0,"max_tokens":64,"score_threshold":80.0,"stop_score":null,
"repeats":1,"list_size":6,"generator_model":"m","grader_model":"g"}"""
FINGERPRINT = "1a92e35752568349"


def test_a_recipe_of_format_1_keeps_its_fingerprint() -> None:
    recipe = msgspec.json.decode(STORED, type=Recipe)
    assert recipe.fingerprint == FINGERPRINT
    assert b"reasoning_effort" not in msgspec.json.encode(recipe)


def test_only_what_changes_the_grading_changes_the_rubric() -> None:
    recipe = msgspec.json.decode(STORED, type=Recipe)
    replace = msgspec.structs.replace
    assert recipe.rubric == rubric_of("Grade {generated_answer}", "g", "")
    assert replace(recipe, candidates=3, generator_model="other").rubric == recipe.rubric
    changed = [
        replace(recipe, grading_template="Be strict: {generated_answer}"),
        replace(recipe, grader_model="h"),
        replace(recipe, reasoning_effort="low"),
    ]
    assert len({recipe.rubric, *(r.rubric for r in changed)}) == 4
    assert len({recipe.fingerprint, *(r.fingerprint for r in changed)}) == 4


@pytest.mark.parametrize(
    ("prices", "cost"),
    [
        ({}, None),
        ({Role.GENERATE: TokenPrices(), Role.GRADE: TokenPrices()}, None),
        ({Role.GENERATE: TokenPrices(output=2.0), Role.GRADE: TokenPrices()}, 1.0),
        ({Role.GENERATE: TokenPrices(), Role.GRADE: TokenPrices(input=0.0)}, 0.0),
        ({Role.GRADE: TokenPrices(input=1.0, output=1.0)}, 0.0),
    ],
)
def test_money_counts_what_has_a_price(prices: dict[Role, TokenPrices], cost: float | None) -> None:
    tokens = {Role.GENERATE: Usage(input_tokens=1_000_000, output_tokens=500_000)}
    assert money(tokens, prices) == cost
