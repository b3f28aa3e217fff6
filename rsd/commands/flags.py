"""The flags of the settings, shared by `run` and `check`, and of finding a state."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rsd.errors import UserError
from rsd.hub import recipe
from rsd.protocol.vocabulary import Recipe
from rsd.settings import fields, load, validate
from rsd.settings.fields import Settings

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
    "--strategy": ("sampling.strategy", "adaptive, random or grid"),
    "--effort": ("sampling.effort", "economy, balanced, thorough or maximal"),
    "--consensus": ("sampling.consensus", "whether candidates vote: auto, on or off"),
    "--min-gain": ("sampling.min_gain", "points that one more candidate's cost must bring"),
    "--candidates-max": ("sampling.candidates_max", "most candidates per image"),
    "--grades-max": ("sampling.grades_max", "most grades per image"),
    "--audit-share": ("sampling.audit_share", "share of images drawn evenly, graded whole"),
    "--images-in-flight": ("sampling.images_in_flight", "most images in work"),
    "--candidates": ("sampling.candidates", "random: candidates; default: one per prompt"),
    "--seed": ("sampling.seed", "start of all randomness"),
    "--temperature-range": ("sampling.temperature_range", "comma separated, 0 to 2"),
    "--top-p-range": ("sampling.top_p_range", "comma separated, above 0 up to 1"),
    "--top-k-range": ("sampling.top_k_range", "comma separated, -1 or at least 1"),
    "--min-p": ("sampling.min_p", "min-p of every request"),
    "--repetition-penalty": ("sampling.repetition_penalty", "repetition penalty"),
    "--stop-score": ("sampling.stop_score", "random, grid: end an image at this score"),
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

#: How --help is grouped. Every setting has a key in rsd.toml and an RSD_... variable, too.
GROUPS = {
    "folders and configuration": (
        *("--image-dir", "--output-dir", "--state-dir", "--config"),
        *("--checkpoint-interval", "--log-level"),
    ),
    "prompts": ("--prompts", "--prompt-keys", "--grading-prompt"),
    "generator (vLLM)": (
        *("--vllm-api", "--vllm-model", "--vllm-key", "--gen-workers", "--max-tokens"),
        "--timeout",
    ),
    "grader": ("--grading-api", "--grading-model", "--grading-key", "--grade-workers"),
    "sampling": (
        *("--strategy", "--effort", "--consensus", "--min-gain", "--candidates-max"),
        *("--grades-max", "--audit-share", "--images-in-flight", "--candidates", "--stop-score"),
        *("--seed", "--temperature-range", "--top-p-range", "--top-k-range", "--min-p"),
        *("--repetition-penalty", "--score-threshold"),
    ),
}
_METAVARS = {"--prompts": "FILE", "--grading-prompt": "FILE", "--candidates": "N"} | {
    flag: "N"
    for flag in (
        *("--seed", "--gen-workers", "--grade-workers", "--max-tokens"),
        *("--candidates-max", "--grades-max", "--images-in-flight"),
    )
}
_DEFAULTS = Settings()


def add_settings(parser: argparse.ArgumentParser) -> None:
    """All flags of the settings."""
    known = FLAGS | REPEATED
    for title, names in GROUPS.items():
        group = parser.add_argument_group(title)
        for flag in names:
            if flag == "--config":
                add_config(group)
            elif flag == "--prompt-keys":
                group.add_argument(
                    flag, dest="prompt_keys", nargs="+", metavar="KEY", help="prompts to use"
                )
            elif flag == "--timeout":
                group.add_argument(flag, metavar="SECONDS", help="time of one call (1200)")
            else:
                key, purpose = known[flag]
                group.add_argument(
                    flag,
                    dest=key,
                    action="append" if flag in REPEATED else "store",
                    metavar=_METAVARS.get(flag, flag.rpartition("-")[2].upper()),
                    help=purpose + _default(key),
                )


def _default(key: str) -> str:
    section, _, name = key.rpartition(".")
    value = getattr(getattr(_DEFAULTS, section) if section else _DEFAULTS, name)
    if value in (None, "", ()):
        return ""
    text = ",".join(str(v) for v in value) if isinstance(value, tuple) else str(value)
    return f" ({text})"


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


def settings_of(
    args: argparse.Namespace, environ: Mapping[str, str] | None = None
) -> tuple[Settings, Recipe]:
    """Everything validated, as `run` needs it; `environ` stands for the process's own. Raises
    UserError.
    """
    environ = os.environ if environ is None else environ
    try:
        file = load.find_config(args.config)
        settings = load.load(given(args), file=file, environ=environ)
        validate.check_for_run(settings)
        return settings, recipe.load_recipe(settings)
    except UserError as e:
        raise UserError(_as_given(str(e), args, environ)) from None


def _as_given(message: str, args: argparse.Namespace, environ: Mapping[str, str]) -> str:
    """Add the flag, or the variable, that the named setting was given with."""
    match = re.match(r"[a-z_]+(\.[a-z_]+)?(?=( =|:) )", message)
    if not match:
        return message
    key = match[0]
    flag = next((f for f, (k, _) in (FLAGS | REPEATED).items() if k == key), "")
    flag = {"prompt_keys": "--prompt-keys"}.get(key, flag)
    if args.timeout is not None and key.endswith(".timeout"):
        flag = "--timeout"
    variable = "RSD_" + key.replace(".", "_").upper()
    if key in given(args):
        label = flag
    elif variable in environ:
        label = variable
    else:
        return message
    return f"{key} ({label}){message[match.end() :]}"


def warn_of_visible_keys(args: argparse.Namespace) -> None:
    """A key among the arguments can be read by every user of the machine."""
    for flag in ("--grading-key", "--vllm-key"):
        key, _ = FLAGS[flag]
        if vars(args).get(key):
            print(
                f"rsd: {flag} is visible to everybody in `ps`; better: "
                f"RSD_{key.replace('.', '_').upper()} or {key}_file",
                file=sys.stderr,
            )


def settings_for_state(args: argparse.Namespace) -> Settings | None:
    """The settings as far as they locate a state; None when nothing says where it is."""
    flags = {k: v for k in ("output_dir", "state_dir") if (v := getattr(args, k, None))}
    if "output_dir" in flags and "state_dir" not in flags:
        own = Settings(output_dir=flags["output_dir"])
        if fields.state_dir(own).is_dir():  # a file may tell where another instance's state is
            return own
    named = bool(args.config or os.environ.get("RSD_CONFIG"))
    settings = load.locate(flags, file=load.find_config(args.config), named=named)
    return settings if settings.state_dir or settings.output_dir else None


def state_of(settings: Settings) -> Path:
    """The state directory."""
    return fields.state_dir(settings).resolve()
