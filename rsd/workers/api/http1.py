"""One request and its answer over a kept connection: HTTP/1.1, bounded in time and size.

requests and urllib3 know how an endpoint is reached (names, TLS, proxies, certificates); they open
the connections. What then crosses them is written and read here, because their own way costs three
times as much CPU for a body of 300 kB (docs/decisions/0006-calls.md).

One deadline covers all: the connection, each piece of the request, each byte of the answer. A
time-out of a socket is one of silence, and a server that drips would never meet it.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import math
import select
import socket
import ssl
import time
import weakref
from collections import deque
from typing import Any, Final

import urllib3.exceptions
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.util.proxy import connection_requires_http_tunnel
from urllib3.util.timeout import Timeout

from rsd.workers.api.answer_reader import AnswerReader
from rsd.workers.api.transport import Answer, AnswerTooLong, Body, ExchangeFailed, Piece

#: Longest time for the connection itself, in seconds.
CONNECT_SECONDS: Final = 30.0
#: Most bytes taken from the connection at once.
CHUNK_BYTES: Final = 64 * 1024
#: Longest wait of one poll, in seconds; the deadline is looked at between two.
POLL_SECONDS: Final = 3600.0
#: A kept connection that ends so soon, in seconds, without a byte, had been closed while idle.
STALE_SECONDS: Final = 5.0


#: What an open connection may raise; an ExchangeFailed has it as its cause.
FAILURES: Final = (
    OSError,
    http.client.HTTPException,
    urllib3.exceptions.HTTPError,
    AnswerTooLong,
)


class _NoAnswer(ExchangeFailed):
    """The other side had ended the connection before the first byte of an answer."""


class ConnectionPool:
    """A Transport over connections to one endpoint; `most` of them are kept while idle."""

    def __init__(self, pool: HTTPConnectionPool, most: int) -> None:
        self._pool = pool
        self._most = most
        # Appended and popped at one end: the warmest first.
        self._idle: deque[_Connection] = deque()
        weakref.finalize(self, _close, self._idle)

    def exchange(self, head: bytes, body: Body, seconds: float) -> Answer:
        """As Transport has it.

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
            except _NoAnswer:
                if time.monotonic() - began > STALE_SECONDS:
                    raise
        return self._over(self._opened(_left(deadline)), pieces, deadline)

    def _over(self, connection: _Connection, pieces: list[Piece], deadline: float) -> Answer:
        reader = AnswerReader()
        try:
            _transfer(connection, pieces, reader, deadline)
            answer = Answer(reader.status, reader.headers, reader.whole())
        except FAILURES as e:
            connection.close()
            ended = isinstance(e, ConnectionError | ssl.SSLEOFError | ssl.SSLZeroReturnError)
            kind = _NoAnswer if ended and not reader.first else ExchangeFailed
            status = reader.status if reader.headed else None
            raise kind(status, reader.headers, bytes(reader.body)) from e
        except BaseException:
            connection.close()
            raise
        finally:
            reader.parser = None  # they hold each other
        if reader.kept and len(self._idle) < self._most:
            self._idle.append(connection)
        else:
            connection.close()
        return answer

    def _kept(self) -> _Connection | None:
        """A connection that was left idle and is still sound as far as can be seen."""
        while self._idle:
            with contextlib.suppress(IndexError):
                kept = self._idle.pop()
                if not kept.stirs():
                    return kept
                kept.close()
        return None

    def _opened(self, seconds: float) -> _Connection:
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
            return _Connection(connection)
        except BaseException:
            connection.close()
            raise


class _Connection:
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


def _close(connections: deque[_Connection]) -> None:
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


def _transfer(
    connection: _Connection, pieces: list[Piece], reader: AnswerReader, deadline: float
) -> None:
    """Write all pieces and read until the answer is whole; raises what kept it from that.

    A server may answer before it has read all, and then read no more or hang up: the answer counts.
    """
    reader.expect()
    sock, trouble = connection.sock, None
    waiting = deque(memoryview(piece) for piece in pieces if len(piece))
    while not reader.done:
        connection.bound(deadline)
        if waiting:
            try:
                sent = sock.sendmsg(waiting) if connection.gathers else sock.send(waiting[0])
            except (BlockingIOError, ssl.SSLWantWriteError):
                if not connection.until_either(deadline):
                    continue
            except ssl.SSLWantReadError:
                connection.until_readable(deadline)
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
            connection.until_readable(deadline)
        try:
            data = sock.recv(CHUNK_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError):
            continue
        except ssl.SSLWantWriteError:
            connection.until_either(deadline)
            continue
        except ConnectionResetError:
            raise trouble or ConnectionResetError("Connection reset by peer") from None
        if not data:
            reader.end()
            break
        reader.take(data)
    if waiting:
        reader.kept = False
