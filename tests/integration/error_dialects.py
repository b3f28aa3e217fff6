"""Rows of the error matrix, lasting peculiarities that one 400 tells of: the endpoint is asked in
another way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.integration.error_words import BUSY, openai, vllm


@dataclass(frozen=True)
class Dialect:
    """An endpoint that never takes a parameter, and says so once."""

    name: str
    refuses: Callable[[dict[str, Any]], tuple[int, Any] | None]
    gone: tuple[str, ...]  #: what no request holds any more once it is known
    role: str = "grader"
    model: str = ""  #: the grader's; by default one that does not reason
    settings: dict[str, str] = field(default_factory=dict)  #: more of rsd.toml
    ci: bool = False


def _lacks(*names: str, answer: Callable[[str], tuple[int, Any]]) -> Any:
    def refuses(body: dict[str, Any]) -> tuple[int, Any] | None:
        return next((answer(name) for name in names if name in body), None)

    return refuses


def _unsupported(name: str) -> tuple[int, Any]:
    text = f"Unsupported parameter: '{name}' is not supported with this model."
    return 400, openai(text, "unsupported_parameter", name)


def _unrecognized(name: str) -> tuple[int, Any]:
    return 400, openai(f"Unrecognized request argument supplied: {name}")


def _forbidden(name: str) -> tuple[int, Any]:
    row = {"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not allowed"}
    return 422, {"detail": [row]}


def _no_schema(text: str) -> Any:
    def refuses(body: dict[str, Any]) -> tuple[int, Any] | None:
        if (body.get("response_format") or {}).get("type") == "json_schema":
            return 400, openai(text)
        return None

    return refuses


def _only_default(body: dict[str, Any]) -> tuple[int, Any] | None:
    if body.get("temperature", 1) == 1:
        return None
    text = "Unsupported value: 'temperature' does not support 0 with this model. Only the default"
    return 400, openai(f"{text} (1) value is supported.", "unsupported_value", "temperature")


def _one_at_a_time(body: dict[str, Any]) -> tuple[int, Any] | None:
    return (400, openai("Only n = 1 is supported.", param="n")) if body.get("n", 1) > 1 else None


def _small_queue(body: dict[str, Any]) -> tuple[int, Any] | None:
    return (503, BUSY) if body.get("n", 1) > 3 else None


def _greedy(body: dict[str, Any]) -> tuple[int, Any] | None:
    if body.get("n", 1) > 1 and body.get("temperature") == 0:
        return 400, vllm(f"n must be 1 when using greedy sampling, got {body['n']}.", 400)
    return None


#: Eight draws of one arm: they share a request.
SHARED = {
    "prompt_keys": '["prompt1"]',
    "sampling.candidates": "8",
    "sampling.top_p_range": "[0.9]",
    "sampling.top_k_range": "[40]",
}
WARM, COLD = ({**SHARED, "sampling.temperature_range": f"[{t}]"} for t in (0.8, 0.0))

DIALECTS = (
    Dialect(
        "400, max_tokens (OpenAI, reasoning)",
        _lacks("max_tokens", answer=_unsupported),
        ("max_tokens",),
        ci=True,
    ),
    Dialect(
        "400, max_completion_tokens (an older proxy of a reasoning model)",
        _lacks("max_completion_tokens", answer=_unrecognized),
        ("max_completion_tokens",),
        model="o4-mini",
    ),
    Dialect(
        "400, max_tokens of the generator",
        _lacks("max_tokens", answer=_unsupported),
        ("max_tokens",),
        role="generator",
    ),
    Dialect("400, temperature: only the default (OpenAI)", _only_default, ("temperature",)),
    Dialect(
        "400, response_format json_schema (OpenAI)",
        _no_schema(
            "Invalid parameter: 'response_format' of type 'json_schema' is not supported with "
            "this model."
        ),
        (),
    ),
    Dialect(
        "400, response_format json_schema (Azure, an old version)",
        _no_schema(
            "response_format value as json_schema is enabled only for api versions "
            "2024-08-01-preview and later"
        ),
        (),
    ),
    Dialect(
        "400, response_format json_schema (DeepSeek)",
        _no_schema("This response_format type is unavailable now"),
        (),
    ),
    Dialect(
        "400, any response_format",
        _lacks("response_format", answer=_unsupported),
        ("response_format",),
    ),
    Dialect("400, seed (a small host)", _lacks("seed", answer=_unrecognized), ("seed",)),
    Dialect(
        "400, reasoning_effort",
        _lacks("reasoning_effort", answer=_unsupported),
        ("reasoning_effort",),
        settings={"grading.reasoning_effort": '"low"'},
    ),
    Dialect(
        "422, three parameters one by one (FastAPI)",
        _lacks("top_k", "min_p", "repetition_penalty", answer=_forbidden),
        ("top_k", "min_p", "repetition_penalty"),
        role="generator",
    ),
    Dialect(
        "400, n (a small host)",
        _one_at_a_time,
        ("n",),
        role="generator",
        settings=WARM,
    ),
    Dialect(
        "400 for n at temperature 0 (vLLM): never asked",
        _greedy,
        ("n",),
        role="generator",
        settings=COLD,
    ),
    Dialect(
        "503 busy for n=8 under a cap of 3, for ever (vLLM)",
        _small_queue,
        (),
        role="generator",
        settings=WARM,
    ),
)
