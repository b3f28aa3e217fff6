"""Whatever images teach, their figures can be told: no exception, no number that is none."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from rsd.protocol.learned import Learned, nothing_learned
from rsd.protocol.vocabulary import Arm, Recipe, SamplingParams, Usage
from rsd.strategy.base import Lesson, Seen
from rsd.strategy.estimates import Estimate
from rsd.strategy.insight import Insight, StrategyDocument, document
from rsd.strategy.learn import learn
from tests.unit.test_insight import recipe

TEXTS = (
    "A --> B\nB --> C",
    "A --> B\nB --> D",
    "A --> C",
    "A -- B : label",
    "I cannot read this picture.",
    "这是一张系统框图。",
    "",
    "x" * 9_000,
)
SCORES = st.sampled_from([0.0, 35.0, 70.0, 82.5, 85.0, 100.0])
REASONS = st.sampled_from(["agreed", "no_gain", "cap", "audit"])


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Prompts come, go and change their text; lists of one value; temperature 0."""
    keys = draw(st.lists(st.sampled_from(["p1", "p2", "p3"]), min_size=1, unique=True))
    return recipe(
        prompts={key: draw(st.sampled_from(["Look.", "Read."])) for key in keys},
        temperatures=tuple(
            draw(st.lists(st.sampled_from([0.0, 0.7, 1.2]), min_size=1, unique=True))
        ),
        top_ks=tuple(draw(st.lists(st.sampled_from([-1, 40]), min_size=1, unique=True))),
        consensus=draw(st.sampled_from(["auto", "on", "off"])),
    )


@st.composite
def lessons(draw: st.DrawFn) -> Lesson:
    """A decided image: failures, copies, uniform slots, several grades, tens only."""
    by = draw(recipes())
    seen = []
    for index in range(draw(st.integers(1, 14))):
        params = SamplingParams(
            temperature=draw(st.sampled_from(by.temperatures)),
            top_p=by.top_ps[0],
            top_k=draw(st.sampled_from(by.top_ks)),
        )
        text = draw(st.none() | st.sampled_from(TEXTS))
        scores = () if text is None else tuple(draw(st.lists(SCORES, max_size=3)))
        seen.append(
            Seen(
                index=index,
                arm=Arm(prompt_key=draw(st.sampled_from(list(by.prompts))), params=params),
                explore=draw(st.booleans()),
                text=text,
                scores=scores,
                bought=len(scores),
            )
        )
    graded = [c.index for c in seen if c.scores]
    if not graded:
        seen[0] = Seen(index=0, arm=seen[0].arm, explore=False, text="A --> B", scores=(50.0,))
        graded = [0]
    score = draw(SCORES)
    tokens = Usage(input_tokens=draw(st.integers(0, 3_000)), output_tokens=400)
    return Lesson(
        recipe=by,
        sha256=f"{draw(st.integers(0, 99))}",
        candidates=tuple(seen),
        winner=graded[0],
        score=score,
        expected_score=draw(SCORES),
        accepted=score >= by.score_threshold,
        reason=draw(REASONS),
        generated=(tokens,) * len(seen),
        graded=((1, tokens),) * len(graded),
    )


def numbers(value: Any) -> Iterator[float]:
    """Every number in it, however deep."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from numbers(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from numbers(inner)
    elif isinstance(value, float):
        yield value


def estimates(found: Insight) -> Iterator[Estimate]:
    """All means with an interval."""
    for level in found.levels:
        yield from (level.effect, level.uniform)
    for point in found.curve:
        yield from (point.best, point.passing)
    for plan in found.plans:
        yield from (plan.score, plan.passing)
    yield from (cell.uniform for cell in found.cells)
    yield from (found.signal.weight, found.signal.between)
    yield from (found.grader.tied, found.grader.fives, found.grader.saturated)
    yield from (found.spending.one_grade, found.spending.unanimous, found.spending.accepted)
    if found.setting is not None:
        yield found.setting.expected


@given(taught=st.lists(lessons(), max_size=8), chosen=recipes() | st.none())
@settings(deadline=None, max_examples=60)
def test_figures_of_any_images(taught: list[Lesson], chosen: Recipe | None) -> None:
    learned: Learned = nothing_learned(chosen or recipe())
    for lesson in taught:
        learned = learn(learned, lesson)
    made = document([(learned, chosen)])
    (record,) = made.records
    found = record.insight
    assert found.images == len(taught)
    for estimate in estimates(found):
        if estimate.low is not None and estimate.high is not None:
            assert estimate.mean is not None
            assert estimate.low <= estimate.mean + 1e-9 and estimate.mean <= estimate.high + 1e-9
    assert all(map(math.isfinite, numbers(msgspec.to_builtins(found))))
    assert msgspec.json.decode(msgspec.json.encode(made), type=StrategyDocument) == made
    if found.setting is not None and chosen is not None:
        assert found.setting.prompt in chosen.prompts
        assert found.setting.request["temperature"] in chosen.temperatures
        assert found.setting.request["top_k"] in chosen.top_ks
