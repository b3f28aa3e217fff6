"""Whether the writer lives: idle, hung, and under disks that refuse."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import lmdb
import msgspec
import pytest

from rsd.names import result_name
from rsd.protocol import facts as f
from rsd.protocol.writer_talk import (
    Ping,
    Pong,
    WriterBlocked,
    WriterUp,
)
from rsd.system.files import InstanceLock, holding
from tests.disks import fill_up, small_disk
from tests.histories import (
    PATHS,
)
from tests.writer_hub import Hub, decided

A, B, C, D = PATHS


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    made = Hub(tmp_path)
    yield made
    made.kill()


def test_an_idle_writer_answers_pings_and_ends_with_its_hub(hub: Hub) -> None:
    hub.start()
    hub.wait(WriterUp)
    idle(hub)
    hub.pipe.close()
    assert hub.death() == 0


def pong(hub: Hub, query: int) -> Pong:
    hub.pipe.put(Ping(query=query))
    hub.pipe.flush()
    return hub.wait(Pong, lambda p: p.query == query)


def idle(hub: Hub) -> None:
    """Until it waits for work."""
    end = time.monotonic() + 20
    while pong(hub, 9).busy_seconds:
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_commit_that_hangs_looks_hung(hub: Hub) -> None:
    hub.start()
    hub.wait(WriterUp)
    idle(hub)
    with lmdb.open(str(hub.state / "lmdb"), max_dbs=30, map_size=1 << 30) as env:
        with env.begin(write=True):  # whoever commits now has to wait
            hub.send(*decided(A, "cat", 90.0))
            time.sleep(0.5)
            first = pong(hub, 2)
            time.sleep(0.5)
            second = pong(hub, 3)
        assert first.busy_seconds >= 0.3
        assert second.busy_seconds >= first.busy_seconds + 0.4, "it is the age of one commit"
        assert not second.blocked
        hub.committed(6)
    idle(hub)
    hub.close()


def test_a_writer_is_heard_while_it_waits_for_its_predecessor(hub: Hub) -> None:
    with holding(InstanceLock(hub.state / "writer.lock")) as taken:
        assert taken
        hub.start()
        assert pong(hub, 1).busy_seconds == 0.0
    hub.wait(WriterUp)
    hub.close()


def test_a_full_disk_under_the_results_loses_nothing(hub: Hub, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        hub.output = disk / "output"
        hub.start()
        hub.wait(WriterUp)
        fill_up(disk / "ballast")
        hub.send(*decided(A, "cat", 90.0))
        assert hub.committed(6).stats.high_quality == 1, "the state is on another disk"
        assert "No space" in hub.wait(WriterBlocked).reason
        hub.send(f.Numbered(seq=7, fact=f.ImageEnrolled(path=B, size=1, mtime_ns=1, time=1.0)))
        hub.committed(7)
        hub.pipe.put(Ping(query=1))
        hub.pipe.flush()
        assert "No space" in hub.wait(Pong).blocked
        (disk / "ballast").unlink()
        assert hub.wait(WriterBlocked).reason == ""
        hub.close()
        assert list(hub.files()) == [f"high_quality/{result_name(A)}"]


def test_a_full_disk_under_the_state_loses_nothing(hub: Hub, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "2m") as disk:
        hub.state = disk / "state"
        hub.state.mkdir()
        hub.start()
        hub.wait(WriterUp)
        fill_up(disk / "ballast")
        image = decided(A, "cat", 90.0)
        long = "resistor " * 40_000
        made = image[3].fact
        assert isinstance(made, f.CandidateMade)
        answer = msgspec.structs.replace(made.candidate, content=long)
        image[3] = f.Numbered(seq=4, fact=msgspec.structs.replace(made, candidate=answer))
        hub.send(*image)
        assert hub.wait(WriterBlocked).reason
        hub.pipe.put(Ping(query=1))
        hub.pipe.flush()
        waiting = hub.wait(Pong)
        assert waiting.blocked, "a writer that waits is alive"
        assert waiting.busy_seconds < 1.0, "each try comes to its end"
        (disk / "ballast").unlink()
        assert hub.wait(WriterBlocked).reason == ""
        assert hub.committed(6).stats.high_quality == 1
        hub.close()
        (document,) = hub.files().values()
        assert json.loads(document)["best_result"]["content"] == long
