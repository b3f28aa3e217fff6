"""Prompt files and settings put together: the recipe that an image is started with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from rsd.errors import UserError
from rsd.protocol.vocabulary import LISTWISE, POINTWISE, Recipe
from rsd.settings.fields import Sampling, Settings
from rsd.strategy.levels import levels_of
from rsd.strategy.presets import PRESETS
from rsd.strategy.prior import LEVELS_MAX

#: `n` draws of one request, and all draws of one image, must fit into the seeds of an image.
MAX_DRAWS = 1024


def load_recipe(s: Settings) -> Recipe:
    """Read both prompt files and put together what an image is started with. Raises UserError."""
    texts = _read_json(s.prompts, "prompts")
    for key, text in texts.items():
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"prompts = {s.prompts}: {key} must be a text")
    if not texts:
        raise UserError(f"prompts = {s.prompts}: holds no prompt")
    keys = s.prompt_keys or tuple(texts)
    for key in keys:
        if key not in texts:
            raise UserError(f"prompt_keys = {key}: not in {s.prompts} ({', '.join(texts)})")
    template = _read_json(s.grading_prompt, "grading_prompt").get("template")
    if not isinstance(template, str):
        raise UserError(f"grading_prompt = {s.grading_prompt}: has no text `template`")
    if (POINTWISE in template) == (LISTWISE in template):
        raise UserError(
            f"grading_prompt = {s.grading_prompt}: the template must hold "
            f"{POINTWISE} (one candidate a call) or {LISTWISE} (several), and not both"
        )
    sampling = s.sampling
    count = sampling.candidates or len(keys)
    if sampling.strategy == "grid":
        count = (
            len(keys)
            * len(sampling.temperature_range)
            * len(sampling.top_p_range)
            * len(sampling.top_k_range)
        )
        if count > MAX_DRAWS:
            raise UserError(
                f"sampling.strategy = grid: {count} candidates an image; at most {MAX_DRAWS}"
            )
    adaptive: dict[str, Any] = {}
    if sampling.strategy == "adaptive":
        adaptive = _adaptive(sampling)
    recipe = Recipe(
        prompts={k: texts[k] for k in keys},
        grading_template=template,
        strategy=sampling.strategy,
        candidates=count,
        seed=sampling.seed,
        temperatures=sampling.temperature_range,
        top_ps=sampling.top_p_range,
        top_ks=sampling.top_k_range,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        max_tokens=s.generation.max_tokens,
        score_threshold=sampling.score_threshold,
        stop_score=sampling.stop_score,
        repeats=s.grading.repeats,
        list_size=s.grading.list_size,
        generator_model=s.generation.model,
        grader_model=s.grading.model,
        reasoning_effort=s.grading.reasoning_effort,
        **adaptive,
    )
    values = len(levels_of(recipe))
    if sampling.strategy == "adaptive" and values > LEVELS_MAX:
        raise UserError(
            f"sampling.strategy = adaptive: {values} prompts, temperatures, top-p and top-k values "
            f"to learn about; at most {LEVELS_MAX}"
        )
    return recipe


def _adaptive(s: Sampling) -> dict[str, Any]:
    """What only `adaptive` looks at: the recipes of the others stay as they always were."""
    preset = PRESETS[s.effort]
    return {
        "consensus": s.consensus,
        "effort": s.effort,
        "min_gain": preset.min_gain if s.min_gain is None else s.min_gain,
        "candidates_max": s.candidates_max or preset.candidates_max,
        "grades_max": s.grades_max or preset.grades_max,
        "audit_share": s.audit_share,
    }


def _read_json(path: str, name: str) -> dict[str, Any]:
    try:
        data = msgspec.json.decode(Path(path).read_bytes())
    except OSError as e:
        raise UserError(f"{name} = {path}: {e.strerror}") from None
    except msgspec.DecodeError as e:
        raise UserError(f"{name} = {path}: no valid JSON ({e})") from None
    if not isinstance(data, dict):
        raise UserError(f"{name} = {path}: must hold one JSON object")
    return data
