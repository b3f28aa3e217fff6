"""The outbox: result files, summary.json and strategy.json, rendered from committed data alone.

A result's name and content are functions of what is committed, so writing it again after a crash is
harmless; its outbox row is deleted in the next transaction after the file is durable.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from rsd.names import result_name
from rsd.protocol.learned import Learned
from rsd.protocol.vocabulary import Recipe, Stats
from rsd.protocol.writer_talk import Open, Reconfigure
from rsd.state import lessons, view
from rsd.state.records import FAILED, HIGH, LOW, OutboxRecord, Tally
from rsd.state.results import failed_document, result_document, summary_document
from rsd.state.store import Store
from rsd.state.transaction import decode
from rsd.strategy import insight
from rsd.strategy.insight import StrategyDocument
from rsd.system.failpoints import failpoint
from rsd.system.files import sweep_temporary, sync_directory, write_atomically

log = logging.getLogger(__name__)

#: Folders of results; an image has a file in one of them at most.
FOLDERS = (HIGH, LOW, FAILED)
#: summary.json is written this many seconds after a change, and never more often than every
#: SUMMARY_PAUSE seconds.
SUMMARY_SECONDS, SUMMARY_PAUSE = 10.0, 2.0


class Publisher:
    """Writes what the user sees. Raises OSError when the disk refuses; then nothing is lost."""

    def __init__(self, store: Store, opening: Open) -> None:
        self._store = store
        self._config = opening.summary
        self._interval = opening.checkpoint_interval
        self._output = Path(opening.output_dir)
        for name in FOLDERS:
            folder = self._output / name
            folder.mkdir(parents=True, exist_ok=True)
            sweep_temporary(folder)
        sweep_temporary(self._output)
        with store.reading() as txn:
            self.pending = txn.entries("outbox")
            self._ended = _ended(txn.stats())
        self.filed: list[bytes] = []  #: rows that are files by now
        self._summary_ended = self._ended
        self._changed_at: float | None = 0.0
        self._written_at = -SUMMARY_PAUSE

    def reconfigure(self, message: Reconfigure) -> None:
        """A reload changed what the summary repeats."""
        self._config, self._interval = message.summary, message.checkpoint_interval

    def committed(self, stats: Stats) -> None:
        """Facts were committed, and the rows of `filed` deleted with them."""
        self.filed = []
        self.pending = stats.outbox
        self._ended = _ended(stats)
        if self._changed_at is None:
            self._changed_at = time.monotonic()

    def drain(self, limit: int) -> None:
        """Write up to `limit` results; their rows are then in `filed`, to be deleted with the next
        commit.
        """
        start = self.filed[-1] + b"\0" if self.filed else b""
        with self._store.reading() as txn:
            rows = txn.scan("outbox", start=start, limit=limit)
        for row, value in rows:
            self._write(decode(OutboxRecord, value))
            failpoint("writer.after-replace")
            self.filed.append(row)
        failpoint("writer.outbox-drain")
        self.pending = self.pending - len(rows) if rows else 0

    def _write(self, row: OutboxRecord) -> None:
        with self._store.reading() as txn:
            record = view.image_record(txn, row.image)
            if record is None:
                return
            current = view.image_at(txn, record.path)
            if current is not None and current.image != record.image:
                return  # a newer version of the path has its own row
            if record.filed != row.destination:
                return  # a later row has its place
            seen = view.view(txn, record)
        name = result_name(record.path)
        stale = [self._output / folder / name for folder in FOLDERS if folder != row.destination]
        if not row.destination:
            _sync(_remove(stale))
            return
        render = failed_document if row.destination == FAILED else result_document
        document = render(seen, self._config.image_dir)
        target = self._output / row.destination / name
        # At no moment two results, and for the shortest moment none.
        removed: list[Path] = []
        self._put(target, _formatted(document), before=lambda: removed.extend(_remove(stale)))
        _sync(removed)

    def _put(self, path: Path, data: bytes, before: Callable[[], None] | None = None) -> None:
        if not path.parent.is_dir():  # somebody cleared the output folder away
            path.parent.mkdir(parents=True)
        write_atomically(path, data, before=before)

    def summary_due(self, now: float) -> float:
        """Seconds that the writer may sleep before the summary is due; `now` is monotonic."""
        if self._changed_at is None:
            return 30.0
        return min(30.0, max(0.01, self._summary_at() - now))

    def _summary_at(self) -> float:
        assert self._changed_at is not None
        soon = self._ended - self._summary_ended >= self._interval
        due = self._changed_at if soon else self._changed_at + SUMMARY_SECONDS
        return max(due, self._written_at + SUMMARY_PAUSE)

    def summary(self, *, force: bool = False) -> None:
        """Write summary.json, and strategy.json if anything was learned, when they are due, always
        as complete files.
        """
        now = time.monotonic()
        if not force and (self._changed_at is None or now < self._summary_at()):
            return
        with self._store.reading() as txn:
            stats = txn.stats()
            tallies = {k.decode(): decode(Tally, v) for k, v in txn.scan("tallies")}
            first = txn.get("meta", b"first_seen")
            learned = [
                (record, lessons.last_recipe(txn, record.key)) for record in lessons.records(txn)
            ]
        started = float(first) if first is not None else 0.0
        strategy = self._strategy(learned)
        document = summary_document(stats, tallies, self._config, time.time(), started, strategy)
        self._put(self._output / "summary.json", _formatted(document))
        if strategy is not None and strategy.records:
            self._put(self._output / "strategy.json", _formatted(strategy))
        self._written_at, self._changed_at = now, None
        self._summary_ended = self._ended

    def _strategy(self, learned: list[tuple[Learned, Recipe | None]]) -> StrategyDocument | None:
        """What was learned, in figures. They are no reason to stop: with a bug, there are none."""
        try:
            return insight.document(learned, self._config.prices)
        except Exception:
            log.exception("no figures of what was learned, which is a bug")
            return None


def _formatted(document: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def _ended(stats: Stats) -> int:
    return stats.high_quality + stats.low_quality + stats.failed


def _remove(paths: list[Path]) -> list[Path]:
    """Those that were there."""
    removed = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            removed.append(path)
    return removed


def _sync(paths: list[Path]) -> None:
    """After a power loss, too, what was removed must not be there beside its successor."""
    for folder in {path.parent for path in paths}:
        sync_directory(folder)
