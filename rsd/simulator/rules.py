"""What the simulated servers accept: vLLM's validation, and the rules of o4-mini and its kin."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from rsd.simulator.answers import Params

_REASONING: Final = re.compile(r"(^|/)(o[134]([-.]|$)|gpt-5)")
_NOT_FOR_REASONING: Final = (
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "logprobs",
    "top_logprobs",
    "logit_bias",
    "stop",
)
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Refused(Exception):
    """An error answer: status and the JSON body."""

    def __init__(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None):
        super().__init__(str(body))
        self.status, self.body, self.headers = status, body, headers or {}


def vllm_error(
    status: int, message: str, type_: str = "BadRequestError", param: str | None = None
) -> Refused:
    """vLLM's error form."""
    error = {"message": message, "type": type_, "param": param, "code": status}
    return Refused(status, {"error": error})


def openai_error(
    status: int, message: str, type_: str, code: str | None, param: str | None = None
) -> Refused:
    """OpenAI's error form."""
    error = {"message": message, "type": type_, "param": param, "code": code}
    return Refused(status, {"error": error})


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request's message: its text, and its picture's URL if there is one."""

    text: str
    url: str | None


def prompt_of(body: dict[str, Any], error: Any) -> Prompt:
    """Text and picture of the messages; `error(status, message)` makes the refusal."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise error(400, "Cannot apply chat template to an empty conversation.")
    texts: list[str] = []
    url: str | None = None
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str):
            texts.append(content)
            continue
        for part in content if isinstance(content, list) else []:
            kind = part.get("type")
            if kind == "text":
                texts.append(str(part.get("text", "")))
            elif kind == "image_url":
                picture = part.get("image_url")
                url = picture.get("url") if isinstance(picture, dict) else None
                if not isinstance(url, str):
                    raise error(400, "image_url needs a url")
                if not url.startswith("data:"):
                    raise error(400, "The URL must be either a HTTP, data or file URL.")
    return Prompt("\n".join(texts), url)


def _number(body: dict[str, Any], name: str, default: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise vllm_error(400, f"1 validation error: {name}", "Bad Request", f"body.{name}")
    return float(value)


def sampling_of(body: dict[str, Any], max_model_len: int) -> tuple[Params, int, int, int]:
    """(params, seed, n, max_tokens) of a generation request, validated as vLLM does."""
    temperature = _number(body, "temperature", 1.0)
    top_p, top_k = _number(body, "top_p", 1.0), _number(body, "top_k", 0)
    min_p, penalty = _number(body, "min_p", 0.0), _number(body, "repetition_penalty", 1.0)
    n, seed = int(_number(body, "n", 1)), int(_number(body, "seed", 0))
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    limit = max_model_len if limit is None else int(limit)
    if temperature < 0:
        raise vllm_error(400, f"temperature must be non-negative, got {temperature}.")
    if temperature > 2:
        raise vllm_error(400, f"temperature must be in [0, 2], got {temperature}.")
    if not 0 < top_p <= 1:
        raise vllm_error(400, f"top_p must be in (0, 1], got {top_p}.")
    if top_k != int(top_k):
        raise vllm_error(400, "1 validation error: top_k", "Bad Request", "body.top_k")
    if top_k < -1:
        raise vllm_error(400, f"top_k must be 0 (disable), or at least 1, got {int(top_k)}.")
    if not 0 <= min_p <= 1:
        raise vllm_error(400, f"min_p must be in [0, 1], got {min_p}.")
    if penalty <= 0:
        raise vllm_error(400, f"repetition_penalty must be greater than zero, got {penalty}.")
    if n < 1:
        raise vllm_error(400, f"n must be at least 1, got {n}.")
    if n > 1 and temperature == 0:
        raise vllm_error(400, f"n must be 1 when using greedy sampling, got {n}.")
    if limit < 1:
        raise vllm_error(400, f"max_tokens must be at least 1, got {limit}.", param="max_tokens")
    if limit > max_model_len:
        text = f"max_tokens={limit} cannot be greater than max_model_len={max_model_len}."
        raise vllm_error(400, text, param="max_tokens")
    return Params(temperature, top_p, int(top_k), min_p, penalty), seed, n, limit


def check_grading(body: dict[str, Any], model: str) -> int:
    """A grading request's token cap; enforces the rules of reasoning models."""
    both = "max_tokens" in body and "max_completion_tokens" in body
    if _REASONING.search(model):
        if "max_tokens" in body:
            text = (
                "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
                "'max_completion_tokens' instead."
            )
            raise openai_error(
                400, text, "invalid_request_error", "unsupported_parameter", "max_tokens"
            )
        if body.get("temperature", 1) != 1:
            text = (
                f"Unsupported value: 'temperature' does not support {body['temperature']} with "
                "this model. Only the default (1) value is supported."
            )
            raise openai_error(
                400, text, "invalid_request_error", "unsupported_value", "temperature"
            )
        for name in _NOT_FOR_REASONING:
            if body.get(name) is not None:
                text = f"Unsupported parameter: '{name}' is not supported with this model."
                raise openai_error(
                    400, text, "invalid_request_error", "unsupported_parameter", name
                )
        for name in ("top_k", "min_p", "repetition_penalty"):
            if name in body:
                text = f"Unrecognized request argument supplied: {name}"
                raise openai_error(400, text, "invalid_request_error", None, name)
    elif both:
        text = "max_tokens and max_completion_tokens cannot both be set"
        raise openai_error(400, text, "invalid_request_error", "invalid_request", "max_tokens")
    _check_format(body.get("response_format"))
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    return 100_000 if limit is None else int(limit)


def _check_format(form: Any) -> None:
    if form is None:
        return
    kind = form.get("type") if isinstance(form, dict) else None
    if kind in ("json_object", "text"):
        return

    def bad(text: str) -> Refused:
        return openai_error(
            400, text, "invalid_request_error", "invalid_request", "response_format"
        )

    if kind != "json_schema" or not isinstance(form.get("json_schema"), dict):
        raise bad(f"Invalid value: '{kind}'. Supported: 'json_schema', 'json_object', 'text'.")
    schema = form["json_schema"]
    if not _NAME.fullmatch(str(schema.get("name", ""))):
        raise bad("Invalid 'response_format.json_schema.name'")
    _check_strict(schema.get("schema"), bad)


def _check_strict(schema: Any, bad: Any) -> None:
    if not isinstance(schema, dict):
        raise bad("Invalid schema for response_format")
    if schema.get("type") == "object":
        properties = schema.get("properties") or {}
        if schema.get("additionalProperties") is not False:
            raise bad("Invalid schema: 'additionalProperties' is required to be false")
        if sorted(schema.get("required") or []) != sorted(properties):
            raise bad("Invalid schema: 'required' must list every property")
        for inner in properties.values():
            _check_strict(inner, bad)
    elif schema.get("type") == "array":
        _check_strict(schema.get("items"), bad)
