"""Child processes: start, message, restart with growing delay, give up for a while.

The first ones are forked, later ones and those that must not inherit anything are spawned
(`_start`). This is the seam for other ways to run workers: `start`, `put`, `kill`, and events to a
callback.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import msgspec

from rsd.hub.children.entry import Spawned, Target, run
from rsd.protocol.status import ProcessStatus
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


@dataclass(slots=True)
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


@dataclass(slots=True)
class Pool:
    """All children of the hub. Events: `deliver(child, life, message)`, `gone(child, life)`, both
    called on reader threads.
    """

    deliver: Callable[[Child, int, Any], None]
    gone: Callable[[Child, int], None]
    load: Callable[[], None]  #: imports what forked children run; called before the first of them
    children: dict[str, Child] = field(default_factory=dict)
    _may_fork: bool = True

    def add(
        self,
        name: str,
        role: str,
        target: Target,
        arguments: tuple[Any, ...],
        decoder: msgspec.json.Decoder[Any],
        *,
        isolated: bool = False,
    ) -> Child:
        """A new place; the process starts with the next `tend`."""
        child = Child(name, role, target, arguments, decoder, isolated)
        self.children[name] = child
        return child

    def tend(self, now: float) -> list[Child]:
        """Start what is due; returns the children that were started."""
        due = []
        for child in self.children.values():
            if child.process is not None and now - child.started_at >= QUICK:
                child.quick_deaths = 0
            if child.wanted and child.restart_at is not None and child.restart_at <= now:
                due.append(child)
        # Those that import for themselves first: they do so while the hub does it for the others.
        due.sort(key=lambda child: not child.isolated)
        started = [child for child in due if self._start(child, now)]
        for child in started:  # not before all are started: this begins threads
            self._listen(child)
        return started

    def _start(self, child: Child, now: float) -> bool:
        """Fork as long as this process has only one thread, which is at its start: no lock is held
        by another, and the child has all imports at once. Spawn afterwards, and whoever is
        isolated.
        """
        queue: WorkQueue[Any] = WorkQueue(child.name)
        self._may_fork = self._may_fork and _single_threaded()
        try:
            process: BaseProcess | Spawned | None = None
            if self._may_fork and not child.isolated:
                process = self._forked(child, queue)
            process = process or self._spawned(child, queue)
        except OSError as e:
            for end in queue.child_ends:
                end.close()
            log.error("cannot start %s: %s", child.name, e)
            child.restart_at = now + DELAY_MAX
            return False
        child.life += 1
        child.process, child.queue = process, queue
        child.started_at, child.restart_at, child.ready = now, None, False
        child.useful = False
        return True

    def _forked(self, child: Child, queue: WorkQueue[Any]) -> BaseProcess | None:
        """None when the system does not fork: it is not asked again."""
        self.load()
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
            lambda message: self.deliver(child, life, message),
            lambda: self.gone(child, life),
        )

    def put(self, child: Child, message: msgspec.Struct) -> None:
        """Queue a message for a child, to be sent with the next `flush`; lost when it is dead."""
        if child.queue is not None:
            child.queue.put(message)

    def flush(self) -> None:
        """Send what was put for all children."""
        for child in self.children.values():
            if child.queue is not None:
                child.queue.flush()

    def reap(self, child: Child, now: float) -> str:
        """Its pipe is closed: collect the process and plan the restart. Returns how it ended."""
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
            child.restart_at = None
            return how
        if now - child.started_at >= QUICK or child.useful:
            child.quick_deaths = 0
        else:
            child.quick_deaths += 1
        delay = FATAL_PAUSE if child.fatal else min(DELAY_MAX, max(0, child.quick_deaths - 1))
        child.restart_at = now + delay
        return how

    def end(self) -> None:
        """Kill whatever lives, and wait until it is gone."""
        for child in self.children.values():
            child.wanted = False
            self.kill(child)
        for child in self.children.values():
            if child.process is not None:
                child.process.join(timeout=5.0)

    def kill(self, child: Child) -> None:
        """SIGKILL: harmless, because nothing but open calls is lost."""
        if child.process is not None and child.process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.process.pid, signal.SIGKILL)

    def retire(self, name: str) -> None:
        """This place is not wanted any more; its process ends when its queue is closed."""
        child = self.children[name]
        child.wanted, child.closing, child.restart_at = False, True, None
        if child.queue is not None:
            child.queue.flush()
            child.queue.close()
        if child.process is None:
            del self.children[name]


def processes(pool: Pool) -> tuple[ProcessStatus, ...]:
    """Name, role, pid and state of every child, for the status."""
    return tuple(
        ProcessStatus(
            name=child.name,
            role=child.role,
            pid=child.pid,
            state="fatal" if child.fatal else "up" if child.ready else "starting",
        )
        for child in pool.children.values()
    )


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
