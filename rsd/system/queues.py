"""WorkQueue: the multiprocessing queue of this project, one mailbox per worker process.

`multiprocessing.Queue` shares one pipe and one lock among all consumers; a SIGKILL at the wrong
moment leaves the lock taken for ever (cpython issues 96062 and 87971). A mailbox is two one-way
pipes that belong to one worker alone: whoever dies, the other end sees EOF and the siblings see
nothing. Frames are JSON bytes, never pickle.

A message is written by the thread that has it, the hub's of one turn together, and a read takes all
that has come: on a loaded machine waking the other side costs more than writing.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Final, Generic, TypeVar

import msgspec

In = TypeVar("In")
Out = TypeVar("Out")

log = logging.getLogger(__name__)

#: Bytes of a frame's length, and most bytes of one read.
HEADER: Final = 4
CHUNK: Final = 64 * 1024
#: Longest frame in bytes that is believed: a longer one is no frame. A server's answer has 16 MiB,
#: of which JSON may write a byte as six.
FRAME_MAX: Final = 256 * 1024 * 1024


def frame_of(message: msgspec.Struct) -> bytes:
    """A message as it crosses a pipe: its length, then JSON."""
    data = msgspec.json.encode(message)
    return len(data).to_bytes(HEADER, "big") + data


class Frames:
    """Frames out of a pipe, read in large pieces. One thread may use it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._rest = b""

    def read(self) -> list[bytes]:
        """Block until a frame is whole; all that are. Raises EOFError when the other end is gone:
        what it had begun to send is lost with it. Raises ValueError for what is no frame.
        """
        found: list[bytes] = []
        parts = [self._rest]
        have, need = len(self._rest), HEADER
        while True:
            while have < need:
                try:
                    part = os.read(self._fd, CHUNK)
                except OSError:
                    part = b""
                if not part:
                    raise EOFError
                parts.append(part)
                have += len(part)
            data = b"".join(parts)
            at = 0
            while have - at >= HEADER:
                need = HEADER + int.from_bytes(data[at : at + HEADER], "big")
                if need > HEADER + FRAME_MAX and found:
                    break  # first what came before it
                if need > HEADER + FRAME_MAX:
                    raise ValueError(f"a frame of {need - HEADER} bytes")
                if have - at < need:
                    break
                found.append(data[at + HEADER : at + need])
                at += need
                need = HEADER
            self._rest = data[at:]
            if found:
                return found
            parts, have = [self._rest], len(self._rest)


class WorkQueue(Generic[In]):
    """The hub's end. Nothing blocks here; what comes back goes to `deliver` on a reader thread."""

    def __init__(self, name: str) -> None:
        self.name = name
        child_inbox, self._tx = multiprocessing.Pipe(duplex=False)
        self._rx, child_outbox = multiprocessing.Pipe(duplex=False)
        os.set_blocking(self._tx.fileno(), False)
        #: For the child process: (inbox, outbox). `start` closes the hub's copies of them.
        self.child_ends: tuple[Connection, Connection] = (child_inbox, child_outbox)
        self._changed = threading.Condition()
        self._turn: list[bytes] = []  # what was put since the last flush
        self._waiting: deque[bytes] = deque()  # what the pipe had no room for
        self._closing = False

    def start(
        self,
        decoder: msgspec.json.Decoder[In],
        deliver: Callable[[In], None],
        gone: Callable[[], None],
    ) -> None:
        """Begin to read and send, once the child has been started.

        `gone` is called once, after the last message was delivered, when the child's end is closed
        or what comes out of it cannot be read. In the latter case both pipes are closed, and a
        child that does not end of that is the caller's to kill.
        """
        for end in self.child_ends:
            end.close()
        threading.Thread(
            target=self._read, args=(decoder, deliver, gone), name=f"{self.name}-rx", daemon=True
        ).start()
        threading.Thread(target=self._send, name=f"{self.name}-tx", daemon=True).start()

    def put(self, message: msgspec.Struct) -> None:
        """Queue a message for this worker, to be sent with the next `flush`; lost if the worker is
        dead, which `gone` reports. One thread may put and flush.
        """
        self._turn.append(frame_of(message))

    def flush(self) -> None:
        """Send what was put."""
        if not self._turn:
            return
        frame = b"".join(self._turn)
        self._turn.clear()
        with self._changed:
            if self._closing:
                return
            if not self._waiting:
                frame = self._write(frame)
            if frame:
                self._waiting.append(frame)
                self._changed.notify()

    def close(self) -> None:
        """End the sender; the child sees EOF once everything flushed before has been sent."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def _write(self, frame: bytes) -> bytes:
        """As much as the pipe takes at once; the rest. Nothing is left for a dead child."""
        try:
            return frame[os.write(self._tx.fileno(), frame) :]
        except BlockingIOError:
            return frame
        except OSError:
            self._closing = True
            self._waiting.clear()
            return b""

    def _read(
        self,
        decoder: msgspec.json.Decoder[In],
        deliver: Callable[[In], None],
        gone: Callable[[], None],
    ) -> None:
        frames = Frames(self._rx.fileno())
        try:
            with contextlib.suppress(EOFError):
                while True:
                    for frame in frames.read():
                        deliver(decoder.decode(frame))
        except (ValueError, msgspec.MsgspecError) as e:
            log.error("%s sends what is no message (%s); it is given up", self.name, e)
        except Exception:
            log.exception("a message of %s could not be taken; it is given up", self.name)
        finally:
            self._rx.close()
            self.close()
            gone()

    def _send(self) -> None:
        """What the pipe had no room for, and the end."""
        room = select.poll()
        room.register(self._tx.fileno(), select.POLLOUT)
        while True:
            with self._changed:
                while not self._waiting and not self._closing:
                    self._changed.wait()
                if not self._waiting:
                    self._tx.close()
                    return
            room.poll()
            with self._changed:
                while self._waiting:
                    rest = self._write(self._waiting[0])
                    if not self._waiting:
                        break
                    if rest:
                        self._waiting[0] = rest
                        break
                    self._waiting.popleft()


class Mailbox(Generic[In, Out]):
    """The worker's end. One thread may `get`; any thread may `reply`."""

    def __init__(
        self, inbox: Connection, outbox: Connection, decoder: msgspec.json.Decoder[In]
    ) -> None:
        # Kept, so that they stay open.
        self._inbox, self._outbox = inbox, outbox
        self._frames = Frames(inbox.fileno())
        self._come: deque[bytes] = deque()
        self._decoder = decoder
        self._writing = threading.Lock()

    def get(self) -> In:
        """The next message. EOF means that the hub died: this process ends at once. Raises
        msgspec.MsgspecError or ValueError for what is no message.
        """
        if not self._come:
            try:
                self._come.extend(self._frames.read())
            except EOFError:
                os._exit(0)
        return self._decoder.decode(self._come.popleft())

    def reply(self, message: msgspec.Struct) -> None:
        """Send a message to the hub; returns when it is in the pipe, which the hub always reads."""
        frame = frame_of(message)
        with self._writing:
            try:
                while frame:
                    frame = frame[os.write(self._outbox.fileno(), frame) :]
            except OSError:
                os._exit(0)
