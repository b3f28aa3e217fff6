"""Requests and answers on the wire: cut anywhere, framed in every way, connections kept."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import socket
import ssl
import subprocess
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import urllib3.exceptions
from hypothesis import given
from hypothesis import strategies as st
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from rsd.workers.api import http1
from rsd.workers.api.answer_reader import MAX_HEAD_BYTES, MEMBERS_MAX, AnswerReader
from rsd.workers.api.http1 import ConnectionPool
from rsd.workers.api.transport import MAX_BODY_BYTES, Answer, AnswerTooLong, ExchangeFailed

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\n"
BODY = b'{"answer": "A --> B"}'
PATIENCE = 20.0

Script = Callable[[socket.socket, bytes], bool]


def read_request(sock: socket.socket) -> bytes:
    """One whole request; b"" when the client has left."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = sock.recv(65536)
        if not part:
            return b""
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    while len(body) < length:
        part = sock.recv(65536)
        if not part:
            return b""
        body += part
    return head + b"\r\n\r\n" + body


@contextmanager
def serving(script: Script) -> Iterator[tuple[ConnectionPool, list[bytes], list[socket.socket]]]:
    """A server of bare sockets: `script(sock, request)` answers; False ends the connection."""
    requests: list[bytes] = []
    accepted: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve(sock: socket.socket) -> None:
            with sock, contextlib.suppress(OSError):  # clients leave when they have had enough
                while request := read_request(sock):
                    requests.append(request)
                    if not script(sock, request):
                        return

        def accept() -> None:
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                accepted.append(sock)
                threading.Thread(target=serve, args=(sock,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        pool = HTTPConnectionPool("127.0.0.1", listener.getsockname()[1])
        connections = ConnectionPool(pool, 4)
        yield connections, requests, accepted
        listener.shutdown(socket.SHUT_RDWR)
        del connections
        pool.close()


def answering(data: bytes, *, stay: bool = True, pieces: list[int] | None = None) -> Script:
    def script(sock: socket.socket, request: bytes) -> bool:
        at = 0
        for size in pieces or [len(data)]:
            sock.sendall(data[at : at + size])
            at += size
        sock.sendall(data[at:])
        return stay

    return script


def framed(body: bytes, *lines: bytes) -> bytes:
    return b"".join((b"HTTP/1.1 200 OK\r\n", *(line + b"\r\n" for line in lines), b"\r\n", body))


def chunked(body: bytes, size: int = 5) -> bytes:
    parts = [body[k : k + size] for k in range(0, len(body), size)]
    rows = [b"%x\r\n%s\r\n" % (len(part), part) for part in parts]
    return b"".join((*rows, b"0\r\nX-Trailer: t\r\n\r\n"))


LENGTH = b"Content-Length: %d"
CHUNKED = b"Transfer-Encoding: chunked"
PACKED = gzip.compress(BODY)
RIGHT: dict[str, bytes] = {
    "a length": framed(BODY, LENGTH % len(BODY)),
    "chunks": framed(chunked(BODY), CHUNKED),
    "an interim answer": b"HTTP/1.1 100 Continue\r\n\r\n" + framed(BODY, LENGTH % len(BODY)),
    "two interim answers": b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 2
    + framed(BODY, LENGTH % len(BODY)),
    "gzip": framed(PACKED, LENGTH % len(PACKED), b"Content-Encoding: gzip"),
    "gzip in chunks": framed(chunked(PACKED), CHUNKED, b"CONTENT-ENCODING: GZIP"),
    "gzip in two members": framed(
        gzip.compress(BODY[:7]) + gzip.compress(BODY[7:]),
        LENGTH % len(gzip.compress(BODY[:7]) + gzip.compress(BODY[7:])),
        b"Content-Encoding: gzip",
    ),
    "deflate": framed(
        zlib.compress(BODY), LENGTH % len(zlib.compress(BODY)), b"Content-Encoding: deflate"
    ),
    "deflate without a head": framed(
        zlib.compress(BODY, wbits=-15),
        LENGTH % len(zlib.compress(BODY, wbits=-15)),
        b"Content-Encoding: deflate",
    ),
    "no words": b"HTTP/1.1 200\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY),
    "bare line feeds": b"HTTP/1.1 200 OK\nContent-Length: %d\n\n%s" % (len(BODY), BODY),
    "odd bytes in a header": framed(BODY, LENGTH % len(BODY), b"X-Odd: \xff\xfe"),
}
CLOSING: dict[str, bytes] = {
    "the end of the connection": framed(BODY, b"Connection: close"),
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\n\r\n" + BODY,
    "a length and a close": framed(BODY, LENGTH % len(BODY), b"Connection: close"),
}


@pytest.mark.parametrize("data", RIGHT.values(), ids=RIGHT.keys())
def test_every_framing_gives_the_body_and_keeps_the_connection(data: bytes) -> None:
    with serving(answering(data)) as (connections, requests, accepted):
        for _ in range(3):
            answer = connections.exchange(HEAD, (b"ab", b"cd"), PATIENCE)
            assert (answer.status, answer.body) == (200, BODY)
    assert requests == [HEAD + b"Content-Length: 4\r\n\r\nabcd"] * 3
    assert len(accepted) == 1


@pytest.mark.parametrize("data", CLOSING.values(), ids=CLOSING.keys())
def test_where_the_end_is_the_framing_each_call_has_its_connection(data: bytes) -> None:
    with serving(answering(data, stay=False)) as (connections, _, accepted):
        for _ in range(3):
            assert connections.exchange(HEAD, (b"x",), PATIENCE).body == BODY
    assert len(accepted) == 3


@pytest.mark.parametrize("more", [b"}", b"\r\n\r\nnonsense", b"HTTP/1.1 500 Another\r\n\r\n"])
def test_bytes_after_an_answer_spoil_neither_it_nor_the_next(more: bytes) -> None:
    with serving(answering(RIGHT["a length"] + more)) as (connections, _, accepted):
        for _ in range(3):
            answer = connections.exchange(HEAD, (b"x",), PATIENCE)
            assert (answer.status, answer.body) == (200, BODY)
    assert len(accepted) == 3


@given(data=st.sampled_from(list(RIGHT.values())), sizes=st.lists(st.integers(1, 40), max_size=8))
def test_an_answer_may_come_in_any_pieces(data: bytes, sizes: list[int]) -> None:
    with serving(answering(data, pieces=sizes)) as (connections, _, _):
        assert connections.exchange(HEAD, (b"x",), PATIENCE).body == BODY


@pytest.mark.parametrize("data", [RIGHT["a length"], RIGHT["chunks"], RIGHT["gzip in chunks"]])
def test_an_answer_cut_anywhere_is_never_taken_for_whole(data: bytes) -> None:
    for cut in range(len(data)):
        with serving(answering(data[:cut], stay=False)) as (connections, _, _):
            with pytest.raises(ExchangeFailed) as caught:
                connections.exchange(HEAD, (b"x",), PATIENCE)
            cause = caught.value.__cause__
            headed = b"\r\n\r\n" in data[:cut]
            kind = http.client.IncompleteRead if headed else http.client.BadStatusLine
            assert isinstance(cause, kind), cut
            assert caught.value.status == (200 if headed else None)


def test_a_connection_that_was_closed_while_idle_is_not_used_again() -> None:
    with serving(answering(RIGHT["a length"], stay=False)) as (connections, requests, accepted):
        for _ in range(5):
            assert connections.exchange(HEAD, (b"x",), PATIENCE).body == BODY
            accepted[-1].close()
            until_closed(connections)
    assert len(requests) == len(accepted) == 5


def until_closed(connections: ConnectionPool) -> None:
    """The end of the idle connection has arrived here."""
    for connection in connections._idle:
        connection.sock.settimeout(PATIENCE)
        assert connection.sock.recv(1, socket.MSG_PEEK) == b""


def test_an_answer_before_the_request_is_read_counts() -> None:
    """A server that finds the request too large answers, and hangs up without reading the rest."""
    refusal = b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig"
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            sock, _ = listener.accept()
            sock.recv(1000)
            sock.sendall(refusal)
            sock.shutdown(socket.SHUT_WR)
            with sock, contextlib.suppress(OSError):
                while sock.recv(65536):  # as good servers do: no reset before the answer is read
                    pass

        threading.Thread(target=serve, daemon=True).start()
        pool = HTTPConnectionPool("127.0.0.1", listener.getsockname()[1])
        answer = ConnectionPool(pool, 1).exchange(HEAD, (bytes(30_000_000),), PATIENCE)
        pool.close()
    assert answer == Answer(413, {"content-length": "3", "connection": "close"}, b"big")


def early(
    answer: bytes,
    after: bytes,
    pool_of: Callable[[int], ConnectionPool],
    tls: ssl.SSLContext | None = None,
) -> Answer:
    """The answer to 30 MB at a server that sends this after the first bytes and reads no more until
    there is something to send `after` the rest.
    """
    over = threading.Event()
    body = bytes(30_000_000)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            sock, _ = listener.accept()
            with contextlib.suppress(OSError), tls.wrap_socket(sock, True) if tls else sock as peer:
                got = len(peer.recv(1000))
                peer.sendall(answer)
                while after and got < len(body) + len(HEAD):
                    got += len(peer.recv(65536))
                peer.sendall(after)
                over.wait(PATIENCE)

        threading.Thread(target=serve, daemon=True).start()
        try:
            return pool_of(listener.getsockname()[1]).exchange(HEAD, (body,), PATIENCE)
        finally:
            over.set()


def plain(port: int) -> ConnectionPool:
    return ConnectionPool(HTTPConnectionPool("127.0.0.1", port), 1)


def test_an_answer_counts_though_the_server_reads_no_more() -> None:
    """It keeps the connection open: only the answer itself says that there is no use in sending."""
    began = time.monotonic()
    answer = early(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig", b"", plain)
    assert (answer.status, answer.body) == (413, b"big")
    assert time.monotonic() - began < PATIENCE / 2


def test_an_interim_answer_does_not_end_the_sending() -> None:
    answer = early(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", RIGHT["a length"], plain)
    assert (answer.status, answer.body) == (200, BODY)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, str]:
    """A server's side of TLS for 127.0.0.1, and the certificate that a client must trust."""
    path = tmp_path_factory.mktemp("tls") / "own.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=own", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(path.with_suffix(".key")), "-out", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path, path.with_suffix(".key"))
    return context, str(path)


@pytest.mark.parametrize("after", [b"", RIGHT["a length"]], ids=["a refusal", "a hint"])
def test_under_tls_what_comes_early_is_heard_as_well(
    after: bytes, tls: tuple[ssl.SSLContext, str]
) -> None:
    def trusting(port: int) -> ConnectionPool:
        return ConnectionPool(HTTPSConnectionPool("127.0.0.1", port, ca_certs=tls[1]), 1)

    refusal = b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig"
    hint = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    began = time.monotonic()
    answer = early(hint if after else refusal, after, trusting, tls[0])
    assert (answer.status, answer.body) == ((200, BODY) if after else (413, b"big"))
    assert time.monotonic() - began < PATIENCE / 2


# -------------------------------------------------------------------- connections that died idle

GONE = b""


def in_turn(*answers: bytes) -> tuple[Script, list[bytes]]:
    """Each request gets the next answer; what is no whole answer ends the connection."""
    left = list(answers)

    def script(sock: socket.socket, request: bytes) -> bool:
        answer = left.pop(0)
        sock.sendall(answer)
        return answer == RIGHT["a length"]

    return script, left


def test_a_request_that_crosses_the_end_of_an_idle_connection_is_sent_again() -> None:
    script, left = in_turn(RIGHT["a length"], GONE, RIGHT["a length"])
    with serving(script) as (connections, requests, accepted):
        for _ in range(2):
            assert connections.exchange(HEAD, (b"x",), PATIENCE).body == BODY
    assert (len(requests), len(accepted), left) == (3, 2, [])


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ((GONE,), "the connection was new"),
        ((RIGHT["a length"], GONE, GONE), "once is enough"),
        ((RIGHT["a length"], b"HTTP/1.1 2"), "an answer had begun"),
    ],
)
def test_no_other_request_is_sent_again(answers: tuple[bytes, ...], reason: str) -> None:
    script, left = in_turn(*answers)
    with serving(script) as (connections, requests, _):
        if answers[0] != GONE:
            connections.exchange(HEAD, (b"x",), PATIENCE)
        with pytest.raises(ExchangeFailed):
            connections.exchange(HEAD, (b"x",), PATIENCE)
    assert (len(requests), left) == (len(answers), []), reason


def test_what_took_long_is_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that dies of a request, or under it, has had it."""
    monkeypatch.setattr(http1, "STALE_SECONDS", -1.0)
    script, _ = in_turn(RIGHT["a length"], GONE, RIGHT["a length"])
    with serving(script) as (connections, requests, _):
        connections.exchange(HEAD, (b"x",), PATIENCE)
        with pytest.raises(ExchangeFailed):
            connections.exchange(HEAD, (b"x",), PATIENCE)
    assert len(requests) == 2


# ------------------------------------------------------------------------------------------ bounds


def test_trailers_change_no_header() -> None:
    trailers = b"0\r\nContent-Encoding: gzip\r\nX-Kind: b\r\nX-New: c\r\n\r\n"
    data = framed(chunked(BODY).partition(b"0\r\n")[0] + trailers, CHUNKED, b"X-Kind: a")
    with serving(answering(data)) as (connections, _, _):
        answer = connections.exchange(HEAD, (b"x",), PATIENCE)
    assert answer.body == BODY
    assert answer.headers == {"transfer-encoding": "chunked", "x-kind": "a"}


LONG = b"y" * (MAX_HEAD_BYTES + 100_000)
ENDLESS: dict[str, tuple[bytes, type[Exception]]] = {
    "interim answers": (
        b"HTTP/1.1 103 Hints\r\nX-Many: y\r\n\r\n" * (MAX_HEAD_BYTES // 20),
        http.client.LineTooLong,
    ),
    "trailers": (framed(b"1\r\n{\r\n0\r\n" + b"X: y\r\n" * len(LONG), CHUNKED), AnswerTooLong),
    "one trailer": (framed(b"1\r\n{\r\n0\r\nX: " + LONG, CHUNKED), AnswerTooLong),
    "the head of a chunk": (framed(b"1;x=" + LONG, CHUNKED), AnswerTooLong),
}


@pytest.mark.parametrize(("data", "kind"), ENDLESS.values(), ids=ENDLESS.keys())
def test_what_is_no_body_has_a_bound(data: bytes, kind: type[Exception]) -> None:
    with serving(answering(data)) as (connections, _, _):
        with pytest.raises(ExchangeFailed) as caught:
            connections.exchange(HEAD, (b"x",), PATIENCE)
        assert isinstance(caught.value.__cause__, kind)


def test_a_body_in_tiny_chunks_takes_no_more_memory_than_its_bytes() -> None:
    size = 2_000_000
    data = framed(b"2\r\nab\r\n" * (size // 2) + b"0\r\n\r\n", CHUNKED)
    reader = AnswerReader()
    reader.expect()
    tracemalloc.start()
    try:
        for at in range(0, len(data), http1.CHUNK_BYTES):
            reader.take(data[at : at + http1.CHUNK_BYTES])
        assert tracemalloc.get_traced_memory()[1] < 2 * size
    finally:
        tracemalloc.stop()
    assert reader.done and reader.whole() == b"ab" * (size // 2)


def test_gzip_members_cost_what_they_weigh() -> None:
    text = zlib.compress(b"x", 0) * 100  # members of more than a kilobyte
    members = gzip.compress(text, 0) * (MEMBERS_MAX - 1) + gzip.compress(b"") + bytes(10)
    data = framed(members, LENGTH % len(members), b"Content-Encoding: gzip")
    with serving(answering(data)) as (connections, _, _):
        began = time.thread_time()
        answer = connections.exchange(HEAD, (b"x",), PATIENCE)
        assert time.thread_time() - began < 2.0
    assert answer.body == text * (MEMBERS_MAX - 1)


def test_empty_gzip_members_are_not_endless() -> None:
    members = gzip.compress(b"") * 100_000
    data = framed(members, LENGTH % len(members), b"Content-Encoding: gzip")
    with serving(answering(data)) as (connections, _, _):
        with pytest.raises(ExchangeFailed) as caught:
            connections.exchange(HEAD, (b"x",), PATIENCE)
        assert isinstance(caught.value.__cause__, urllib3.exceptions.DecodeError)


def test_what_is_too_long_is_left() -> None:
    many = b"HTTP/1.1 200 OK\r\n" + b"X-Many: y\r\n" * (MAX_HEAD_BYTES // 8)
    bomb = gzip.compress(bytes(MAX_BODY_BYTES + 1))
    for data, kind in (
        (many, http.client.LineTooLong),
        (framed(bytes(MAX_BODY_BYTES + 1), LENGTH % (MAX_BODY_BYTES + 1)), AnswerTooLong),
        (framed(bomb, LENGTH % len(bomb), b"Content-Encoding: gzip"), AnswerTooLong),
    ):
        with serving(answering(data)) as (connections, _, _):
            with pytest.raises(ExchangeFailed) as caught:
                connections.exchange(HEAD, (b"x",), PATIENCE)
            assert isinstance(caught.value.__cause__, kind)


@given(st.binary(max_size=200))
def test_no_bytes_do_harm(data: bytes) -> None:
    with serving(answering(data, stay=False)) as (connections, _, _):
        try:
            answer = connections.exchange(HEAD, (b"x",), PATIENCE)
        except ExchangeFailed as e:
            assert isinstance(
                e.__cause__, OSError | http.client.HTTPException | urllib3.exceptions.HTTPError
            )
        else:
            assert data.startswith((b"HTTP/", b"\r\nHTTP/", b"\nHTTP/")) and answer.status >= 200


def test_connections_are_closed_with_their_owner() -> None:
    left = threading.Event()

    def script(sock: socket.socket, request: bytes) -> bool:
        sock.sendall(RIGHT["a length"])
        sock.settimeout(PATIENCE)
        if sock.recv(1) == b"":
            left.set()
        return False

    with serving(script) as (connections, _, _):
        own = ConnectionPool(connections._pool, 1)
        own.exchange(HEAD, (b"x",), PATIENCE)
        assert not left.is_set()
        del own
        assert left.wait(PATIENCE)
