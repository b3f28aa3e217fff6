"""One HTTP call to a chat-completions endpoint, and the class of what went wrong.

The total time of a call is enforced by reading the body in pieces; retries are the brain's
business, so the adapter does none and redirects are not followed (the key must not travel to
another host).
"""

from __future__ import annotations

import contextlib
import re
import time
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec
import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError as Urllib3Error

from rsd.errors import ErrorClass
from rsd.messages import Endpoint
from rsd.vocabulary import CallError, Usage
from rsd.workers.refusals import classify_body, classify_status, excerpt

#: Longest answer body in bytes, after decompression; 2,048 tokens are a few kilobytes.
MAX_BODY_BYTES = 16 * 1024 * 1024
#: Bytes read between two looks at the clock.
CHUNK_BYTES = 64 * 1024
#: Longest time to wait for the connection itself, in seconds.
CONNECT_SECONDS = 10.0
#: Longest time that a server's wish to wait is believed, in seconds.
RETRY_AFTER_MAX = 3600.0

_LONE_SURROGATES = re.compile(r"[\ud800-\udfff]")
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:([\d.]+)s)?(?:([\d.]+)ms)?")


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
    """A chat completion that was answered."""

    choices: list[Choice]
    usage: Usage
    model: str
    seconds: float


class Models(msgspec.Struct, frozen=True):
    """What `GET /models` tells."""

    names: tuple[str, ...]
    max_model_len: int | None


def chat_body(model: str, data_url: bytes | None, text: str, parameters: dict[str, Any]) -> bytes:
    """The JSON of a request: the picture first, the text after it, so that caches can hit.

    The picture is spliced in as it is: base64 needs no escaping, and encoding it again for each
    call would be the largest cost of all.
    """
    encode = msgspec.json.encode
    parts: list[bytes] = [b'{"model":', encode(model), b',"messages":[{"role":"user","content":[']
    if data_url is not None:
        parts += [b'{"type":"image_url","image_url":{"url":"', data_url]
        parts += [b'","detail":"high"}},']
    parts += [b'{"type":"text","text":', encode(text), b"}]}]"]
    rest = encode(parameters)
    parts.append(b"}" if rest == b"{}" else b"," + rest[1:])
    return b"".join(parts)


class Client:
    """Calls one endpoint; thread-safe. `connections`: threads that use it at once."""

    def __init__(self, endpoint: Endpoint, connections: int) -> None:
        self.url = endpoint.url
        self._endpoint = endpoint
        self._session = requests.Session()
        adapter = HTTPAdapter(pool_connections=1, pool_maxsize=connections, max_retries=0)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if endpoint.key:
            self._headers["Authorization"] = f"Bearer {endpoint.key}"
        settings = self._session.merge_environment_settings(
            endpoint.url, {}, True, endpoint.ca_file or None, None
        )
        self._proxies = settings["proxies"]
        self._verify: bool | str = endpoint.ca_file or settings["verify"] or True
        self._adapter = self._session.get_adapter(endpoint.url)

    def chat(self, body: bytes) -> Reply:
        """One chat completion. Raises CallFailed."""
        began = time.monotonic()
        data = self._call("POST", "/chat/completions", body)
        return self._reply(data, time.monotonic() - began)

    def models(self) -> Models:
        """The models that are served. Raises CallFailed."""
        data = self._call("GET", "/models", None)
        rows = data.get("data") if isinstance(data, dict) else None
        if not isinstance(rows, list):
            raise CallFailed(
                _error(ErrorClass.MISCONFIGURED, "no list of models", "bad_json", status=200)
            )
        named = [r for r in rows if isinstance(r, dict) and isinstance(r.get("id"), str)]
        lengths = [r.get("max_model_len") for r in named]
        length = lengths[0] if lengths and isinstance(lengths[0], int) else None
        return Models(tuple(r["id"] for r in named), length)

    def _call(self, method: str, path: str, body: bytes | None) -> Any:
        deadline = time.monotonic() + self._endpoint.timeout
        request = requests.Request(method, self.url + path, data=body, headers=self._headers)
        try:
            prepared = request.prepare()
            response = self._adapter.send(
                prepared,
                stream=True,
                timeout=(min(CONNECT_SECONDS, self._endpoint.timeout), self._endpoint.timeout),
                verify=self._verify,
                proxies=self._proxies,
            )
            try:
                raw = self._read(response, deadline)
            finally:
                response.close()
        except (requests.RequestException, Urllib3Error, OSError, ValueError) as e:
            raise CallFailed(self._clean(_transport_error(e))) from None
        return self._decoded(response, raw)

    def _read(self, response: requests.Response, deadline: float) -> bytes:
        parts: list[bytes] = []
        size = 0
        # read1 returns what has come; read would wait for a full chunk, however slowly it drips.
        while part := response.raw.read1(CHUNK_BYTES, decode_content=True):
            size += len(part)
            if size > MAX_BODY_BYTES:
                text = f"the answer is longer than {MAX_BODY_BYTES} bytes"
                raise CallFailed(_error(ErrorClass.BAD_REPLY, text, "body_too_big"))
            parts.append(part)
            left = deadline - time.monotonic()
            if left <= 0:
                raise requests.ReadTimeout("the answer did not end within the time of a call")
            _limit_reads(response, left)
        return b"".join(parts)

    def _decoded(self, response: requests.Response, raw: bytes) -> Any:
        status = response.status_code
        text = raw.decode("utf-8", "replace")
        if 300 <= status < 400:
            where = excerpt(response.headers.get("Location", ""), 120)
            error = _error(
                ErrorClass.MISCONFIGURED,
                f"{self.url} redirects to {where}; not followed",
                "redirect",
                status=status,
            )
            raise CallFailed(self._clean(error))
        data: Any = None
        for candidate in (raw, _without_comments(raw)):
            try:
                data = msgspec.json.decode(candidate)
                break
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue
        if status != 200:
            wait = _retry_after(response.headers)
            limited = any(h.lower().startswith("x-ratelimit") for h in response.headers)
            error = classify_status(status, data, text, wait, limited)
            raise CallFailed(self._clean(error))
        if data is None:
            if text.lstrip()[:1] == "<":
                error = _error(
                    ErrorClass.MISCONFIGURED,
                    f"{self.url} answers with a web page: {excerpt(text, 80)}",
                    "html",
                    status=200,
                )
            else:
                what = excerpt(text, 120) or "nothing"
                error = _error(ErrorClass.BAD_REPLY, f"no JSON: {what}", "bad_json", status=200)
            raise CallFailed(self._clean(error))
        return data

    def _reply(self, data: Any, seconds: float) -> Reply:
        if not isinstance(data, dict):
            raise CallFailed(_error(ErrorClass.BAD_REPLY, "no JSON object", "bad_json", status=200))
        usage = _usage(data.get("usage"))
        rows = data.get("choices")
        if data.get("error") and not rows:
            raise CallFailed(self._clean(classify_body(data["error"])), usage)
        if not isinstance(rows, list) or not rows:
            raise CallFailed(
                _error(ErrorClass.BAD_REPLY, "the answer has no choices", "no_choices", status=200),
                usage,
            )
        choices = [_choice(row) for row in rows]
        if any(c is None for c in choices):
            error = _error(ErrorClass.BAD_REPLY, "a choice without content", "null_content")
            raise CallFailed(error, usage)
        model = data.get("model")
        return Reply(
            [c for c in choices if c is not None],
            usage,
            model if isinstance(model, str) else "",
            seconds,
        )

    def _clean(self, error: CallError) -> CallError:
        """No key in an error's text, whatever the server echoes."""
        key = self._endpoint.key
        if key and key in error.message:
            return msgspec.structs.replace(error, message=error.message.replace(key, "***"))
        return error


def _limit_reads(response: requests.Response, seconds: float) -> None:
    """Let no single read outlast the call."""
    connection = getattr(response.raw, "connection", None) or getattr(
        response.raw, "_connection", None
    )
    sock = getattr(connection, "sock", None)
    if sock is not None:
        sock.settimeout(max(0.001, seconds))


def _error(kind: ErrorClass, message: str, reason: str, **fields: Any) -> CallError:
    return CallError(error=kind, message=excerpt(message), reason=reason, **fields)


def _transport_error(e: Exception) -> CallError:
    """No HTTP answer came, or it broke off."""
    text = f"{type(e).__name__}: {e}"
    low = text.lower()
    kind, answered = ErrorClass.TRANSIENT, False
    if isinstance(e, requests.exceptions.SSLError) or "certificate" in low or "ssl" in low:
        return _error(ErrorClass.MISCONFIGURED, f"TLS: {text}", "tls", answered=False)
    if isinstance(e, requests.exceptions.InvalidURL | requests.exceptions.MissingSchema):
        return _error(ErrorClass.MISCONFIGURED, text, "bad_url", answered=False)
    if "name or service not known" in low or "resolve" in low or "getaddrinfo" in low:
        reason = "dns"
    elif isinstance(e, requests.exceptions.ConnectTimeout):
        reason = "connect"
    elif isinstance(e, requests.exceptions.Timeout) or "timed out" in low or "timeout" in low:
        reason = "timeout"
    elif "refused" in low or "newconnectionerror" in low or "unreachable" in low:
        reason = "connect"
    elif "incompleteread" in low or "incomplete read" in low:
        reason = "cut"
    else:
        reason = "reset"
    return _error(kind, _plain(text, reason), reason, answered=answered)


def _plain(text: str, reason: str) -> str:
    words = {
        "connect": "connection refused",
        "timeout": "no complete answer in time",
        "dns": "the host name is not known",
        "cut": "the answer was cut off",
        "reset": "the connection broke",
    }
    return f"{words[reason]} ({text})"


def _without_comments(raw: bytes) -> bytes:
    """Some proxies send `: comment` lines before the JSON."""
    start = raw.find(b"{")
    return raw[start:] if start > 0 else raw


def _choice(row: Any) -> Choice | None:
    message = row.get("message") if isinstance(row, dict) else None
    if not isinstance(message, dict):
        return None
    reason = row.get("finish_reason")
    reason = reason if isinstance(reason, str) else "stop"
    refusal = message.get("refusal")
    refusal = refusal if isinstance(refusal, str) else ""
    content = message.get("content")
    if isinstance(content, list):
        texts = [p.get("text") for p in content if isinstance(p, dict)]
        content = "".join(t for t in texts if isinstance(t, str))
    if content is None and (refusal or reason in ("length", "content_filter")):
        content = ""
    if not isinstance(content, str):
        return None
    return Choice(_LONE_SURROGATES.sub("\ufffd", content), reason, refusal)


def _usage(data: Any) -> Usage:
    data = data if isinstance(data, dict) else {}
    completion = data.get("completion_tokens_details")
    prompt = data.get("prompt_tokens_details")
    return Usage(
        input_tokens=_count(data.get("prompt_tokens")),
        output_tokens=_count(data.get("completion_tokens")),
        reasoning_tokens=_count(completion.get("reasoning_tokens"))
        if isinstance(completion, dict)
        else 0,
        cached_tokens=_count(prompt.get("cached_tokens")) if isinstance(prompt, dict) else 0,
    )


def _count(value: Any) -> int:
    try:
        return max(0, int(value))
    except (TypeError, ValueError, OverflowError):
        return 0


def _retry_after(headers: Any) -> float | None:
    """Seconds to wait: Retry-After (seconds or a date), else the largest reset of a spent limit."""
    value = headers.get("Retry-After")
    waits: list[float] = []
    if value:
        try:
            waits.append(float(value))
        except ValueError:
            with contextlib.suppress(ValueError, TypeError):
                waits.append(parsedate_to_datetime(value).timestamp() - time.time())
    if not waits:
        for what in ("requests", "tokens"):
            if headers.get(f"x-ratelimit-remaining-{what}", "0").strip() in ("0", ""):
                seconds = duration(headers.get(f"x-ratelimit-reset-{what}", ""))
                if seconds:
                    waits.append(seconds)
    positive = [w for w in waits if w > 0]
    return min(max(positive), RETRY_AFTER_MAX) if positive else None


def duration(text: str) -> float | None:
    """`6m0s`, `120ms`, `1h2m`, or plain seconds; None for anything else."""
    text = text.strip()
    try:
        return float(text)
    except ValueError:
        pass
    match = _DURATION.fullmatch(text)
    if not match or not any(match.groups()):
        return None
    days, hours, minutes, seconds, millis = (float(g) if g else 0.0 for g in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds + millis / 1000
