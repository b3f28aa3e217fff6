"""The flags of the settings, shared by `run` and `check`, and of finding a state."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rsd import config
from rsd.errors import UserError
from rsd.settings import Settings
from rsd.vocabulary import Recipe

#: Flag -> (setting, what it is for). The names are the reference system's where it has one.
FLAGS: dict[str, tuple[str, str]] = {
    "--image-dir": ("image_dir", "folder that is watched"),
    "--output-dir": ("output_dir", "folder for results and state"),
    "--state-dir": ("state_dir", "folder for the state, if not OUTPUT/state"),
    "--prompts": ("prompts", "generation prompts (JSON)"),
    "--grading-prompt": ("grading_prompt", "grading prompt (JSON)"),
    "--vllm-key": ("generation.key", "API key of the generator"),
    "--vllm-model": ("generation.model", "model that generates; default: the only one served"),
    "--grading-key": ("grading.key", "API key of the grader (better: RSD_GRADING_KEY)"),
    "--grading-model": ("grading.model", "model that grades"),
    "--strategy": ("sampling.strategy", "random or grid"),
    "--candidates": ("sampling.candidates", "candidates per image; default: one per prompt"),
    "--seed": ("sampling.seed", "start of all randomness"),
    "--temperature-range": ("sampling.temperature_range", "comma separated, 0 to 2"),
    "--top-p-range": ("sampling.top_p_range", "comma separated, above 0 up to 1"),
    "--top-k-range": ("sampling.top_k_range", "comma separated, -1 or at least 1"),
    "--min-p": ("sampling.min_p", "min-p of every request"),
    "--repetition-penalty": ("sampling.repetition_penalty", "repetition penalty"),
    "--stop-score": ("sampling.stop_score", "end an image early at this score"),
    "--score-threshold": ("sampling.score_threshold", "high quality from here on"),
    "--max-tokens": ("generation.max_tokens", "longest answer, in tokens"),
    "--gen-workers": ("generation.workers", "most generation requests in flight"),
    "--grade-workers": ("grading.workers", "most grading requests in flight"),
    "--checkpoint-interval": ("checkpoint_interval", "summary.json after this many images"),
    "--log-level": ("log_level", "DEBUG, INFO, WARNING or ERROR"),
}
#: Flags that may be given several times.
REPEATED = {
    "--vllm-api": ("generation.api", "base URL of a vLLM server; may be given several times"),
    "--grading-api": ("grading.api", "base URL of a grader; may be given several times"),
}


def add_settings(parser: argparse.ArgumentParser) -> None:
    """All flags of the settings."""
    group = parser.add_argument_group("settings (also in rsd.toml and as RSD_... variables)")
    for flag, (key, purpose) in FLAGS.items():
        group.add_argument(flag, dest=key, metavar=key.rpartition(".")[2].upper(), help=purpose)
    for flag, (key, purpose) in REPEATED.items():
        group.add_argument(flag, dest=key, action="append", metavar="URL", help=purpose)
    group.add_argument(
        "--prompt-keys", dest="prompt_keys", nargs="+", metavar="KEY", help="prompts to use"
    )
    group.add_argument("--timeout", metavar="SECONDS", help="time of one call, in seconds")
    add_config(group)


def add_config(parser: Any) -> None:
    """Where the configuration file is."""
    parser.add_argument("--config", metavar="FILE", help="configuration file (default: rsd.toml)")


def add_state(parser: argparse.ArgumentParser) -> None:
    """How a command finds the state of a daemon."""
    add_config(parser)
    parser.add_argument("--output-dir", metavar="DIR", help="results folder of the daemon")
    parser.add_argument("--state-dir", metavar="DIR", help="state folder of the daemon")


def given(args: argparse.Namespace) -> dict[str, Any]:
    """Settings given as flags: dotted key to value."""
    values = vars(args)
    keys = [key for key, _ in (*FLAGS.values(), *REPEATED.values())] + ["prompt_keys"]
    flags = {key: values[key] for key in keys if values.get(key) is not None}
    if values.get("timeout") is not None:
        flags["generation.timeout"] = flags["grading.timeout"] = values["timeout"]
    return flags


def settings_of(args: argparse.Namespace) -> tuple[Settings, Recipe]:
    """Everything validated, as `run` needs it. Raises UserError."""
    settings = config.load(given(args), file=config.find_config(args.config))
    config.check_for_run(settings)
    return settings, config.load_recipe(settings)


def settings_for_state(args: argparse.Namespace) -> Settings | None:
    """The settings as far as they locate a state; None when nothing says where it is."""
    flags = {k: v for k in ("output_dir", "state_dir") if (v := getattr(args, k, None))}
    settings = config.load(flags, file=config.find_config(args.config))
    if settings.state_dir or settings.output_dir:
        return settings
    if flags:
        raise UserError("give --output-dir or --state-dir")
    return None


def state_of(settings: Settings) -> Path:
    """The state directory."""
    return config.state_dir(settings).resolve()
