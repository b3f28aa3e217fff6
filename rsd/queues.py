"""WorkQueue: the multiprocessing queue of this project, one mailbox per worker process.

`multiprocessing.Queue` shares one pipe and one lock among all consumers; a SIGKILL at the wrong
moment leaves the lock taken for ever (cpython issues 96062 and 87971). A mailbox is two one-way
pipes that belong to one worker alone: whoever dies, the other end sees EOF and the siblings see
nothing. Frames are JSON bytes, never pickle.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from typing import Generic, TypeVar

import msgspec

In = TypeVar("In")
Out = TypeVar("Out")


class WorkQueue(Generic[In]):
    """The hub's end. `put` never blocks; what comes back goes to `deliver` on a reader thread."""

    def __init__(self, context: SpawnContext, name: str) -> None:
        self.name = name
        child_inbox, self._tx = context.Pipe(duplex=False)
        self._rx, child_outbox = context.Pipe(duplex=False)
        #: For the child process: (inbox, outbox). `start` closes the hub's copies of them.
        self.child_ends: tuple[Connection, Connection] = (child_inbox, child_outbox)
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def start(
        self,
        decoder: msgspec.json.Decoder[In],
        deliver: Callable[[In], None],
        gone: Callable[[], None],
    ) -> None:
        """Begin to read and send, once the child has been started.

        `gone` is called once, after the last message was delivered, when the child's end is closed.
        """
        for end in self.child_ends:
            end.close()
        threading.Thread(
            target=self._read, args=(decoder, deliver, gone), name=f"{self.name}-rx", daemon=True
        ).start()
        threading.Thread(target=self._send, name=f"{self.name}-tx", daemon=True).start()

    def put(self, message: msgspec.Struct) -> None:
        """Queue a message for this worker; lost if the worker is dead, which `gone` tells."""
        self._outgoing.put(msgspec.json.encode(message))

    def close(self) -> None:
        """End the sender; the child sees EOF once everything queued before has been sent."""
        self._outgoing.put(None)

    def _read(
        self,
        decoder: msgspec.json.Decoder[In],
        deliver: Callable[[In], None],
        gone: Callable[[], None],
    ) -> None:
        while True:
            try:
                frame = self._rx.recv_bytes()
            except (EOFError, OSError):  # a death inside a frame comes as OSError
                break
            deliver(decoder.decode(frame))
        self._rx.close()
        self._outgoing.put(None)
        gone()

    def _send(self) -> None:
        while (frame := self._outgoing.get()) is not None:
            try:
                self._tx.send_bytes(frame)
            except OSError:
                break
        self._tx.close()


class Mailbox(Generic[In, Out]):
    """The worker's end. One thread may `get`; any thread may `reply`."""

    def __init__(
        self, inbox: Connection, outbox: Connection, decoder: msgspec.json.Decoder[In]
    ) -> None:
        self._inbox = inbox
        self._outbox = outbox
        self._decoder = decoder
        self._sending = threading.Lock()

    def get(self) -> In:
        """The next message. EOF means that the hub died: this process ends at once."""
        try:
            frame = self._inbox.recv_bytes()
        except (EOFError, OSError):
            os._exit(0)
        return self._decoder.decode(frame)

    def reply(self, message: msgspec.Struct) -> None:
        """Send a message to the hub; it is in the pipe on return, whatever kills us then.

        The hub always reads, so that this waits for nothing but its turn.
        """
        frame = msgspec.json.encode(message)
        try:
            with self._sending:
                self._outbox.send_bytes(frame)
        except OSError:
            os._exit(0)
