"""One HTTP call to a chat-completions endpoint, and the class of what went wrong.

The total time of a call covers every byte of the answer, from its status line on: each read of the
socket is given what is left of it. Retries are the brain's business, so the adapter does none, and
redirects are not followed (the key must not travel to another host). What a body means is read in
`replies.py` and `refusals.py`.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import io
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
from urllib3.poolmanager import PoolManager
from urllib3.response import BaseHTTPResponse
from urllib3.util.timeout import Timeout

from rsd.errors import ErrorClass
from rsd.messages import Endpoint
from rsd.redact import Redactor
from rsd.vocabulary import CallError
from rsd.workers.refusals import allowances, classify_status, excerpt
from rsd.workers.replies import (
    CallFailed,
    Load,
    Models,
    Reply,
    decode,
    read_load,
    read_models,
    read_reply,
)

#: Longest answer body in bytes, before and after decompression; 2,048 tokens are a few kilobytes.
MAX_BODY_BYTES: Final = 16 * 1024 * 1024
#: vLLM's metrics lie beside /v1, not below it.
METRICS: Final = "/metrics"
#: Most names of pictures that a server may hold.
HELD_MAX: Final = 10_000
#: Most bytes taken from the connection at once.
CHUNK_BYTES: Final = 64 * 1024
#: Longest time for the connection itself and for sending the request, in seconds.
CONNECT_SECONDS: Final = 30.0
#: Most exceptions looked at in a chain of causes.
CAUSES_MAX: Final = 16

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")


#: A request's body in pieces.
Body = tuple[bytes, ...]


def chat_body(
    model: str,
    data_url: bytes | None,
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
    parts: list[bytes] = [b'{"model":', encode(model), b',"messages":[{"role":"user","content":[']
    name = b',"uuid":' + encode(uuid) if uuid else b""
    if data_url is not None:
        parts += [b'{"type":"image_url","image_url":{"url":"', data_url]
        parts += [b'","detail":"high"}' if detail else b'"}', name, b"},"]
    elif uuid:
        parts += [b'{"type":"image_url","image_url":null', name, b"},"]
    safe = text.encode("utf-8", "replace").decode()  # a lone surrogate is not to be had as JSON
    parts += [b'{"type":"text","text":', encode(safe), b"}]}]"]
    rest = encode(parameters)
    parts.append(b"}" if rest == b"{}" else b"," + rest[1:])
    if data_url is None:
        return (b"".join(parts),)
    at = parts.index(
        data_url
    )  # sent from where it lies: copying megabytes costs as much as sending
    return b"".join(parts[:at]), data_url, b"".join(parts[at + 1 :])


class _Way(NamedTuple):
    """A path of an endpoint: the pool that connects to it, what to ask for there, the headers."""

    pool: Any  #: urllib3's, of the kind that requests chose
    url: str
    headers: Any  #: names to values; the key is bytes, as requests leaves it


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


class _Timed(io.RawIOBase):
    """What a socket receives, until the time-out that the socket had at the start is over in all.

    A time-out of a socket is one of silence: a server that drips would never meet it.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)
        seconds = sock.gettimeout()
        self._deadline = math.inf if seconds is None else time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer did not end within the time of a call")
        self._sock.settimeout(None if left == math.inf else left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        super().close()
        self._raw.close()


class _Source:
    """Stands for a socket where http.client wants a file of it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Timed(self._sock))


class _Response(http.client.HTTPResponse):
    """An answer whose status line, headers and body share one deadline."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(_Source(sock), *args, **kwargs)  # type: ignore[arg-type]


@functools.cache
def _timed(pool: type[HTTPConnectionPool]) -> type[HTTPConnectionPool]:
    """The same kind of pool, of connections that read their answers so."""
    if getattr(pool.ConnectionCls, "response_class", None) is _Response:
        return pool
    kind = pool.ConnectionCls
    connection = type(kind.__name__, (kind,), {"response_class": _Response})
    return type(pool.__name__, (pool,), {"ConnectionCls": connection})


class _Adapter(HTTPAdapter):
    """requests' adapter over such pools, with a proxy or without."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self._time(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs)
        self._time(manager)
        return manager

    @staticmethod
    def _time(manager: PoolManager) -> None:
        kinds = manager.pool_classes_by_scheme
        manager.pool_classes_by_scheme = {name: _timed(pool) for name, pool in kinds.items()}


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
        self._adapter = _Adapter(pool_connections=1, pool_maxsize=pool_size, max_retries=0)
        self._headers: dict[str, str | bytes] = {
            "Content-Type": "application/json",
            "Accept": "application/json, text/plain;q=0.5",
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
        left = allowances(headers, time.time())
        return msgspec.structs.replace(reply, allowances=left) if left else reply

    def models(self) -> Models:
        """The models that are served. Raises CallFailed."""
        raw, _ = self._call("GET", "/models", None)
        data = decode(raw)
        if data is None:
            raise CallFailed(self._no_json(raw))
        return read_models(data)

    def load(self) -> Load:
        """How full the server is by its own account. Raises CallFailed."""
        return read_load(self._call("GET", METRICS, None)[0])

    def _call(self, method: str, path: str, body: Body | None) -> tuple[bytes, Mapping[str, str]]:
        """The body of a 2xx and its headers. Raises CallFailed for all else."""
        seconds = self.endpoint.timeout
        response: BaseHTTPResponse | None = None
        parts: list[bytes] = []
        try:
            way = self._way(method, path)
            headers = way.headers
            if body is not None:
                headers = {**headers, "Content-Length": str(sum(map(len, body)))}
            response = way.pool.urlopen(
                method,
                way.url,
                body=body,
                headers=headers,
                redirect=False,
                assert_same_host=False,
                preload_content=False,
                decode_content=False,
                retries=False,
                timeout=Timeout(total=seconds, connect=min(CONNECT_SECONDS, seconds), read=seconds),
            )
            self._read(response, parts)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as e:
            error = _transport_error(e)
            refused = response is not None and not 200 <= response.status < 300
            if not refused or error.reason == "timeout":
                raise CallFailed(self._cleaned(error)) from None
        finally:
            if response is not None:
                response.close()
                response.release_conn()
        assert response is not None
        raw = b"".join(parts)
        if 200 <= response.status < 300:
            return raw, response.headers
        raise CallFailed(self._cleaned(self._refusal(response, self._scrub(raw), path)))

    def _way(self, method: str, path: str) -> _Way:
        """How a path is reached: requests finds out about proxies, certificates and headers, once;
        the calls then go straight to the connection pool that it names.
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
            self._adapter.cert_verify(pool, url, self._verify, None)  # type: ignore[no-untyped-call]
            self._adapter.add_headers(request)
            target = self._adapter.request_url(request, self._proxies)
            headers = {k: v for k, v in request.headers.items() if k.lower() != "content-length"}
            way = self._ways[path] = _Way(pool, target, headers)
        return way

    def _read(self, response: BaseHTTPResponse, parts: list[bytes]) -> None:
        size = 0
        while True:
            # read1 returns what has come; read would wait for a full chunk, however slow the drip.
            part = response.read1(CHUNK_BYTES, decode_content=True)
            if not part:
                return
            size += len(part)
            if size > MAX_BODY_BYTES:
                text = f"the answer is longer than {MAX_BODY_BYTES} bytes"
                raise CallFailed(
                    _error(ErrorClass.BAD_REPLY, text, "body_too_big", status=response.status)
                )
            parts.append(part)

    def _refusal(self, response: BaseHTTPResponse, raw: bytes, path: str) -> CallError:
        status = response.status
        if 300 <= status < 400:
            where = excerpt(self._scrub_text(response.headers.get("Location", "nowhere")), 120)
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
