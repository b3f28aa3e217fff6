"""One request and its answer over a kept connection: HTTP/1.1, bounded in time and size.

requests and urllib3 know how an endpoint is reached (names, TLS, proxies, certificates); they open
the connections. What then crosses them is written and read here, because their own way costs three
times as much CPU for a body of 400 kB (docs/decisions/0006-calls.md). Answers are parsed by
httptools, which is node's parser.

One deadline covers all: the connection, each piece of the request, each byte of the answer. A
time-out of a socket is one of silence, and a server that drips would never meet it.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import mmap
import select
import socket
import time
import weakref
import zlib
from collections import deque
from typing import Any, Final, NamedTuple

import httptools
import urllib3.exceptions
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.util.proxy import connection_requires_http_tunnel
from urllib3.util.timeout import Timeout

#: Longest answer body in bytes, before and after decompression; 2,048 tokens are a few kilobytes.
MAX_BODY_BYTES: Final = 16 * 1024 * 1024
#: Longest status line and headers of an answer, in bytes.
MAX_HEAD_BYTES: Final = 256 * 1024
#: Longest time for the connection itself, in seconds.
CONNECT_SECONDS: Final = 30.0
#: Most bytes taken from the connection at once.
CHUNK_BYTES: Final = 64 * 1024
#: What zlib takes for "gzip or zlib, as its head says", and for deflate without a head.
_ANY_WRAPPER: Final = zlib.MAX_WBITS | 32
_BARE: Final = -zlib.MAX_WBITS

#: A request's body in pieces, sent from where they lie: copying megabytes costs as much as sending.
Piece = bytes | mmap.mmap
Body = tuple[Piece, ...]


class Answer(NamedTuple):
    """Status, headers (names in small letters, the last of equal ones), body decompressed."""

    status: int
    headers: dict[str, str]
    body: bytes


class Broken(Exception):
    """The exchange failed, which `__cause__` explains; `status` and `body` are what had come."""

    def __init__(self, status: int | None, headers: dict[str, str], body: bytes) -> None:
        super().__init__("broken")
        self.status, self.headers, self.body = status, headers, body


class TooLong(Exception):
    """The body passes MAX_BODY_BYTES."""


class Lines:
    """The connections to one endpoint; threads share it. `most`: connections kept while idle."""

    def __init__(self, pool: HTTPConnectionPool, most: int) -> None:
        self._pool = pool
        self._most = most
        self._idle: deque[Any] = deque()  # appended and popped at one end: the warmest first
        weakref.finalize(self, _close, self._idle)

    def exchange(self, head: bytes, body: Body, seconds: float) -> Answer:
        """Send a request (`head` ends before the empty line) and read its answer. Raises what
        urllib3 and the operating system raise while connecting, Broken afterwards.
        """
        deadline = time.monotonic() + seconds
        connection = self._connection(seconds)
        reading = _Reading()
        try:
            pieces = _framed(head, body)
            trouble = _send(connection.sock, pieces, deadline)
            _receive(connection.sock, reading, deadline, trouble)
            answer = Answer(reading.status, reading.headers, reading.whole())
        except (OSError, http.client.HTTPException, urllib3.exceptions.HTTPError, TooLong) as e:
            connection.close()
            status = reading.status if reading.headed else None
            raise Broken(status, reading.headers, b"".join(reading.parts)) from e
        except BaseException:
            connection.close()
            raise
        finally:
            reading.parser = None  # they hold each other
        if reading.kept and len(self._idle) < self._most:
            self._idle.append(connection)
        else:
            connection.close()
        return answer

    def _connection(self, seconds: float) -> Any:
        """A connection that is open: one that was left idle and is still sound, or a new one."""
        while self._idle:
            with contextlib.suppress(IndexError):
                kept = self._idle.pop()
                if not _stirs(kept.sock):
                    return kept
                kept.close()
        # What urlopen does for a new connection; it gives no way to do only that.
        pool = self._pool
        connection: Any = pool._new_conn()
        connection.timeout = Timeout.resolve_default_timeout(min(CONNECT_SECONDS, seconds))
        try:
            if pool.proxy is not None and connection_requires_http_tunnel(
                pool.proxy, pool.proxy_config, pool.scheme
            ):
                connection.response_class = _Response
                pool._prepare_proxy(connection)
            else:
                connection.connect()
        except BaseException:
            connection.close()
            raise
        return connection


class _Timed(io.RawIOBase):
    """What a socket receives until its time-out is over in all: the answer of a proxy that is asked
    for a tunnel is read by http.client, for which a time-out is one of silence.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._deadline = time.monotonic() + (sock.gettimeout() or CONNECT_SECONDS)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(_left(self._deadline))
        return self._sock.recv_into(buffer)


class _Source:
    """Stands for a socket where http.client wants a file of it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Timed(self._sock))


class _Response(http.client.HTTPResponse):
    """An answer whose status line and headers share one deadline."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(_Source(sock), *args, **kwargs)  # type: ignore[arg-type]


def _close(connections: deque[Any]) -> None:
    while connections:
        connections.pop().close()


def _stirs(sock: Any) -> bool:
    """Whether there is something to read where nothing is due: its end, most often."""
    waiting = select.poll()
    waiting.register(sock, select.POLLIN)
    return bool(waiting.poll(0))


def _framed(head: bytes, body: Body) -> list[Piece]:
    return [b"%sContent-Length: %d\r\n\r\n" % (head, sum(map(len, body))), *body]


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the answer did not end within the time of a call")
    return left


def _send(sock: Any, pieces: list[Piece], deadline: float) -> OSError | None:
    """Write all pieces. A server may answer and hang up before it has read all: that error is
    returned, the answer counts.
    """
    waiting = deque(memoryview(piece) for piece in pieces)
    gathers = type(sock) is socket.socket  # TLS takes one piece at a time
    try:
        while waiting:
            sock.settimeout(_left(deadline))
            sent = sock.sendmsg(waiting) if gathers else sock.send(waiting[0])
            while waiting and sent >= len(waiting[0]):
                sent -= len(waiting.popleft())
            if sent:
                waiting[0] = waiting[0][sent:]
    except (BrokenPipeError, ConnectionResetError) as e:
        return e
    return None


def _receive(sock: Any, reading: _Reading, deadline: float, trouble: OSError | None) -> None:
    """Read until the answer is whole. Raises what kept it from that."""
    parser = httptools.HttpResponseParser(reading)
    # What http.client forgives, and every browser.
    parser.set_dangerous_leniencies(
        lenient_headers=True,
        lenient_chunked_length=True,
        lenient_keep_alive=True,
        lenient_transfer_encoding=True,
        lenient_data_after_close=True,
        lenient_optional_cr_before_lf=True,
        lenient_spaces_after_chunk_size=True,
    )
    reading.parser = parser
    while not reading.done:
        sock.settimeout(_left(deadline))
        try:
            data = sock.recv(CHUNK_BYTES)
        except ConnectionResetError:
            raise trouble or ConnectionResetError("Connection reset by peer") from None
        if not data:
            reading.end()
            return
        reading.head_bytes += 0 if reading.headed else len(data)
        if not reading.headed and reading.head_bytes > MAX_HEAD_BYTES:
            raise http.client.LineTooLong("header")
        try:
            parser.feed_data(data)
        except httptools.HttpParserCallbackError as e:
            raise e.__context__ or e from None
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as e:
            if reading.done:  # what comes after the answer is none of ours
                reading.kept = False
                return
            if reading.headed:
                raise http.client.IncompleteRead(b"") from e
            raise http.client.BadStatusLine(_shown(reading.first or data)) from None
        reading.first = reading.first or data


def _shown(data: bytes) -> str:
    return data.partition(b"\n")[0][:80].decode("latin-1")


class _Reading:
    """What the parser says of an answer."""

    def __init__(self) -> None:
        self.parser: Any = None
        self.status = 0
        self.headers: dict[str, str] = {}
        self.parts: list[bytes] = []
        self.headed = False  #: the headers are whole
        self.done = False
        self.kept = False  #: the connection may be used again
        self.head_bytes = self._size = 0
        self.first = b""  #: what came first, for a message

    @property
    def open_ended(self) -> bool:
        """Whether only the end of the connection ends the body."""
        return not self.headers.keys() & {"content-length", "transfer-encoding"}

    def on_message_begin(self) -> None:
        """One answer was asked for: where another follows nobody knows what the next will be."""
        if self.done:
            self.kept = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header line."""
        if self.done:
            return
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """The body follows, unless it was an interim answer."""
        if self.done:
            return
        self.status = self.parser.get_status_code()
        if self.status < 200:
            self.headers = {}
            return
        self.headed = True

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        if self.done:
            return
        self._size += len(data)
        if self._size > MAX_BODY_BYTES:
            raise TooLong
        self.parts.append(data)

    def on_message_complete(self) -> None:
        """An interim answer or the answer itself is whole."""
        if self.headed and not self.done:
            self.done = True
            self.kept = self.parser.should_keep_alive()

    def end(self) -> None:
        """The connection has ended. Raises what that means when the answer is not whole."""
        if not self.headed and not self.head_bytes:
            raise http.client.RemoteDisconnected("Remote end closed connection without response")
        if not self.headed:
            raise http.client.BadStatusLine(_shown(self.first))
        if not self.open_ended:
            length = self.headers.get("content-length", "")
            missing = int(length) - self._size if length.isdecimal() else None
            raise http.client.IncompleteRead(b"".join(self.parts), missing)
        self.done = True

    def whole(self) -> bytes:
        """The body, decompressed. Raises TooLong, urllib3's DecodeError."""
        data = b"".join(self.parts)
        encoding = self.headers.get("content-encoding", "").strip().lower()
        if not data or encoding not in ("gzip", "x-gzip", "deflate"):
            return data
        try:
            return _unpacked(data, _ANY_WRAPPER)
        except zlib.error as e:
            if encoding == "deflate":
                with contextlib.suppress(zlib.error):
                    return _unpacked(data, _BARE)
            raise urllib3.exceptions.DecodeError(f"{encoding}: {e}") from e


def _unpacked(data: bytes, kind: int) -> bytes:
    found, size = [], 0
    while data:  # gzip allows several members in a row
        packer = zlib.decompressobj(kind)
        part = packer.decompress(data, MAX_BODY_BYTES + 1 - size)
        found.append(part)
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise TooLong
        if not packer.eof:
            raise zlib.error("incomplete or truncated stream")
        data = packer.unused_data.lstrip(b"\0")
    return b"".join(found)
