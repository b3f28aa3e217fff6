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
from collections.abc import Callable
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
    PolicyChanged,
    Recall,
    Replied,
    Started,
    Tick,
    WorkerGone,
    WorkerLeaving,
    WorkerUp,
)
from rsd.hub.children import targets
from rsd.hub.children.local import Child, Pool, processes
from rsd.hub.children.workers import Workers
from rsd.hub.children.writer_client import WriterClient
from rsd.hub.folder.folder import Folder
from rsd.hub.inbox import Inbox
from rsd.hub.policy import (
    configure_of,
    keys_of,
    opening_of,
    policy_of,
    reconfigure_of,
    refuse_fixed,
    waiting_for_restart,
)
from rsd.hub.status.reporter import Progress, Reporter
from rsd.protocol.tasks import Drop, GiveBack, LogLine, WorkerReady
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
from rsd.system.processes import AliveLock, process_identity

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
#: Facts under way above which no new files are taken from the watcher.
ARRIVALS_PAUSE = 500

Loader = Callable[[], tuple[Settings, Recipe]]


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
        folder = Path(settings.output_dir) / "logs"
        secrets = keys_of(settings)
        logs.to_stderr_and_file(folder, settings.log_level, secrets, stderr=stderr_log)
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
        self.settings, self.recipe, self.loader = settings, recipe, loader
        self.once, self.state = once, state
        self.events: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self.brain = Brain(policy_of(settings, recipe, once=once))
        self._view = self.brain.view(time.monotonic())  # as old as the last tick
        self.pool = Pool(
            deliver=lambda child, life, message: self.events.put(("said", child, life, message)),
            gone=lambda child, life: self.events.put(("gone", child, life)),
            load=targets.load,
        )
        self.workers = Workers(
            self.pool, {Role.GENERATE: targets.generator, Role.GRADE: targets.grader}
        )
        opening = opening_of(settings, recipe, state, life=os.urandom(8).hex())
        self.writer = self.pool.add("writer", "writer", targets.writer, (), from_writer_decoder)
        self.writer_client = WriterClient(opening, lambda m: self.pool.put(self.writer, m))
        wake = partial(self.events.put, ("folder",))
        self.folder = Folder(settings, self.writer_client.ask, wake, once=once, samples=samples)
        self.reporter = Reporter(
            settings,
            state,
            self.writer_client,
            once=once,
            watch=self.folder.status,
            children=partial(processes, self.pool),
            on_progress=on_progress,
            host_seen=lambda seen: self.events.put(("host", seen)),
        )
        self.inbox = Inbox(state / "requests", self.writer_client.ask)
        self._heard: list[Event] = []  # not yet told to the brain
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
        pointer = runtime_dir.write_pointer(
            runtime_dir.Pointer(
                pid=os.getpid(),
                created=process_identity(os.getpid()),
                state_dir=str(self.state),
                image_dir=str(Path(self.settings.image_dir).resolve()),
                output_dir=str(Path(self.settings.output_dir).resolve()),
            )
        )
        try:
            self.workers.hire(self.settings)
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
            case ("said", child, life, message):
                if child.life == life:
                    self._on_message(child, message)
            case ("gone", child, life):
                if child.life == life:
                    self._gone(child)
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
                self.pool.put(self.pool.children[worker], lease)
            case Persist(seq=seq, fact=fact):
                self.writer_client.fact(seq, fact)
                self.inbox.on_numbered(seq, fact)
            case Ask(query=query):
                self.writer_client.ask(query)
            case Forget(sha256=sha256):
                self.workers.broadcast(Drop(sha256=sha256))
            case KillWorker(worker=worker, why=why):
                log.error("killing %s: %s", worker, why)
                self.pool.kill(self.pool.children[worker])
            case Recall(worker=worker):
                self.pool.put(self.pool.children[worker], GiveBack())
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
            if self.writer.fatal:
                raise StateError("the writer process dies at its start; see the log")
            self._turn()

    def _tend(self, now: float) -> None:
        for child in self.pool.tend(now):
            if child is self.writer:
                self.writer_client.started(now)
            else:
                self.pool.put(child, configure_of(self.settings, Role(child.role)))

    def _on_message(self, child: Child, message: Any) -> None:
        if isinstance(message, LogLine):
            logs.replay(message.level, message.logger, message.text)
            return
        if not isinstance(message, WorkerReady | WriterUp | Recovered | Pong):
            child.useful, child.quick_deaths = True, 0
        if child is self.writer:
            self.writer_client.heard(time.monotonic())
            self._on_writer_message(message)
        elif isinstance(message, WorkerReady):
            if child.closing:
                return
            child.ready = True
            self._think(
                WorkerUp(worker=child.name, role=Role(child.role), slots=child.arguments[1])
            )
        else:
            failpoint("hub.before-reply")
            self._think(Replied(worker=child.name, reply=message))

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
            case WriterUp(stats=stats, dialects=dialects):
                self.writer.ready = True
                self.writer_client.opened(stats)
                if not self.brain.view(time.monotonic()).started:
                    self._think(Started(stats=stats, dialects=dialects))
                    self._decide()
                    if self._drain_until is None:
                        self.folder.start()
            case WriterBlocked(reason=reason):
                if reason and not self.writer_client.blocked:
                    log.error("cannot write: %s; nothing is lost, work waits", reason)
                elif not reason:
                    log.warning("writing again")
                self.writer_client.blocked = reason
            case Pong(blocked=blocked):
                self.writer_client.blocked = blocked

    def _gone(self, child: Child) -> None:
        wanted = child.wanted
        how = self.pool.reap(child, time.monotonic())
        if child is self.writer:
            self.writer_client.gone()
        else:
            self._think(WorkerGone(worker=child.name, crashed=child.own_fault))
            self._decide()
            if not wanted:
                del self.pool.children[child.name]
        if wanted and self._drain_until is None:
            log.error("%s ended: %s; it is started again", child.name, how)
        if child.fatal:
            log.critical("%s dies again and again; next try in a minute", child.name)

    # ----------------------------------------------------------------------------- ticks and status

    def _tick(self, now: float) -> None:
        self._tend(now)
        if self.writer_client.tend(now):
            log.error("the writer is silent; killing it")
            self.pool.kill(self.writer)
        self._tend_folder()
        self.inbox.poll()
        self._view = self.brain.view(now)
        self.workers.retire(list(self._view.idle_leavers))
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
        if wrong := self.workers.given_up():
            self._wrong = f"{wrong}; see the log. Nothing is lost: run again"
            self._drain(1)

    # ------------------------------------------------------------------------------------- signals

    def _signal(self, number: int) -> None:
        if number == signal.SIGHUP:
            self._reload()
            return
        self._signals += 1
        if self._exit is not None:
            return  # all is done: `_stop` looks at the number of signals
        code = signals.INTERRUPTED if self.once else signals.STOPPED
        if self._signals > 1:
            log.warning("second signal: open calls are given up")
            self._exit = code
            return
        log.info("stopping: no new work, up to %.0f s for open calls", self.settings.drain_seconds)
        self._drain(code)

    def _drain(self, code: int) -> None:
        self.reporter.notifier.stopping()
        self.folder.stop()
        self.workers.freeze()
        self._drain_until = time.monotonic() + self.settings.drain_seconds
        self._drain_code = code
        self._think(DrainRequested())

    def _drained(self, now: float) -> None:
        open_leases = self._view.open_leases
        settled = (
            self.writer_client.all_durable or bool(self.writer_client.blocked) or self.writer.fatal
        )
        late = self._drain_until is not None and now >= self._drain_until
        if late and open_leases:
            log.warning("%d open calls are given up after the drain time", open_leases)
        if late or (not open_leases and settled):
            self._exit = self._drain_code

    def _reload(self) -> None:
        if self.loader is None or self._drain_until is not None:
            log.info("SIGHUP: nothing is read again by a pass, nor while rsd stops")
            return
        self.reporter.notifier.reloading()
        before, refused = self.settings, ""
        try:
            settings, recipe = self.loader()
            refuse_fixed(before, settings)
        except (UserError, OSError) as e:
            refused = f"reload refused, the old settings stay in force: {e}"
            log.error("%s", refused)
        else:
            self._apply(settings, recipe)
            for name in waiting_for_restart(before, settings):
                log.warning("%s takes effect when rsd is started again", name)
            log.info("reloaded")
        self.reporter.refused = refused
        self.workers.revive(time.monotonic())
        self.reporter.notifier.ready(refused or "reloaded")

    def _apply(self, settings: Settings, recipe: Recipe) -> None:
        before, self.settings, self.recipe = self.settings, settings, recipe
        # Workers first: a lease for a new endpoint must not arrive before its address.
        for name in self.workers.follow(before, settings):
            self._think(WorkerLeaving(worker=name))
        self._think(PolicyChanged(policy=policy_of(settings, recipe, once=self.once)))
        self.writer_client.reconfigure(reconfigure_of(settings, recipe))
        self.reporter.follow(settings)
        folder = Path(settings.output_dir) / "logs"
        secrets = keys_of(before) + keys_of(settings)  # calls with the old ones are still open
        logs.to_stderr_and_file(folder, settings.log_level, secrets)

    # ---------------------------------------------------------------------------------------- stop

    def _stop(self, code: int) -> int:
        """Flush the writer and end; what is not flushed in time is done again at the next start.
        A writer that has not opened yet has nothing to flush.
        """
        self.reporter.notifier.stopping()
        self.folder.stop()
        self.writer.wanted = False
        self.writer_client.close()
        self.pool.flush()
        began = time.monotonic()
        while self.writer.process is not None and (
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
                case ("said", child, life, message) if child is self.writer:
                    if child.life == life and isinstance(message, Committed):
                        self.writer_client.committed(message.seq, message.stats)
                    elif isinstance(message, LogLine):
                        logs.replay(message.level, message.logger, message.text)
                case ("gone", child, life) if child is self.writer and child.life == life:
                    self.pool.reap(child, time.monotonic())
                case ("signal", _):
                    self._signals += 1
        self.reporter.publish(self.brain.view(now := time.monotonic()), now)
        return code
