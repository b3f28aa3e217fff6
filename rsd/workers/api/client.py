"""One HTTP call to a chat-completions endpoint, and the class of what went wrong.

How bytes cross the connection is in `wire.py`. Retries are the brain's business, so there are none
here, and redirects are not followed (the key must not travel to another host). What a body means
is read in `replies.py` and `refusals.py`.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import math
import re
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import msgspec
import requests
import urllib3.exceptions
from requests.adapters import HTTPAdapter
from urllib3.connectionpool import HTTPConnectionPool

from rsd import __version__
from rsd.errors import ErrorClass
from rsd.protocol.tasks import Endpoint
from rsd.protocol.vocabulary import CallError
from rsd.system.redact import Redactor
from rsd.workers.api.http1 import Answer, Body, Broken, Lines, Piece, TooLong
from rsd.workers.api.refusals import classify_status, excerpt, rate_windows
from rsd.workers.api.replies import (
    CallFailed,
    Load,
    Models,
    Reply,
    decode,
    read_load,
    read_models,
    read_reply,
)

#: vLLM's metrics lie beside /v1, not below it.
METRICS: Final = "/metrics"
#: Longest time for a look at the metrics, in seconds: they come at once or are of no use.
LOAD_SECONDS: Final = 5.0
#: Most names of pictures that a server may hold.
HELD_MAX: Final = 10_000
#: Most exceptions looked at in a chain of causes.
CAUSES_MAX: Final = 16

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")


def chat_body(
    model: str,
    data_url: Piece | None,
    text: str,
    parameters: dict[str, Any],
    *,
    detail: bool = True,
    uuid: str = "",
) -> Body:
    """The JSON of a request: the picture first, the text after it, so that caches can hit.

    The picture is spliced in as it is: base64 needs no escaping, and encoding it again for each
    call would be the largest cost of all. `parameters` are the other fields of the request. `uuid`
    names the picture; with it and without `data_url` the server must hold the picture (vLLM).
    """
    encode = msgspec.json.encode
    parts = [b'{"model":', encode(model), b',"messages":[{"role":"user","content":[']
    head: list[bytes] = []
    name = b',"uuid":' + encode(uuid) if uuid else b""
    if data_url is not None:
        head = [*parts, b'{"type":"image_url","image_url":{"url":"']
        parts = [b'","detail":"high"}' if detail else b'"}', name, b"},"]
    elif uuid:
        parts += [b'{"type":"image_url","image_url":null', name, b"},"]
    safe = text.encode("utf-8", "replace").decode()  # a lone surrogate is not to be had as JSON
    parts += [b'{"type":"text","text":', encode(safe), b"}]}]"]
    rest = encode(parameters)
    parts.append(b"}" if rest == b"{}" else b"," + rest[1:])
    if data_url is None:
        return (b"".join(parts),)
    return b"".join(head), data_url, b"".join(parts)


class _Way(NamedTuple):
    """A path of an endpoint: its connections, and a request's head for it."""

    lines: Lines
    head: bytes  #: request line and headers, but for the length of the body


class Held:
    """Names of the pictures that a server was sent and may still hold; the oldest are forgotten."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}  # threads share it: single operations only

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def add(self, name: str) -> None:
        """It was answered with this picture in the request."""
        self._names[name] = None
        if len(self._names) > HELD_MAX:
            with contextlib.suppress(KeyError, RuntimeError):
                del self._names[next(iter(self._names))]


class Client:
    """Calls one endpoint; thread-safe. `pool_size`: threads that use it at once."""

    def __init__(self, endpoint: Endpoint, pool_size: int) -> None:
        self.endpoint = endpoint
        self._key = endpoint.key.strip()
        self._redactor = Redactor([self._key])
        parts = urlsplit(endpoint.url)
        #: For messages: never with the user and password that a URL may hold.
        self.url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        session = requests.Session()
        self._adapter = HTTPAdapter(pool_connections=1, pool_maxsize=pool_size, max_retries=0)
        self._pool_size = pool_size
        self._lines: dict[int, Lines] = {}
        self._headers: dict[str, str | bytes] = {
            "Content-Type": "application/json",
            "Accept": "application/json, text/plain;q=0.5",
            "Accept-Encoding": "identity",
            "User-Agent": f"rsd/{__version__}",
        }
        if self._key:
            self._headers["Authorization"] = b"Bearer " + self._key.encode()
        # Proxies and certificates of the environment are looked up once, not in every call.
        settings = session.merge_environment_settings(
            endpoint.url, {}, True, endpoint.ca_file or None, None
        )
        self._proxies = {} if _is_loopback(parts.hostname or "") else dict(settings["proxies"])
        self._verify: bool | str = endpoint.ca_file or settings["verify"] or True
        self._ways: dict[str, _Way] = {}
        self.holds = Held()

    def chat(self, body: Body) -> Reply:
        """One chat completion. Raises CallFailed."""
        began = time.monotonic()
        raw, headers = self._call("POST", "/chat/completions", body)
        data = decode(raw)
        if data is None:
            raise CallFailed(self._no_json(raw))
        seconds = time.monotonic() - began
        try:
            reply = read_reply(data, seconds)
        except CallFailed:  # its text may quote the server: read again without the key
            reply = read_reply(decode(self._scrub(raw)), seconds)
        left = rate_windows(headers, time.time())
        return msgspec.structs.replace(reply, rate_windows=left) if left else reply

    def models(self) -> Models:
        """The models that are served. Raises CallFailed."""
        raw, _ = self._call("GET", "/models", None)
        data = decode(raw)
        if data is None:
            raise CallFailed(self._no_json(raw))
        return read_models(data)

    def load(self) -> Load:
        """How full the server is by its own account. Raises CallFailed."""
        return read_load(self._call("GET", METRICS, None, most=LOAD_SECONDS)[0])

    def _call(
        self, method: str, path: str, body: Body | None, *, most: float = math.inf
    ) -> tuple[bytes, Mapping[str, str]]:
        """The body of a 2xx and its headers. Raises CallFailed for all else. `most` seconds, if
        that is less than the endpoint's time.
        """
        seconds = min(most, self.endpoint.timeout)
        try:
            way = self._way(method, path)
            answer = way.lines.exchange(way.head, body or (), seconds)
        except Broken as e:
            error = self._broken(e.__cause__, e.status)
            refused = e.status is not None and not 200 <= e.status < 300
            if not refused or error.reason == "timeout":
                raise CallFailed(self._cleaned(error)) from None
            answer = Answer(e.status or 0, e.headers, e.body)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as e:
            raise CallFailed(self._cleaned(_transport_error(e))) from None
        if 200 <= answer.status < 300:
            return answer.body, answer.headers
        raise CallFailed(self._cleaned(self._refusal(answer, self._scrub(answer.body), path)))

    def _broken(self, e: BaseException | None, status: int | None) -> CallError:
        if isinstance(e, TooLong):
            return _error(ErrorClass.BAD_REPLY, str(e), "body_too_big", status=status)
        assert isinstance(e, Exception)
        return _transport_error(e)

    def _way(self, method: str, path: str) -> _Way:
        """How a path is reached: requests finds out about proxies, certificates and headers, once;
        the calls then go over the connections that it names.
        """
        if _UNPRINTABLE.search(self._key):
            text = "the API key holds a line break or another control character"
            raise CallFailed(_error(ErrorClass.MISCONFIGURED, text, "unauthorized", answered=False))
        way = self._ways.get(path)
        if way is None:
            parts = urlsplit(self.endpoint.url)
            base = parts.path.rstrip("/")
            base = base.removesuffix("/v1") if path == METRICS else base
            url = parts._replace(path=base + path).geturl()
            request = requests.Request(method, url, headers=self._headers).prepare()
            pool = self._adapter.get_connection_with_tls_context(
                request, self._verify, proxies=self._proxies
            )
            assert isinstance(pool, HTTPConnectionPool)
            self._adapter.cert_verify(pool, url, self._verify, None)  # type: ignore[no-untyped-call]
            target = self._adapter.request_url(request, self._proxies)
            host = urlsplit(request.url or "").netloc.rpartition("@")[2]
            headers = {"Host": host, **request.headers}
            if target.startswith("http"):  # a proxy that is no tunnel wants to know who asks
                headers |= pool.proxy_headers
            lines = self._lines.setdefault(id(pool), Lines(pool, self._pool_size))
            way = self._ways[path] = _Way(lines, _head(method, target, headers))
        return way

    def _refusal(self, response: Answer, raw: bytes, path: str) -> CallError:
        status = response.status
        if 300 <= status < 400:
            where = excerpt(self._scrub_text(response.headers.get("location", "nowhere")), 120)
            text = f"{status}: {self.url} redirects to {where}; not followed"
            return _error(ErrorClass.MISCONFIGURED, text, "redirect", status=status)
        text = raw.decode("utf-8", "replace")
        error = classify_status(status, decode(raw), text, response.headers, time.time())
        if error.reason in ("not_found", "html", "unexpected_status"):
            named = excerpt(f"{self.url}{path}: {error.message}")
            return msgspec.structs.replace(error, message=named)
        return error

    def _no_json(self, raw: bytes) -> CallError:
        text = self._scrub(raw).decode("utf-8", "replace").strip()
        if text[:1] == "<":
            words = f"{self.url} answers with a web page: {excerpt(text, 80)}"
            return _error(ErrorClass.MISCONFIGURED, words, "html", status=200)
        if not text:
            return _error(ErrorClass.BAD_REPLY, "an empty answer", "empty", status=200)
        return _error(
            ErrorClass.BAD_REPLY, f"no JSON: {excerpt(text, 120)}", "bad_json", status=200
        )

    def _scrub(self, raw: bytes) -> bytes:
        """No key in an error's text, whatever the server echoes; before it is cut anywhere."""
        return self._redactor.data(raw)

    def _scrub_text(self, text: str) -> str:
        return self._redactor.text(text)

    def _cleaned(self, error: CallError) -> CallError:
        return msgspec.structs.replace(error, message=self._scrub_text(error.message))


def _head(method: str, target: str, headers: Mapping[str, Any]) -> bytes:
    lines = [f"{method} {target} HTTP/1.1".encode()]
    for name, value in headers.items():
        if name.lower() != "content-length":
            lines.append(
                name.encode()
                + b": "
                + (value if isinstance(value, bytes) else value.encode("latin-1"))
            )
    return b"".join(line + b"\r\n" for line in lines)


def _is_loopback(host: str) -> bool:
    """Whether a proxy could only lead elsewhere."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _error(kind: ErrorClass, message: str, reason: str, **fields: Any) -> CallError:
    return CallError(error=kind, message=excerpt(message), reason=reason, **fields)


def _causes(e: BaseException) -> Iterator[BaseException]:
    """An exception and all that it wraps; urllib3 and requests wrap in four ways."""
    waiting: list[object] = [e]
    seen: list[BaseException] = []
    while waiting and len(seen) < CAUSES_MAX:
        one = waiting.pop(0)
        if not isinstance(one, BaseException) or any(one is s for s in seen):
            continue
        seen.append(one)
        yield one
        waiting += [*one.args, getattr(one, "reason", None), one.__cause__, one.__context__]


#: Kinds of trouble below HTTP, the first that is found in the chain of causes decides.
_TROUBLE: Final[tuple[tuple[tuple[type[BaseException], ...], ErrorClass, str, str], ...]] = (
    (
        (ssl.SSLEOFError, ssl.SSLZeroReturnError),
        ErrorClass.TRANSIENT,
        "reset",
        "the connection broke",
    ),
    (
        (ssl.SSLError, requests.exceptions.SSLError, urllib3.exceptions.SSLError),
        ErrorClass.MISCONFIGURED,
        "tls",
        "TLS",
    ),
    (
        (socket.gaierror, urllib3.exceptions.NameResolutionError),
        ErrorClass.TRANSIENT,
        "dns",
        "the host name is not known",
    ),
    (
        (
            requests.exceptions.InvalidURL,
            requests.exceptions.InvalidSchema,
            requests.exceptions.MissingSchema,
            requests.exceptions.InvalidHeader,
            urllib3.exceptions.LocationValueError,
        ),
        ErrorClass.MISCONFIGURED,
        "bad_url",
        "no usable URL",
    ),
    ((http.client.IncompleteRead,), ErrorClass.BAD_REPLY, "cut", "the answer was cut off"),
    (
        (urllib3.exceptions.DecodeError,),
        ErrorClass.BAD_REPLY,
        "bad_encoding",
        "the answer cannot be decompressed",
    ),
    (
        (ConnectionRefusedError, urllib3.exceptions.NewConnectionError),
        ErrorClass.TRANSIENT,
        "connect",
        "no connection",
    ),
    (
        (requests.exceptions.ConnectTimeout, urllib3.exceptions.ConnectTimeoutError),
        ErrorClass.TRANSIENT,
        "connect",
        "no connection in time",
    ),
    (
        (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError, TimeoutError),
        ErrorClass.TRANSIENT,
        "timeout",
        "no complete answer in time",
    ),
    (
        (http.client.RemoteDisconnected, ConnectionError),
        ErrorClass.TRANSIENT,
        "reset",
        "the connection broke",
    ),
    (
        (http.client.HTTPException,),
        ErrorClass.MISCONFIGURED,
        "not_http",
        "the answer is no HTTP",
    ),
)


_WRAPPERS: Final = (requests.RequestException, urllib3.exceptions.HTTPError)


def _transport_error(e: Exception) -> CallError:
    """No HTTP answer came, or it broke off."""
    causes = list(_causes(e))
    # What the operating system said; the libraries around it repeat the URL and name themselves.
    own = [c for c in causes if not isinstance(c, _WRAPPERS)]
    deepest = (own or causes)[-1]
    text = f"{type(deepest).__name__}: {deepest}"
    if not isinstance(e, requests.RequestException) and "TLS" in text:
        return _error(ErrorClass.MISCONFIGURED, text, "tls", answered=False)  # no such CA file
    if "Tunnel connection failed" in text:
        return _error(ErrorClass.MISCONFIGURED, f"proxy: {text}", "proxy", answered=False)
    for types, kind, reason, words in _TROUBLE:
        if any(isinstance(cause, types) for cause in causes):
            answered = kind is ErrorClass.BAD_REPLY
            return _error(kind, f"{words} ({text})", reason, answered=answered)
    return _error(ErrorClass.TRANSIENT, f"the connection broke ({text})", "reset", answered=False)
