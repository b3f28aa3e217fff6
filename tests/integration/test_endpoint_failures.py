"""One call against a real server that does everything a server can do wrong."""

from __future__ import annotations

import gzip
import socket
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from rsd.errors import ErrorClass
from rsd.protocol.vocabulary import CallError, Usage
from rsd.workers.api import client as api
from rsd.workers.api.client import chat_body
from rsd.workers.api.replies import CallFailed
from rsd.workers.api.transport import MAX_BODY_BYTES
from tests.integration.calls import COMPLETION, KEY, call, client
from tests.servers import HEAD, PATIENCE, Request, Script, drip, raw, says, serving

E = ErrorClass


def failure(url: str, timeout: float = 5.0, **fields: str) -> CallError:
    with pytest.raises(CallFailed) as caught:
        client(url, timeout, **fields).chat(chat_body("m", None, "hello", {}))
    error = caught.value.error
    assert KEY not in repr(error)
    assert len(error.message) <= 300
    assert error.message.isprintable()
    return error


def failed(script: Script, timeout: float = 5.0) -> CallError:
    with serving(script) as server:
        return failure(server.url, timeout)


# ------------------------------------------------------------------------------------ bad answers


def reset(request: Request) -> None:
    linger = struct.pack("ii", 1, 0)
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    request.close_connection = True
    request.connection.close()


BAD: dict[str, tuple[Script, ErrorClass, str]] = {
    "empty": (lambda r: r.answer(200, b""), E.BAD_REPLY, "empty"),
    "white space": (lambda r: r.answer(200, b" \n"), E.BAD_REPLY, "empty"),
    "text": (lambda r: r.answer(200, b"busy"), E.BAD_REPLY, "bad_json"),
    "half JSON": (lambda r: r.answer(200, COMPLETION[:40]), E.BAD_REPLY, "bad_json"),
    "deep JSON": (lambda r: r.answer(200, b"[" * 100_000), E.BAD_REPLY, "bad_json"),
    "a list": (lambda r: r.answer(200, []), E.BAD_REPLY, "bad_json"),
    "null": (lambda r: r.answer(200, b"null"), E.BAD_REPLY, "bad_json"),
    "events": (lambda r: r.answer(200, b"data: {}\n\n"), E.BAD_REPLY, "bad_json"),
    "no choices": (says(), E.BAD_REPLY, "no_choices"),
    "choices null": (says(choices=None), E.BAD_REPLY, "no_choices"),
    "odd choice": (says(choices=[17]), E.BAD_REPLY, "null_content"),
    "null content": (says(None), E.BAD_REPLY, "null_content"),
    "numeric content": (says(85), E.BAD_REPLY, "null_content"),
    "error in 200": (
        lambda r: r.answer(200, {"error": {"code": 502}}),
        E.TRANSIENT,
        "server_error",
    ),
    "error in choice": (
        says(choices=[{"error": {"message": "provider broke"}, "message": {}}]),
        E.BAD_REPLY,
        "error_in_200",
    ),
    "HTML": (lambda r: r.answer(200, b"<html>Log in</html>"), E.MISCONFIGURED, "html"),
    "cut": (
        lambda r: raw(HEAD + b"Content-Length: 9999\r\n\r\n" + COMPLETION)(r),
        E.BAD_REPLY,
        "cut",
    ),
    "chunks cut": (
        raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n50\r\n{"),
        E.BAD_REPLY,
        "cut",
    ),
    "bad gzip": (
        lambda r: r.answer(200, b"not gzip", Content_Encoding="gzip"),
        E.BAD_REPLY,
        "bad_encoding",
    ),
    "reset": (reset, E.TRANSIENT, "reset"),
    "closed": (raw(b""), E.TRANSIENT, "reset"),
    "no HTTP": (raw(b"SSH-2.0-OpenSSH_9.6\r\n"), E.MISCONFIGURED, "not_http"),
    "401": (lambda r: r.answer(401, {"error": "Unauthorized"}), E.MISCONFIGURED, "unauthorized"),
    "404": (lambda r: r.answer(404, {"detail": "Not Found"}), E.MISCONFIGURED, "not_found"),
    "404 page": (lambda r: r.answer(404, b"<html>"), E.MISCONFIGURED, "not_found"),
    "413 page": (lambda r: r.answer(413, b"<html>"), E.TOO_BIG, "too_large"),
    "502 page": (lambda r: r.answer(502, b"<html>"), E.TRANSIENT, "server_error"),
    "500 cut": (
        raw(b"HTTP/1.1 500 Oops\r\nContent-Length: 9999\r\n\r\nhalf"),
        E.TRANSIENT,
        "server_error",
    ),
    "quota": (
        lambda r: r.answer(429, {"error": {"code": "insufficient_quota", "message": "x"}}),
        E.QUOTA,
        "quota",
    ),
    "400": (lambda r: r.answer(400, {"error": {"message": "odd"}}), E.REFUSED, "bad_request"),
}


@pytest.mark.parametrize(("script", "kind", "reason"), BAD.values(), ids=BAD.keys())
def test_bad_answers_get_their_class(script: Script, kind: ErrorClass, reason: str) -> None:
    error = failed(script)
    assert (error.error, error.reason) == (kind, reason), error
    no_answer = reason in ("reset", "not_http")
    assert error.answered is not no_answer


def test_a_rate_limit_says_how_long() -> None:
    body = {"error": {"code": "insufficient_quota", "message": "per minute"}}
    error = failed(lambda r: r.answer(429, body, Retry_After="7"))
    assert (error.error, error.retry_after) == (E.RATE_LIMITED, 7.0)


def test_a_failed_answer_is_paid_for_all_the_same() -> None:
    with serving(says(None)) as server, pytest.raises(CallFailed) as caught:
        call(server)
    assert caught.value.usage == Usage(input_tokens=66, output_tokens=16)


def test_a_redirect_is_not_followed() -> None:
    with serving(says("x")) as other:
        where = f"{other.url}/chat/completions?key={KEY}"
        for status in (301, 302, 303, 307, 308):
            error = failed(lambda r, s=status: r.answer(s, b"", Location=where))  # type: ignore[misc]
            assert (error.error, error.reason) == (E.MISCONFIGURED, "redirect")
            assert other.url in error.message
        assert other.requests == []


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": f"Incorrect API key provided: {KEY}"}},
        {"error": {"message": "x" * 290 + KEY}},
        {"error": KEY},
        {"detail": f"Bearer {KEY}"},
        {"choices": [{"error": {"message": f"key {KEY}"}}]},
    ],
)
def test_the_key_is_in_no_error(body: Any) -> None:
    for status in (200, 400, 401, 500):
        error = failed(lambda r, s=status: r.answer(s, body))  # type: ignore[misc]
        assert KEY[:12] not in repr(error)
    plain = failed(lambda r: r.answer(502, f"upstream said {KEY}".encode()))
    assert KEY not in repr(plain)
    assert KEY not in repr(client("http://127.0.0.1:1/v1").endpoint)


def test_a_key_with_a_line_break_is_named_but_not_shown() -> None:
    with serving(says("x")) as server:
        with pytest.raises(CallFailed) as caught:
            client(server.url, key="sk-one\nsk-two").chat((b"{}",))
        assert server.requests == []
        client(server.url, key="schlüssel\n").chat((b"{}",))  # of a file with a last line break
    error = caught.value.error
    assert (error.error, error.reason) == (E.MISCONFIGURED, "unauthorized")
    assert "sk-" not in error.message


# ---------------------------------------------------------------------------------- time and size


def hang(request: Request) -> None:
    request.server.over.wait(PATIENCE)


SLOW: dict[str, Script] = {
    "no answer": hang,
    "status line drips": drip(b"HTTP/1.1 200 ", b"O"),
    "headers drip": drip(HEAD + b"X-Padding: ", b"x"),
    "interim answers without end": drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "chunks drip": drip(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "the length of a chunk drips": drip(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
    "trailers drip": drip(HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"x"),
    "headers, then nothing": lambda r: (
        r.wfile.write(HEAD + b"Content-Length: 9999\r\n\r\n"),
        hang(r),
    )[1],
    "body drips": drip(HEAD + b"Content-Length: 99999\r\n\r\n"),
    "body drips until closed": drip(HEAD + b"Connection: close\r\n\r\n"),
    "error drips": drip(b"HTTP/1.1 500 Oops\r\nContent-Length: 99999\r\n\r\n"),
}


@pytest.mark.parametrize("script", SLOW.values(), ids=SLOW.keys())
def test_the_time_of_a_call_is_a_total(script: Script) -> None:
    with serving(script) as server:
        began = time.monotonic()
        error = failure(server.url, timeout=0.4)
        took = time.monotonic() - began
    assert (error.error, error.reason, error.answered) == (E.TRANSIENT, "timeout", False)
    assert 0.3 < took < 2.0


def test_a_late_body_does_not_double_the_time() -> None:
    def late(request: Request) -> None:
        request.server.over.wait(0.6)
        request.wfile.write(HEAD + b"Content-Length: 9999\r\n\r\n{")
        hang(request)

    with serving(late) as server:
        began = time.monotonic()
        assert failure(server.url, timeout=1.0).reason == "timeout"
        assert time.monotonic() - began < 1.5


def test_metrics_that_hang_do_not_take_the_time_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "LOAD_SECONDS", 0.3)
    with serving(hang) as server, pytest.raises(CallFailed) as caught:
        began = time.monotonic()
        client(server.url, timeout=PATIENCE).load()
    assert caught.value.error.reason == "timeout"
    assert time.monotonic() - began < PATIENCE / 2


def test_headers_behind_a_proxy_have_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for script in (drip(HEAD + b"X-Padding: ", b"x"), drip(b"HTTP/1.1 200 ", b"O")):
        with serving(script) as proxy:
            for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"):
                monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
            for url in ("http://far.invalid/v1", "https://far.invalid/v1"):
                began = time.monotonic()
                assert failure(url, timeout=0.4).error is E.TRANSIENT
                assert time.monotonic() - began < PATIENCE, url
            assert {seen.command for seen in proxy.requests} == {"POST", "CONNECT"}


def test_what_comes_slowly_but_in_time_is_whole() -> None:
    packed = gzip.compress(COMPLETION)

    def slowly(request: Request) -> None:
        head = HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
        data = head + packed
        for k in range(0, len(data), 7):
            request.wfile.write(data[k : k + 7])
            request.server.over.wait(0.002)

    with serving(slowly) as server:
        shared = client(server.url, timeout=30.0)
        for _ in range(2):  # the second over the connection of the first
            assert shared.chat((b"{}",)).choices[0].content == "A --> B"


def test_a_body_without_end_is_left() -> None:
    piece = b"x" * 1_000_000

    def endless(request: Request) -> None:
        request.close_connection = True
        request.wfile.write(HEAD + b"\r\n")
        while not request.server.over.is_set():
            request.wfile.write(piece)

    error = failed(endless, timeout=20.0)
    assert (error.error, error.reason) == (E.BAD_REPLY, "body_too_big")


def test_a_gzip_bomb_is_left() -> None:
    bomb = gzip.compress(b" " * (MAX_BODY_BYTES * 8))
    assert len(bomb) < MAX_BODY_BYTES / 50
    error = failed(lambda r: r.answer(200, bomb, Content_Encoding="gzip"), timeout=20.0)
    assert (error.error, error.reason) == (E.BAD_REPLY, "body_too_big")


# -------------------------------------------------------------------------------- below the HTTP


def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_nobody_listens() -> None:
    error = failure(f"http://127.0.0.1:{closed_port()}/v1")
    assert (error.error, error.reason, error.answered) == (E.TRANSIENT, "connect", False)


def test_a_host_without_a_name() -> None:
    error = failure("http://no-such-host.invalid/v1", timeout=20.0)
    assert (error.error, error.reason, error.answered) == (E.TRANSIENT, "dns", False)


def test_tls_against_a_plain_server() -> None:
    with serving(says("x")) as server:
        error = failure(server.url.replace("http:", "https:"))
    assert (error.error, error.reason) == (E.MISCONFIGURED, "tls")


def test_a_missing_ca_file(tmp_path: Path) -> None:
    error = failure("https://127.0.0.1:1/v1", ca_file=str(tmp_path / "none.pem"))
    assert (error.error, error.reason) == (E.MISCONFIGURED, "tls")


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/v1", "127.0.0.1:8000/v1", "http:///v1"])
def test_no_usable_url(url: str) -> None:
    assert failure(url).error is E.MISCONFIGURED


def test_user_and_password_of_an_url_are_not_shown() -> None:
    with serving(lambda r: r.answer(404, b"<html>")) as server:
        error = failure(server.url.replace("//", "//joe:hunter2@"))
    assert "hunter2" not in repr(error)
