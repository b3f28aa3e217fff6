"""The class of what went wrong below HTTP, or of an answer that broke off. Pure."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Iterator
from typing import Any, Final

import requests
import urllib3.exceptions

from rsd.errors import ErrorClass
from rsd.protocol.vocabulary import CallError
from rsd.workers.api.refusals import excerpt

#: Most exceptions looked at in a chain of causes.
CAUSES_MAX: Final = 16


def call_error(kind: ErrorClass, message: str, reason: str, **fields: Any) -> CallError:
    """An error whose text is fit for a log line."""
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


def transport_error(e: Exception) -> CallError:
    """No HTTP answer came, or it broke off."""
    causes = list(_causes(e))
    # What the operating system said; the libraries around it repeat the URL and name themselves.
    own = [c for c in causes if not isinstance(c, _WRAPPERS)]
    deepest = (own or causes)[-1]
    text = f"{type(deepest).__name__}: {deepest}"
    if not isinstance(e, requests.RequestException) and "TLS" in text:
        return call_error(ErrorClass.MISCONFIGURED, text, "tls", answered=False)  # no such CA file
    if "Tunnel connection failed" in text:
        return call_error(ErrorClass.MISCONFIGURED, f"proxy: {text}", "proxy", answered=False)
    for types, kind, reason, words in _TROUBLE:
        if any(isinstance(cause, types) for cause in causes):
            answered = kind is ErrorClass.BAD_REPLY
            return call_error(kind, f"{words} ({text})", reason, answered=answered)
    return call_error(
        ErrorClass.TRANSIENT, f"the connection broke ({text})", "reset", answered=False
    )
