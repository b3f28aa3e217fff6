"""Workers, and the writer, as processes of this host: start, message, restart with growing delay,
give up for a while.

The first ones are forked, later ones and those that must not inherit anything are spawned
(`_start`).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import msgspec

from rsd.hub.children.entry import Spawned, Target, run
from rsd.hub.children.heartbeat import Heartbeat
from rsd.hub.children.protocol import Gone, Message, PoolEvent, Up
from rsd.protocol import tasks, writer_talk
from rsd.protocol.status import ProcessStatus
from rsd.protocol.vocabulary import Role
from rsd.system import signals
from rsd.system.queues import WorkQueue

log = logging.getLogger(__name__)

FORK = multiprocessing.get_context("fork")
#: The n-th restart after quick deaths waits n seconds, up to this many.
DELAY_MAX = 10.0
#: A death within QUICK seconds of the start, before anything useful was done, counts; QUICK_DEATHS
#: of them in a row are FATAL, and then the child is tried again every FATAL_PAUSE seconds.
QUICK, QUICK_DEATHS, FATAL_PAUSE = 10.0, 5, 60.0
#: Signals that a process gets for what it did itself; all others come from somebody else (SIGKILL:
#: a person, or the kernel that had no memory left for whomsoever).
OWN_FAULTS = {
    signal.SIGSEGV,
    signal.SIGBUS,
    signal.SIGILL,
    signal.SIGFPE,
    signal.SIGABRT,
    signal.SIGTRAP,
    signal.SIGSYS,
    signal.SIGXCPU,
}


#: What a process of a role is called.
WORDS: dict[str, str] = {Role.GENERATE: "generator", Role.GRADE: "grader"}
#: Seconds that a worker may be at one picture: the brain's own deadline comes before.
BUSY_SECONDS = 420.0
#: What a child says without having done anything.
IDLE_WORDS = (
    *(tasks.WorkerReady, tasks.Pong, tasks.LogLine),
    *(writer_talk.WriterUp, writer_talk.Recovered, writer_talk.Pong),
)


@dataclass(frozen=True, slots=True)
class Note:
    """What a reader thread leaves for the main thread; `message` None: the pipe was closed."""

    child: Child
    life: int
    message: Any


@dataclass(slots=True, eq=False)
class Child:
    """One place in a pool, and the process that fills it now."""

    name: str
    role: str
    target: Target
    arguments: tuple[Any, ...]
    decoder: msgspec.json.Decoder[Any]
    isolated: bool  #: its memory is to hold nothing of the hub's: it is always spawned
    life: int = 0  #: counts the processes; messages of earlier ones are dropped
    process: BaseProcess | Spawned | None = None
    queue: WorkQueue[Any] | None = None
    started_at: float = 0.0
    quick_deaths: int = 0
    restart_at: float | None = 0.0  #: monotonic; None while it runs or is not wanted
    wanted: bool = True
    closing: bool = False  #: its queue is closed: it ends
    ready: bool = False
    useful: bool = False  #: it has done something since its start
    exit_code: int | None = None  #: of its last process
    heart: Heartbeat = field(default_factory=lambda: Heartbeat(BUSY_SECONDS))

    @property
    def fatal(self) -> bool:
        """Whether it died too often too early."""
        return self.quick_deaths >= QUICK_DEATHS

    @property
    def own_fault(self) -> bool:
        """Whether its last process died of what it did, and not of a kill by somebody else."""
        code = self.exit_code or 0
        return code > 0 or -code in OWN_FAULTS

    @property
    def pid(self) -> int | None:
        """Process id, None when there is no process."""
        return self.process.pid if self.process is not None else None


class Pool:
    """All children of the hub: a `WorkerPool`, and whoever has a place by `add`. `notify` is called
    on reader threads; what it gets is for `hear`. `mains`: what runs in a worker of each role;
    `load` imports what forked children run, and is called before the first of them.
    """

    def __init__(
        self,
        notify: Callable[[Note], None],
        mains: Mapping[Role, Target],
        load: Callable[[], None],
    ) -> None:
        self._notify, self._mains, self._load = notify, mains, load
        self._children: dict[str, Child] = {}
        self._greetings: dict[str, msgspec.Struct] = {}
        self._serial = 0
        self._may_fork = True

    def add(
        self,
        name: str,
        role: str,
        target: Target,
        arguments: tuple[Any, ...],
        decoder: msgspec.json.Decoder[Any],
        *,
        isolated: bool = False,
    ) -> None:
        """A new place; the process starts with the next `tend`."""
        self._children[name] = Child(name, role, target, arguments, decoder, isolated)

    def want(self, role: Role, count: int, threads: int) -> list[str]:
        """See `WorkerPool`."""
        present = [c for c in self._children.values() if c.role == role and c.wanted]
        if [c.arguments[1] for c in present] == [threads] * count:
            return []
        busy = []
        for child in present:
            child.wanted, child.restart_at = False, None
            if child.ready:
                busy.append(child.name)
            else:
                self.retire(child.name)
        for _ in range(count):
            self._serial += 1
            name = f"{WORDS[role]}-{self._serial}"
            # Generators decode what anybody may have drawn: no key of the grader is in their
            # memory, nor anything else that they are not told.
            isolated = role is Role.GENERATE
            decoder = tasks.from_worker_decoder
            self.add(name, role, self._mains[role], (name, threads), decoder, isolated=isolated)
        return busy

    def greet(self, role: Role, message: msgspec.Struct) -> None:
        """See `WorkerPool`."""
        self._greetings[role] = message
        for child in self._children.values():
            if child.role == role and child.wanted:
                self.put(child.name, message)

    # ------------------------------------------------------------------------------- start and end

    def tend(self, now: float) -> list[str]:
        """See `WorkerPool`."""
        due = []
        for child in self._children.values():
            if child.process is not None and now - child.started_at >= QUICK:
                child.quick_deaths = 0
            if child.wanted and child.restart_at is not None and child.restart_at <= now:
                due.append(child)
        # Those that import for themselves first: they do so while the hub does it for the others.
        due.sort(key=lambda child: not child.isolated)
        started = [child for child in due if self._start(child, now)]
        for child in started:  # not before all are started: this begins threads
            self._listen(child)
            if (greeting := self._greetings.get(child.role)) is not None:
                self.put(child.name, greeting)
        for child in self._workers():
            self._check(child, now)
        return [child.name for child in started]

    def _check(self, child: Child, now: float) -> None:
        """Ask a worker whether it lives; kill one that does not say so."""
        due = child.heart.ping_due(now)
        if not child.ready:
            return
        if due and not child.closing:  # one whose queue is closed has to end
            self.put(child.name, tasks.Ping())
        if why := child.heart.hung(now):
            log.error("killing %s: %s", child.name, why)
            child.heart.started(now)
            self.kill(child.name)

    def _start(self, child: Child, now: float) -> bool:
        """Fork as long as this process has only one thread, which is at its start: no lock is held
        by another, and the child has all imports at once. Spawn afterwards, and whoever is
        isolated.
        """
        queue: WorkQueue[Any] | None = None
        process: BaseProcess | Spawned | None = None
        try:
            queue = WorkQueue(child.name)
            self._may_fork = self._may_fork and _single_threaded()
            if self._may_fork and not child.isolated:
                process = self._forked(child, queue)
            process = process or self._spawned(child, queue)
        except OSError as e:
            for end in queue.child_ends if queue is not None else ():
                end.close()
            log.error("cannot start %s: %s", child.name, e)
            child.restart_at = now + DELAY_MAX
            return False
        child.life += 1
        child.process, child.queue = process, queue
        child.started_at, child.restart_at, child.ready = now, None, False
        child.useful = False
        child.heart.started(now)
        return True

    def _forked(self, child: Child, queue: WorkQueue[Any]) -> BaseProcess | None:
        """None when the system does not fork: it is not asked again."""
        self._load()
        process = FORK.Process(
            target=run,
            args=(child.name, child.target, *queue.child_ends, child.arguments, _open_files()),
            name=f"rsd-{child.name}",
            daemon=True,
        )
        try:
            with signals.held():
                process.start()
        except OSError as e:
            log.warning("cannot fork %s: %s; it is spawned", child.name, e)
            self._may_fork = False
            return None
        return process

    def _spawned(self, child: Child, queue: WorkQueue[Any]) -> Spawned:
        with signals.held():
            return Spawned(child.name, child.target, queue.child_ends, list(child.arguments))

    def _listen(self, child: Child) -> None:
        life = child.life
        assert child.queue is not None
        child.queue.start(
            child.decoder,
            lambda message: self._notify(Note(child, life, message)),
            lambda: self._notify(Note(child, life, None)),
        )

    def kill(self, worker: str) -> None:
        """See `WorkerPool`. SIGKILL."""
        process = self._children[worker].process
        if process is not None and process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)

    def retire(self, worker: str) -> None:
        """See `WorkerPool`: its process ends when its queue is closed."""
        child = self._children.get(worker)
        if child is None or child.wanted or child.closing:
            return
        child.closing = True
        if child.queue is not None:
            child.queue.flush()
            child.queue.close()
        if child.process is None:
            del self._children[worker]

    def freeze(self) -> None:
        """See `WorkerPool`."""
        for child in self._workers():
            self.let_go(child.name)

    def let_go(self, name: str) -> None:
        """Whoever is in this place is not replaced."""
        child = self._children[name]
        child.wanted, child.restart_at = False, None

    def revive(self, now: float) -> None:
        """See `WorkerPool`."""
        for child in self._workers():
            if child.fatal and child.wanted and child.process is None:
                child.quick_deaths, child.restart_at = 0, now

    def end(self) -> None:
        """See `WorkerPool`."""
        for child in self._children.values():
            self.let_go(child.name)
            self.kill(child.name)
        for child in self._children.values():
            if child.process is not None:
                child.process.join(timeout=5.0)

    # ----------------------------------------------------------------------------------- messages

    def put(self, worker: str, message: msgspec.Struct) -> None:
        """See `WorkerPool`."""
        queue = self._children[worker].queue
        if queue is not None:
            queue.put(message)

    def broadcast(self, message: msgspec.Struct) -> None:
        """See `WorkerPool`."""
        for child in self._workers():
            self.put(child.name, message)

    def flush(self) -> None:
        """See `WorkerPool`."""
        for child in self._children.values():
            if child.queue is not None:
                child.queue.flush()

    def hear(self, raw: object, now: float) -> PoolEvent | None:
        """See `WorkerPool`."""
        assert isinstance(raw, Note)
        child, message = raw.child, raw.message
        if child.life != raw.life:
            return None
        if message is None:
            return self._gone(child, now)
        child.heart.heard(now)
        if not isinstance(message, IDLE_WORDS):
            child.useful, child.quick_deaths = True, 0
        if isinstance(message, tasks.Pong):
            child.heart.busy(message.busy_seconds)
            return None
        if isinstance(message, tasks.WorkerReady):
            if child.closing:
                return None
            child.ready = True
            return Up(child.name, Role(child.role), child.arguments[1])
        child.ready = child.ready or isinstance(message, writer_talk.WriterUp)
        return Message(child.name, message)

    def _gone(self, child: Child, now: float) -> Gone:
        """Its pipe is closed: collect the process and plan the restart."""
        process, child.process, child.queue, child.ready = child.process, None, None, False
        how = "gone"
        if process is not None:
            process.join(timeout=1.0)
            if process.is_alive():
                process.kill()
                process.join()
            child.exit_code = process.exitcode
            how = describe_exit(process.exitcode)
            process.close()
        if not child.wanted:
            if child.role in self._mains:
                del self._children[child.name]
            return Gone(child.name, child.own_fault, how, True, child.fatal)
        if now - child.started_at >= QUICK or child.useful:
            child.quick_deaths = 0
        else:
            child.quick_deaths += 1
        delay = FATAL_PAUSE if child.fatal else min(DELAY_MAX, max(0, child.quick_deaths - 1))
        child.restart_at = now + delay
        return Gone(child.name, child.own_fault, how, False, child.fatal)

    # -------------------------------------------------------------------------------- how it goes

    def alive(self, name: str) -> bool:
        """Whether there is a process in this place."""
        return self._children[name].process is not None

    def fatal(self, name: str) -> bool:
        """Whether those in this place die too often too early."""
        return self._children[name].fatal

    def given_up(self) -> str:
        """See `WorkerPool`; the writer counts, too."""
        wanted = [c for c in self._children.values() if c.wanted]
        for role in {c.role for c in wanted if c.fatal}:
            if all(c.fatal for c in wanted if c.role == role):
                return f"every {WORDS.get(role, role)} process dies at its start"
        return ""

    def processes(self, now: float) -> tuple[ProcessStatus, ...]:
        """See `WorkerPool`."""
        found = []
        for child in self._children.values():
            state = "fatal" if child.fatal else "up" if child.ready else "starting"
            if child.ready and child.heart.silent(now):
                state = "silent"
            found.append(
                ProcessStatus(name=child.name, role=child.role, pid=child.pid, state=state)
            )
        return tuple(found)

    def _workers(self) -> list[Child]:
        return [c for c in self._children.values() if c.role in self._mains]


def _single_threaded() -> bool:
    return len(list(Path("/proc/self/task").iterdir())) == 1


def _open_files() -> tuple[int, ...]:
    """The descriptors that a forked child is to let go of: all but those that anybody inherits.

    0, 1 and 2 may be any file when rsd was started without them; Python's own are not inheritable.
    """
    found = []
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # that of this very folder is closed by now
            if fcntl.fcntl(int(path.name), fcntl.F_GETFD) & fcntl.FD_CLOEXEC:
                found.append(int(path.name))
    return tuple(found)


def describe_exit(code: int | None) -> str:
    """An exit code in words."""
    if code is None:
        return "did not end"
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (out of memory?)" if -code == signal.SIGKILL else ""
    return f"killed by {name}{hint}"
