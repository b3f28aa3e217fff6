"""What a server's refusal means: status, headers and words to one error class. Pure.

The rows are those of SPEC section 7; the words are those that vLLM, OpenAI and Azure, OpenRouter,
LiteLLM, one-api and FastAPI servers really use. Nothing else in rsd classifies a call.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Final, NamedTuple

from rsd.errors import ErrorClass
from rsd.protocol.vocabulary import CallError, RateWindow

#: Longest error text that is kept, in characters.
EXCERPT: Final = 300
#: Longest time that a server's wish to wait is believed, in seconds.
RETRY_AFTER_MAX: Final = 3600.0

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
#: Servers whose headers a proxy dropped still say it in words.
_AGAIN_IN = re.compile(
    r"(?:try again|retry) (?:in|after) "
    r"(\d+(?:\.\d+)?(?:ms|[dhms][\d.dhms]*)?)(?: ?(second|minute)s?)?",
    re.IGNORECASE,
)
#: Words by which a refusal for its length means the answer's cap, not the prompt.
_ABOUT_CAP = ("in the completion", "output tokens", "max_new_tokens", "range of max_tokens")
_DURATION = re.compile(
    r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?"
)


class Verdict(NamedTuple):
    """What a text means."""

    kind: ErrorClass
    reason: str
    param: str | None = None


class Said(NamedTuple):
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
    said = read_error(data)
    page = data is None and text.lstrip()[:1] == "<"
    if not said.message and data is None:
        said = said._replace(message=text)
    verdict = _by_status(status, said, page, headers, now)
    told = excerpt(said.message) or "no words"
    wait = None
    if verdict.kind is ErrorClass.RATE_LIMITED or status == 503:
        wait = retry_after(headers, now) or _told_wait(said.message)
    return CallError(
        error=verdict.kind,
        message=excerpt(f"{status}: {told}"),
        reason=verdict.reason,
        status=status,
        retry_after=wait,
        param=verdict.param,
    )


def classify_body(body: Any) -> CallError:
    """The class of an `error` that came with status 200 (OpenRouter, while generating)."""
    said = read_error({"error": body})
    with contextlib.suppress(ValueError):
        status = int(said.code)
        if 400 <= status < 600:
            return classify_status(status, {"error": body}, "", {}, 0.0)
    verdict = _by_words(said)
    if verdict is None and _RATE.search(said.words):
        verdict = Verdict(ErrorClass.RATE_LIMITED, "rate_limit")
    if verdict is None:
        verdict = Verdict(ErrorClass.BAD_REPLY, "error_in_200")
    told = excerpt(said.message) or "an error without words"
    return CallError(
        error=verdict.kind,
        message=excerpt(f"200 with an error: {told}"),
        reason=verdict.reason,
        status=200,
        param=verdict.param,
    )


def _by_status(
    status: int, said: Said, page: bool, headers: Mapping[str, str], now: float
) -> Verdict:
    words = said.words
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
        named = said.param == "model" or "model" in words.lower()
        known = named and not page and status != 405
        return Verdict(ErrorClass.MISCONFIGURED, "no_model" if known else "not_found")
    if status == 413:
        return Verdict(ErrorClass.TOO_BIG, "too_large", said.param)
    if status in (408, 409, 423, 425, 499):
        return Verdict(ErrorClass.TRANSIENT, "timeout" if status == 408 else "conflict")
    if status in (400, 422, 501):
        if page:
            return Verdict(ErrorClass.MISCONFIGURED, "html")
        found = _by_words(said)
        return found or Verdict(ErrorClass.REFUSED, "bad_request", said.param)
    if status >= 500:
        return _server_error(status, said)
    return Verdict(ErrorClass.MISCONFIGURED, "unexpected_status")


def _too_fast(words: str, headers: Mapping[str, str], now: float) -> Verdict:
    """429. A quota text with headers that promise an end is a limit per minute after all."""
    if re.search(r"request too large", words, re.IGNORECASE):
        return Verdict(ErrorClass.TOO_BIG, "too_large")
    promised = retry_after(headers, now) is not None or limits_told(headers)
    if _QUOTA.search(words) and not promised:
        return Verdict(ErrorClass.QUOTA, "quota")
    return Verdict(ErrorClass.RATE_LIMITED, "rate_limit")


def _server_error(status: int, said: Said) -> Verdict:
    """5xx. A 500 may be the request's own fault, or a proxy's way of passing a 4xx on."""
    words = said.words
    if _OWN_FAULT.search(words):
        return Verdict(ErrorClass.REFUSED, "server_refused")
    if status == 500:
        if _QUOTA.search(words):
            return Verdict(ErrorClass.QUOTA, "quota")
        if _RATE.search(words):
            return Verdict(ErrorClass.RATE_LIMITED, "rate_limit")
        if re.search(r"context_?(length|window)_?exceeded|maximum context", words, re.IGNORECASE):
            return Verdict(ErrorClass.TOO_BIG, "context_length", _tokens_param(said))
    return Verdict(ErrorClass.TRANSIENT, "server_error")


def _by_words(said: Said) -> Verdict | None:
    """What the text of a 400 means; None when it is just a bad request."""
    words = said.words
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
        return Verdict(ErrorClass.TOO_BIG, "context_length", _tokens_param(said))
    if _IMAGE.search(words):
        return Verdict(ErrorClass.REFUSED, "bad_image")
    if _FORM.search(words):
        return Verdict(ErrorClass.UNSUPPORTED, "unsupported_parameter", "response_format")
    if _UNSUPPORTED.search(words):
        param = _parameter(said)
        if param:
            return Verdict(ErrorClass.UNSUPPORTED, "unsupported_parameter", param)
    if _NO_MODEL.search(words):
        return Verdict(ErrorClass.MISCONFIGURED, "no_model")
    return None


def _tokens_param(said: Said) -> str | None:
    """The token cap, when it is that which is too long; the brain then asks for fewer."""
    low = said.message.lower()
    if said.param is None and any(words in low for words in _ABOUT_CAP):
        return "max_tokens"
    return said.param


def _parameter(said: Said) -> str | None:
    """The parameter that is not supported: as the body names it, or the first in its text."""
    if said.param:
        parts = re.split(r"[.\[\]]+", said.param.removeprefix("body."))
        if parts[-1] == "detail":
            return "detail"
        return parts[0] if parts[0] in (*_PARAMETERS, "n") else said.param
    if _MANY.search(said.message):
        return "n"
    found = [
        (match.start(), name)
        for name in _PARAMETERS
        if (match := re.search(rf"\b{name}\b", said.message))
    ]
    return min(found)[1] if found else None


def read_error(data: Any) -> Said:
    """The words of an error body, whatever its shape."""
    if isinstance(data, list) and data:
        data = data[0]
    if isinstance(data, str):
        return Said(data)
    if not isinstance(data, dict):
        return Said()
    body = data.get("error", data)
    if isinstance(body, str):
        return Said(body, param=_text(data.get("param")) or None)
    if not isinstance(body, dict):
        return Said()
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
    return Said(
        message if isinstance(message, str) else str(message),
        kind,
        _text(body.get("code")),
        param or None,
    )


def _text(value: Any) -> str:
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def limits_told(headers: Mapping[str, str]) -> bool:
    """Whether `x-ratelimit-*` headers describe a limit. Azure has sent -1 and 0: those do not."""
    for name, value in headers.items():
        if name.lower().startswith("x-ratelimit-") and (duration(value) or 0.0) > 0:
            return True
    return False


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds to wait, the largest that the server names, at most RETRY_AFTER_MAX; None if none.

    Retry-After is seconds or an HTTP date (RFC 9110, 10.2.3). `x-ratelimit-reset-*` counts unless
    the same limit's `remaining` says that it is not spent. `now` is Unix seconds.
    """
    waits: list[float] = []
    low = {name.lower(): value.strip() for name, value in headers.items()}
    for name, value in low.items():
        if name == "retry-after":
            wait = duration(value)
            if wait is None:
                with contextlib.suppress(ValueError, TypeError, OverflowError):
                    wait = parsedate_to_datetime(value).timestamp() - now
            waits.append(wait or 0.0)
        elif name == "retry-after-ms":
            waits.append((duration(value) or 0.0) / 1000)
        elif name.startswith("x-ratelimit-reset"):
            left = duration(low.get(name.replace("reset", "remaining"), "0"))
            wait = duration(value) or 0.0
            if wait > 1e11:  # OpenRouter: milliseconds since 1970
                wait = wait / 1000 - now
            elif wait > 1e9:
                wait -= now
            if not left or left <= 0:
                waits.append(wait)
    longest = max((w for w in waits if w > 0), default=None)
    return None if longest is None else min(longest, RETRY_AFTER_MAX)


def rate_windows(headers: Mapping[str, str], now: float) -> tuple[RateWindow, ...]:
    """What is left by the `x-ratelimit-*` of an answer; `now` is Unix seconds.

    Some servers send -1 and 0 for "no limit": only positive numbers are believed.
    """
    found: list[RateWindow] = []
    low = {name.lower(): value for name, value in headers.items()}
    for name, value in low.items():
        if not name.startswith("x-ratelimit-remaining"):
            continue
        left = duration(value) or 0.0
        wait = duration(low.get(name.replace("remaining", "reset"), "")) or 0.0
        if wait > 1e11:  # milliseconds since 1970
            wait = wait / 1000 - now
        elif wait > 1e9:
            wait -= now
        if left > 0 and 0 < wait <= RETRY_AFTER_MAX:
            tokens = "token" in name
            found.append(RateWindow(remaining=left, seconds=wait, tokens=tokens))
    return tuple(found)


def _told_wait(message: str) -> float | None:
    """Seconds to wait as the text of a refusal names them, at most RETRY_AFTER_MAX."""
    match = _AGAIN_IN.search(message)
    wait = duration(match[1].rstrip(".")) if match else None
    if not match or not wait or wait <= 0:
        return None
    return min(wait * (60.0 if (match[2] or "").lower() == "minute" else 1.0), RETRY_AFTER_MAX)


def duration(text: str) -> float | None:
    """Seconds of `6m0s`, `120ms`, `1h2m` or a plain number, finite; None for anything else."""
    text = text.strip()
    try:
        number = float(text)
    except ValueError:
        match = _DURATION.fullmatch(text)
        if not match or not any(match.groups()):
            return None
        days, hours, minutes, seconds, millis = (float(g) if g else 0.0 for g in match.groups())
        number = ((days * 24 + hours) * 60 + minutes) * 60 + seconds + millis / 1000
    return number if math.isfinite(number) else None
