"""Child processes: start, message, restart with growing delay, give up for a while.

This is the seam for other ways to run workers: `start`, `put`, `kill`, and events to a callback.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.resource_tracker import ensure_running
from typing import Any

import msgspec

from rsd import signals
from rsd.queues import WorkQueue

log = logging.getLogger(__name__)

#: spawn, always: a forked child would keep the siblings' pipe ends open, and no EOF would come.
SPAWN = multiprocessing.get_context("spawn")
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
}

Target = Callable[..., None]


@dataclass(slots=True)
class Child:
    """One place in a pool, and the process that fills it now."""

    name: str
    role: str
    target: Target
    arguments: tuple[Any, ...]
    decoder: msgspec.json.Decoder[Any]
    life: int = 0  #: counts the processes; messages of earlier ones are dropped
    process: SpawnProcess | None = None
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
    children: dict[str, Child] = field(default_factory=dict)

    def add(
        self,
        name: str,
        role: str,
        target: Target,
        arguments: tuple[Any, ...],
        decoder: msgspec.json.Decoder[Any],
    ) -> Child:
        """A new place; the process starts with the next `tend`."""
        child = Child(name, role, target, arguments, decoder)
        self.children[name] = child
        return child

    def tend(self, now: float) -> list[Child]:
        """Start what is due; returns the children that were started."""
        started = []
        for child in self.children.values():
            if child.process is not None and now - child.started_at >= QUICK:
                child.quick_deaths = 0
            if child.wanted and child.restart_at is not None and child.restart_at <= now:
                self._start(child, now)
                started.append(child)
        return started

    def _start(self, child: Child, now: float) -> None:
        child.life += 1
        life = child.life
        queue: WorkQueue[Any] = WorkQueue(SPAWN, child.name)
        inbox, outbox = queue.child_ends
        process = SPAWN.Process(
            target=_run,
            args=(child.target, inbox, outbox, child.arguments),
            name=f"rsd-{child.name}",
            daemon=True,
        )
        try:
            ensure_running()  # it unblocks signals when it has to be started
            with signals.held():
                process.start()
        except OSError as e:
            for end in queue.child_ends:
                end.close()
            log.error("cannot start %s: %s", child.name, e)
            child.restart_at = now + DELAY_MAX
            return
        child.process, child.queue = process, queue
        child.started_at, child.restart_at, child.ready = now, None, False
        child.useful = False
        queue.start(
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


def processes(pool: Pool) -> list[dict[str, Any]]:
    """Name, role, pid and state of every child, for the status."""
    return [
        {
            "name": child.name,
            "role": child.role,
            "pid": child.pid,
            "state": "fatal" if child.fatal else "up" if child.ready else "starting",
        }
        for child in pool.children.values()
    ]


def _run(target: Target, inbox: Connection, outbox: Connection, arguments: tuple[Any, ...]) -> None:
    signals.ignore()
    target(inbox, outbox, *arguments)


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
