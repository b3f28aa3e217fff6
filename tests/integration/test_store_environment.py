"""The environment under the store: reopening, damage, growth, readers, full disks."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from rsd.errors import StateError
from rsd.state import store as store_module
from rsd.state.store import StateRefused, Store
from rsd.state.transaction import Transaction
from tests.disks import fill_up, small_disk
from tests.histories import PATHS, FactSource, dump
from tests.support import HOME

A = PATHS[0]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "lmdb")
    yield opened
    opened.close()


def test_what_is_stored_is_there_after_reopening(tmp_path: Path) -> None:
    store = Store(tmp_path / "lmdb")
    hub = FactSource(store)
    hub.put(A, "cat")
    before = dump(store)
    store.close()
    for readonly in (True, False):
        again = Store(tmp_path / "lmdb", readonly=readonly)
        assert dump(again) == before
        again.close()


def test_an_aborted_transaction_leaves_nothing(store: Store) -> None:
    before = dump(store)

    def work(txn: Transaction) -> None:
        txn.put("meta", b"half", b"1")
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        store.write(work)
    assert dump(store) == before


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "lmdb")
    store.write(lambda txn: txn.put("meta", b"schema", b"99"))
    store.close()
    for readonly in (False, True):
        with pytest.raises(StateError, match="newer rsd"):
            Store(tmp_path / "lmdb", readonly=readonly)


def test_no_state_garbage_and_foreign_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="no state"):
        Store(tmp_path / "none", readonly=True)
    assert not (tmp_path / "none").exists()
    (tmp_path / "garbage").mkdir()
    (tmp_path / "garbage/data.mdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(StateError, match="LMDB"):
        Store(tmp_path / "garbage")
    with lmdb.open(str(tmp_path / "foreign"), max_dbs=2) as env:
        env.open_db(b"theirs")
    for readonly in (False, True):
        with pytest.raises(StateError):
            Store(tmp_path / "foreign", readonly=readonly)
    with lmdb.open(str(tmp_path / "foreign"), max_dbs=2) as env, env.begin() as txn:
        assert [k for k, _ in txn.cursor()] == [b"theirs"], "left alone"


def test_a_damaged_value_is_a_state_error(store: Store) -> None:
    store.write(lambda txn: txn.put("stats", b"all", b"{"))
    with store.reading() as txn, pytest.raises(StateError, match="unreadable"):
        txn.stats()


@pytest.mark.parametrize("kind", sorted(store_module.NETWORK))
def test_network_file_systems_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(store_module, "filesystem_type", lambda _: kind)
    with pytest.raises(StateError, match=kind):
        Store(tmp_path / "lmdb")


def test_doubtful_file_systems_warn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store_module, "filesystem_type", lambda _: "9p")
    with caplog.at_level(logging.WARNING):
        Store(tmp_path / "lmdb").close()
    assert "9p" in caplog.text


def fill(store: Store, count: int, size: int) -> None:
    def work(txn: Transaction) -> None:
        for n in range(count):
            txn.put("meta", b"fill%d" % n, b"z" * size)

    store.write(work)


def reader(path: Path, then: str) -> subprocess.Popen[str]:
    """A process that has opened the store for reading; it does `then` at a line of input."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom rsd.state.store import Store\n"
        f"store = Store(Path({str(path)!r}), readonly=True)\n"
        "print('open', flush=True)\n"
        "sys.stdin.readline()\n" + then
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=HOME,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    return process


def test_a_full_map_grows_and_a_reader_follows(tmp_path: Path) -> None:
    store = Store(tmp_path / "lmdb", map_size=1 << 20)
    count = "with store.reading() as txn: print(txn.entries('meta'))\n"
    with reader(tmp_path / "lmdb", count) as other:
        fill(store, 200, 50_000)
        out, _ = other.communicate("go\n", timeout=60)
    assert other.returncode == 0
    with store.reading() as txn:
        assert int(out) == txn.entries("meta") >= 200
    store.close()


def test_the_slots_of_dead_readers_are_freed(store: Store) -> None:
    hold = "import time\nwith store.reading():\n print('in', flush=True)\n time.sleep(600)\n"
    with reader(store.path, hold) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdin.write("go\n")
        other.stdin.flush()
        assert other.stdout.readline() == "in\n"
        assert store.reader_check() == 0, "it lives"
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert store.reader_check() == 1


def test_a_writer_killed_in_a_transaction_leaves_nothing_half_written(tmp_path: Path) -> None:
    store = Store(tmp_path / "lmdb")
    before = dump(store)
    store.close()
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom rsd.state.store import Store\n"
        "def work(txn):\n for n in range(500): txn.put('meta', b'half%d' % n, b'z' * 4000)\n"
        " os.kill(os.getpid(), signal.SIGKILL)\n"
        f"Store(Path({str(tmp_path / 'lmdb')!r})).write(work)\n"
    )
    died = subprocess.run([sys.executable, "-c", code], cwd=HOME, check=False)
    assert died.returncode == -signal.SIGKILL
    store = Store(tmp_path / "lmdb")
    assert dump(store) == before
    fill(store, 1, 10)
    store.close()


def test_a_full_disk_is_an_os_error_and_nothing_changes(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "4m") as disk:
        store = Store(disk / "lmdb")
        hub = FactSource(store)
        hub.put(A, "cat")
        before = dump(store)
        ballast = disk / "ballast"
        fill_up(ballast)
        with pytest.raises(StateRefused):
            fill(store, 50, 4000)
        assert dump(store) == before
        ballast.unlink()
        fill(store, 50, 4000)
        store.close()


def test_a_map_that_cannot_grow_is_a_disk_that_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "lmdb", map_size=1 << 20)
    before = dump(store)

    class Env:
        """The real environment, whose map cannot be made larger: there is no address space."""

        def __init__(self, env: object) -> None:
            self._env = env

        def __getattr__(self, name: str) -> object:
            return getattr(self._env, name)

        def set_mapsize(self, size: int) -> None:
            raise lmdb.MemoryError("mdb_env_set_mapsize: Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(store, "_env", Env(store._env))
        with pytest.raises(StateRefused, match="cannot grow"):
            fill(store, 200, 50_000)
    assert dump(store) == before, "nothing is lost; it may be tried again"
    fill(store, 200, 50_000)
    store.close()
