"""When a file is complete, and which names count. Time is an argument."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsd.hub.folder.stable import CAPACITY, StabilityTable, is_candidate


@pytest.mark.parametrize(
    "name",
    [
        b"a.png",
        b"A.JPEG",
        b"x/y/z.tif",
        b"with space.webp",
        b"caf\xe9.png",
        b"new\nline.gif",
        b"-rf.bmp",
        b"a.b.jp2",
        b"x.avif",
    ],
)
def test_names_of_images(name: bytes) -> None:
    assert is_candidate(name)


@pytest.mark.parametrize(
    "name",
    [
        b".hidden.png",
        b".git/a.png",
        b"a/.b/c.png",
        b"x.png.part",
        b"x.png~",
        b"x.png.crdownload",
        b"#x.png#",
        b"@eaDir/x.png",
        b"__MACOSX/x.png",
        b"Thumbs.db",
        b"notes.txt",
        b"png",
        b"x.svg",
        b"x.pdf",
    ],
)
def test_names_that_are_ignored(name: bytes) -> None:
    assert not is_candidate(name)


def test_ready_after_quiet_with_equal_stat() -> None:
    table = StabilityTable(2.0, 60.0)
    table.note(b"a", 10, 1, 100.0)
    assert table.due(101.9) == []
    assert table.due(102.0) == [b"a"]
    assert table.confirm(b"a", 10, 1, 102.0)
    assert len(table) == 0


def test_every_event_begins_the_quiet_anew() -> None:
    table = StabilityTable(2.0, 60.0)
    table.note(b"a", 10, 1, 100.0)
    table.note(b"a", 20, 2, 101.5)
    assert table.due(102.0) == []
    assert table.due(103.5) == [b"a"]


def test_a_file_that_grew_without_an_event_waits_again() -> None:
    table = StabilityTable(2.0, 60.0)
    table.note(b"a", 10, 1, 100.0)
    assert table.due(102.0) == [b"a"]
    assert not table.confirm(b"a", 11, 1, 102.0)
    assert table.due(103.9) == []
    assert table.due(104.0) == [b"a"]
    assert table.confirm(b"a", 11, 1, 104.0)


def test_an_empty_file_is_waited_for_as_long_as_the_patience() -> None:
    table = StabilityTable(2.0, 10.0)
    table.note(b"a", 0, 1, 100.0)
    for now in (102.0, 104.0, 106.0, 108.0):
        assert table.due(now) == [b"a"]
        assert not table.confirm(b"a", 0, 1, now)
    assert table.due(110.0) == [b"a"]
    assert table.confirm(b"a", 0, 1, 110.0)


def test_a_full_table_says_so_and_forgetting_makes_room() -> None:
    table = StabilityTable(2.0, 10.0)
    for k in range(CAPACITY):
        table.note(b"%d" % k, 1, 1, 0.0)
    assert not table.overflowed and table.room == 0
    table.note(b"one more", 1, 1, 0.0)
    assert table.overflowed and len(table) == CAPACITY
    table.forget(b"5")
    assert table.room == 1


@given(
    st.lists(
        st.tuples(st.floats(0, 50), st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=30
    )
)
def test_nothing_is_ready_before_its_quiet_time_and_nothing_is_lost(
    events: list[tuple[float, int, int]],
) -> None:
    table = StabilityTable(2.0, 0.0)
    last: dict[bytes, tuple[float, int]] = {}
    for now, name, size in sorted(events):
        path = b"%d" % name
        table.note(path, size, size, now)
        last[path] = (now, size)
    ready: dict[bytes, float] = {}
    now = 0.0
    while table.next_due() is not None and now < 500:
        now = max(now, table.next_due() or 0.0)
        for path in table.due(now):
            if table.confirm(path, last[path][1], last[path][1], now):
                ready[path] = now
    assert set(ready) == set(last)
    assert all(ready[path] >= last[path][0] + 2.0 - 1e-9 for path in ready)


def test_a_look_that_fails_is_repeated() -> None:
    """Whatever became of it: no `confirm` came."""
    table = StabilityTable(1.0, 10.0)
    table.note(b"a.png", 5, 1, 0.0)
    assert table.due(1.0) == [b"a.png"]
    assert table.due(1.5) == [] and table.next_due() == 2.0
    assert table.due(2.0) == [b"a.png"]
    assert table.confirm(b"a.png", 5, 1, 2.0)
    assert table.due(99.0) == [] and len(table) == 0


def test_a_file_that_left_and_came_back_is_looked_at_once() -> None:
    table = StabilityTable(1.0, 10.0)
    table.note(b"a.png", 5, 1, 0.0)
    table.forget(b"a.png")
    table.note(b"a.png", 6, 2, 0.5)
    assert table.due(1.2) == []
    assert table.due(1.5) == [b"a.png"]
