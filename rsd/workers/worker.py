"""What generator and grader processes share: the loop, the call threads, pictures, clients,
probes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
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
    Prepare,
    ReadLoad,
    Task,
    ToWorker,
    WorkerReady,
    to_worker_decoder,
)
from rsd.protocol.vocabulary import CallError
from rsd.system import logs, signals
from rsd.system.queues import Mailbox
from rsd.system.redact import Redactor
from rsd.workers import images
from rsd.workers.api.client import Client
from rsd.workers.api.replies import CallFailed
from rsd.workers.memory import MemoryLimit
from rsd.workers.pictures import Pictures

log = logging.getLogger(__name__)
#: Connections to an endpoint beside those of the call threads: looks at its load, tiny completions.
ASIDE = 4
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
    """One worker process: reads its mailbox in the main thread, calls in the others."""

    def __init__(
        self, inbox: Connection, outbox: Connection, slots: int, handlers: dict[type, Handler]
    ) -> None:
        self.mailbox: Mailbox[ToWorker, msgspec.Struct] = Mailbox(inbox, outbox, to_worker_decoder)
        self.pictures = Pictures()
        self.configuration: Configure | None = None
        self.spool = Path()  #: where prepared pictures lie
        self._slots = slots
        self._handlers: dict[type, Handler] = handlers
        self._clients: dict[str, Client] = {}
        self._calls: queue.SimpleQueue[Lease] = queue.SimpleQueue()
        self._prepares: queue.SimpleQueue[Lease] = queue.SimpleQueue()
        self._asides: queue.SimpleQueue[Lease] = queue.SimpleQueue()
        self._memory: MemoryLimit | None = None

    def run(self) -> None:
        """Serve until the hub closes the mailbox, which ends the process."""
        signals.ignore()
        for k in range(self._slots):
            threading.Thread(
                target=self._serve, args=(self._calls,), name=f"call-{k}", daemon=True
            ).start()
        # Pictures have one thread of their own, so that a death while decoding names one picture;
        # looks at a server's load have one, because they must not wait for calls to end.
        for name, leases in (("prepare", self._prepares), ("aside", self._asides)):
            threading.Thread(target=self._serve, args=(leases,), name=name, daemon=True).start()
        self._memory = MemoryLimit(self._slots)
        while True:
            message = self.mailbox.get()
            if isinstance(message, Configure):
                self._configure(message)
            elif isinstance(message, Drop):
                self.pictures.drop(message.sha256)
            elif isinstance(message, GiveBack):
                self._give_back()
            elif isinstance(message.task, Prepare):
                self._prepares.put(message)
            elif isinstance(message.task, ReadLoad):
                self._asides.put(message)
            else:
                self._calls.put(message)

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
        self.spool = Path(configuration.spool_dir)
        self.pictures.named = configuration.pictures == "uuid"
        if self._memory is not None and configuration.decode_bytes:
            self._memory.allow(configuration.decode_bytes)
        if first:
            self.mailbox.reply(WorkerReady(pid=os.getpid()))

    def _client_of(self, endpoint: Endpoint, before: dict[str, Client]) -> Client:
        known = before.get(endpoint.url)
        return (
            known if known and known.endpoint == endpoint else Client(endpoint, self._slots + ASIDE)
        )

    def _log(self, level: int, logger: str, text: str) -> None:
        self.mailbox.reply(LogLine(level=level, logger=logger, text=text))

    def _give_back(self) -> None:
        found: list[LeaseId] = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._calls.get_nowait().lease)
        self.mailbox.reply(GivenBack(leases=tuple(found)))

    def _serve(self, leases: queue.SimpleQueue[Lease]) -> None:
        while True:
            lease = leases.get()
            reply = self._answer(lease.lease, lease.task)
            try:
                self.mailbox.reply(reply)
            except Exception:  # a reply that is no JSON must not cost this thread
                self.mailbox.reply(self._crashed(lease.lease))

    def _crashed(self, lease: LeaseId) -> Crashed:
        keys = [client.endpoint.key for client in list(self._clients.values())]
        text = Redactor(keys).text(traceback.format_exc())
        safe = text.encode("utf-8", "backslashreplace").decode()
        return Crashed(lease=lease, traceback=safe[-TRACEBACK_MAX:])

    def _answer(self, lease: LeaseId, task: Task) -> msgspec.Struct:
        began = time.monotonic()
        try:
            return self._handlers[type(task)](self, lease, task)
        except CallFailed as e:
            return Failed(
                lease=lease, error=e.error, seconds=time.monotonic() - began, usage=e.usage
            )
        except images.BadImage as e:
            return Failed(lease=lease, error=e.error, seconds=time.monotonic() - began)
        except MemoryError:
            return Failed(lease=lease, error=SHORT_OF_MEMORY, seconds=time.monotonic() - began)
        except Exception:
            return self._crashed(lease)
