"""A small real HTTP server that answers as a test tells it to, down to single bytes."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: Longest time that a handler waits for the test to end, in seconds.
PATIENCE = 20.0


@dataclass(frozen=True)
class Seen:
    """A request as it came; a connection's handler is the same object for all of its requests."""

    command: str
    path: str
    headers: Message
    body: bytes
    at: float = field(default_factory=time.time)  #: Unix seconds of its arrival

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)

    @property
    def item(self) -> bool:
        """Whether it carries a picture; rsd's probes carry none."""
        return b'"image_url"' in self.body


class Request(BaseHTTPRequestHandler):
    """One request, with what a script needs to answer it; `body` has been read."""

    protocol_version = "HTTP/1.1"
    server: Server
    body: bytes

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)

    def answer(self, status: int, body: Any = b"", **headers: str) -> None:
        """A whole answer; `body` is bytes, or something that becomes JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        given = {name.replace("_", "-").lower() for name in headers}
        if "content-type" not in given:
            self.send_header("Content-Type", "application/json")
        if "content-length" not in given:
            self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(data)

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.server.lock:
            seen = Seen(self.command, self.path, self.headers, self.body)
            self.server.requests.append(seen)
        with contextlib.suppress(ConnectionError):
            self.server.script(self)

    do_GET = do_CONNECT = do_POST

    def log_message(self, format: str, *args: Any) -> None:
        """Tests want no lines on stderr."""


class Server(ThreadingHTTPServer):
    """Listens on a free port of 127.0.0.1; `script` answers, `requests` remembers."""

    daemon_threads = True

    def __init__(self, script: Callable[[Request], None]) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.script = script
        self.requests: list[Seen] = []
        self.lock = threading.Lock()
        self.over = threading.Event()  #: set when the test ends; hanging scripts wait for it

    @property
    def url(self) -> str:
        """Base URL, as settings name it."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is what many tests are about."""


@contextlib.contextmanager
def serving(
    script: Callable[[Request], None], tls: ssl.SSLContext | None = None
) -> Iterator[Server]:
    """A server for a block; with `tls` it is the caller's to change its `url` to https."""
    server = Server(script)
    if tls is not None:
        server.socket = tls.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def completion(*contents: Any, **fields: Any) -> dict[str, Any]:
    """A chat completion as vLLM words it."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "tiny-vl",
        "choices": [
            {
                "index": k,
                "message": {"role": "assistant", "content": content, "refusal": None},
                "finish_reason": "stop",
            }
            for k, content in enumerate(contents)
        ],
        "usage": {"prompt_tokens": 66, "completion_tokens": 16, "total_tokens": 82},
        **fields,
    }


def says(*contents: Any, **fields: Any) -> Callable[[Request], None]:
    """A script that gives the same completion to every request."""
    return lambda request: request.answer(200, completion(*contents, **fields))


# --------------------------------------------------------------------------- scripts of bad answers

Script = Callable[[Request], None]
#: How a good answer begins.
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def answers(status: int, body: Any = b"", **headers: str) -> Script:
    """One answer for every request."""
    return lambda request: request.answer(status, body, **headers)


def raw(data: bytes) -> Script:
    """These bytes, then the end of the connection."""

    def script(request: Request) -> None:
        request.close_connection = True
        request.wfile.write(data)

    return script


def drip(head: bytes, drop: bytes = b" ") -> Script:
    """A byte every 50 ms, for ever."""

    def script(request: Request) -> None:
        request.close_connection = True
        request.wfile.write(head)
        while not request.server.over.wait(0.05):
            request.wfile.write(drop)

    return script


# ------------------------------------------------------------------- one that can lose its manners


class Gate(Server):
    """A server that answers well until it is told otherwise, then well again.

    Its URLs are `/NAME/v1`, so that one process can be many endpoints. `fault` answers while it is
    set, and `struck` remembers what it met.
    """

    def __init__(self, healthy: Script) -> None:
        super().__init__(self._either)
        self.healthy = healthy
        self.fault: Script | None = None
        self.struck: list[Seen] = []
        #: What becomes of an accepted connection: a wrapped one, or OSError.
        self.greet: Callable[[socket.socket], socket.socket] | None = None
        self.certificates: dict[str, ssl.SSLContext] = {}
        self.accepted = 0
        self.elsewhere = ""  #: where redirecting scripts point
        self._connections: set[socket.socket] = set()
        self._thread: threading.Thread | None = None

    def url_of(self, name: str, scheme: str = "http") -> str:
        """Base URL of one of its endpoints."""
        return f"{scheme}://127.0.0.1:{self.server_address[1]}/{name}/v1"

    def _either(self, request: Request) -> None:
        fault = self.fault
        if fault is None:
            self.healthy(request)
            return
        with self.lock:
            self.struck.append(Seen(request.command, request.path, request.headers, request.body))
        fault(request)

    def open(self) -> None:
        """Listen (again), on the port of before."""
        if self._thread is not None:
            return
        if self.socket.fileno() < 0:
            self.socket = socket.socket(self.address_family, self.socket_type)
            self.server_bind()
            self.server_activate()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def leave(self, *, hang_up: bool = True) -> None:
        """Stop listening; by default also break what is open, as the end of a process does."""
        if self._thread is not None:
            self.shutdown()
            self._thread.join()
            self._thread = None
            self.socket.close()
        if hang_up:
            self.hang_up()

    def present(self, name: str) -> None:
        """Speak TLS from now on, with this certificate; plain HTTP without a name."""
        context = self.certificates.get(name)
        if context is None:
            self.greet = None
        else:
            self.greet = lambda sock: context.wrap_socket(
                sock, server_side=True, do_handshake_on_connect=False
            )

    def hang_up(self) -> None:
        """Break every open connection."""
        with self.lock:
            for sock in self._connections:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def get_request(self) -> tuple[socket.socket, Any]:
        sock, address = super().get_request()
        self.accepted += 1
        if self.greet is not None:
            sock = self.greet(sock)
        with self.lock:
            self._connections.add(sock)
        return sock, address

    def shutdown_request(self, request: Any) -> None:
        with self.lock:
            self._connections.discard(request)
        super().shutdown_request(request)


@contextlib.contextmanager
def gating(healthy: Script) -> Iterator[Gate]:
    """A gate for a block."""
    gate = Gate(healthy)
    gate.open()
    try:
        yield gate
    finally:
        gate.over.set()
        gate.leave()


def gate_of(request: Request) -> Gate:
    """The server that is asked."""
    assert isinstance(request.server, Gate)
    return request.server


def chat(script: Script) -> Script:
    """Only completions go wrong; the list of models does not."""

    def either(request: Request) -> None:
        if request.command == "GET":
            gate_of(request).healthy(request)
        else:
            script(request)

    return either


def listing(request: Request, model: str) -> bool:
    """Answer `GET /models`; whether it was that."""
    if request.command == "GET":
        request.answer(200, {"data": [{"id": model, "max_model_len": 2048}]})
    return request.command == "GET"


def generates(request: Request) -> None:
    """As a generator does: an answer for each of `n`, another for each seed."""
    if listing(request, "tiny-vl"):
        return
    seed, n = request.json.get("seed") or 0, request.json.get("n", 1)
    request.answer(200, completion(*(f"ADC --> B{seed + k}" for k in range(n))))


def grades(request: Request) -> None:
    """As a grader does."""
    if not listing(request, "judge"):
        request.answer(200, completion('{"explanation": "as drawn", "score": 85}'))
