"""The command line: the reference system's flags, mistakes of one line, exit codes."""

from __future__ import annotations

import argparse
import os
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsd import cli
from rsd.commands import flags
from rsd.errors import StateError, UserError
from rsd.settings import load, words

HOME = Path(__file__).resolve().parents[2]
#: As the users of the reference system type it.
REFERENCE = """
    --image-dir datasets/1-stage --output-dir results/circuit_analysis_1_stage
    --prompts prompts/generation_prompts.json --grading-prompt prompts/grading_prompt.json
    --prompt-keys prompt1 prompt3 prompt5 prompt6 --vllm-api http://0.0.0.0:36000/v1
    --vllm-model Qwen2.5-VL-32B-Custom --grading-api https://api.openai-proxy.org/v1
    --grading-key KEY --grading-model o4-mini --temperature-range 0.3,0.5,0.7,0.9,1.2
    --top-p-range 0.5,0.7,0.9 --top-k-range 20,40,60,80 --score-threshold 80 --gen-workers 16
    --grade-workers 10 --samples -1 --checkpoint-interval 5 --log-level INFO
"""


@pytest.fixture(autouse=True)
def no_settings_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the environment nor files of this machine take part."""
    for name in list(os.environ):
        if name.startswith("RSD_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(load, "CONFIG_FILES", (Path("rsd.toml"),))
    monkeypatch.setenv("RSD_RUNTIME_DIR", str(tmp_path / "run"))


def parsed(line: str) -> argparse.Namespace:
    return cli.parser("run").parse_args(["run", *cli.joined(shlex.split(line))])


def complaint(capsys: pytest.CaptureFixture[str], *words: str, code: int = 2) -> str:
    """The one line that a mistake gives."""
    assert cli.main(list(words)) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("rsd: ")
    return lines[0].removeprefix("rsd: ")


def test_the_reference_command_line_means_what_it_meant() -> None:
    args = parsed("--once " + REFERENCE)
    s = load.load(flags.given(args), environ={})
    assert args.once
    assert args.samples == -1
    assert (s.image_dir, s.output_dir) == ("datasets/1-stage", "results/circuit_analysis_1_stage")
    assert s.prompts == "prompts/generation_prompts.json"
    assert s.grading_prompt == "prompts/grading_prompt.json"
    assert s.prompt_keys == ("prompt1", "prompt3", "prompt5", "prompt6")
    assert s.generation.api == ("http://0.0.0.0:36000/v1",)
    assert s.generation.model == "Qwen2.5-VL-32B-Custom"
    assert s.grading.api == ("https://api.openai-proxy.org/v1",)
    assert (s.grading.key, s.grading.model) == ("KEY", "o4-mini")
    assert s.sampling.temperature_range == (0.3, 0.5, 0.7, 0.9, 1.2)
    assert s.sampling.top_p_range == (0.5, 0.7, 0.9)
    assert s.sampling.top_k_range == (20, 40, 60, 80)
    assert s.sampling.score_threshold == 80
    assert (s.generation.workers, s.grading.workers) == (16, 10)
    assert (s.checkpoint_interval, s.log_level) == (5, "INFO")


def test_the_flags_beyond_the_reference_system() -> None:
    s = load.load(
        flags.given(
            parsed(
                "--vllm-api http://a/v1 --vllm-api http://b/v1/ --grading-api http://c/v1 "
                "--grading-api http://d/v1 --vllm-key K --strategy grid --candidates 9 --seed 5 "
                "--max-tokens 100 --min-p 0.1 --repetition-penalty 1.1 --timeout 7 "
                "--stop-score 95 --top-k-range -1,40 --state-dir /s"
            )
        ),
        environ={},
    )
    assert s.generation.api == ("http://a/v1", "http://b/v1")
    assert s.grading.api == ("http://c/v1", "http://d/v1")
    assert s.generation.key == "K"
    sampling = s.sampling
    assert (sampling.strategy, sampling.candidates, sampling.seed) == ("grid", 9, 5)
    assert (sampling.min_p, sampling.repetition_penalty, sampling.stop_score) == (0.1, 1.1, 95)
    assert sampling.top_k_range == (-1, 40)
    assert (s.generation.timeout, s.grading.timeout, s.generation.max_tokens) == (7, 7, 100)
    assert s.state_dir == "/s"


def test_every_flag_is_in_the_help_and_sets_an_existing_setting() -> None:
    grouped = [flag for names in flags.GROUPS.values() for flag in names]
    assert len(grouped) == len(set(grouped))
    special = {"--config", "--prompt-keys", "--timeout"}
    assert set(grouped) == set(flags.FLAGS) | set(flags.REPEATED) | special
    keys = {key for key, _ in (*flags.FLAGS.values(), *flags.REPEATED.values())}
    assert keys <= set(words.setting_keys())


@given(values=st.lists(st.integers(-5, 99), min_size=1, max_size=4))
def test_lists_may_begin_with_a_minus(values: list[int]) -> None:
    text = ",".join(map(str, values))
    args = cli.parser("run").parse_args(cli.joined(["run", "--top-k-range", text, "--once"]))
    assert vars(args)["sampling.top_k_range"] == text
    assert args.once


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("runn", "unknown command runn; did you mean run?"),
        ("xyzzy", "unknown command xyzzy; one of run, status"),
        ("run --temprature-range 1", "unknown argument --temprature-range; did you mean --temp"),
        ("run --grading-kye=SECRET", "unknown argument --grading-kye; did you mean --grading-key?"),
        ("status --jsno", "unknown argument --jsno; did you mean --json?"),
        ("status --jso", "unknown argument --jso; did you mean --json?"),
        ("--versio", "unknown argument --versio; did you mean --version?"),
        ("run --image-dir", "argument --image-dir: expected one argument"),
        ("show", "the following arguments are required: IMAGE"),
        ("retry", "name images, or give --failed or --low"),
        ("run --samples 3", "--samples = 3: only with --once"),
        ("run --once --samples 0", "--samples = 0: -1 (all) or at least 1"),
        ("run", "image_dir is not set: give --image-dir DIR"),
        (
            "run --temperature-range 0.3,2.5",
            "sampling.temperature_range (--temperature-range) = 0.3,2.5: one or more, each a "
            "number from 0 to 2",
        ),
        (
            "check --top-k-range -3,20",
            "sampling.top_k_range (--top-k-range) = -3,20: each -1 (off) or at least 1",
        ),
        ("run --timeout soon", "generation.timeout (--timeout) = soon: a number above 0 and up"),
        (
            "run --strategy best",
            "sampling.strategy (--strategy) = best: one of adaptive, random, grid",
        ),
        ("run --vllm-api nowhere", "generation.api (--vllm-api) = nowhere: an address like"),
        ("run --config /nowhere.toml", "--config /nowhere.toml: no such file"),
        ("status --config /nowhere.toml", "--config /nowhere.toml: no such file"),
        ("show x", "no daemon found: give --output-dir DIR"),
        ("retry --failed", "no daemon found: give --output-dir DIR"),
        ("demo --output-dir /proc", "--output-dir = /proc: is not empty"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(
    capsys: pytest.CaptureFixture[str], line: str, expected: str
) -> None:
    assert complaint(capsys, *shlex.split(line)).startswith(expected)


def test_a_mistake_in_the_environment_names_the_variable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RSD_LOG_LEVEL", "LOUD")
    assert complaint(capsys, "run").startswith("log_level (RSD_LOG_LEVEL) = LOUD: one of DEBUG")


@given(value=st.text(min_size=1, max_size=40).filter(lambda v: not v.startswith("-")))
def test_a_complaint_is_one_line_whatever_was_given(value: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("builtins.print", lambda text, file: lines.append(text))
        cli.complain(f"image_dir = {value}: no such folder")
    assert len(lines) == 1
    assert len(lines[0].splitlines()) == 1
    assert lines[0].isprintable()


@pytest.mark.parametrize(
    ("command", "error", "code", "said"),
    [
        ("status", StateError("locked"), 4, "rsd: locked\n"),
        ("show", StateError("locked"), 1, "rsd: locked\n"),
        ("run", UserError("two\nlines"), 2, "rsd: two\\nlines\n"),
        ("run", OSError(28, "No space left on device", "/x"), 1, "rsd: /x: No space left on"),
        ("status", PermissionError(13, "Permission denied", "/x"), 4, "rsd: /x: Permission denied"),
        ("run", KeyboardInterrupt(), 130, ""),
    ],
)
def test_exit_codes(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    error: BaseException,
    code: int,
    said: str,
) -> None:
    def fail(args: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr(f"rsd.commands.{command}.main", fail)
    words = [command, "x"] if command == "show" else [command]
    assert cli.main(words) == code
    assert capsys.readouterr().err.startswith(said)


def test_help_is_grouped_and_names_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "--help"])
    assert ended.value.code == 0
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    for part in ("sampling:", "grader:", "(0.3,0.7,1.0)", "--once", "--fresh", "rsd always"):
        assert part in text
    assert cli.main([]) == 2
    text = capsys.readouterr().out
    for command in cli.COMMANDS:
        assert f" {command} " in text


def test_an_old_python_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 4, "final", 0))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(HOME / "daemon.py"), run_name="__main__")
    assert ended.value.code == "rsd: needs Python 3.11 or newer, this is 3.10"
