"""Two servers with slots, for benchmarks: what rsd's simulator plays, without what costs time.

    python benchmarks/fast_server.py --slots 64 --service-seconds 0.5

The simulator reads JSON, decodes pictures and checks every parameter as vLLM does: 1.5 ms of CPU a
request, more than the clients that are to be compared. This one searches the bytes that came for
what it must know (picture, seed, n, candidates) and answers with a text of the usual length, so
that two cores hold it and a client. Service times are the simulator's, from what is asked alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rsd.simulator.slots import SERVICE_SIGMA, History, service_seconds

MODELS = ("simulated-vlm", "o4-mini")
PICTURE = b'"url":"data:'
PICTURE_SPACED = b'"url": "data:'
SEED, COUNT = re.compile(rb'"seed": ?(\d+)'), re.compile(rb'"n": ?(\d+)')
CANDIDATE = re.compile(rb"drawn as ([0-9a-f]+-\d+)")
FENCE = re.compile(rb'<answer id=\\"([^"\\]+)\\"')
#: Bytes of a picture's end that tell it from others: a PNG's last checksums are among them.
TAIL = 64
#: A request without a picture is a probe for 16 tokens; an answer has some hundred.
PROBE_SHARE = 0.1
#: Bytes of a new buffer; it grows to the largest request. A request has one only while it arrives:
#: few are needed, and they stay in the processor's caches.
BUFFER = 64 * 1024
NETLIST = "\n".join(f"block B{k}; wire B{k}.out -> B{k + 1}.in" for k in range(18))


class Side:
    """One role: its slots and what it has seen."""

    def __init__(self, role: str, slots: int, seconds: float, spread: float) -> None:
        self.role, self.slots, self.seconds, self.spread = role, slots, seconds, spread
        self.running = self.waiting = 0
        self.queue: deque[Callable[[], None]] = deque()
        self.reset()

    def reset(self) -> None:
        """Forget what was counted."""
        self.answered = 0
        self.calls: dict[bytes, int] = {}
        self.pictures: dict[bytes, list[bytes]] = {}
        self.first: float | None = None
        self.last: float | None = None
        self.busy_seconds = 0.0
        self.history = History()

    def picture(self, buffer: bytearray, start: int, end: int) -> bytes:
        """A short name of the picture that lies there; other strings of it are remembered."""
        key = bytes(buffer[end - TAIL : end])
        known = self.pictures.get(key)
        if known is None:
            known = self.pictures[key] = []
        for string in known:
            if len(string) == end - start and buffer.startswith(string, start):
                break
        else:
            known.append(bytes(buffer[start:end]))
        return b"%08x" % crc32(key)

    def serve(self, parts: list[bytes], share: float, done: Callable[[], None]) -> None:
        """`done` when each part has had its own time in a place, or this share of it."""
        left = len(parts)

        def one_done() -> None:
            nonlocal left
            left -= 1
            if not left:
                done()

        for part in parts:
            seconds = service_seconds(self.seconds, part.decode(), self.spread)
            self._one(share * seconds, one_done)

    def _one(self, seconds: float, done: Callable[[], None]) -> None:
        if not self.slots and not seconds:
            done()
            return
        self.history.add(time.monotonic(), self.running, self.waiting)

        def begin() -> None:
            self.busy_seconds += seconds
            loop.call_later(seconds, end)

        def end() -> None:
            self.history.add(time.monotonic(), self.running, self.waiting)
            if self.queue:
                self.waiting -= 1
                self.queue.popleft()()
            else:
                self.running -= 1
            done()

        loop = asyncio.get_running_loop()
        if self.slots and self.running >= self.slots:
            self.waiting += 1
            self.queue.append(begin)
        else:
            self.running += 1
            begin()

    def stats(self) -> dict[str, Any]:
        """As the simulator tells it."""
        strings = sum(len(known) for known in self.pictures.values())
        return {
            "answered": self.answered,
            "busy_seconds": self.busy_seconds,
            "running": self.running,
            "waiting": self.waiting,
            "images": len(self.pictures),
            "byte_strings": strings,
            "byte_strings_per_image_max": max(map(len, self.pictures.values()), default=0),
            "calls": {
                "distinct": len(self.calls),
                "repeated": sum(self.calls.values()) - len(self.calls),
            },
        }

    def seen(self) -> dict[str, Any]:
        """Busy slots over time."""
        self.history.add(time.monotonic(), self.running, self.waiting)
        return {"first": self.first, "last": self.last, **self.history.document()}


#: Buffers that no request needs now, and what a connection has between two requests.
FREE: list[bytearray] = []
NONE = bytearray()


class Connection(asyncio.BufferedProtocol):
    """One connection: HTTP/1.1, kept alive, a request at a time."""

    def __init__(self, side: Side, sides: dict[str, Side]) -> None:
        self._side, self._sides = side, sides
        self._buffer = NONE
        self._have = self._head = self._need = 0
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._buffer is not NONE:
            FREE.append(self._buffer)

    def get_buffer(self, _hint: int) -> memoryview:
        if self._buffer is NONE:
            self._buffer = FREE.pop() if FREE else bytearray(BUFFER)
        return memoryview(self._buffer)[self._have :]

    def buffer_updated(self, count: int) -> None:
        self._have += count
        if not self._need:
            self._head = self._buffer.find(b"\r\n\r\n", 0, self._have) + 4
            if self._head < 4:
                return
            found = re.search(rb"(?i)content-length: *(\d+)", self._buffer[: self._head])
            self._need = self._head + (int(found[1]) if found else 0)
            if self._need > len(self._buffer):
                larger = bytearray(self._need)
                larger[: self._have] = memoryview(self._buffer)[: self._have]
                self._buffer = larger
        if self._have >= self._need:
            self._request()
            self._have = self._need = 0
            FREE.append(self._buffer)
            self._buffer = NONE

    def _request(self) -> None:
        method, path = self._buffer[: self._head].split(b" ", 2)[:2]
        if path == b"/v1/chat/completions":
            self._chat()
        elif path.startswith(b"/simulator/"):
            body = bytes(self._buffer[self._head : self._need])
            self._answer(json.dumps(self._control(method, path, body)).encode())
        elif path == b"/metrics" and self._side.role == "generator":
            self._answer(
                b"vllm:num_requests_running %d\nvllm:num_requests_waiting %d\n"
                % (self._side.running, self._side.waiting)
            )
        elif path == b"/v1/models":
            name = MODELS[self._side.role == "grader"]
            self._answer(json.dumps({"object": "list", "data": [{"id": name}]}).encode())
        else:
            self._answer(b'{"detail":"Not Found"}', b"404 Not Found")

    def _control(self, method: bytes, path: bytes, body: bytes) -> Any:
        if path == b"/simulator/reset" and method == b"POST":
            for side in self._sides.values():
                side.reset()
        if path == b"/simulator/history":
            return {name: side.seen() for name, side in self._sides.items()}
        return {name: side.stats() for name, side in self._sides.items()}

    def _chat(self) -> None:
        side, buffer = self._side, self._buffer
        start = buffer.find(PICTURE, self._head, self._need) + len(PICTURE) - 5
        if start < len(PICTURE):
            start = buffer.find(PICTURE_SPACED, self._head, self._need) + len(PICTURE_SPACED) - 5
        real = start > self._head
        name = b"none"
        rest = bytes(buffer[self._head : self._need])
        if real:
            end = buffer.find(b'"', start, self._need)
            rest = bytes(buffer[end : self._need]) + bytes(buffer[self._head : start])
            name = side.picture(buffer, start, end)
            side.first = side.first or time.monotonic()
        seed = int(found[1]) if (found := SEED.search(rest)) else 0
        if side.role == "generator":
            count = int(found[1]) if (found := COUNT.search(rest)) else 1
            parts = [b"%s-%d" % (name, seed + k) for k in range(count)]
            contents = [f"drawn as {part.decode()}\n{NETLIST}" for part in parts]
            calls = parts
        else:
            calls = CANDIDATE.findall(rest)
            parts = [b"grade " + b" ".join(sorted(calls))]
            contents = [grades(calls, FENCE.findall(rest))]

        def done() -> None:
            side.answered += 1
            if real:
                side.last = time.monotonic()
                for call in calls:
                    side.calls[call] = side.calls.get(call, 0) + 1
            self._answer(completion(side.role, contents))

        side.serve(parts, 1.0 if real else PROBE_SHARE, done)

    def _answer(self, data: bytes, status: bytes = b"200 OK") -> None:
        head = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        self._transport.write(head % (status, len(data)) + data)


def grades(calls: list[bytes], names: list[bytes]) -> str:
    """A grader's reply: a score for each candidate."""
    rows = [
        {
            "explanation": "Blocks and wires agree with the picture in most places; two are off.",
            "score": crc32(call) % 101,
        }
        for call in calls
    ]
    if len(rows) <= 1:
        return json.dumps(rows[0] if rows else {"explanation": "nothing", "score": 0})
    named = [{"id": n.decode(), **row} for n, row in zip(names, rows, strict=True)]
    return json.dumps({"results": named})


def completion(role: str, contents: list[str]) -> bytes:
    """A chat completion."""
    choices = [
        {"index": k, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        for k, text in enumerate(contents)
    ]
    tokens = sum(map(len, contents)) // 4
    usage = {"prompt_tokens": 1100, "completion_tokens": tokens, "total_tokens": 1100 + tokens}
    model = MODELS[role == "grader"]
    return json.dumps(
        {"id": "chatcmpl-1", "model": model, "choices": choices, "usage": usage}
    ).encode()


async def main() -> None:
    """Serve until killed; the first line on stdout names the two base URLs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slots", type=int, default=0, help="slots of each, 0 is without limit")
    parser.add_argument("--service-seconds", type=float, default=0.0, help="mean of an answer")
    parser.add_argument(
        "--spread", type=float, default=SERVICE_SIGMA, help="sigma of the logarithm of that time"
    )
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--grader-port", type=int, default=0)
    args = parser.parse_args()
    sides: dict[str, Side] = {}
    urls = {}
    loop = asyncio.get_running_loop()
    for role, port in (("generator", args.port), ("grader", args.grader_port)):
        side = sides[role] = Side(role, args.slots, args.service_seconds, args.spread)
        server = await loop.create_server(
            lambda side=side: Connection(side, sides), "127.0.0.1", port, backlog=1024
        )
        urls[role] = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    print(json.dumps(urls), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
