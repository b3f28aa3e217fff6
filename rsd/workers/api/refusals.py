"""What a server's refusal means: status, headers and words to one error class. Pure.

The words are those that vLLM, OpenAI and Azure, OpenRouter, LiteLLM, one-api and FastAPI servers
really use. Nothing else in rsd classifies an answer of HTTP.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from rsd.errors import ErrorClass
from rsd.protocol.vocabulary import CallError
from rsd.workers.api.rate_headers import names_a_limit, retry_after, wait_in_words

#: Longest error text that is kept, in characters.
EXCERPT: Final = 300
#: Most characters of a refusal that are searched, at its beginning and at its end: a server may
#: send the whole request back.
SEARCHED: Final = 10_000

_QUOTA = re.compile(
    r"insufficient[_ ](user[_ ])?quota|credit[_ ]balance|exceeded your current quota|"
    r"billing[_ ](hard[_ ])?(limit|not[_ ]active)|out of credit|payment required|"
    r"spend(ing)?[_ ]limit|usage[_ ]limit|insufficient[_ ](balance|funds|credit)|"
    r"(not enough|requires more|no more) (credit|funds)|arrearage|"
    r"key limit exceeded|额度不足|余额不足",
    re.IGNORECASE,
)
_RATE = re.compile(
    r"rate[_ -]?limit|too many requests|resource[_ ]exhausted|\b429\b", re.IGNORECASE
)
_BUSY = re.compile(
    r"\bbusy\b|overloaded|too many|try again|at capacity|no capacity|slow[_ ]down|rate[_ -]?limit",
    re.IGNORECASE,
)
_FILTER = re.compile(
    r"content[_ ]?(filter|policy|management)|responsible_?ai|moderation|"
    r"safety (system|filter|setting|polic)|flagged|data_inspection_failed|inappropriate content",
    re.IGNORECASE,
)
_KEY = re.compile(
    r"(invalid|incorrect|missing|wrong)[_ ]api[_ ]?key|api[_ ]?key[_ ](is )?(not valid|invalid)|"
    r"authentication_error",
    re.IGNORECASE,
)
_BLIND = re.compile(
    r"not a multimodal model|at most 0 image|does not (support|accept) (image|vision|multimodal)|"
    r"image[_ ]?(input|url)s?\b.{0,30}(not supported|unsupported|only supported by)|"
    r"support image input",
    re.IGNORECASE,
)
_TOO_BIG = re.compile(
    r"context[_ ](length|window|size)|maximum context|range of max_tokens|"
    r"maximum allowed number of output tokens|tokens`? must be <=|too many (input |prompt )?tokens|"
    r"(prompt|input|request|message).{0,30}too (long|large)|string_above_max_length|"
    r"cannot be greater than max_model_len|max(_completion)?_tokens.{0,40}(too large|at most)|"
    r"image.{0,40}(too (large|big)|exceeds|larger than|maximum (allowed )?(size|dimension))|"
    r"image_too_large|payload too large|entity too large|"
    r"exceeds? (the )?(maximum|limit).{0,30}(tokens|length|size|bytes)",
    re.IGNORECASE | re.DOTALL,
)
_IMAGE = re.compile(
    r"failed to load image|cannot identify image|(invalid|unsupported)[_ ]image|image_parse_error|"
    r"(could not|unable to|failed to) (process|decode|parse|read) (the |input )*image|"
    r"non-base64|invalid base64",
    re.IGNORECASE,
)
_UNSUPPORTED = re.compile(
    r"unsupported[_ ](parameter|value)|unknown[_ ](parameter|field|argument)|not supported|"
    r"does not support|is unsupported|unrecognized (request argument|parameter|field)|"
    r"unknown name|extra_forbidden|extra inputs are not permitted|only the default|not permitted|"
    r"not allowed|"
    r"n must be 1\b|only n ?= ?1",
    re.IGNORECASE,
)
#: vLLM, asked by `uuid` alone for a picture that its multimodal cache does not hold (any more).
_NOT_HELD = re.compile(r"cache miss for image|data is not provided", re.IGNORECASE)
_FORM = re.compile(
    r"(invalid|unsupported|not support|unavailable|not available|unknown|unrecognized|must be)"
    r".{0,80}(response_format|json_schema|json_object|structured[_ ]output)|"
    r"(response_format|json_schema|json_object|structured[_ ]output).{0,80}"
    r"(invalid|unsupported|not support|unavailable|not available|unknown|unrecognized|must be|"
    r"only for api versions)",
    re.IGNORECASE | re.DOTALL,
)
_NO_MODEL = re.compile(
    r"model_not_found|(unknown|invalid) model|no available channel|无可用渠道|"
    r"model.{0,80}(does not exist|not found|not exist|is not available)",
    re.IGNORECASE | re.DOTALL,
)
#: vLLM answers 500 to these though the request itself is at fault; asking again never helps.
_OWN_FAULT = re.compile(
    r"allowed-local-media-path|cannot load local files|exceeds limit of \d+ pixels|"
    r"cannot connect to host",
    re.IGNORECASE,
)
#: Parameters of a request that can be left out or renamed, as servers name them in their texts.
_PARAMETERS: Final = (
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
    "detail",
)
_MANY = re.compile(r"['\"`]n['\"`]|\bn must be 1\b|\bn ?> ?1|\bn ?= ?1|greedy sampling")
#: Words by which a refusal for its length means the answer's cap, not the prompt.
_ABOUT_CAP = ("in the completion", "output tokens", "max_new_tokens", "range of max_tokens")


class Verdict(NamedTuple):
    """What a text means."""

    kind: ErrorClass
    reason: str
    param: str | None = None


class ErrorBody(NamedTuple):
    """What an error body says, in any of the dialects: OpenAI, vLLM, FastAPI, plain strings."""

    message: str = ""
    type: str = ""
    code: str = ""
    param: str | None = None

    @property
    def words(self) -> str:
        """All of it, to be searched."""
        return f"{self.type} {self.code} {self.message}"


def excerpt(text: str, most: int = EXCERPT) -> str:
    """A text for a log line or a status: one line, printable, short."""
    words = " ".join("".join(c if c.isprintable() else " " for c in text[: most * 4]).split())
    return words if len(words) <= most else words[: most - 1] + "…"


def classify_status(
    status: int, data: Any, text: str, headers: Mapping[str, str], now: float
) -> CallError:
    """The class of an answer whose status is not 2xx.

    `data` is its JSON (None when it is none), `text` the body, `now` Unix seconds, for dates.
    """
    error = read_error(data)
    page = data is None and text.lstrip()[:1] == "<"
    if not error.message and data is None:
        error = error._replace(message=_ends(text))
    verdict = _by_status(status, error, page, headers, now)
    message = excerpt(error.message) or "no words"
    wait = None
    if verdict.kind is ErrorClass.RATE_LIMITED or status == 503:
        wait = retry_after(headers, now) or wait_in_words(error.message)
    return CallError(
        error=verdict.kind,
        message=excerpt(f"{status}: {message}"),
        reason=verdict.reason,
        status=status,
        retry_after=wait,
        param=verdict.param,
    )


def classify_body(body: Any) -> CallError:
    """The class of an `error` that came with status 200 (OpenRouter, while generating)."""
    error = read_error({"error": body})
    with contextlib.suppress(ValueError):
        status = int(error.code)
        if 400 <= status < 600:
            return classify_status(status, {"error": body}, "", {}, 0.0)
    verdict = _by_words(error)
    if verdict is None and _RATE.search(error.words):
        verdict = Verdict(ErrorClass.RATE_LIMITED, "rate_limit")
    if verdict is None:
        verdict = Verdict(ErrorClass.BAD_REPLY, "error_in_200")
    message = excerpt(error.message) or "an error without words"
    return CallError(
        error=verdict.kind,
        message=excerpt(f"200 with an error: {message}"),
        reason=verdict.reason,
        status=200,
        param=verdict.param,
    )


def _by_status(
    status: int, error: ErrorBody, page: bool, headers: Mapping[str, str], now: float
) -> Verdict:
    words = error.words
    if status == 402:
        return Verdict(ErrorClass.QUOTA, "quota")
    if status == 429:
        return _too_fast(words, headers, now)
    if status in (503, 529):
        if _NO_MODEL.search(words):
            return Verdict(ErrorClass.MISCONFIGURED, "no_model")
        if status == 529 or retry_after(headers, now) is not None or _BUSY.search(words):
            return Verdict(ErrorClass.RATE_LIMITED, "busy")
        return Verdict(ErrorClass.TRANSIENT, "unavailable")
    if status in (401, 407):
        return Verdict(ErrorClass.MISCONFIGURED, "unauthorized")
    if status == 403:
        if _FILTER.search(words):
            return Verdict(ErrorClass.REFUSED, "content_filter")
        if _QUOTA.search(words):
            return Verdict(ErrorClass.QUOTA, "quota")
        return Verdict(ErrorClass.MISCONFIGURED, "forbidden")
    if status in (404, 405, 410):
        named = error.param == "model" or "model" in words.lower()
        known = named and not page and status != 405
        return Verdict(ErrorClass.MISCONFIGURED, "no_model" if known else "not_found")
    if status == 413:
        return Verdict(ErrorClass.TOO_BIG, "too_large", error.param)
    if status in (408, 409, 423, 425, 499):
        return Verdict(ErrorClass.TRANSIENT, "timeout" if status == 408 else "conflict")
    if status in (400, 422, 501):
        if page:
            return Verdict(ErrorClass.MISCONFIGURED, "html")
        found = _by_words(error)
        return found or Verdict(ErrorClass.REFUSED, "bad_request", error.param)
    if status >= 500:
        return _server_error(status, error)
    return Verdict(ErrorClass.MISCONFIGURED, "unexpected_status")


def _too_fast(words: str, headers: Mapping[str, str], now: float) -> Verdict:
    """429. A quota text with headers that promise an end is a limit per minute after all."""
    if re.search(r"request too large", words, re.IGNORECASE):
        return Verdict(ErrorClass.TOO_BIG, "too_large")
    promised = retry_after(headers, now) is not None or names_a_limit(headers)
    if _QUOTA.search(words) and not promised:
        return Verdict(ErrorClass.QUOTA, "quota")
    return Verdict(ErrorClass.RATE_LIMITED, "rate_limit")


def _server_error(status: int, error: ErrorBody) -> Verdict:
    """5xx. A 500 may be the request's own fault, or a proxy's way of passing a 4xx on."""
    words = error.words
    if _OWN_FAULT.search(words):
        return Verdict(ErrorClass.REFUSED, "server_refused")
    if status == 500:
        if _QUOTA.search(words):
            return Verdict(ErrorClass.QUOTA, "quota")
        if _RATE.search(words):
            return Verdict(ErrorClass.RATE_LIMITED, "rate_limit")
        if re.search(r"context_?(length|window)_?exceeded|maximum context", words, re.IGNORECASE):
            return Verdict(ErrorClass.TOO_BIG, "context_length", _tokens_param(error))
    return Verdict(ErrorClass.TRANSIENT, "server_error")


def _by_words(error: ErrorBody) -> Verdict | None:
    """What the text of a 400 means; None when it is just a bad request."""
    words = error.words
    if _NOT_HELD.search(words):
        return Verdict(ErrorClass.TRANSIENT, "picture_not_held")
    if _FILTER.search(words):
        return Verdict(ErrorClass.REFUSED, "content_filter")
    if _KEY.search(words):
        return Verdict(ErrorClass.MISCONFIGURED, "unauthorized")
    if _QUOTA.search(words):
        return Verdict(ErrorClass.QUOTA, "quota")
    if _BLIND.search(words):
        return Verdict(ErrorClass.MISCONFIGURED, "no_vision")
    if _TOO_BIG.search(words):
        return Verdict(ErrorClass.TOO_BIG, "context_length", _tokens_param(error))
    if _IMAGE.search(words):
        return Verdict(ErrorClass.REFUSED, "bad_image")
    if _FORM.search(words):
        return Verdict(ErrorClass.UNSUPPORTED, "unsupported_parameter", "response_format")
    if _UNSUPPORTED.search(words):
        param = _parameter(error)
        if param:
            return Verdict(ErrorClass.UNSUPPORTED, "unsupported_parameter", param)
    if _NO_MODEL.search(words):
        return Verdict(ErrorClass.MISCONFIGURED, "no_model")
    return None


def _tokens_param(error: ErrorBody) -> str | None:
    """The token cap, when it is that which is too long; the brain then asks for fewer."""
    low = error.message.lower()
    if error.param is None and any(words in low for words in _ABOUT_CAP):
        return "max_tokens"
    return error.param


def _parameter(error: ErrorBody) -> str | None:
    """The parameter that is not supported: as the body names it, or the first in its text."""
    if error.param:
        parts = re.split(r"[.\[\]]+", error.param.removeprefix("body."))
        if parts[-1] == "detail":
            return "detail"
        return parts[0] if parts[0] in (*_PARAMETERS, "n") else error.param
    if _MANY.search(error.message):
        return "n"
    found = [
        (match.start(), name)
        for name in _PARAMETERS
        if (match := re.search(rf"\b{name}\b", error.message))
    ]
    return min(found)[1] if found else None


def read_error(data: Any) -> ErrorBody:
    """The words of an error body, whatever its shape."""
    if isinstance(data, list) and data:
        data = data[0]
    if isinstance(data, str):
        return ErrorBody(_ends(data))
    if not isinstance(data, dict):
        return ErrorBody()
    body = data.get("error", data)
    if isinstance(body, str):
        return ErrorBody(_ends(body), param=_text(data.get("param"))[:EXCERPT] or None)
    if not isinstance(body, dict):
        return ErrorBody()
    message = next((body[k] for k in ("message", "detail", "msg") if body.get(k)), "")
    param = _text(body.get("param"))
    kind = _text(body.get("type"))
    if isinstance(message, dict):  # Mistral: the validation errors once more inside
        message = message.get("detail") or str(message)
    if isinstance(message, list):  # FastAPI's validation errors: [{"loc": [...], "msg": ...}]
        rows = [row for row in message if isinstance(row, dict)]
        if rows and isinstance(rows[0].get("loc"), list):
            param = param or ".".join(str(part) for part in rows[0]["loc"])
        kind = kind or " ".join(_text(row.get("type")) for row in rows)
        message = "; ".join(_text(row.get("msg")) for row in rows)
    inner = body.get("innererror")
    if isinstance(inner, dict):
        kind = f"{kind} {_text(inner.get('code'))}".strip()
    metadata = body.get("metadata")
    if isinstance(metadata, dict) and isinstance(metadata.get("raw"), str):
        message = f"{message} {metadata['raw']}"
    return ErrorBody(
        _ends(message if isinstance(message, str) else str(message)),
        _ends(kind),
        _ends(_text(body.get("code"))),
        param[:EXCERPT] if param else None,
    )


def _ends(text: str) -> str:
    return text if len(text) <= 2 * SEARCHED else f"{text[:SEARCHED]} … {text[-SEARCHED:]}"


def _text(value: Any) -> str:
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
