"""Settings: precedence, refusals of one line, secrets, prompt files."""

from __future__ import annotations

import json
import string
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rsd.errors import UserError
from rsd.hub.recipe import load_recipe
from rsd.settings import words
from rsd.settings.fields import Settings
from rsd.settings.load import NOT_SETTINGS, find_config, load, locate
from rsd.settings.validate import check_for_run

KEY = "sk-Abc123-never-shown"


def refusal(flags: dict[str, Any], *, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load(flags, environ=environ or {})
    text = str(caught.value)
    assert "\n" not in text
    return text


def toml(folder: Path, text: str) -> Path:
    path = folder / "rsd.toml"
    path.write_text(text, "utf-8")
    return path


# ---------------------------------------------------------------------------------- precedence


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    file = toml(tmp_path, "[sampling]\nscore_threshold = 10\n")
    variable = {"RSD_SAMPLING_SCORE_THRESHOLD": "20"}
    flag = {"sampling.score_threshold": "30"}
    assert load({}, environ={}).sampling.score_threshold == 80
    assert load({}, file=file, environ={}).sampling.score_threshold == 10
    assert load({}, file=file, environ=variable).sampling.score_threshold == 20
    assert load(flag, file=file, environ=variable).sampling.score_threshold == 30


def test_the_defaults_are_those_of_the_reference_system() -> None:
    s = load({}, environ={})
    assert s == Settings()
    assert s.sampling.temperature_range == (0.3, 0.7, 1.0)
    assert s.sampling.top_p_range == (0.7, 0.9)
    assert s.sampling.top_k_range == (40, 60, 80)
    assert (s.sampling.score_threshold, s.checkpoint_interval) == (80, 10)
    assert s.generation.api == ("http://localhost:8000/v1",)
    assert (s.grading.model, s.generation.max_tokens, s.generation.timeout) == (
        "o4-mini",
        2048,
        1200,
    )


def test_a_flag_that_was_not_given_changes_nothing() -> None:
    assert load({"sampling.seed": None}, environ={"RSD_SAMPLING_SEED": "7"}).sampling.seed == 7


@given(
    seed=st.integers(0, 2**60),
    threshold=st.floats(0, 100),
    temperatures=st.lists(st.floats(0, 2), min_size=1, max_size=6, unique=True),
    top_ks=st.lists(st.integers(1, 10**6) | st.just(-1), min_size=1, max_size=6, unique=True),
)
def test_flags_and_environment_mean_the_same(
    seed: int, threshold: float, temperatures: list[float], top_ks: list[int]
) -> None:
    texts = {
        "sampling.seed": str(seed),
        "sampling.score_threshold": repr(threshold),
        "sampling.temperature_range": ",".join(map(repr, temperatures)),
        "sampling.top_k_range": ",".join(map(str, top_ks)),
    }
    by_flag = load(texts, environ={})
    by_environment = load(
        {}, environ={"RSD_" + k.replace(".", "_").upper(): v for k, v in texts.items()}
    )
    assert by_flag == by_environment
    assert by_flag.sampling.temperature_range == tuple(temperatures)
    assert by_flag.sampling.top_k_range == tuple(top_ks)
    assert (by_flag.sampling.seed, by_flag.sampling.score_threshold) == (seed, threshold)


@given(
    key=st.sampled_from(words.setting_keys()),
    text=st.text(st.characters(exclude_categories=()), max_size=30),
)
@example(key="grading.timeout", text="\udcff")  # an argument that is no UTF-8
@example(key="log_level", text="IN\nFO")
@example(key="grading.key_file", text="/no\n/file")
@example(key="generation.api", text="9" * 5000)
def test_any_text_is_taken_or_refused_in_one_line_naming_the_setting(key: str, text: str) -> None:
    try:
        load({key: text}, environ={})
    except UserError as e:
        assert key in str(e)
        assert str(e).isprintable()
        assert len(str(e)) < 500
        assert "object at" not in str(e)
        if key.endswith(".key") and len(text) > 3:
            assert text not in str(e)


def test_every_setting_has_an_environment_variable_of_its_own() -> None:
    names = ["RSD_" + k.replace(".", "_").upper() for k in words.setting_keys()]
    assert len(set(names)) == len(names)
    assert not set(names) & NOT_SETTINGS


# ------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            {"sampling.temperature_range": "0.3,2.5"},
            "sampling.temperature_range = 0.3,2.5: one or more, each a number from 0 to 2",
        ),
        (
            {"sampling.temperature_range": "-0.1"},
            "sampling.temperature_range = -0.1: one or more, each a number from 0 to 2",
        ),
        (
            {"sampling.temperature_range": "hot"},
            "sampling.temperature_range = hot: one or more, each a number from 0 to 2",
        ),
        (
            {"sampling.temperature_range": "nan"},
            "sampling.temperature_range = nan: one or more, each a number from 0 to 2",
        ),
        (
            {"sampling.top_p_range": "0,0.9"},
            "sampling.top_p_range = 0,0.9: one or more, each a number above 0 and up to 1",
        ),
        (
            {"sampling.top_p_range": "1.01"},
            "sampling.top_p_range = 1.01: one or more, each a number above 0 and up to 1",
        ),
        (
            {"sampling.top_k_range": "20,0"},
            "sampling.top_k_range = 20,0: each -1 (off) or at least 1",
        ),
        ({"sampling.top_k_range": "-2"}, "sampling.top_k_range = -2: each -1 (off) or at least 1"),
        (
            {"sampling.top_k_range": "40,40"},
            "sampling.top_k_range = 40,40: a value is given twice",
        ),
        ({"sampling.strategy": "best"}, "sampling.strategy = best: one of adaptive, random, grid"),
        ({"sampling.min_gain": "-1"}, "sampling.min_gain = -1: a number of at least 0"),
        ({"sampling.audit_share": "1.1"}, "sampling.audit_share = 1.1: a number from 0 to 1"),
        (
            {"sampling.candidates": "4"},
            "sampling.candidates = 4: not with sampling.strategy = adaptive, which finds that out "
            "for each image; set sampling.strategy = random, or limit it by candidates_max",
        ),
        (
            {"sampling.stop_score": "90"},
            "sampling.stop_score = 90.0: not with sampling.strategy = adaptive",
        ),
        ({"grading.repeats": "2"}, "grading.repeats = 2: not with sampling.strategy = adaptive"),
        ({"sampling.candidates": "0"}, "sampling.candidates = 0: a whole number from 1 to 1024"),
        (
            {"sampling.score_threshold": "101"},
            "sampling.score_threshold = 101: a number from 0 to 100",
        ),
        ({"output_dir": "a\0b"}, "output_dir: a text in UTF-8, without NUL"),
        ({"image_dir": "\udcff"}, "image_dir: a text in UTF-8, without NUL"),
        ({"log_level": "LOUD"}, "log_level = LOUD: one of DEBUG, INFO, WARNING, ERROR"),
        ({"generation.workers": "many"}, "generation.workers = many: a whole number from 1 to"),
        ({"drain_seconds": "inf"}, "drain_seconds = inf: a number of at least 0"),
        ({"throttle.enabled": "maybe"}, "throttle.enabled = maybe: true or false"),
        ({"generation.api": ["localhost:8000"]}, "generation.api = localhost:8000: an address"),
        (
            {"grading.api": ["https://a/v1", "https://a/v1"]},
            "grading.api = https://a/v1,https://a/v1: a value is given twice",
        ),
        ({"grading.api": ["https://a/v1?x=1"]}, "grading.api = https://a/v1?x=1: no ? or #"),
        (
            {"throttle.memory_pause_percent": "50"},
            "throttle.memory_pause_percent = 50.0: must not exceed",
        ),
        (
            {"throttle.disk_pause_mebibytes": "5000"},
            "throttle.disk_pause_mebibytes = 5000.0: must not exceed",
        ),
    ],
)
def test_a_refused_value_is_named_with_what_is_allowed(
    flags: dict[str, Any], expected: str
) -> None:
    assert refusal(flags).startswith(expected)


def test_unknown_settings_get_a_suggestion(tmp_path: Path) -> None:
    for text, expected in (
        ("[sampling]\ntemprature_range = [1]\n", "did you mean sampling.temperature_range?"),
        ("image_dri = 'x'\n", "did you mean image_dir?"),
        ("sampling = 3\n", "must be a table, [sampling]"),
        ("image_dir = \n", "Invalid value"),
    ):
        file = toml(tmp_path, text)
        with pytest.raises(UserError) as caught:
            load({}, file=file, environ={})
        assert str(file) in str(caught.value)
        assert expected in str(caught.value)
    assert "did you mean RSD_LOG_LEVEL?" in refusal({}, environ={"RSD_LOG_LEVLE": "INFO"})


def test_a_configuration_file_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RSD_CONFIG", str(tmp_path / "b.toml"))
    with pytest.raises(UserError, match=r"^--config .*a\.toml: no such file$"):
        find_config(str(tmp_path / "a.toml"))
    with pytest.raises(UserError, match=r"^RSD_CONFIG .*b\.toml: no such file$"):
        find_config(None)
    monkeypatch.delenv("RSD_CONFIG")
    (tmp_path / "rsd.toml").write_text("")
    assert find_config(None) == Path("rsd.toml")


# ------------------------------------------------------------------------------------- secrets


def test_keys_are_in_no_text(tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text(f"{KEY}\n")
    for s in (
        load({"grading.key": KEY, "generation.key": KEY}, environ={}),
        load({}, environ={"RSD_GRADING_KEY": KEY, "RSD_GENERATION_KEY": KEY}),
        load({"grading.key_file": str(key_file), "generation.key_file": str(key_file)}, environ={}),
    ):
        assert (s.grading.key, s.generation.key) == (KEY, KEY)
        assert KEY not in repr(s)
        assert KEY not in repr(s.grading) + repr(s.generation) + str(s)
    assert KEY not in refusal({"grading.key": f"{KEY} {KEY}"})
    assert KEY not in refusal({"grading.key": f"{KEY}\u00e9"})
    assert KEY not in refusal({"grading.api": [f"https://me:{KEY}@host/v1"]})
    assert KEY not in refusal({"grading.api": [f"ftp://me:{KEY}@host/v1"]})
    bad = toml(tmp_path, f'[grading]\nkey = ["{KEY}"]\n')
    with pytest.raises(UserError) as caught:
        load({}, file=bad, environ={})
    assert KEY not in str(caught.value)


def test_a_key_comes_from_a_systemd_credential(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "grading-key").write_text(f"{KEY}\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    s = load({}, environ={})
    assert (s.grading.key, s.generation.key) == (KEY, "")
    assert load({"grading.key": "other"}, environ={}).grading.key == "other"


def test_a_key_file_that_is_missing_or_no_text(tmp_path: Path) -> None:
    missing = str(tmp_path / "none")
    expected = f"grading.key_file = {missing}: No such file or directory"
    assert refusal({"grading.key_file": missing}) == expected
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8 text" in refusal({"grading.key_file": str(tmp_path / "binary")})


# ------------------------------------------------------------------------------- what run needs


def runnable(tmp_path: Path, **flags: Any) -> Settings:
    (tmp_path / "images").mkdir(exist_ok=True)
    given_flags = {
        "image_dir": str(tmp_path / "images"),
        "output_dir": str(tmp_path / "out"),
        "grading.api": ["http://127.0.0.1:1/v1"],
    }
    return load(given_flags | flags, environ={})


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"image_dir": ""}, "image_dir is not set: give --image-dir"),
        ({"output_dir": ""}, "output_dir is not set: give --output-dir"),
        ({"grading.api": []}, "grading.api is not set: give --grading-api"),
        ({"image_dir": "/nowhere/at/all"}, "image_dir = /nowhere/at/all: no such folder"),
    ],
)
def test_run_needs_folders_and_a_grader(
    tmp_path: Path, flags: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UserError) as caught:
        check_for_run(runnable(tmp_path, **flags))
    assert str(caught.value).startswith(expected)


def test_results_and_state_lie_outside_of_the_image_folder(tmp_path: Path) -> None:
    check_for_run(runnable(tmp_path))
    inside = str(tmp_path / "images" / "out")
    for flags in ({"output_dir": inside}, {"state_dir": inside}):
        with pytest.raises(UserError, match="must not lie inside image_dir"):
            check_for_run(runnable(tmp_path, **flags))
    (tmp_path / "link").symlink_to(tmp_path / "images")
    with pytest.raises(UserError, match="must not lie inside image_dir"):
        check_for_run(runnable(tmp_path, output_dir=str(tmp_path / "link" / "out")))


@pytest.mark.parametrize(
    ("host", "free"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("10.1.2.3", True),
        ("192.168.0.9", True),
        ("[::1]", True),
        ("gpu-7", True),
        ("grader.internal", True),
        ("api.openai.com", False),
        ("8.8.8.8", False),
        ("api.openai-proxy.org", False),
    ],
)
def test_only_a_private_grader_needs_no_key(tmp_path: Path, host: str, free: bool) -> None:
    flags = {"grading.api": [f"http://{host}:9/v1"]}
    check_for_run(runnable(tmp_path, **flags, **{"grading.key": KEY}))
    if free:
        check_for_run(runnable(tmp_path, **flags))
    else:
        with pytest.raises(UserError, match=r"grading\.key is not set.*RSD_GRADING_KEY"):
            check_for_run(runnable(tmp_path, **flags))


def prompt_files(tmp_path: Path, prompts: object, grading: object) -> dict[str, str]:
    (tmp_path / "p.json").write_text(json.dumps(prompts))
    (tmp_path / "g.json").write_text(json.dumps(grading))
    return {"prompts": str(tmp_path / "p.json"), "grading_prompt": str(tmp_path / "g.json")}


GOOD = {"template": "GradeCandidates: {generated_answer}"}


def test_a_recipe_keeps_the_order_of_the_prompt_keys(tmp_path: Path) -> None:
    files = prompt_files(tmp_path, {"a": "1", "b": "2 {x}", "c": "3"}, GOOD)
    recipe = load_recipe(load(files, environ={}))
    assert list(recipe.prompts.items()) == [("a", "1"), ("b", "2 {x}"), ("c", "3")]
    assert (recipe.candidates, recipe.listwise) == (3, False)
    chosen = load_recipe(load({**files, "prompt_keys": ["c", "a"]}, environ={}))
    assert list(chosen.prompts) == ["c", "a"]
    assert chosen.candidates == 2
    grid = load_recipe(load({**files, "sampling.strategy": "grid"}, environ={}))
    assert grid.candidates == 3 * 3 * 2 * 3


def test_an_effort_is_numbers_and_any_of_them_may_be_given(tmp_path: Path) -> None:
    files = prompt_files(tmp_path, {"a": "1"}, GOOD)

    def numbers(**sampling: str) -> tuple[str, float, int, int]:
        flags = {f"sampling.{name}": value for name, value in sampling.items()}
        r = load_recipe(load({**files, **flags}, environ={}))
        return r.effort, r.min_gain, r.candidates_max, r.grades_max

    assert numbers() == ("balanced", 2.0, 32, 12)
    assert numbers(effort="economy") == ("economy", 4.0, 32, 12)
    assert numbers(effort="maximal") == ("maximal", 0.5, 108, 24)
    given_numbers = {"min_gain": "0", "candidates_max": "9", "grades_max": "3"}
    assert numbers(effort="thorough", **given_numbers) == ("thorough", 0.0, 9, 3)
    of_random = numbers(strategy="random", effort="maximal", min_gain="7")
    assert of_random == numbers(), "they are not of that strategy, and leave its fingerprint"


@pytest.mark.parametrize(
    ("prompts", "grading", "expected"),
    [
        ({}, GOOD, "holds no prompt"),
        ([], GOOD, "must hold one JSON object"),
        ({"a": ""}, GOOD, "a must be a text"),
        ({"a": 1}, GOOD, "a must be a text"),
        ({"a": "x"}, {}, "has no text `template`"),
        ({"a": "x"}, {"template": "none"}, "the template must hold {generated_answer}"),
        ({"a": "x"}, {"template": "{generated_answer}{candidate_answers}"}, "and not both"),
    ],
)
def test_bad_prompt_files(tmp_path: Path, prompts: object, grading: object, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(load(prompt_files(tmp_path, prompts, grading), environ={}))
    assert expected in str(caught.value)


def test_no_more_levels_than_can_be_learned_about(tmp_path: Path) -> None:
    files = prompt_files(tmp_path, {f"p{k}": "x" for k in range(300)}, GOOD)
    with pytest.raises(UserError, match=r"strategy = adaptive: 308 prompts, .*; at most 256$"):
        load_recipe(load(files, environ={}))
    assert (
        len(load_recipe(load({**files, "sampling.strategy": "random"}, environ={})).prompts) == 300
    )


def test_unknown_prompt_keys_and_too_large_grids(tmp_path: Path) -> None:
    files = prompt_files(tmp_path, {"prompt1": "x", "prompt2": "y"}, GOOD)
    with pytest.raises(UserError, match=r"prompt_keys = prompt9: not in .*prompt1, prompt2"):
        load_recipe(load({**files, "prompt_keys": ["prompt9"]}, environ={}))
    wide = ",".join(str(k) for k in range(1, 200))
    flags = {"sampling.strategy": "grid", "sampling.top_k_range": wide}
    with pytest.raises(UserError, match=r"sampling\.strategy = grid: 2388 candidates an image"):
        load_recipe(load({**files, **flags}, environ={}))
    with pytest.raises(UserError, match="No such file"):
        load_recipe(load({**files, "prompts": str(tmp_path / "none.json")}, environ={}))
    (tmp_path / "p.json").write_text("{")
    with pytest.raises(UserError, match="no valid JSON"):
        load_recipe(load(files, environ={}))


# ------------------------------------------------------------------------------ finding a state


def test_locate_reads_only_what_says_where_things_lie(tmp_path: Path) -> None:
    file = toml(
        tmp_path,
        'output_dir = "/o"\nstate_dir = "/s"\nunknown = 1\n[grading]\nkey_file = "/none"\n',
    )
    found = locate({}, file=file, environ={"RSD_LOG_LEVEL": "nonsense"})
    assert (found.image_dir, found.output_dir, found.state_dir) == ("", "/o", "/s")
    variables = {"RSD_OUTPUT_DIR": "/v", "RSD_IMAGE_DIR": "/i"}
    found = locate({"state_dir": "/f"}, file=file, environ=variables)
    assert (found.image_dir, found.output_dir, found.state_dir) == ("/i", "/v", "/f")
    with pytest.raises(UserError, match="output_dir = 3: a text"):
        locate({}, file=toml(tmp_path, "output_dir = 3"), environ={})
    with pytest.raises(UserError, match=r"rsd\.toml"):
        locate({}, file=toml(tmp_path, "output_dir = "), environ={})


# --------------------------------------------------------------------------------- the example


def test_the_example_is_the_defaults_and_names_every_setting() -> None:
    text = words.example()
    assert load({}, environ={}) == msgspec.convert(tomllib.loads(text), Settings)
    lines = [
        line[2:]
        for line in text.splitlines()
        if line.startswith("# ") and line[2:3] in string.ascii_lowercase and "=" in line
    ]
    named = [line.partition(" =")[0] for line in lines]
    assert named == [k.rpartition(".")[2] for k in words.setting_keys()]
