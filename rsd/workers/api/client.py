"""One HTTP call to a chat-completions endpoint, and the class of what went wrong.

How bytes cross the connection is in `http1.py`. Retries are the brain's business, so there are none
here, and redirects are not followed (the key must not travel to another host). What a body means
is read in `replies.py` and `refusals.py`.
"""

from __future__ import annotations

import contextlib
import ipaddress
import math
import re
import time
from collections.abc import Mapping
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
from rsd.workers.api.http1 import ConnectionPool
from rsd.workers.api.rate_headers import rate_windows
from rsd.workers.api.refusals import classify_status, excerpt
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
from rsd.workers.api.transport import (
    Answer,
    AnswerTooLong,
    Body,
    ExchangeFailed,
    Piece,
    Transport,
)
from rsd.workers.api.transport_errors import call_error, transport_error

#: vLLM's metrics lie beside /v1, not below it.
METRICS: Final = "/metrics"
#: Longest time for a look at the metrics, in seconds: they come at once or are of no use.
LOAD_SECONDS: Final = 5.0
#: Most names of pictures that a server may hold.
HELD_MAX: Final = 10_000

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


class _Route(NamedTuple):
    """A path of an endpoint: what leads there, and a request's head for it."""

    transport: Transport
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
        self._transports: dict[int, Transport] = {}
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
        self._routes: dict[str, _Route] = {}
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
            route = self._route(method, path)
            answer = route.transport.exchange(route.head, body or (), seconds)
        except ExchangeFailed as e:
            error = self._broken(e.__cause__, e.status)
            refused = e.status is not None and not 200 <= e.status < 300
            if not refused or error.reason == "timeout":
                raise CallFailed(self._cleaned(error)) from None
            answer = Answer(e.status or 0, e.headers, e.body)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as e:
            raise CallFailed(self._cleaned(transport_error(e))) from None
        if 200 <= answer.status < 300:
            return answer.body, answer.headers
        raise CallFailed(self._cleaned(self._refusal(answer, self._scrub(answer.body), path)))

    def _broken(self, e: BaseException | None, status: int | None) -> CallError:
        if isinstance(e, AnswerTooLong):
            return call_error(ErrorClass.BAD_REPLY, str(e), "body_too_big", status=status)
        assert isinstance(e, Exception)
        return transport_error(e)

    def _route(self, method: str, path: str) -> _Route:
        """How a path is reached: requests finds out about proxies, certificates and headers, once;
        the calls then go over the connections that it names.
        """
        if _UNPRINTABLE.search(self._key):
            text = "the API key holds a line break or another control character"
            raise CallFailed(
                call_error(ErrorClass.MISCONFIGURED, text, "unauthorized", answered=False)
            )
        route = self._routes.get(path)
        if route is None:
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
            transport = self._transports.setdefault(id(pool), ConnectionPool(pool, self._pool_size))
            route = self._routes[path] = _Route(transport, _head(method, target, headers))
        return route

    def _refusal(self, response: Answer, raw: bytes, path: str) -> CallError:
        status = response.status
        if 300 <= status < 400:
            where = excerpt(self._scrub_text(response.headers.get("location", "nowhere")), 120)
            text = f"{status}: {self.url} redirects to {where}; not followed"
            return call_error(ErrorClass.MISCONFIGURED, text, "redirect", status=status)
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
            return call_error(ErrorClass.MISCONFIGURED, words, "html", status=200)
        if not text:
            return call_error(ErrorClass.BAD_REPLY, "an empty answer", "empty", status=200)
        return call_error(
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
