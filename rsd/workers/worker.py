"""What generator and grader processes share: the message loop, its threads, pictures, clients."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import msgspec

from rsd.errors import OUT_OF_MEMORY, ErrorClass
from rsd.protocol.tasks import (
    Configure,
    Crashed,
    Drop,
    Endpoint,
    Failed,
    GiveBack,
    GivenBack,
    Lease,
    LeaseId,
    LogLine,
    Ping,
    Pong,
    Prepare,
    ProbeSampling,
    ReadLoad,
    Task,
    WorkerReady,
)
from rsd.protocol.vocabulary import CallError
from rsd.system import logs
from rsd.system.redact import Redactor
from rsd.workers.api.client import Client
from rsd.workers.api.replies import CallFailed
from rsd.workers.channel import Channel
from rsd.workers.memory import MemoryLimit
from rsd.workers.pictures import PictureSource

log = logging.getLogger(__name__)
#: Connections to an endpoint beside those of the call threads: its load, three tiny completions.
SIDE = 4
#: Longest traceback that is sent to the hub, in characters; its end says most.
TRACEBACK_MAX = 8_000

#: A call that met the memory limit because others need much at this moment.
SHORT_OF_MEMORY = CallError(
    error=ErrorClass.TRANSIENT,
    message="this worker is short of memory",
    reason=OUT_OF_MEMORY,
    answered=False,
)

Handler = Callable[["Worker", LeaseId, Any], msgspec.Struct]


class Worker:
    """One worker process: reads its channel in the main thread, calls in the others."""

    def __init__(
        self,
        channel: Channel,
        pictures: PictureSource,
        slots: int,
        handlers: dict[type, Handler],
    ) -> None:
        self.channel = channel
        self.pictures = pictures
        self.configuration: Configure | None = None
        self._slots = slots
        self._handlers: dict[type, Handler] = handlers
        self._clients: dict[str, Client] = {}
        self._calls: queue.SimpleQueue[Lease] = queue.SimpleQueue()
        # One thread each, beside the calls: a death while decoding then names one picture, and
        # neither a server's load nor a probe of its sampling waits for calls to end.
        self._sides: dict[type, queue.SimpleQueue[Lease]] = {
            kind: queue.SimpleQueue() for kind in (Prepare, ReadLoad, ProbeSampling)
        }
        self._preparing_since: float | None = None  # monotonic
        self._memory: MemoryLimit | None = None

    def run(self) -> None:
        """Serve until the hub closes the channel, which ends the process. Raises whatever the
        channel raises for what is no message, once the hub has its traceback.
        """
        threads = [(f"call-{k}", self._calls) for k in range(self._slots)]
        threads += [(kind.__name__.lower(), leases) for kind, leases in self._sides.items()]
        for name, leases in threads:
            threading.Thread(target=self._serve, args=(leases,), name=name, daemon=True).start()
        self._memory = MemoryLimit(self._slots)
        while True:
            try:
                message = self.channel.get()
            except Exception:  # hub and worker do not understand each other
                self.channel.reply(self._crashed(None))
                raise
            match message:
                case Lease(task=task):
                    self._sides.get(type(task), self._calls).put(message)
                case Configure():
                    self._configure(message)
                case Drop(sha256=sha256):
                    self.pictures.drop(sha256)
                case GiveBack():
                    self._give_back()
                case Ping():
                    self.channel.reply(Pong(busy_seconds=self._busy_seconds()))

    def _busy_seconds(self) -> float:
        since = self._preparing_since
        return 0.0 if since is None else time.monotonic() - since

    @property
    def roomy(self) -> bool:
        """Whether a decoding that begins now finds all the memory that it may take."""
        return self._memory is None or self._memory.roomy

    def client(self, url: str) -> Client:
        """The client of an endpoint. Raises CallFailed for one that a reload removed."""
        client = self._clients.get(url)
        if client is None:
            raise CallFailed(
                CallError(
                    error=ErrorClass.TRANSIENT,
                    message="this endpoint is not in the settings any more",
                    reason="endpoint_removed",
                )
            )
        return client

    def _configure(self, configuration: Configure) -> None:
        first = self.configuration is None
        logs.forward(self._log, configuration.log_level)
        before = self._clients
        self._clients = {e.url: self._client_of(e, before) for e in configuration.endpoints}
        self.configuration = configuration
        self.pictures.configure(configuration)
        if self._memory is not None and configuration.decode_bytes:
            self._memory.allow(configuration.decode_bytes)
        if first:
            self.channel.reply(WorkerReady(pid=os.getpid()))

    def _client_of(self, endpoint: Endpoint, before: dict[str, Client]) -> Client:
        known = before.get(endpoint.url)
        return (
            known if known and known.endpoint == endpoint else Client(endpoint, self._slots + SIDE)
        )

    def _log(self, level: int, logger: str, text: str) -> None:
        self.channel.reply(LogLine(level=level, logger=logger, text=text))

    def _give_back(self) -> None:
        found: list[LeaseId] = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._calls.get_nowait().lease)
        self.channel.reply(GivenBack(leases=tuple(found)))

    def _serve(self, leases: queue.SimpleQueue[Lease]) -> None:
        while True:
            lease = leases.get()
            reply = self._handle(lease.lease, lease.task)
            try:
                self.channel.reply(reply)
            except Exception:  # a reply that is no JSON must not cost this thread
                self.channel.reply(self._crashed(lease.lease))

    def _crashed(self, lease: LeaseId | None) -> Crashed:
        keys = [client.endpoint.key for client in list(self._clients.values())]
        text = Redactor(keys).text(traceback.format_exc())
        safe = text.encode("utf-8", "backslashreplace").decode()
        return Crashed(lease=lease, traceback=safe[-TRACEBACK_MAX:])

    def _handle(self, lease: LeaseId, task: Task) -> msgspec.Struct:
        began = time.monotonic()
        if isinstance(task, Prepare):
            self._preparing_since = began
        try:
            return self._handlers[type(task)](self, lease, task)
        except CallFailed as e:
            return Failed(
                lease=lease, error=e.error, seconds=time.monotonic() - began, usage=e.usage
            )
        except MemoryError:
            return Failed(lease=lease, error=SHORT_OF_MEMORY, seconds=time.monotonic() - began)
        except Exception:
            return self._crashed(lease)
        finally:
            if isinstance(task, Prepare):
                self._preparing_since = None
