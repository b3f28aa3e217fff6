"""The writer process: group commit, outbox, summary. It decides nothing.

Block for one message, gather what comes (at most BATCH facts, until GATHER_SECONDS after the last
commit), one transaction, acknowledge, then write a few results. A disk that refuses loses nothing:
the batch is kept and tried again, and pings are answered with the reason meanwhile.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec

from rsd.errors import StateError
from rsd.protocol.facts import ImageChecked, ImageDecided, ImageGone, ImageSetAside, Numbered
from rsd.protocol.learned import Learned
from rsd.protocol.tasks import LogLine
from rsd.protocol.vocabulary import Stats
from rsd.protocol.writer_talk import (
    BacklogPage,
    Close,
    Committed,
    ComparePaths,
    FindContent,
    FindImages,
    ImagesFound,
    ListPending,
    Open,
    PathsCompared,
    PendingListed,
    Ping,
    Pong,
    Query,
    ReadBacklog,
    Reconfigure,
    ToWriter,
    WriterBlocked,
    WriterUp,
    to_writer_decoder,
)
from rsd.state import cursor, lessons, view
from rsd.state.store import StateRefused, Store
from rsd.state.transaction import Transaction
from rsd.system import logs
from rsd.system.failpoints import failpoint
from rsd.system.files import ENCODED, HALVED, InstanceLock, refusal, sweep_temporary
from rsd.system.queues import Mailbox
from rsd.writer.apply import Application
from rsd.writer.publish import Publisher

log = logging.getLogger(__name__)

#: Facts in one transaction, and seconds from one commit to the next: facts that come alone are
#: committed at once, and many together, for each commit costs a sync and some ten pages.
BATCH, GATHER_SECONDS = 128, 0.05
#: Results written between two batches of facts.
RESULTS_PER_TURN = 16
#: Seconds between two tries when the disk refuses, and between two sweeps of dead readers.
RETRY_SECONDS, READER_CHECK_SECONDS = 1.0, 5.0


def main(inbox: Connection, outbox: Connection) -> None:
    """Entry of the process. Waits for a predecessor that is still dying."""
    mailbox: Mailbox[ToWriter, msgspec.Struct] = Mailbox(inbox, outbox, to_writer_decoder)
    opening = mailbox.get()
    assert isinstance(opening, Open)

    def forward(level: int, logger: str, text: str) -> None:
        mailbox.reply(LogLine(level=level, logger=logger, text=text))

    logs.forward(forward, opening.log_level)
    writer = Writer(mailbox, opening)
    threading.Thread(target=writer.read, name="inbox", daemon=True).start()
    lock = InstanceLock(Path(opening.state_dir) / "writer.lock")
    lock.acquire(blocking=True)
    try:
        writer.run()
    except (StateError, OSError) as e:
        log.critical("%s", e)
        os._exit(4)


class Writer:
    """Owns the store and all files that the user sees."""

    def __init__(self, mailbox: Mailbox[ToWriter, msgspec.Struct], opening: Open) -> None:
        self._mailbox = mailbox
        self._opening = opening
        self._state = Path(opening.state_dir)
        self._spool = self._state / "spool"
        # Bounded by what the hub lets be unacknowledged and unanswered; a bound here would leave
        # pings behind it unread.
        self._pending: queue.SimpleQueue[ToWriter] = queue.SimpleQueue()
        self._busy_since: float | None = None  # monotonic
        self._refused: dict[str, str] = {}  # setting of what cannot be written -> why
        self._blocked = ""
        self._output_at = 0.0  # monotonic time of the next try to write results
        self._reader_check = time.monotonic()
        self._stats = Stats()
        self._last_seq = 0  # of the facts that are committed
        self._committed_at = 0.0  # monotonic

    def run(self) -> None:
        """Open the store, then serve until `Close`; ends the process."""
        with self._busy():
            self._open()
        while True:
            batch, queries, close = self._gather()
            if batch or self._publisher.filed:
                self._commit(batch)
            for query in queries:
                with self._busy():
                    self._answer(query)
            if close:
                self._publish_all()
                self._mailbox.reply(Committed(seq=0, stats=self._stats))
                self._store.close()
                os._exit(0)
            self._publish()
            self._check_readers()

    def _open(self) -> None:
        self._spool.mkdir(exist_ok=True, mode=0o750)
        if self._opening.recover:  # under a living hub these may be files that are being written
            sweep_temporary(self._state)
            sweep_temporary(self._spool)
        self._store = Store(self._state / "lmdb", on_progress=self._begin)
        self._begin()
        self._publisher = Publisher(self._store, self._opening)
        if self._opening.recover:
            self._sweep_spool()
        self._recover()

    @contextlib.contextmanager
    def _busy(self) -> Iterator[None]:
        """Around everything that may hang; what is inside of another counts for itself."""
        outer = self._busy_since is not None
        self._begin()
        try:
            yield
        finally:
            self._busy_since = time.monotonic() if outer else None

    def _begin(self) -> None:
        self._busy_since = time.monotonic()

    def _recover(self) -> None:
        with self._store.reading() as txn:
            self._stats = txn.stats()
            active = view.active_images(txn) if self._opening.recover else []
            dialects = view.dialects(txn)
            learned = lessons.records(txn)
        for image in active:
            with self._store.reading() as txn:
                found = view.recovered(txn, image)
            if found is not None:
                self._mailbox.reply(found)
            else:
                log.error("image %s was active, but its recipe is not stored", image)
        self._mailbox.reply(
            WriterUp(pid=os.getpid(), stats=self._stats, dialects=dialects, learned=learned)
        )

    def read(self) -> None:
        """A thread of its own: the mailbox ends the process when the hub dies. Pings are answered
        here, for the main loop and with its age: a full disk must not look like a dead writer, nor
        a hung one like a living.
        """
        while True:
            message = self._mailbox.get()
            if isinstance(message, Ping):
                self._mailbox.reply(self._pong(message.query))
            else:
                self._pending.put(message)

    def _pong(self, query: int) -> Pong:
        since = self._busy_since
        busy = time.monotonic() - since if since is not None else 0.0
        return Pong(query=query, blocked=self._blocked, busy_seconds=busy)

    def _gather(self) -> tuple[list[Numbered], list[Query], bool]:
        """What is to be done next: facts first, then the questions, whenever they came."""
        batch: list[Numbered] = []
        queries: list[Query] = []
        now = time.monotonic()
        wait = 0.0 if self._publisher.pending else self._publisher.summary_due(now)
        wait = min(max(wait, self._output_at - now), READER_CHECK_SECONDS)
        if self._publisher.filed:
            wait = min(wait, max(0.0, self._committed_at + GATHER_SECONDS - now))
        while len(batch) < BATCH:
            try:
                message = (
                    self._pending.get(timeout=wait) if wait > 0 else self._pending.get_nowait()
                )
            except queue.Empty:
                break
            match message:
                case Numbered():
                    batch.append(message)
                case Close():
                    return batch, queries, True
                case Reconfigure():
                    self._publisher.reconfigure(message)
                case Open():
                    pass
                case _:
                    queries.append(message)
                    if not batch:
                        break
            wait = max(0.0, self._committed_at + GATHER_SECONDS - time.monotonic())
        return batch, queries, False

    def _commit(self, batch: list[Numbered]) -> None:
        stats = Stats()
        learned: tuple[Learned, ...] = ()

        def work(txn: Transaction) -> None:
            nonlocal stats, learned
            application = Application(txn, self._opening.life)
            for numbered in batch:
                application.apply(numbered)
            application.filed(self._publisher.filed)
            stats = application.finish()
            learned = application.learned
            failpoint("writer.before-commit")
            if any(isinstance(numbered.fact, ImageDecided) for numbered in batch):
                failpoint("writer.before-decision")

        while not self._attempt("state_dir", lambda: self._store.write(work)):
            time.sleep(RETRY_SECONDS)
        failpoint("writer.after-commit")
        self._committed_at = time.monotonic()
        self._stats = stats
        self._publisher.committed(stats)
        if batch:
            self._last_seq = batch[-1].seq
        self._mailbox.reply(Committed(seq=self._last_seq, stats=stats, learned=learned))
        self._remove_prepared(batch)

    def _remove_prepared(self, batch: list[Numbered]) -> None:
        """Remove the prepared pictures that no active image needs any more."""
        with self._store.reading() as txn:
            for numbered in batch:
                sha256 = ""
                match numbered.fact:
                    case ImageSetAside(sha256=named) if named:
                        sha256 = named
                    case ImageDecided(image=image) | ImageChecked(image=image):
                        record = view.image_record(txn, image)
                        sha256 = record.sha256 if record is not None else ""
                    case ImageGone(path=path):
                        record = view.image_at(txn, path)
                        sha256 = record.sha256 if record is not None else ""
                if sha256 and not view.is_active(txn, sha256):
                    for name in (sha256 + ENCODED, sha256 + HALVED, sha256):
                        with contextlib.suppress(OSError):
                            (self._spool / name).unlink()

    def _answer(self, query: Query) -> None:
        with self._store.reading() as txn:
            reply = self._found(txn, query)
        self._mailbox.reply(reply)

    def _found(self, txn: Transaction, query: Query) -> msgspec.Struct:
        match query:
            case ReadBacklog():
                images = view.backlog_page(txn, query.after, query.count)
                return BacklogPage(query=query.query, images=tuple(images))
            case FindContent(sha256=sha256, image=image):
                return view.content_found(txn, query.query, sha256, image)
            case ComparePaths(files=files):
                changed = view.changed_files(txn, files)
                return PathsCompared(query=query.query, changed=changed)
            case ListPending(after=after, count=count):
                paths = view.pending_paths(txn, after, count)
                return PendingListed(query=query.query, paths=paths)
            case FindImages(status=None, paths=named):
                return ImagesFound(query=query.query, images=cursor.images_at(txn, named))
            case FindImages(status=status, after=last, count=count):
                assert status is not None
                found = cursor.images_of(txn, status, last, count)
                return ImagesFound(query=query.query, images=found)
            case Ping():
                return self._pong(query.query)

    def _publish(self) -> None:
        """Write a few results, and the summary when it is due."""
        if time.monotonic() >= self._output_at and not self._attempt(
            "output_dir", self._write_some
        ):
            self._output_at = time.monotonic() + RETRY_SECONDS

    def _write_some(self) -> None:
        if self._publisher.pending:
            self._publisher.drain(RESULTS_PER_TURN)
        self._publisher.summary()

    def _publish_all(self) -> None:
        """At the end: all that the disk takes. The rest lies in the outbox for the next start."""

        def work() -> None:
            while self._publisher.pending:
                self._begin()
                self._publisher.drain(RESULTS_PER_TURN)
            if self._publisher.filed:
                self._commit([])
            self._publisher.summary(force=True)

        self._attempt("output_dir", work)

    def _attempt(self, what: str, work: Callable[[], None]) -> bool:
        """Run something that writes below the folder of a setting. When the disk refuses,
        everything is kept and the hub hears why.
        """
        try:
            with self._busy():
                work()
        except StateRefused as e:
            # Rows of the outbox are deleted in the state, whatever else is being written.
            self._refused[what] = refusal("state_dir", Path(self._opening.state_dir), str(e))
        except OSError as e:
            folder = Path(os.fsdecode(e.filename)).parent if e.filename else None
            output = Path(self._opening.output_dir)
            self._refused[what] = refusal(what, output, e.strerror or str(e), folder)
        else:
            self._refused.pop(what, None)
        before, self._blocked = self._blocked, "; ".join(dict.fromkeys(self._refused.values()))
        if before != self._blocked:
            self._mailbox.reply(WriterBlocked(reason=self._blocked))
        return what not in self._refused

    def _sweep_spool(self) -> None:
        """Remove the pictures of images that are not active any more."""
        with self._store.reading() as txn:
            needed = set()
            for image in view.active_images(txn):
                record = view.image_record(txn, image)
                if record is not None:
                    needed.add(record.sha256)
        for entry in self._spool.iterdir():
            if entry.name.partition(".")[0] not in needed:
                with contextlib.suppress(OSError):
                    entry.unlink()

    def _check_readers(self) -> None:
        now = time.monotonic()
        if now - self._reader_check >= READER_CHECK_SECONDS:
            self._reader_check = now
            freed = self._store.reader_check()
            if freed:
                log.info("freed the slots of %d dead readers", freed)
