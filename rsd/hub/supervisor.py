"""The hub process: one instance for a state, main loop, signals, children, start and stop.
All decisions are the brain's.

One queue carries every event into the main thread: replies and deaths from the reader threads,
files from the watcher thread, samples from the throttle thread, notes from the signal handlers.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

from rsd.errors import StateError, UserError
from rsd.hub.brain.brain import Brain
from rsd.hub.brain.events import (
    Action,
    Ask,
    Assign,
    DrainRequested,
    Ended,
    Event,
    Finished,
    Forget,
    HostPressure,
    KillWorker,
    Log,
    Persist,
    Recall,
    Replied,
    Started,
    Tick,
    WorkerGone,
    WorkerUp,
)
from rsd.hub.children import targets
from rsd.hub.children.local import Pool
from rsd.hub.children.protocol import Gone, Message, Up
from rsd.hub.children.writer_client import WriterClient
from rsd.hub.folder.folder import Folder
from rsd.hub.inbox import Inbox
from rsd.hub.policy import keys_of, opening_of, policy_of
from rsd.hub.reload import Loader, Reload, log_to, want_workers
from rsd.hub.status.reporter import Progress, Reporter
from rsd.protocol.tasks import Drop, GiveBack, LogLine
from rsd.protocol.vocabulary import Recipe, Role
from rsd.protocol.writer_talk import (
    BacklogPage,
    Committed,
    ContentFound,
    ImagesFound,
    PathsCompared,
    PendingListed,
    Pong,
    Recovered,
    WriterBlocked,
    WriterUp,
    from_writer_decoder,
)
from rsd.settings.fields import Settings, state_dir
from rsd.system import logs, runtime_dir, signals
from rsd.system.failpoints import failpoint
from rsd.system.files import InstanceLock
from rsd.system.processes import AliveLock

log = logging.getLogger("rsd")

#: Seconds between two ticks of the main loop.
TICK_SECONDS = 0.25
#: Events handled between two looks at the clock.
BURST = 256
#: Seconds that the first event of a turn waits for company: each turn wakes children.
GATHER_SECONDS = 0.004
#: Seconds that the writer may take to commit and to write its last results when the hub stops, and
#: after a second signal; a third one ends even that.
FLUSH_SECONDS, HASTE_SECONDS = 30.0, 5.0
#: The writer's place among the children, and its role.
WRITER = "writer"
#: Facts under way above which no new files are taken from the watcher.
ARRIVALS_PAUSE = 500


def run(
    settings: Settings,
    recipe: Recipe,
    loader: Loader | None = None,
    *,
    once: bool = False,
    samples: int | None = None,
    on_progress: Progress | None = None,
    stderr_log: bool = True,
) -> int:
    """Be the hub until a signal, or with `once` until all is done; returns the exit code.

    Raises UserError when another instance runs on the same state, StateError when the state
    cannot be used.
    """
    state = state_dir(settings).resolve()
    state.mkdir(parents=True, exist_ok=True)
    lock = InstanceLock(state / "instance.lock")
    if not lock.acquire():
        raise UserError(f"state_dir = {state}: another rsd works there (see `status`)")
    alive = AliveLock(state)
    try:
        lock.note(f"pid {os.getpid()}\n")
        alive.hold()
        hub = Supervisor(
            settings,
            recipe,
            loader,
            once=once,
            samples=samples,
            state=state,
            on_progress=on_progress,
        )
        log_to(settings, keys_of(settings), stderr=stderr_log)
        return hub.run()
    finally:
        alive.release()
        lock.release()


class Supervisor:
    """Owns the children, the signals and the brain's surroundings."""

    def __init__(
        self,
        settings: Settings,
        recipe: Recipe,
        loader: Loader | None,
        *,
        once: bool,
        samples: int | None,
        state: Path,
        on_progress: Progress | None,
    ) -> None:
        self.settings = settings  # as at the start: where rsd works cannot change
        self.once, self.state = once, state
        self.events: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self.brain = Brain(policy_of(settings, recipe, once=once))
        self._view = self.brain.view(time.monotonic())  # as old as the last tick
        self.pool = Pool(
            lambda note: self.events.put(("child", note)),
            {Role.GENERATE: targets.generator, Role.GRADE: targets.grader},
            targets.load,
        )
        opening = opening_of(settings, recipe, state, life=os.urandom(8).hex())
        self.pool.add(WRITER, WRITER, targets.writer, (), from_writer_decoder)
        self.writer_client = WriterClient(opening, partial(self.pool.put, WRITER))
        wake = partial(self.events.put, ("folder",))
        self.folder = Folder(settings, self.writer_client.ask, wake, once=once, samples=samples)
        self.reporter = Reporter(
            settings,
            state,
            self.writer_client,
            once=once,
            watch=self.folder.status,
            children=lambda: self.pool.processes(time.monotonic()),
            on_progress=on_progress,
            host_seen=lambda seen: self.events.put(("host", seen)),
        )
        self.reload = Reload(
            settings, loader, self.pool, self.writer_client, self.reporter, self._think
        )
        self.inbox = Inbox(state / "requests", self.writer_client.ask)
        self._heard: list[Event] = []  # the brain hears it with the turn
        self._signals = 0
        self._drain_until: float | None = None
        self._drain_code = 0
        self._wrong, self._next_tick = "", 0.0  # why a pass is given up; monotonic
        self._exit: int | None = None

    # ----------------------------------------------------------------------------------- main loop

    def run(self) -> int:
        """Start, work, stop; returns the exit code."""
        (self.state / "spool").mkdir(exist_ok=True, mode=0o750)
        (self.state / "requests").mkdir(exist_ok=True)
        previous = signals.listen(lambda number: self.events.put(("signal", number)))
        pointer = runtime_dir.point_here(
            self.state, Path(self.settings.image_dir), Path(self.settings.output_dir)
        )
        try:
            want_workers(self.pool, self.settings)
            self._start_writer()
            if self._drain_until is None:
                self.reporter.start()
                self.reporter.notifier.ready("started")
            while self._exit is None:
                self._turn()
            code = self._stop(self._exit)
            if self._wrong:
                raise StateError(self._wrong)
            return code
        finally:
            self.reporter.stop()
            self.folder.stop()
            self.pool.end()
            runtime_dir.remove_pointer(pointer)
            signals.forget(previous)

    def _turn(self) -> None:
        """Wait for an event, handle what has come, and tick when it is time."""
        wait = max(0.0, self._next_tick - time.monotonic())
        try:
            self._handle(self.events.get(timeout=wait))
            if wait > GATHER_SECONDS:
                time.sleep(GATHER_SECONDS)
            for _ in range(BURST):
                self._handle(self.events.get_nowait())
        except queue.Empty:
            pass
        self._decide()
        if (now := time.monotonic()) >= self._next_tick:
            self._next_tick = now + TICK_SECONDS
            self._tick(now)
            self._decide()
        self.pool.flush()

    def _handle(self, event: tuple[Any, ...]) -> None:
        match event:
            case ("child", note):
                self._on_child(note)
            case ("signal", number):
                self._signal(number)
            case ("host", seen):
                self.reporter.host = seen
                self._think(HostPressure(level=seen.level, factor=seen.factor))
            case ("folder",):
                self._tend_folder()

    def _think(self, event: Event) -> None:
        self._heard.append(event)  # the brain hears it with all else of this turn

    def _decide(self) -> None:
        heard, self._heard = self._heard, []
        if heard:
            for action in self.brain.handle_all(heard, time.monotonic(), time.time()):
                self._act(action)

    def _act(self, action: Action) -> None:
        match action:
            case Assign(worker=worker, lease=lease):
                self.pool.put(worker, lease)
            case Persist(seq=seq, fact=fact):
                self.writer_client.fact(seq, fact)
                self.inbox.on_numbered(seq, fact)
            case Ask(query=query):
                self.writer_client.ask(query)
            case Forget(sha256=sha256):
                self.pool.broadcast(Drop(sha256=sha256))
            case KillWorker(worker=worker, why=why):
                log.error("killing %s: %s", worker, why)
                self.pool.kill(worker)
            case Recall(worker=worker):
                self.pool.put(worker, GiveBack())
            case Log(level=level, text=text):
                log.log(logging.getLevelName(level.upper()), "%s", text)
            case Ended():
                self.reporter.ended(action)
            case Finished():
                self._exit = 1 if self.writer_client.stats.failed else 0

    # ------------------------------------------------------------------------------------ children

    def _start_writer(self) -> None:
        self._tend(time.monotonic())
        while not self.writer_client.up and self._exit is None:
            if self.pool.fatal(WRITER):
                raise StateError("the writer process dies at its start; see the log")
            self._turn()

    def _tend(self, now: float) -> None:
        if WRITER in self.pool.tend(now):
            self.writer_client.started(now)

    def _on_child(self, note: object) -> None:
        now = time.monotonic()
        match self.pool.hear(note, now):
            case Message(content=LogLine(level=level, logger=logger, text=text)):
                logs.replay(level, logger, text)
            case Message(worker="writer", content=content):
                self.writer_client.heard(now)
                self._on_writer_message(content)
            case Message(worker=name, content=content):
                failpoint("hub.before-reply")
                self._think(Replied(worker=name, reply=content))
            case Up(worker=name, role=role, threads=threads):
                self._think(WorkerUp(worker=name, role=role, slots=threads))
            case Gone() as gone:
                self._on_gone(gone)

    def _on_gone(self, gone: Gone) -> None:
        if gone.worker == WRITER:
            self.writer_client.gone()
        else:
            self._think(WorkerGone(worker=gone.worker, crashed=gone.own_fault))
            self._decide()
        if not gone.expected and self._drain_until is None:
            log.error("%s ended: %s; it is started again", gone.worker, gone.how)
        if gone.given_up:
            log.critical("%s dies again and again; next try in a minute", gone.worker)

    def _on_writer_message(self, message: Any) -> None:
        match message:
            case Committed(seq=seq, stats=stats):
                self.writer_client.committed(seq, stats)
                self.inbox.on_committed(seq)
                self._think(message)
            case BacklogPage() | ContentFound():
                if self.writer_client.answered(message.query) is not None:
                    self._think(message)
            case PathsCompared() | PendingListed():
                if self.writer_client.answered(message.query) is not None:
                    self.folder.answered(message)
            case ImagesFound():
                if self.writer_client.answered(message.query) is not None:
                    self._heard += self.inbox.on_found(message, time.time())
            case Recovered():
                self._think(message)
            case WriterUp(stats=stats, dialects=dialects, learned=learned):
                self.writer_client.opened(stats)
                if self.brain.view(time.monotonic()).started:  # the last one may have died untold
                    self._think(Committed(seq=0, stats=stats, learned=learned))
                else:
                    self._think(Started(stats=stats, dialects=dialects, learned=learned))
                    self._decide()
                    if self._drain_until is None:
                        self.folder.start()
            case WriterBlocked(reason=reason):
                if reason and not self.writer_client.blocked:
                    log.error("cannot write: %s; nothing is lost, work waits", reason)
                elif not reason:
                    log.warning("writing again")
                self.writer_client.blocked = reason
            case Pong():
                self.writer_client.pong(message)

    # ----------------------------------------------------------------------------- ticks and status

    def _tick(self, now: float) -> None:
        self._tend(now)
        if why := self.writer_client.tend(now):
            log.error("killing the writer: %s", why)
            self.pool.kill(WRITER)
        self._tend_folder()
        self._heard += self.inbox.poll()
        self._view = self.brain.view(now)
        for name in self._view.idle_leavers:
            self.pool.retire(name)
        self._think(Tick(blocked=bool(self.writer_client.blocked), folder_away=self.folder.away))
        self.reporter.tick(self._view, now)
        if self._drain_until is not None:
            self._drained(now)
        elif self.once:
            self._give_up_if_hopeless()

    def _tend_folder(self) -> None:
        self.folder.tend()
        if self.writer_client.unacknowledged < ARRIVALS_PAUSE:
            for event in self.folder.arrivals():
                self._think(event)

    def _give_up_if_hopeless(self) -> None:
        """A pass has nobody who mends things meanwhile."""
        if wrong := self._view.never_usable:
            raise UserError(wrong)
        if wrong := self.pool.given_up():
            self._wrong = f"{wrong}; see the log. Nothing is lost: run again"
            self._drain(1)

    # ------------------------------------------------------------------------------------- signals

    def _signal(self, number: int) -> None:
        if number == signal.SIGHUP:
            self.reload.run(stopping=self._drain_until is not None)
            return
        self._signals += 1
        if self._exit is not None:
            return  # all is done: `_stop` looks at the number of signals
        code = signals.INTERRUPTED if self.once else signals.STOPPED
        if self._signals > 1:
            log.warning("second signal: open calls are given up")
            self._exit = code
            return
        patience = self.reload.settings.drain_seconds
        log.info("stopping: no new work, up to %.0f s for open calls", patience)
        self._drain(code)

    def _drain(self, code: int) -> None:
        self.reporter.notifier.stopping()
        self.folder.stop()
        self.pool.freeze()
        self._drain_until = time.monotonic() + self.reload.settings.drain_seconds
        self._drain_code = code
        self._think(DrainRequested())

    def _drained(self, now: float) -> None:
        open_leases = self._view.open_leases
        client = self.writer_client
        written = client.all_durable or bool(client.blocked) or self.pool.fatal(WRITER)
        late = self._drain_until is not None and now >= self._drain_until
        if late and open_leases:
            log.warning("%d open calls are given up after the drain time", open_leases)
        if late or (not open_leases and written):
            self._exit = self._drain_code

    # ---------------------------------------------------------------------------------------- stop

    def _stop(self, code: int) -> int:
        """Flush the writer and end; what is not flushed in time is done again at the next start.
        A writer that has not opened yet has nothing to flush.
        """
        self.reporter.notifier.stopping()
        self.folder.stop()
        self.pool.let_go(WRITER)
        self.writer_client.close()
        self.pool.flush()
        began = time.monotonic()
        while self.pool.alive(WRITER) and (
            self.writer_client.up or not self.writer_client.all_durable
        ):
            patience = HASTE_SECONDS if self._signals > 1 else FLUSH_SECONDS
            in_vain = bool(self.writer_client.blocked) and self._signals > 1
            if in_vain or self._signals > 2 or time.monotonic() >= began + patience:
                break
            try:
                event = self.events.get(timeout=0.2)
            except queue.Empty:
                continue
            match event:
                case ("child", note):
                    self._on_last_words(note)
                case ("signal", _):
                    self._signals += 1
        self.reporter.publish(self.brain.view(now := time.monotonic()), now)
        return code

    def _on_last_words(self, note: object) -> None:
        match self.pool.hear(note, time.monotonic()):
            case Message(content=LogLine(level=level, logger=logger, text=text)):
                logs.replay(level, logger, text)
            case Message(worker="writer", content=Committed(seq=seq, stats=stats)):
                self.writer_client.committed(seq, stats)
