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
import math
import mmap
import re
import select
import socket
import ssl
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
#: Longest status line and headers of an answer, with all interim answers before it; as many bytes
#: may come between two pieces of the body, or as trailers after it.
MAX_HEAD_BYTES: Final = 256 * 1024
#: Longest time for the connection itself, in seconds.
CONNECT_SECONDS: Final = 30.0
#: Most bytes taken from the connection at once.
CHUNK_BYTES: Final = 64 * 1024
#: Longest wait of one poll, in seconds; the deadline is looked at between two.
POLL_SECONDS: Final = 3600.0
#: A kept connection that ends so soon, in seconds, without a byte, had been closed while idle.
STALE_SECONDS: Final = 5.0
#: Most gzip members of one answer.
MEMBERS_MAX: Final = 10_000
#: Bytes of a member that zlib is given first.
FIRST_WINDOW: Final = 1024
#: What zlib takes for "gzip or zlib, as its head says", and for deflate without a head.
_ANY_WRAPPER: Final = zlib.MAX_WBITS | 32
_BARE: Final = -zlib.MAX_WBITS
_ZEROS: Final = re.compile(rb"\0*")

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
        self.unheard = False  #: the other side had ended it before the first byte of an answer


class TooLong(Exception):
    """The answer passes a bound, which the text names; its head was within bounds."""


class Lines:
    """The connections to one endpoint; threads share it. `most`: connections kept while idle."""

    def __init__(self, pool: HTTPConnectionPool, most: int) -> None:
        self._pool = pool
        self._most = most
        self._idle: deque[_Open] = deque()  # appended and popped at one end: the warmest first
        weakref.finalize(self, _close, self._idle)

    def exchange(self, head: bytes, body: Body, seconds: float) -> Answer:
        """Send a request (`head` ends before the empty line) and read its answer. Raises what
        urllib3 and the operating system raise while connecting, Broken afterwards.

        Servers close what idles, and the notice may cross a request: such a request is sent once
        more over a new connection, within the same time.
        """
        began = time.monotonic()
        deadline = began + seconds
        pieces = _framed(head, body)
        kept = self._kept()
        if kept is not None:
            try:
                return self._over(kept, pieces, deadline)
            except Broken as e:
                if not e.unheard or time.monotonic() - began > STALE_SECONDS:
                    raise
        return self._over(self._opened(_left(deadline)), pieces, deadline)

    def _over(self, line: _Open, pieces: list[Piece], deadline: float) -> Answer:
        reading = _Reading()
        try:
            _transfer(line, pieces, reading, deadline)
            answer = Answer(reading.status, reading.headers, reading.whole())
        except (OSError, http.client.HTTPException, urllib3.exceptions.HTTPError, TooLong) as e:
            line.close()
            broken = Broken(
                reading.status if reading.headed else None,
                reading.headers,
                b"".join(reading.parts),
            )
            ended = isinstance(e, ConnectionError | ssl.SSLEOFError | ssl.SSLZeroReturnError)
            broken.unheard = ended and not reading.first
            raise broken from e
        except BaseException:
            line.close()
            raise
        finally:
            reading.parser = None  # they hold each other
        if reading.kept and len(self._idle) < self._most:
            self._idle.append(line)
        else:
            line.close()
        return answer

    def _kept(self) -> _Open | None:
        """A connection that was left idle and is still sound as far as can be seen."""
        while self._idle:
            with contextlib.suppress(IndexError):
                kept = self._idle.pop()
                if not kept.stirs():
                    return kept
                kept.close()
        return None

    def _opened(self, seconds: float) -> _Open:
        """A new connection."""
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
            return _Open(connection)
        except BaseException:
            connection.close()
            raise


class _Open:
    """A connection that is open. Its socket never blocks: what waits is the poll, for both ways.

    TLS within the TLS of a proxy is urllib3's own object, which can only block: `bound` gives it
    the time that is left.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.sock = connection.sock
        self.blocks = not isinstance(self.sock, socket.socket)
        self.gathers = type(self.sock) is socket.socket  # TLS takes one piece at a time
        self._pending = getattr(self.sock, "pending", None)
        self._poll = select.poll()
        self._poll.register(self.sock, select.POLLIN)
        if not self.blocks:
            self.sock.setblocking(False)

    def stirs(self) -> bool:
        """Whether there is something to read where nothing is due: its end, most often."""
        return bool(self._poll.poll(0))

    def bound(self, deadline: float) -> None:
        """Raises TimeoutError when the time is over."""
        left = _left(deadline)
        if self.blocks:
            self.sock.settimeout(left)

    def until_readable(self, deadline: float) -> None:
        """Wait for bytes, or for the end. Raises TimeoutError."""
        if self.blocks or (self._pending and self._pending()):
            return
        while not self._poll.poll(_milliseconds(deadline)):
            pass

    def until_either(self, deadline: float) -> bool:
        """Wait until bytes can be sent or have come: whether some have. Raises TimeoutError."""
        self._poll.modify(self.sock, select.POLLIN | select.POLLOUT)
        try:
            while not (found := self._poll.poll(_milliseconds(deadline))):
                pass
        finally:
            self._poll.modify(self.sock, select.POLLIN)
        return found[0][1] != select.POLLOUT

    def close(self) -> None:
        """End it."""
        self._connection.close()


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


def _close(connections: deque[_Open]) -> None:
    while connections:
        connections.pop().close()


def _framed(head: bytes, body: Body) -> list[Piece]:
    return [b"%sContent-Length: %d\r\n\r\n" % (head, sum(map(len, body))), *body]


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the answer did not end within the time of a call")
    return left


def _milliseconds(deadline: float) -> int:
    return math.ceil(1000 * min(_left(deadline), POLL_SECONDS))


def _transfer(line: _Open, pieces: list[Piece], reading: _Reading, deadline: float) -> None:
    """Write all pieces and read until the answer is whole; raises what kept it from that.

    A server may answer before it has read all, and then read no more or hang up: the answer counts.
    """
    reading.expect()
    sock, trouble = line.sock, None
    waiting = deque(memoryview(piece) for piece in pieces if len(piece))
    while not reading.done:
        line.bound(deadline)
        if waiting:
            try:
                sent = sock.sendmsg(waiting) if line.gathers else sock.send(waiting[0])
            except (BlockingIOError, ssl.SSLWantWriteError):
                if not line.until_either(deadline):
                    continue
            except ssl.SSLWantReadError:
                line.until_readable(deadline)
            except (BrokenPipeError, ConnectionResetError) as e:
                trouble = e
                waiting.clear()
                continue
            else:
                while waiting and sent >= len(waiting[0]):
                    sent -= len(waiting.popleft())
                if sent:
                    waiting[0] = waiting[0][sent:]
                continue
        else:
            line.until_readable(deadline)
        try:
            data = sock.recv(CHUNK_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError):
            continue
        except ssl.SSLWantWriteError:
            line.until_either(deadline)
            continue
        except ConnectionResetError:
            raise trouble or ConnectionResetError("Connection reset by peer") from None
        if not data:
            reading.end()
            break
        reading.take(data)
    if waiting:
        reading.kept = False


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
        self._size = 0
        self._head_bytes = 0  #: since the last piece of the body: head, framing, trailers
        self.first = b""  #: what came first, for a message

    def expect(self) -> None:
        """An answer is about to come."""
        self.parser = httptools.HttpResponseParser(self)
        # What http.client forgives, and every browser.
        self.parser.set_dangerous_leniencies(
            lenient_headers=True,
            lenient_chunked_length=True,
            lenient_keep_alive=True,
            lenient_transfer_encoding=True,
            lenient_data_after_close=True,
            lenient_optional_cr_before_lf=True,
            lenient_spaces_after_chunk_size=True,
        )

    def take(self, data: bytes) -> None:
        """Bytes that have come. Raises what is wrong with them."""
        size = self._size
        self._head_bytes += len(data)
        if not self.headed and self._head_bytes > MAX_HEAD_BYTES:
            raise http.client.LineTooLong("header")
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserCallbackError as e:
            raise e.__context__ or e from None
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as e:
            if self.done:  # what comes after the answer is none of ours
                self.kept = False
                return
            if self.headed:
                raise http.client.IncompleteRead(b"") from e
            raise http.client.BadStatusLine(_shown(self.first or data)) from None
        finally:
            self.first = self.first or data
        if self._size > size:
            self._head_bytes = 0
        elif self.headed and not self.done and self._head_bytes > MAX_HEAD_BYTES:
            raise TooLong(f"more than {MAX_HEAD_BYTES} bytes of the answer are no body")

    @property
    def open_ended(self) -> bool:
        """Whether only the end of the connection ends the body."""
        return not self.headers.keys() & {"content-length", "transfer-encoding"}

    def on_message_begin(self) -> None:
        """One answer was asked for: where another follows nobody knows what the next will be."""
        if self.done:
            self.kept = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header line. Trailers say nothing that rsd wants, and replace nothing."""
        if self.headed:
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
            raise TooLong(f"the answer is longer than {MAX_BODY_BYTES} bytes")
        self.parts.append(data)

    def on_message_complete(self) -> None:
        """An interim answer or the answer itself is whole."""
        if self.headed and not self.done:
            self.done = True
            self.kept = self.parser.should_keep_alive()

    def end(self) -> None:
        """The connection has ended. Raises what that means when the answer is not whole."""
        if not self.headed and not self.first:
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
    """The content of all members: gzip allows several in a row, and zeros between them.

    A member is given to zlib in pieces that grow from small ones, because zlib copies what lies
    behind a member's end.
    """
    found: list[bytes] = []
    size = at = members = 0
    while at < len(data):
        members += 1
        if members > MEMBERS_MAX:
            raise zlib.error(f"more than {MEMBERS_MAX} members")
        packer = zlib.decompressobj(kind)
        window = FIRST_WINDOW
        while not packer.eof:
            piece = data[at : at + window]
            if not piece:
                raise zlib.error("incomplete or truncated stream")
            part = packer.decompress(piece, MAX_BODY_BYTES + 1 - size)
            found.append(part)
            size += len(part)
            if size > MAX_BODY_BYTES:
                raise TooLong(f"the answer is longer than {MAX_BODY_BYTES} bytes")
            at += len(piece) - len(packer.unused_data)
            window *= 2
        at = _ZEROS.match(data, at).end()  # type: ignore[union-attr]
    return b"".join(found)
