"""What `check` says an image will cost, against sums done by hand."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from rsd.commands import costs
from rsd.commands.costs import cost_of, measured, print_costs
from rsd.protocol.learned import CallSums, Counted, Learned, nothing_learned
from rsd.protocol.vocabulary import LISTWISE, POINTWISE, Recipe, Role, Usage
from rsd.settings.fields import Prices, Settings
from rsd.strategy import expected
from rsd.strategy.base import CallPrices
from rsd.strategy.expected import Takes, counted, takes
from rsd.strategy.presets import PRESETS
from rsd.strategy.prices import prices_of_calls
from tests.unit.test_insight import recipe

SPENT = {
    Role.GENERATE: Usage(input_tokens=1_500, output_tokens=300),
    Role.GRADE: Usage(input_tokens=2_600, output_tokens=900),
}
PRICES = Prices(generator_input=0.1, generator_output=0.4, grader_input=1.1, grader_output=4.4)


def said(
    by: Recipe,
    width: int = 80,
    prices: Prices = PRICES,
    spent: Any = SPENT,
    state: str = "/none",
    count: int = 400,
) -> str:
    """What is printed for a folder of so many images."""
    text = io.StringIO()
    settings = Settings(output_dir=state, prices=prices)
    print_costs(Console(file=text, width=width), settings, by, spent, count)
    return text.getvalue()


@pytest.mark.parametrize("pointwise", [True, False])
def test_the_table_has_every_preset_and_grows_with_the_price_of_a_grade(pointwise: bool) -> None:
    table = expected.POINTWISE if pointwise else expected.LISTWISE
    at = expected.POINTWISE_AT if pointwise else expected.LISTWISE_AT
    assert set(table) == set(PRESETS)
    for effort, rows in table.items():
        assert len(rows) == len(at)
        for one in rows:
            assert 1 <= one.candidates <= PRESETS[effort].candidates_max
            assert 1 <= one.calls <= one.grades <= PRESETS[effort].grades_max
            assert pointwise == (one.calls == one.grades)


def test_between_two_prices_the_logarithm_counts() -> None:
    low, high = expected.POINTWISE["balanced"][1:]

    def at(ratio: float) -> Takes:
        return takes(
            "balanced", CallPrices(candidate=1.0, grading=ratio, graded=0.0, pointwise=True)
        )

    middle = at((22.3 * 223.0) ** 0.5)
    assert middle.candidates == pytest.approx((low.candidates + high.candidates) / 2)
    assert at(22.3) == pytest.approx(low) and at(223.0) == pytest.approx(high)
    assert at(1e9) == pytest.approx(high), "nothing was measured beyond"
    assert at(1e-9) == pytest.approx(expected.POINTWISE["balanced"][0])
    assert at(0.0) == expected.POINTWISE["balanced"][0]
    free = CallPrices(candidate=0.0, grading=1.0, graded=0.0, pointwise=True)
    assert takes("balanced", free) == high


def test_counts_stand_for_what_will_be_from_fifty_images_on() -> None:
    seen = Counted(candidates=850, grades=120)
    record = msgspec.structs.replace(nothing_learned(recipe()), images=50, counted=seen)
    assert counted(record, recipe()) == Takes(17.0, 2.4, 2.4)
    assert counted(msgspec.structs.replace(record, images=49), recipe()) is None
    assert counted(None, recipe()) is None
    lists = recipe(grading_template=LISTWISE)
    calls = CallSums(calls=20.0, size=48.0)
    assert counted(msgspec.structs.replace(record, grading=calls), lists) == Takes(17.0, 2.4, 1.0)


def test_a_call_that_was_measured_is_what_it_costs() -> None:
    prices = prices_of_calls(recipe(), measured(recipe(), SPENT), costs.prices_of(PRICES))
    made = 1_500 * 0.1 + 300 * 0.4
    grade = 2_600 * 1.1 + 900 * 4.4
    assert prices.generate(1) == pytest.approx(made, rel=1e-4)
    assert prices.grade(1) == pytest.approx(grade, rel=1e-4)
    assert cost_of(Takes(18.0, 3.0, 3.0), prices) == pytest.approx(18 * made + 3 * grade, rel=1e-4)
    lists = recipe(grading_template=LISTWISE)
    prices = prices_of_calls(lists, measured(lists, SPENT), costs.prices_of(PRICES))
    both = cost_of(Takes(16.0, 4.0, 1.0), prices)
    assert 16 * made + grade < both < 16 * made + 4 * grade, "a call of four, not four calls"


@pytest.mark.parametrize("width", [80, 120])
def test_all_presets_with_both_templates_at_the_prices_at_hand(width: int) -> None:
    text = said(recipe(), width)
    assert max(map(len, text.splitlines()[: len(PRESETS) + 2])) <= width
    for effort in PRESETS:
        (row,) = re.findall(rf"^ +{effort}(.*)$", text, re.MULTILINE)
        assert len(re.findall(r"\d+\.\d", row)) == 6
    (starred,) = re.findall(r"^ +balanced.* (\d\.\d{4})\* .* \d\.\d{4} *$", text, re.MULTILINE)
    (folder,) = re.findall(r"\* is in force: 400 images take about (\d+\.\d+)", text)
    assert float(folder) == pytest.approx(400 * float(starred), rel=0.01)
    assert "assumed" not in text, "all prices are set"
    listed = said(recipe(grading_template=LISTWISE, effort="thorough"), width)
    assert re.search(r"^ +thorough.* \d\.\d{4}  .*\d\.\d{4}\*", listed, re.MULTILINE)


def test_what_was_assumed_is_said() -> None:
    text = said(recipe(), prices=Prices())
    assert "no prices are set: a token of the generator counts 0.1" in text
    assert "1,000 tokens of the grader" in text
    one = said(recipe(), prices=Prices(grader_input=1.1, grader_output=4.4))
    assert "no prices of the generator are set" in one
    assert "as measured on other pictures" in one


def test_what_was_counted_here_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    record = msgspec.structs.replace(
        nothing_learned(recipe()), images=60, counted=Counted(candidates=600, grades=66)
    )

    def learned_of(settings: Settings, by: Recipe) -> Learned:
        return record

    monkeypatch.setattr(costs, "learned_of", learned_of)
    text = said(recipe())
    assert re.search(r"^ +balanced +10\.0 +1\.1 ", text, re.MULTILINE)
    assert "as counted of 60 images here" in text


def test_a_state_that_is_not_there_teaches_nothing(tmp_path: Path) -> None:
    assert costs.learned_of(Settings(output_dir=str(tmp_path)), recipe()) is None
    damaged = tmp_path / "state" / "lmdb"
    damaged.mkdir(parents=True)
    (damaged / "data.mdb").write_bytes(b"no map")
    assert costs.learned_of(Settings(output_dir=str(tmp_path)), recipe()) is None


def test_a_strategy_that_does_not_learn_is_estimated_as_ever() -> None:
    text = said(recipe(strategy="random", candidates=6, grading_template=POINTWISE))
    assert "an image takes 6 candidates and 6 grading calls" in text
    one = (6 * (1_500 * 0.1 + 300 * 0.4) + 6 * (2_600 * 1.1 + 900 * 4.4)) / 1e6
    assert f"that costs about {one:.4f}; 400 images {400 * one:.2f}" in text
    assert "no estimate: a call failed" in said(recipe(), spent={})


def test_limits_of_ones_own_hold_and_other_numbers_are_told() -> None:
    text = said(recipe(candidates_max=4, grades_max=2, min_gain=1.0, consensus="off"))
    for effort in PRESETS:
        (row,) = re.findall(rf"^ +{effort}(.*)$", text, re.MULTILINE)
        made, graded = re.findall(r"(\d+\.\d) +(\d+\.\d) +\d", row)[0]
        assert float(made) <= 4 and float(graded) <= 2
    assert "without sampling.min_gain = 1 and sampling.consensus = off" in text
    assert "that was without" not in said(recipe())
    greedy = said(recipe(temperatures=(0.0,)))
    assert re.search(r"^ +maximal +2\.0 ", greedy, re.MULTILINE), "one candidate a prompt"


def test_a_folder_that_is_done_costs_nothing() -> None:
    assert "* is in force; no image is to be done" in said(recipe(), count=0)
