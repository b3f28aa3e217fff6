"""Scenarios of the simulator: the file, the draws, the grades, the worlds."""

from __future__ import annotations

import gzip
import json
import statistics
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsd.errors import UserError
from rsd.simulator.answers import Params
from rsd.simulator.netlist import edge_f1
from rsd.simulator.scenario import Scenario, check, load
from rsd.simulator.scene import Scene
from rsd.simulator.world import truth_of

PIXELS, OTHER = "0" * 31 + "1", "0" * 31 + "2"
LIVELY = Params(temperature=1.0, top_p=0.9, top_k=40)
TEXTS = [f"A --> N{k}\nN{k} --> B" for k in range(8)]


def image(**fields: Any) -> dict[str, Any]:
    return {
        "pixels": PIXELS,
        "edges": [["A", "N0"], ["N0", "B"]],
        "texts": TEXTS,
        "draws": {"p1": {"0.7": [0, 1], "1.0": [0, 1, 2, 3, 4, 5, 6, 7]}, "p2": {"0": [7]}},
    } | fields


def document(**fields: Any) -> dict[str, Any]:
    return {
        "schema": "rsd.scenario/1",
        "prompts": {"p1": "One", "p2": "Two"},
        "images": [image()],
    } | fields


def scene(**fields: Any) -> Scene:
    scenario = msgspec.convert(document(**fields), Scenario)
    check(scenario)
    return Scene(scenario)


def world(count: int = 1, **fields: Any) -> Scene:
    images = [{"pixels": f"{k:032x}"} for k in range(count)]
    effects = {"prompts": {"p1": 1.0, "p2": -1.0}} | fields
    return scene(images=images, world=effects)


def drawn(played: Scene, seed: int, prompt: str = "One", **params: float) -> str:
    asked = {"temperature": 1.0, "top_p": 0.9, "top_k": 40} | params
    return played.candidate(PIXELS, prompt, Params(**asked), seed).text  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_is_read_plain_and_gzipped(tmp_path: Path, packed: bool) -> None:
    data = json.dumps(document()).encode()
    path = tmp_path / "scenario.json"
    path.write_bytes(gzip.compress(data) if packed else data)
    assert load(path).prompts == {"p1": "One", "p2": "Two"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"schema": "rsd.scenario/9"}, "$.schema"),
        ({"surplus": 1}, "surplus"),
        ({"prompts": {}}, "$.prompts"),
        ({"prompts": {"p1": "One", "p2": " One "}}, "two prompts have the same text"),
        ({"images": []}, "$.images"),
        ({"images": [image(), image()]}, "`$.images[1].pixels`: the same picture a second time"),
        ({"images": [image(pixels="XYZ")]}, "`$.images[0].pixels`: not 32 hex digits: 'XYZ'"),
        ({"images": [image(draws={})]}, "`$.images[0].draws`: there are none"),
        ({"images": [image(draws={"p9": {"1": [0]}})]}, "`$.prompts` has no 'p9'"),
        ({"images": [image(draws={"p1": {}})]}, "`$.images[0].draws['p1']`: no temperature"),
        ({"images": [image(draws={"p1": {"1": []}})]}, "draws['p1']['1']`: no texts"),
        ({"images": [image(draws={"p1": {"1": [8]}})]}, "no text 8 among 8"),
        ({"images": [image(draws={"p1": {"1": [-1]}})]}, "$.images[0].draws"),
        ({"images": [image(draws={"p1": {"warm": [0]}})]}, "'warm' is no temperature from 0 to 2"),
        ({"images": [image(draws={"p1": {"nan": [0]}})]}, "'nan' is no temperature"),
        ({"images": [image(draws={"p1": {"2.5": [0]}})]}, "'2.5' is no temperature"),
        ({"images": [image(misjudged=[1.0])]}, "`$.images[0].misjudged`: 1 for 8 texts"),
        ({"images": [image(grades=[[50, ""]])]}, "`$.images[0].grades`: 1 for 8 texts"),
        ({"images": [image(grades=[[101, ""]] * 8)]}, "$.images[0].grades"),
        ({"grader": {"kind": "recorded"}}, "text 0 has no recorded grade"),
        ({"grader": {"kind": "wise"}}, "$.grader.kind"),
        ({"grader": {"tau": -1}}, "$.grader.tau"),
        ({"grader": {"step": 0}}, "$.grader.step"),
        ({"world": {"prompts": {"p1": 0, "p2": 0}}}, "recorded answers have no place in a world"),
        ({"world": {"prompts": {"p1": 0}}}, "`$.world.prompts`: its keys are not those"),
        (
            {"world": {"prompts": {"p1": 0, "p2": 0}, "later_prompts": {"p1": 0}}},
            "`$.world.later_prompts`: its keys",
        ),
        ({"world": {"prompts": {"p1": 0, "p2": 0}, "levels": [[0, 0, 1]]}}, "all weights are 0"),
        (
            {"world": {"prompts": {"p1": 0, "p2": 0}}, "grader": {"kind": "recorded"}},
            "a world has no recorded grades",
        ),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    path = tmp_path / "scenario.json"
    path.write_text(json.dumps(document(**fields)))
    with pytest.raises(UserError) as caught:
        load(path)
    line = str(caught.value)
    assert line.startswith(f"--scenario {path}: not usable: ") and words in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "truncated"),
        (b"{", "truncated"),
        (b"[]", "Expected `object`"),
        (b'{"schema": "\xff"}', "not usable"),
        (gzip.compress(b"x" * 1000)[:20], "damaged"),
        (b"\x1f\x8bnonsense that is long enough", "not readable"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "scenario.json.gz"
    path.write_bytes(data)
    with pytest.raises(UserError, match=words) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not readable: No such file"):
        load(tmp_path / "none.json")


# -------------------------------------------------------------------------------- recorded draws


@given(st.integers(0, 1 << 31), st.integers(0, 1 << 31))
def test_seeds_one_after_the_other_draw_all_texts_once(base: int, seed: int) -> None:
    played = scene(seed=seed)
    texts = [drawn(played, base + k) for k in range(len(TEXTS))]
    assert sorted(texts) == sorted(TEXTS)
    assert texts == [drawn(scene(seed=seed), base + k) for k in range(len(TEXTS))]


def test_another_seed_of_the_scenario_draws_in_another_order() -> None:
    orders = {tuple(drawn(scene(seed=n), k) for k in range(8)) for n in range(5)}
    assert len(orders) > 1


def test_top_p_and_top_k_change_nothing() -> None:
    played = scene()
    assert drawn(played, 3) == drawn(played, 3, top_p=0.5, top_k=80)


def test_the_nearest_temperature_answers_and_of_two_the_lower() -> None:
    played = scene()
    near = {drawn(played, seed, temperature=0.85) for seed in range(16)}
    assert near == {TEXTS[0], TEXTS[1]}
    assert {drawn(played, seed, temperature=0.86) for seed in range(16)} == set(TEXTS)


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {"top_k": 1}])
def test_greedy_parameters_draw_the_first_text(params: dict[str, float]) -> None:
    played = scene()
    assert {drawn(played, seed, **params) for seed in range(9)} == {TEXTS[0]}


def test_an_unknown_prompt_is_answered_as_one_that_is_known() -> None:
    played = scene()
    texts = {drawn(played, 0, prompt=f"Question {k}", temperature=0.0) for k in range(30)}
    assert texts == {TEXTS[0], TEXTS[7]}
    assert drawn(played, 0, prompt=" Two\n") == TEXTS[7]


def test_a_picture_without_draws_of_a_prompt_uses_another_ones() -> None:
    played = scene(images=[image(draws={"p1": {"1.0": [3]}})])
    assert drawn(played, 0, prompt="Two") == TEXTS[3]


# ---------------------------------------------------------------------------------------- grades


def test_a_noisy_grade_is_quality_and_errors() -> None:
    exact = {"tau": 0, "text_sd": 0, "image_sd": 0, "call_sd": 0, "gross": 0, "lenient": 0}
    played = scene(grader=exact | {"slope": 1.0, "rounded": 0})
    scores = [grade.score for grade in played.grades(PIXELS, [TEXTS[0], "A --> N0", TEXTS[1]], 0)]
    assert scores == [100.0, 67.0, 0.0]
    assert "1 of 2 connections are right" in played.grades(PIXELS, ["A --> N0"], 0)[0].explanation


def test_a_grading_anew_differs_and_a_repeated_call_does_not() -> None:
    played, again = scene(), scene()
    text = "A --> N0"
    first = [played.grades(PIXELS, [text], number)[0].score for number in range(12)]
    assert len(set(first)) > 2
    assert first == [again.grades(PIXELS, [text + "\n"], number)[0].score for number in range(12)]


def test_the_order_of_a_list_does_not_matter() -> None:
    played = scene()
    forth = played.grades(PIXELS, TEXTS, 1)
    back = played.grades(PIXELS, TEXTS[::-1], 1)
    assert forth == back[::-1]


def test_tau_is_the_spread_of_gradings_and_misjudged_is_not() -> None:
    quiet = {"text_sd": 50, "image_sd": 0, "gross": 0, "lenient": 0, "rounded": 0, "slope": 1}
    played = scene(grader=quiet | {"tau": 5}, images=[image(misjudged=[0, -50, *[0] * 6])])
    scores = [played.grades(PIXELS, ["A --> N0"], number)[0].score for number in range(400)]
    assert 4 < statistics.stdev(scores) < 6  # whatever the text's own error is
    poor = [played.grades(PIXELS, [TEXTS[0]], number)[0].score for number in range(40)]
    bad = [played.grades(PIXELS, [TEXTS[1]], number)[0].score for number in range(40)]
    assert statistics.mean(poor) > 90 and statistics.mean(bad) < 5


def test_a_recorded_grade_is_always_the_same_and_a_cut_text_gets_the_nearest() -> None:
    grades = [[10 * k, f"grade {k}"] for k in range(8)]
    played = scene(grader={"kind": "recorded"}, images=[image(grades=grades)])
    assert [played.grades(PIXELS, [TEXTS[3] + " "], n)[0].score for n in range(3)] == [30.0] * 3
    assert played.grades(PIXELS, ["A --> N5"], 0)[0].explanation == "grade 5"


def test_tokens_are_those_of_the_file() -> None:
    played = scene(tokens={"candidate": [10, 7], "grading": [100, 50], "graded": [5, 2]})
    assert played.input_tokens() == 10
    assert played.candidate(PIXELS, "One", LIVELY, 0).tokens == 7
    assert played.grading_tokens(3) == (115, 56, 50)


# ---------------------------------------------------------------------------------------- worlds


def test_a_made_up_text_has_the_quality_that_grades_are_about() -> None:
    played = world()
    for seed in range(40):
        made = played.candidate(f"{0:032x}", "One", LIVELY, seed)
        assert made == world().candidate(f"{0:032x}", "One", LIVELY, seed)
        quality = played.quality(f"{0:032x}", made.text)
        assert quality == pytest.approx(100 * edge_f1(made.text, truth_of(f"{0:032x}", 40)))


def test_effects_of_a_world_show_in_the_qualities() -> None:
    quiet = {"tail": [0, 0], "failures": [0, 0], "image_prompt_sd": 0}
    played = world(60, **quiet)
    cold = Params(temperature=0.6, top_p=0.8, top_k=60)
    hot = Params(temperature=2.0, top_p=0.8, top_k=60)

    def mean(prompt: str, params: Params) -> float:
        found = (played.candidate(f"{k:032x}", prompt, params, 1).text for k in range(60))
        return statistics.mean(
            played.quality(f"{k:032x}", text) for k, text in zip(range(60), found, strict=True)
        )

    assert mean("One", cold) > mean("Two", cold) + 20
    assert mean("One", cold) > mean("One", hot) + 15


def test_a_drifting_world_changes_at_its_half() -> None:
    later = {"p1": -3.0, "p2": -3.0}
    played = world(60, later_prompts=later, prompts={"p1": 3.0, "p2": 3.0})
    qualities = [
        played.quality(f"{k:032x}", played.candidate(f"{k:032x}", "One", LIVELY, 0).text)
        for k in range(60)
    ]
    assert statistics.mean(qualities[:30]) > statistics.mean(qualities[30:]) + 40


def test_broken_answers_are_cut_as_far_as_they_are_seen() -> None:
    played = world(failures=[1, 0], detected=0.5)
    made = [played.candidate(f"{0:032x}", "One", LIVELY, seed) for seed in range(200)]
    assert all(played.quality(f"{0:032x}", one.text) <= 17.5 for one in made)
    assert 60 < sum(one.cut for one in made) < 140


def test_greedy_answers_of_a_world_do_not_depend_on_the_seed() -> None:
    played = world()
    greedy = Params(temperature=0.0, top_p=1.0, top_k=-1)
    assert len({played.candidate(f"{0:032x}", "One", greedy, seed) for seed in range(5)}) == 1
