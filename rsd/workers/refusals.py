"""What a server's refusal means: status, body and words to one error class. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from rsd.errors import ErrorClass
from rsd.vocabulary import CallError

#: Longest error text that is kept, in characters.
EXCERPT = 300

_QUOTA = re.compile(
    r"insufficient[_ ]quota|credit[_ ]balance|exceeded your current quota|billing|"
    r"out of credit|payment required|spend(ing)? limit|usage limit|balance",
    re.IGNORECASE,
)
_BUSY = re.compile(r"busy|overloaded|too many|try again|capacity|slow[_ ]down", re.IGNORECASE)
_FILTER = re.compile(
    r"content[_ ]?(filter|policy)|responsibleai|moderation|safety|flagged", re.IGNORECASE
)
_TOO_BIG = re.compile(
    r"context[_ ]length|maximum context|too many tokens|prompt.{0,20}too long|"
    r"cannot be greater than max_model_len|image.{0,30}too large|payload too large|"
    r"exceeds? (the )?(limit|maximum)",
    re.IGNORECASE,
)
_UNSUPPORTED = re.compile(
    r"unsupported[_ ](parameter|value)|not supported|does not support|unrecognized request "
    r"argument|unknown (parameter|field)|extra inputs are not permitted|not permitted|"
    r"must be 1 when using greedy",
    re.IGNORECASE,
)
_IMAGE = re.compile(r"failed to load image|cannot identify image|invalid image", re.IGNORECASE)
#: vLLM answers 500 to these though the request itself is at fault; asking again never helps.
_OWN_FAULT = re.compile(
    r"allowed-local-media-path|cannot load local files|exceeds limit of \d+ pixels|"
    r"cannot connect to host",
    re.IGNORECASE,
)
_PARAMETERS = (
    "max_completion_tokens",
    "max_tokens",
    "response_format",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "reasoning_effort",
    "seed",
)


def excerpt(text: str, most: int = EXCERPT) -> str:
    """A text for a log line or a status: one line, printable, short."""
    words = " ".join("".join(c if c.isprintable() else " " for c in text[: most * 4]).split())
    return words if len(words) <= most else words[: most - 1] + "…"


def classify_status(
    status: int, data: Any, text: str, retry_after: float | None, limit_headers: bool
) -> CallError:
    """The class of an answer whose status is not 200. `data` is its JSON, if it is any."""
    detail = _detail(data)
    message = detail.message or (text if data is None else "")
    words = f"{detail.type} {detail.code} {message}"
    html = data is None and text.lstrip()[:1] == "<"
    told = excerpt(message) or f"HTTP {status}"

    def error(kind: ErrorClass, reason: str, **fields: Any) -> CallError:
        return CallError(
            error=kind, message=f"{status}: {told}", reason=reason, status=status, **fields
        )

    if status == 402:
        return error(ErrorClass.QUOTA, "quota")
    if status == 429:
        if _QUOTA.search(words) and retry_after is None and not limit_headers:
            return error(ErrorClass.QUOTA, "quota")
        return error(ErrorClass.RATE_LIMITED, "rate_limit", retry_after=retry_after)
    if status == 503:
        if retry_after is not None or _BUSY.search(words):
            return error(ErrorClass.RATE_LIMITED, "busy", retry_after=retry_after)
        return error(ErrorClass.TRANSIENT, "unavailable")
    if status in (401, 407):
        return error(ErrorClass.MISCONFIGURED, "unauthorized")
    if status == 403:
        if _FILTER.search(words):
            return error(ErrorClass.REFUSED, "content_filter")
        return error(ErrorClass.MISCONFIGURED, "forbidden")
    if status in (404, 405, 410):
        reason = "no_model" if "model" in words.lower() else "not_found"
        return error(ErrorClass.MISCONFIGURED, reason)
    if status == 413:
        return error(ErrorClass.TOO_BIG, "too_large", param=detail.param)
    if status in (408, 425):
        return error(ErrorClass.TRANSIENT, "timeout")
    if status in (400, 422, 501):
        if html:
            return error(ErrorClass.MISCONFIGURED, "html")
        return _bad_request(words, detail, error)
    if status >= 500:
        if _OWN_FAULT.search(words):
            return error(ErrorClass.REFUSED, "server_refused")
        return error(ErrorClass.TRANSIENT, "server_error")
    return error(ErrorClass.MISCONFIGURED, "unexpected_status")


def _bad_request(words: str, detail: _Detail, error: Callable[..., CallError]) -> CallError:
    if _FILTER.search(words):
        return error(ErrorClass.REFUSED, "content_filter")
    if _IMAGE.search(words):
        return error(ErrorClass.REFUSED, "image_refused")
    if _TOO_BIG.search(words):
        return error(ErrorClass.TOO_BIG, "context_length", param=detail.param)
    if _UNSUPPORTED.search(words):
        param = detail.param or _named(words)
        if param:
            return error(ErrorClass.UNSUPPORTED, "unsupported_parameter", param=param)
    return error(ErrorClass.REFUSED, "bad_request", param=detail.param)


def classify_body(body: Any) -> CallError:
    """The class of an `error` object that came with status 200 (OpenRouter while generating)."""
    detail = _detail({"error": body})
    code = detail.code
    try:
        status = int(code)
    except ValueError:
        status = 0
    if 400 <= status < 600:
        return classify_status(status, {"error": body}, "", None, False)
    words = f"{detail.type} {code} {detail.message}"
    told = excerpt(detail.message) or "an error without words"
    if _FILTER.search(words):
        kind, reason = ErrorClass.REFUSED, "content_filter"
    elif _QUOTA.search(words):
        kind, reason = ErrorClass.QUOTA, "quota"
    else:
        kind, reason = ErrorClass.BAD_REPLY, "error_in_200"
    return CallError(error=kind, message=f"200 with an error: {told}", reason=reason, status=200)


class _Detail:
    """What an error body says, in any of the dialects: OpenAI, vLLM, FastAPI, plain strings."""

    def __init__(self, message: str = "", type_: str = "", code: str = "", param: str = "") -> None:
        self.message, self.type, self.code = message, type_, code
        self.param: str | None = param or None


def _detail(data: Any) -> _Detail:
    if isinstance(data, str):
        return _Detail(data)
    if not isinstance(data, dict):
        return _Detail()
    body = data.get("error", data)
    if isinstance(body, str):
        return _Detail(body)
    if not isinstance(body, dict):
        return _Detail()
    message = body.get("message", body.get("detail", body.get("msg", "")))
    inner = body.get("innererror")
    extra = str(inner.get("code", "")) if isinstance(inner, dict) else ""
    param = body.get("param")
    return _Detail(
        message if isinstance(message, str) else str(message),
        f"{body.get('type') or ''} {extra}".strip(),
        str(body.get("code") or ""),
        param if isinstance(param, str) else "",
    )


def _named(words: str) -> str | None:
    """The parameter that a message names, when the body has no `param`."""
    if "greedy sampling" in words:
        return "n"
    return next((p for p in _PARAMETERS if re.search(rf"\b{p}\b", words)), None)
