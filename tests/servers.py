"""A small real HTTP server that answers as a test tells it to, down to single bytes."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


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
def serving(script: Callable[[Request], None]) -> Iterator[Server]:
    """A server for a block."""
    server = Server(script)
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
