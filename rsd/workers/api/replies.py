"""What a 200 of a chat-completions endpoint holds, whoever sent it. Pure.

"OpenAI-compatible" covers comment lines before the JSON, errors inside a 200, content as a list,
counts as strings and choices out of order; all of that is straightened here.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final

import msgspec

from rsd.errors import ErrorClass
from rsd.protocol.vocabulary import CallError, RateWindow, Usage
from rsd.workers.api.refusals import classify_body, excerpt

#: Most model names of a listing that are kept; the largest proxies list a few thousand.
MODELS_MAX: Final = 10_000
#: Largest count that is believed; JSON readers hold integers exactly up to here.
COUNT_MAX: Final = 2**53
#: Longest name of a model or finish reason, in characters.
NAME_MAX: Final = 200

#: A line of vLLM's metrics, in Prometheus' text format; one for each of the server's engines.
_LOAD = re.compile(
    rb"^vllm:num_requests_(running|waiting)(?:\{[^}\n]*\})?[ \t]+([0-9.eE+]+)", re.MULTILINE
)
_LONE_SURROGATES = re.compile(r"[\ud800-\udfff]")
_FINISH: Final = {
    "max_tokens": "length",
    "model_length": "length",
    "content-filter": "content_filter",
    "safety": "content_filter",
}


class CallFailed(Exception):
    """A call ended with a classified error; `usage` is what was paid all the same."""

    def __init__(self, error: CallError, usage: Usage | None = None) -> None:
        super().__init__(error.message)
        self.error = error
        self.usage = usage or Usage()


class Choice(msgspec.Struct, frozen=True):
    """One answer."""

    content: str
    finish_reason: str
    refusal: str


class Reply(msgspec.Struct, frozen=True):
    """A chat completion that was answered; choice k belongs to sample k."""

    choices: list[Choice]
    usage: Usage
    model: str
    seconds: float
    rate_windows: tuple[RateWindow, ...] = ()  #: what the server will still take, if it says so


class Models(msgspec.Struct, frozen=True):
    """What `GET /models` tells."""

    names: tuple[str, ...]
    lengths: dict[str, int]  #: longest context in tokens, of those that say it


class Load(msgspec.Struct, frozen=True):
    """How many sequences a server computes, and how many wait for their turn."""

    running: float
    waiting: float


def decode(raw: bytes) -> Any:
    """The JSON of a body, None when it holds none.

    Tolerates a byte order mark, comment lines before it (`: OPENROUTER PROCESSING`), bytes that are
    no UTF-8, raw control characters and lone surrogates in strings.
    """
    try:
        return msgspec.json.decode(raw)
    except (ValueError, RecursionError):
        pass
    lines = raw.decode("utf-8-sig", "replace").splitlines(keepends=True)
    while lines and (not lines[0].strip() or lines[0].startswith(":")):
        del lines[0]
    try:
        return json.loads("".join(lines), strict=False)
    except (ValueError, RecursionError):
        return None


def read_reply(data: Any, seconds: float) -> Reply:
    """The answer in the JSON of a 200. Raises CallFailed."""
    if not isinstance(data, dict):
        raise CallFailed(_bad("the answer is no JSON object", "bad_json"))
    usage = read_usage(data.get("usage"))
    rows = data.get("choices")
    if data.get("error") and not rows:
        raise CallFailed(classify_body(data["error"]), usage)
    if not isinstance(rows, list) or not rows:
        raise CallFailed(_bad("the answer has no choices", "no_choices"), usage)
    rows = _in_order(rows)
    whole = next((k for k, row in enumerate(rows) if _failed(row)), len(rows))
    if whole == 0:
        error = rows[0].get("error") or {"message": "the server failed while generating"}
        raise CallFailed(classify_body(error), usage)
    choices = [read_choice(row) for row in rows[:whole]]
    if all(choice is None for choice in choices):
        raise CallFailed(_bad("the answer has no content", "null_content"), usage)
    return Reply(
        # One empty choice among good ones: an empty candidate, so that the others are not lost.
        [choice or Choice("", "stop", "") for choice in choices],
        usage,
        _name(data.get("model")),
        seconds,
    )


def read_models(data: Any) -> Models:
    """The models of a listing. Raises CallFailed."""
    rows = data.get("data") if isinstance(data, dict) else None
    if not isinstance(rows, list):
        error = CallError(
            error=ErrorClass.MISCONFIGURED,
            message="the answer to GET /models is no list of models",
            reason="bad_json",
            status=200,
        )
        raise CallFailed(error)
    names: dict[str, None] = {}
    lengths: dict[str, int] = {}
    for row in rows[:MODELS_MAX]:
        name = _name(row.get("id")) if isinstance(row, dict) else ""
        if name:
            names[name] = None
            length = _count(row.get("max_model_len"))
            if length:
                lengths[name] = length
    return Models(tuple(names), lengths)


def _in_order(rows: list[Any]) -> list[Any]:
    """Choice k answers seed + k: by index, up to the first gap; as they came without indices."""
    indices = [row.get("index") if isinstance(row, dict) else None for row in rows]
    if not all(type(i) is int for i in indices) or len(set(indices)) < len(rows):
        return rows
    ordered = sorted(rows, key=lambda row: int(row["index"]))
    whole = next((k for k, row in enumerate(ordered) if row["index"] != k), len(ordered))
    return ordered[:whole] if whole else rows


def _failed(row: Any) -> bool:
    return isinstance(row, dict) and bool(row.get("error") or row.get("finish_reason") == "error")


def read_choice(row: Any) -> Choice | None:
    """One choice; None when it has neither content nor a reason to have none."""
    message = row.get("message") if isinstance(row, dict) else None
    if not isinstance(message, dict):
        return None
    reason = _name(row.get("finish_reason")) or "stop"
    reason = _FINISH.get(reason.lower(), reason)
    refusal = message.get("refusal")
    refusal = _clean(refusal) if isinstance(refusal, str) else ""
    content = message.get("content")
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(text for text in texts if isinstance(text, str))
    if content is None and (refusal or reason in ("length", "content_filter")):
        content = ""
    if not isinstance(content, str):
        return None
    return Choice(_clean(content), reason, refusal)


def read_usage(data: Any) -> Usage:
    """Token counts; what is missing or odd counts as 0."""
    data = data if isinstance(data, dict) else {}
    completion, prompt = data.get("completion_tokens_details"), data.get("prompt_tokens_details")
    return Usage(
        input_tokens=_count(data.get("prompt_tokens")),
        output_tokens=_count(data.get("completion_tokens")),
        reasoning_tokens=_count(_get(completion, "reasoning_tokens")),
        cached_tokens=_count(_get(prompt, "cached_tokens")),
    )


def _get(data: Any, key: str) -> Any:
    return data.get(key) if isinstance(data, dict) else None


def _count(value: Any) -> int:
    if isinstance(value, bool):
        return 0
    try:
        return min(COUNT_MAX, max(0, int(float(value))))
    except (TypeError, ValueError, OverflowError):
        return 0


def _name(value: Any) -> str:
    return _clean(value)[:NAME_MAX] if isinstance(value, str) else ""


def _clean(text: str) -> str:
    return _LONE_SURROGATES.sub("\ufffd", text)


def _bad(message: str, reason: str) -> CallError:
    return CallError(
        error=ErrorClass.BAD_REPLY, message=excerpt(message), reason=reason, status=200
    )


def read_load(raw: bytes) -> Load:
    """The gauges of a metrics page, finite. Raises CallFailed when it has none of vLLM's."""
    found = {b"running": 0.0, b"waiting": 0.0}
    rows = _LOAD.findall(raw)
    try:
        for name, value in rows:
            found[name] += float(value)
    except ValueError:
        rows = []
    if not rows or not all(map(math.isfinite, found.values())):
        error = CallError(
            error=ErrorClass.UNSUPPORTED, message="no metrics of vLLM", reason="no_metrics"
        )
        raise CallFailed(error)
    return Load(found[b"running"], found[b"waiting"])
