"""What generator and grader processes share: the loop, the call threads, pictures, clients,
probes.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import mmap
import os
import queue
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import blake2b
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec

from rsd import logs, signals
from rsd.errors import OUT_OF_MEMORY, ErrorClass
from rsd.messages import (
    Configure,
    Crashed,
    Drop,
    Endpoint,
    Failed,
    GiveBack,
    GivenBack,
    Lease,
    LeaseId,
    LoadRead,
    Prepare,
    Probe,
    Probed,
    ReadLoad,
    Task,
    ToWorker,
    WorkerReady,
    to_worker_decoder,
)
from rsd.profiles import is_reasoning
from rsd.queues import Mailbox
from rsd.redact import Redactor
from rsd.vocabulary import CallError, Profile
from rsd.workers import images
from rsd.workers.endpoint import Client, chat_body
from rsd.workers.memory import MemoryLimit
from rsd.workers.refusals import excerpt
from rsd.workers.replies import CallFailed, Reply

log = logging.getLogger(__name__)

#: Encoded pictures at hand per process, in bytes; how many of them may be mapped (each is an open
#: file); and from how many bytes on they are.
CACHE_BYTES = 64 * 1024 * 1024
MAPS_MAX, MAP_FROM = 32, 64 * 1024
#: Longest answer to a probe, in tokens: enough for a few words, too few to cost anything.
PROBE_TOKENS = 16
#: Connections to an endpoint beside those of the call threads: looks at its load, tiny completions.
ASIDE = 4
#: Longest traceback that is sent to the hub, in characters; its end says most.
TRACEBACK_MAX = 8_000
#: Sampling parameters that make two seeds differ, if seeds take effect at all.
LIVELY = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
#: Seeds of the tiny completions that show whether seeds take effect.
SEEDS = (1, 1, 2)
#: Errors of a tiny completion that only a server at work can give.
AT_WORK = {
    ErrorClass.UNSUPPORTED,
    ErrorClass.TOO_BIG,
    ErrorClass.REFUSED,
    ErrorClass.TRUNCATED,
}

#: A call that met the memory limit because others need much at this moment.
SHORT_OF_MEMORY = CallError(
    error=ErrorClass.TRANSIENT,
    message="this worker is short of memory",
    reason=OUT_OF_MEMORY,
    answered=False,
)

Handler = Callable[["Worker", LeaseId, Any], msgspec.Struct]


#: A picture as it stands in a request: bytes, or a file mapped into memory.
Url = bytes | mmap.mmap


class Pictures:
    """The data URLs of the spool, the latest at hand. Large ones are mapped: all processes that
    send a picture share the memory that holds it.
    """

    def __init__(self, capacity: int = CACHE_BYTES) -> None:
        self._capacity = capacity
        self.named = False  #: whether names are wanted: a hash costs about as much as the encoding
        self._lock = threading.Lock()  # call threads share it
        self._reading = threading.Lock()
        self._urls: OrderedDict[str, tuple[Url, str]] = OrderedDict()
        self._bytes = 0
        self._maps = 0

    def get(self, spool: Path, sha256: str, *, reduced: bool) -> tuple[Url, str]:
        """The data URL of a picture, and a name that only these bytes have if it was made for
        `named`. Raises CallFailed when its spool file is gone.
        """
        key = f"{sha256}:half" if reduced else sha256
        found = self._known(key)
        if found is not None:
            return found
        with self._reading:  # threads that want the same picture wait for the first of them
            found = self._known(key)
            if found is not None:
                return found
            url = _data_url(images.spooled(spool, sha256))
            if reduced:
                whole = base64.b64decode(bytes(url).partition(b",")[2])
                url = images.data_url(images.halved(whole))
            found = url, blake2b(url, digest_size=16).hexdigest() if self.named else ""
            with self._lock:
                self._urls[key] = found
                self._count(url, +1)
                while self._full and len(self._urls) > 1:
                    self._count(self._urls.popitem(last=False)[1][0], -1)
        return found

    @property
    def _full(self) -> bool:
        return self._bytes > self._capacity or self._maps > MAPS_MAX

    def _count(self, url: Url, by: int) -> None:
        self._bytes += by * len(url)
        self._maps += by * isinstance(url, mmap.mmap)

    def _known(self, key: str) -> tuple[Url, str] | None:
        with self._lock:
            found = self._urls.get(key)
            if found is not None:
                self._urls.move_to_end(key)
            return found

    def drop(self, sha256: str) -> None:
        """This picture is not needed any more."""
        with self._lock:
            for key in (sha256, f"{sha256}:half"):
                found = self._urls.pop(key, None)
                if found is not None:
                    self._count(found[0], -1)


def _data_url(path: Path) -> Url:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size >= MAP_FROM:
                with contextlib.suppress(OSError):  # no more open files: then it is read
                    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return file.read()
    except FileNotFoundError:
        raise CallFailed(
            CallError(
                error=ErrorClass.TRANSIENT,
                message="the prepared picture is gone and is made again",
                reason="spool_missing",
            )
        ) from None


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
        self._handlers: dict[type, Handler] = {Probe: probe, ReadLoad: read_load, **handlers}
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
        logs.forward(self.mailbox.reply, configuration.log_level)
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


def token_cap(tokens: int, profile: Profile) -> int:
    """The cap to send, in tokens: what is wanted, times what this model was found to need."""
    return max(1, int(tokens * profile.max_tokens_factor))


def probe(worker: Worker, lease: LeaseId, task: Probe) -> Probed:
    """Models first (that finds a wrong key or address), then a tiny completion (credit, path).
    Raises CallFailed.
    """
    client = worker.client(task.endpoint)
    names: tuple[str, ...] = ()
    lengths: dict[str, int] = {}
    try:
        models = client.models()
        names, lengths = models.names, models.lengths
    except CallFailed as e:
        if not (task.model and e.error.status in (404, 405)):  # some servers have no such listing
            raise
    model = _resolve(task, names)
    # All at once: work waits for this probe, and the answers do not need each other.
    with ThreadPoolExecutor(len(SEEDS)) as threads:
        seeds = SEEDS if task.sampling else (None,)
        said = [threads.submit(_say, client, model, task.profile, seed=seed) for seed in seeds]
    try:
        said[0].result()
    except CallFailed as e:
        if e.error.error not in AT_WORK:
            raise
        warning = f"a tiny completion was refused: {e.error.message}"
        if e.error.error is ErrorClass.UNSUPPORTED:
            warning = ""  # the first item adapts the profile
    else:
        warning = _try_sampling(task.profile, said) if task.sampling else ""
    return Probed(
        lease=lease,
        model=model,
        models=names,
        max_model_len=lengths.get(model),
        warning=excerpt(warning),
    )


def read_load(worker: Worker, lease: LeaseId, task: ReadLoad) -> LoadRead:
    """vLLM's own account of its load. Raises CallFailed when the server has none."""
    load = worker.client(task.endpoint).load()
    return LoadRead(lease=lease, running=load.running, waiting=load.waiting)


def _resolve(task: Probe, names: tuple[str, ...]) -> str:
    """The model to ask for. Raises CallFailed when it is not served, or not the only one."""
    if task.model and (task.model in names or not names or is_reasoning(task.model)):
        return task.model  # proxies of commercial models list only some of what they take
    if not task.model and len(names) == 1:
        return names[0]
    listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    if task.model:
        text = f"the model {task.model} is not served there; served: {listed}"
    else:
        text = f"name the model in the settings; served: {listed or 'none'}"
    raise CallFailed(
        CallError(error=ErrorClass.MISCONFIGURED, message=excerpt(text), reason="no_model")
    )


def _say(client: Client, model: str, profile: Profile, *, seed: int | None) -> Reply:
    """A tiny completion without a picture."""
    wanted: dict[str, Any] = {} if seed is None else {**LIVELY, "seed": seed}
    sent = {k: v for k, v in wanted.items() if k not in profile.drop}
    sent[profile.token_parameter] = PROBE_TOKENS
    return client.chat(chat_body(model, None, "Write six random words.", sent))


def _try_sampling(profile: Profile, said: list[Future[Reply]]) -> str:
    """Whether seeds and temperature do anything: the same seed twice, then another."""
    if "seed" in profile.drop or "temperature" in profile.drop:
        return ""
    try:
        texts = [each.result().choices[0].content for each in said]
    except CallFailed as e:
        return f"sampling parameters could not be tried: {e.error.message}"
    if not all(texts):
        return ""  # a reasoning model spent the tokens on thoughts: nothing can be seen
    if texts[0] == texts[1] == texts[2]:
        return "different seeds give the same answer: sampling parameters may take no effect"
    if texts[0] != texts[1]:
        return "the same seed gives different answers: results will not be reproducible"
    return ""
