"""What was learned, as a person sees it: any record, any width, any name."""

from __future__ import annotations

import io
import re

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from rsd.commands.strategy_table import interval, marked, percent, print_records
from rsd.protocol.learned import Counted, Learned, nothing_learned
from rsd.protocol.vocabulary import Recipe
from rsd.strategy.estimates import Estimate
from rsd.strategy.insight import document
from rsd.strategy.learn import learn
from rsd.strategy.levels import levels_of
from tests.unit.test_insight import audit_of, recipe, record, scores_of
from tests.unit.test_insight_lessons import lessons


def shown(learned: Learned, by: Recipe | None, width: int = 80) -> str:
    """Without a terminal."""
    text = io.StringIO()
    print_records(Console(file=text, width=width), document([(learned, by)]).records)
    return text.getvalue()


@given(taught=st.lists(lessons(), max_size=4), width=st.sampled_from([80, 120]))
@settings(deadline=None, max_examples=25)
def test_any_record_fits_its_lines(taught: list[object], width: int) -> None:
    learned = nothing_learned(recipe())
    for lesson in taught:
        learned = learn(learned, lesson)  # type: ignore[arg-type]
    text = shown(learned, recipe(), width)
    copied = ("vLLM: ", "OpenAI client: ")  # whole, to be copied
    assert max(len(x) for x in text.splitlines() if not x.startswith(copied)) <= width
    assert not re.search(r"\b(nan|inf|None)\b", text)
    assert " - of" not in text, "what was never seen is not told"


@pytest.mark.parametrize(
    "name", ["a" * 300, "[bold]x[/bold]", "提示" * 60, "two words\nand a line"]
)
def test_names_of_prompts_are_shown_as_they_are(name: str) -> None:
    by = recipe(prompts={name: "Look.", "p2": "Read."})
    cells = {
        f"prompt={name}": scores_of([80.0] * 6),
        f"prompt={name},temperature=0.7": scores_of([80.0] * 6),
    }
    learned = msgspec.structs.replace(
        nothing_learned(by), images=40, levels=levels_of(by), uniform=cells
    )
    text = shown(learned, by)
    whole = "".join(text.split())
    assert name[:5].split()[0] in whole
    if name.startswith("["):
        assert "[bold]x[/bold]" in text
    assert "temperature  0.7" in text, "no column is squeezed away"


def test_nothing_and_little_are_short() -> None:
    assert len(shown(nothing_learned(recipe()), recipe()).splitlines()) == 3
    counted = Counted(candidates=16, gradable=16, distinct=4, graded=1, grades=1, one_grade=1)
    text = shown(record(1, counted=counted), recipe())
    assert "! too little to say: 1 image" in text
    assert "100 %?" in text, "a share of one image has a question mark"
    assert "without a grader" not in text


def test_the_cheapest_plan_comes_first() -> None:
    learned = record(
        audit=audit_of([[80.0] * 12] * 6, 80.0),
        counted=Counted(candidates=640, grades=100, winner_score=3_200.0, accepted=30),
        uniform={"prompt=p1": scores_of([70.0, 75.0, 80.0, 70.0, 75.0])},
    )
    lines = shown(learned, recipe()).splitlines()
    first = next(i for i, x in enumerate(lines) if x.startswith("an image ") and "made" in x)
    table = lines[first + 1 : lines.index("", first)]
    assert table[0].startswith("best setting, ungraded")
    assert any(x.startswith("adaptive, as counted") and "75 %" in x for x in table)
    assert any(x.startswith("best of 12, drawn evenly") and "100 %" in x for x in table)


def test_few_observations_have_a_question_mark() -> None:
    assert marked(Estimate(mean=81.26, n=4)) == "81.3?"
    assert marked(Estimate(mean=81.26, n=5, few=False)) == "81.3"
    assert (marked(Estimate()), percent(Estimate()), interval(Estimate())) == ("-", "-", "")
    assert percent(Estimate(mean=0.126, n=8, few=False)) == "13 %"
    assert interval(Estimate(mean=60.0, low=-20.0, high=140.0, n=0), 0.1) == "-2.0 to 14.0"
