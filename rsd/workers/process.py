"""What generator and grader processes share: the loop, the call threads, pictures, clients,
probes.
"""

from __future__ import annotations

import base64
import logging
import os
import queue
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec

from rsd import logs
from rsd.errors import ErrorClass
from rsd.messages import (
    Configure,
    Crashed,
    Drop,
    Failed,
    Lease,
    LeaseId,
    Prepare,
    Probe,
    Probed,
    Task,
    ToWorker,
    WorkerReady,
    to_worker_decoder,
)
from rsd.queues import Mailbox
from rsd.vocabulary import CallError
from rsd.workers import images
from rsd.workers.endpoint import CallFailed, Client, Reply, chat_body

log = logging.getLogger(__name__)

#: Encoded pictures kept per process, in bytes.
CACHE_BYTES = 64 * 1024 * 1024
#: Longest answer to a probe, in tokens: enough for a few words, too few to cost anything.
PROBE_TOKENS = 16
#: Sampling parameters that make two seeds differ, if seeds take effect at all.
LIVELY = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}

Handler = Callable[["Worker", LeaseId, Any], msgspec.Struct]


class Pictures:
    """The pictures of the spool as data URLs: an LRU, so that a picture is encoded once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # call threads share it
        self._urls: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0

    def url(self, spool: Path, sha256: str, *, reduced: bool) -> bytes:
        """The data URL of a picture. Raises CallFailed when its spool file is gone."""
        key = f"{sha256}:half" if reduced else sha256
        with self._lock:
            found = self._urls.get(key)
            if found is not None:
                self._urls.move_to_end(key)
                return found
        try:
            data = (spool / sha256).read_bytes()
        except FileNotFoundError:
            raise CallFailed(
                CallError(
                    error=ErrorClass.TRANSIENT,
                    message="the prepared picture is gone and is made again",
                    reason="spool_missing",
                )
            ) from None
        if reduced:
            data = images.halved(data)
        url = b"data:%s;base64,%s" % (images.media_type(data).encode(), base64.b64encode(data))
        with self._lock:
            if key not in self._urls:
                self._urls[key] = url
                self._bytes += len(url)
            while self._bytes > CACHE_BYTES and len(self._urls) > 1:
                self._bytes -= len(self._urls.popitem(last=False)[1])
        return url

    def drop(self, sha256: str) -> None:
        """This picture is not needed any more."""
        with self._lock:
            for key in (sha256, f"{sha256}:half"):
                url = self._urls.pop(key, None)
                if url is not None:
                    self._bytes -= len(url)


class Worker:
    """One worker process: reads its mailbox in the main thread, calls in the others."""

    def __init__(
        self, inbox: Connection, outbox: Connection, slots: int, handlers: dict[type, Handler]
    ) -> None:
        self.mailbox: Mailbox[ToWorker, msgspec.Struct] = Mailbox(inbox, outbox, to_worker_decoder)
        self.pictures = Pictures()
        self.configuration: Configure | None = None
        self._slots = slots
        self._handlers: dict[type, Handler] = {Probe: probe, **handlers}
        self._clients: dict[str, Client] = {}
        self._calls: queue.SimpleQueue[Lease] = queue.SimpleQueue()
        self._prepares: queue.SimpleQueue[Lease] = queue.SimpleQueue()

    def run(self) -> None:
        """Serve until the hub closes the mailbox, which ends the process."""
        for k in range(self._slots):
            threading.Thread(
                target=self._serve, args=(self._calls,), name=f"call-{k}", daemon=True
            ).start()
        # Pictures have one thread of their own, so that a death while decoding names one picture.
        threading.Thread(
            target=self._serve, args=(self._prepares,), name="prepare", daemon=True
        ).start()
        while True:
            message = self.mailbox.get()
            if isinstance(message, Configure):
                self._configure(message)
            elif isinstance(message, Drop):
                self.pictures.drop(message.sha256)
            elif isinstance(message.task, Prepare):
                self._prepares.put(message)
            else:
                self._calls.put(message)

    @property
    def spool(self) -> Path:
        """Where prepared pictures lie."""
        assert self.configuration is not None
        return Path(self.configuration.spool_dir)

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
        if first:
            logs.forward(self.mailbox.reply, configuration.log_level)
        self._clients = {e.url: Client(e, self._slots) for e in configuration.endpoints}
        self.configuration = configuration
        if first:
            self.mailbox.reply(WorkerReady(pid=os.getpid()))

    def _serve(self, leases: queue.SimpleQueue[Lease]) -> None:
        while True:
            lease = leases.get()
            self.mailbox.reply(self._answer(lease.lease, lease.task))

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
        except Exception:
            return Crashed(lease=lease, traceback=traceback.format_exc())


def probe(worker: Worker, lease: LeaseId, task: Probe) -> Probed:
    """Models first (that finds a wrong key or address), then a tiny completion (credit, path)."""
    client = worker.client(task.endpoint)
    names: tuple[str, ...] = ()
    length = None
    try:
        models = client.models()
        names, length = models.names, models.max_model_len
    except CallFailed as e:
        listing = e.error.reason in ("not_found", "html") and e.error.status in (404, 405)
        if not (listing and task.model):
            raise
    model = _resolve(task, names)
    parameters: dict[str, Any] = {task.profile.token_parameter: PROBE_TOKENS}
    client.chat(chat_body(model, None, "Say: ready.", parameters))
    warning = _try_sampling(client, model) if task.sampling else ""
    return Probed(lease=lease, model=model, models=names, max_model_len=length, warning=warning)


def _resolve(task: Probe, names: tuple[str, ...]) -> str:
    if task.model and (task.model in names or not names):
        return task.model
    listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    if task.model and len(names) >= 1 and task.profile.token_parameter == "max_tokens":
        text = f"the model {task.model} is not served there; served: {listed}"
    elif task.model:
        return task.model  # proxies of commercial models list only some of what they take
    elif len(names) == 1:
        return names[0]
    else:
        text = f"name the model in the settings; served: {listed or 'none'}"
    raise CallFailed(
        CallError(error=ErrorClass.MISCONFIGURED, message=text[:300], reason="no_model")
    )


def _try_sampling(client: Client, model: str) -> str:
    """Whether seeds and temperature do anything: the same seed twice, then another."""
    texts = []
    for seed in (11, 11, 22):
        body = chat_body(
            model,
            None,
            "Write six random words.",
            {**LIVELY, "seed": seed, "max_tokens": PROBE_TOKENS},
        )
        try:
            reply: Reply = client.chat(body)
        except CallFailed as e:
            return f"sampling parameters could not be tried: {e.error.message}"
        texts.append(reply.choices[0].content)
    if texts[0] == texts[1] == texts[2]:
        return "different seeds give the same answer: sampling parameters may take no effect"
    if texts[0] != texts[1]:
        return "the same seed gives different answers: results will not be reproducible"
    return ""
