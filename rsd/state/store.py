"""LMDB: environment, databases, transactions, migrations, and the reading side.

One process writes (the writer, or a command that holds the instance lock); any number may read.
Durable defaults, never NOSYNC. Transactions never outlive a function. The map is address space,
not disk; it is doubled when it is full, and a reader that finds it grown maps it anew.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import lmdb

from rsd.errors import StateError
from rsd.state.migrations import MIGRATIONS, SCHEMA
from rsd.state.transaction import Transaction
from rsd.system.failpoints import failpoint
from rsd.system.files import filesystem_type

log = logging.getLogger(__name__)

#: Address space of the map at first, in bytes (disk is used only as it fills).
MAP_SIZE: Final = 64 * 1024**3
#: Readers at the same time; each status or show takes one for a moment.
READERS: Final = 126
#: Tries to begin a transaction while others change the map.
BEGINS: Final = 5
#: Seconds that a reader waits for a slot of a full table, and between two tries.
TABLE_SECONDS: Final = 20.0
TABLE_PAUSE: Final = 0.2
#: Key of `meta`: how far a migration has come.
MIGRATING: Final = b"migrating"
#: All databases.
NAMES: Final = (
    "meta",
    "paths",
    "images",
    "steps",
    "configs",
    "labels",
    "backlog",
    "active",
    "candidates",
    "grades",
    "sample_failures",
    "grade_failures",
    "contents",
    "duplicates",
    "classes",
    "tallies",
    "policy",
    "profiles",
    "stats",
    "outbox",
    "learned",
    "lessons",
)
#: Of these, the databases that came with format 3: a reader may come before the migration.
LATER: Final = ("learned", "lessons")
#: File systems on which LMDB's locks and maps do not work, and those on which nobody knows.
NETWORK: Final = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "afs", "ceph", "glusterfs"}
DOUBTFUL: Final = {"9p", "virtiofs", ""}

#: LMDB's ways of saying that the disk, and not the state, is at fault; they may pass.
DISK_ERRORS: Final = (lmdb.DiskError, lmdb.ReadonlyError, lmdb.MemoryError)


class StateRefused(OSError):
    """The disk under the state refuses; nothing is changed, and it may be tried again."""


class Store:
    """An open environment. Raises StateError when it cannot be used.

    `on_progress` is called before each piece of a migration, which may take minutes.
    """

    def __init__(
        self,
        path: Path,
        *,
        readonly: bool = False,
        map_size: int = 0,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        self.path = path
        self._on_progress = on_progress
        self.readonly = readonly
        # A map of 64 GiB is never full in a test: this makes it small in all processes of one.
        map_size = map_size or int(os.environ.get("RSD_TEST_MAP_BYTES", MAP_SIZE))
        if not readonly:
            path.mkdir(parents=True, exist_ok=True, mode=0o750)
            refuse_network(path)
        elif not (path / "data.mdb").exists():
            raise StateError(f"{path}: holds no state of rsd")
        try:
            self._env = self._opened(map_size)
        except lmdb.Error as e:
            raise StateError(f"{path}: cannot be opened as LMDB: {e}") from None
        self._refuse_foreign()
        self._databases = self._open_databases()
        if not readonly:
            self._env.reader_check()
            self._migrate()
        else:
            self._check_schema()

    def _opened(self, map_size: int) -> Any:
        until = time.monotonic() + TABLE_SECONDS
        while True:
            try:
                return lmdb.open(
                    str(self.path),
                    map_size=map_size,
                    max_dbs=len(NAMES) + 4,
                    max_readers=READERS,
                    readonly=self.readonly,
                    create=not self.readonly,
                    mode=0o640,
                    lock=not self.readonly or os.access(self.path / "lock.mdb", os.W_OK),
                )
            except lmdb.ReadersFullError:
                # Perhaps with readers that were killed. Only who has it open can free their slots:
                # the writer does.
                if time.monotonic() >= until:
                    raise
                time.sleep(TABLE_PAUSE)

    def _refuse_foreign(self) -> None:
        """Never write into an LMDB environment that somebody else made."""
        try:
            if self.readonly or not self._env.stat()["entries"]:
                return
            self._env.open_db(NAMES[0].encode(), create=False)
        except lmdb.Error:
            raise StateError(f"{self.path}: holds LMDB data that is not rsd's") from None

    def _open_databases(self) -> dict[str, Any]:
        # Handles are opened outside of any transaction; inside a reading one they are unusable.
        found: dict[str, Any] = {}
        for name in NAMES:
            try:
                found[name] = self._again(
                    partial(self._env.open_db, name.encode(), create=not self.readonly)
                )
            except lmdb.NotFoundError:
                if name in LATER:
                    found[name] = None
                    continue
                raise StateError(f"{self.path}: no state of rsd (no database {name})") from None
            except lmdb.Error as e:
                raise StateError(f"{self.path}: {e}") from None
        return found

    def _check_schema(self) -> int:
        with self.reading() as txn:
            data = txn.get("meta", b"schema")
        if data is not None and not data.isdigit():
            raise StateError(f"{self.path}: holds LMDB data that is not rsd's")
        version = int(data) if data is not None else 0
        if version > SCHEMA:
            raise StateError(
                f"{self.path}: written by a newer rsd (format {version}, this one knows {SCHEMA})"
            )
        return version

    def _migrate(self) -> None:
        """Bring the state to today's format, piece by piece; goes on where a killed one ended."""
        version = self._check_schema()
        with self.reading() as txn:
            begun = txn.get("meta", MIGRATING)
        if begun is None and version == SCHEMA:
            return
        if version:
            log.info("the state is brought to format %d", SCHEMA)
        version -= begun is not None  # the last format is not whole yet
        while version < SCHEMA:
            version += 1
            after: bytes | None = begun or b""
            begun = None
            while after is not None:
                self._on_progress()
                after = self._migrate_piece(version, after)

    def _migrate_piece(self, version: int, after: bytes) -> bytes | None:
        done: bytes | None = None

        def piece(txn: Transaction) -> None:
            nonlocal done
            done = MIGRATIONS[version](txn, after)
            # From the first piece on, a program that knows only the format before must refuse.
            txn.put("meta", b"schema", str(version).encode())
            if done is None:
                txn.delete("meta", MIGRATING)
            else:
                txn.put("meta", MIGRATING, done)
            failpoint("store.migrating")

        self.write(piece)
        return done

    @contextlib.contextmanager
    def reading(self) -> Iterator[Transaction]:
        """A short look; never keep it open. Raises StateError when the state is damaged."""
        try:
            with self._again(self._env.begin) as txn:
                yield Transaction(txn, self._databases)
        except lmdb.Error as e:
            raise StateError(f"{self.path}: {_named(e)}") from e

    def _again(self, begin: Callable[[], Any]) -> Any:
        """Begin a transaction, once more after what another process did to the map or the table."""
        for _ in range(BEGINS):
            try:
                return begin()
            except lmdb.MapResizedError:  # the writer made it larger
                self._env.set_mapsize(0)
            except lmdb.ReadersFullError:  # perhaps with readers that were killed
                self._env.reader_check()
        return begin()

    def write(self, work: Callable[[Transaction], None]) -> None:
        """Run `work` in one transaction and commit it durably; doubles the map when it is full.

        `work` may run twice. Raises StateRefused when the disk refuses, StateError when the state
        is damaged.
        """
        while True:
            try:
                with self._env.begin(write=True) as txn:
                    work(Transaction(txn, self._databases))
                return
            except lmdb.MapFullError:
                size = self._env.info()["map_size"] * 2
                log.warning("the state's map is full; it grows to %d MiB", size // 1024**2)
                failpoint("store.growing")
                self._grow(size)
            except lmdb.Error as e:
                # A plain Error carries an errno of the system, EIO for one.
                if isinstance(e, DISK_ERRORS) or type(e) is lmdb.Error:
                    raise StateRefused(_named(e)) from e
                raise StateError(f"{self.path}: {_named(e)}") from e

    def _grow(self, size: int) -> None:
        try:
            self._env.set_mapsize(size)
        except (lmdb.Error, OSError, OverflowError) as e:
            # No address space, or a disk that refuses the larger file; both may pass.
            raise StateRefused(f"its map cannot grow to {size // 1024**2} MiB: {e}") from e

    def reader_check(self) -> int:
        """Free the slots of readers that died; without it the file would grow."""
        return int(self._env.reader_check())

    def close(self) -> None:
        """Unmap."""
        self._env.close()


def refuse_network(path: Path) -> None:
    """LMDB on a network file system loses data. Raises StateError."""
    kind = filesystem_type(path)
    if kind in NETWORK:
        raise StateError(f"state_dir = {path}: is on {kind}; put the state on a local disk")
    if kind in DOUBTFUL:
        log.warning("state_dir %s is on %s: make sure that its locks work", path, kind or "?")


def _named(error: lmdb.Error) -> str:
    return f"{type(error).__name__}: {error}"
