"""Files that were not there at the moment in which they were to be read, in a real store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rsd.protocol import facts as f
from rsd.protocol.vocabulary import FileStat, path_key
from rsd.state import view
from rsd.state.records import ACTIVE, WITHDRAWN, PathRecord
from rsd.state.store import Store
from tests.histories import PATHS, FactSource, candidate, grade, sha
from tests.recount import recount

A = PATHS[0]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FactSource]:
    """A hub's facts; when the test ends, every counter must still be right."""
    store = Store(tmp_path / "lmdb")
    yield FactSource(store)
    recount(store)
    store.close()


def test_a_file_that_was_away_only_when_it_was_read_is_found_again(hub: FactSource) -> None:
    record = hub.put(A, "cat")
    with hub.store.reading() as txn:
        known = txn.load("paths", path_key(A), PathRecord)
    assert known is not None
    there = FileStat(path=A, size=known.size, mtime_ns=known.mtime_ns)
    hub.add(
        f.ImageSetAside(
            image=record.image,
            status="withdrawn",
            reason="vanished",
            queue_seq=record.queue_seq,
            queued_as=record.image,
            path=A,
            time=5.0,
        )
    )
    assert hub.record(A).status == WITHDRAWN
    with hub.store.reading() as txn:
        assert view.changed_files(txn, (there,)) == (there,), "a rescan finds it, as it was"
    hub.add(f.ImageEnrolled(path=A, size=there.size, mtime_ns=there.mtime_ns, time=6.0))
    hub.take(0)
    assert hub.record(A).status == ACTIVE


def test_new_bytes_that_were_away_only_when_they_were_read_are_found_again(
    hub: FactSource,
) -> None:
    hub.put(A, "cat")
    hub.take(0)
    image = hub.record(A).image
    hub.add(f.CandidateMade(image=image, candidate=candidate(0)))
    hub.add(f.CandidateGraded(image=image, grade=grade(0, 90.0)))
    hub.conclude(hub.record(A))
    record = hub.put(A, "dog")
    with hub.store.reading() as txn:
        known = txn.load("paths", path_key(A), PathRecord)
    assert known is not None and record.queue_seq
    hub.add(f.ImageChecked(image=record.image, queue_seq=record.queue_seq, lost=True))
    there = FileStat(path=A, size=known.size, mtime_ns=known.mtime_ns)
    with hub.store.reading() as txn:
        assert view.changed_files(txn, (there,)) == (there,)
    hub.add(f.ImageEnrolled(path=A, size=there.size, mtime_ns=there.mtime_ns, time=6.0))
    hub.take(0)
    assert (hub.record(A).status, hub.record(A).sha256) == (ACTIVE, sha("dog"))
