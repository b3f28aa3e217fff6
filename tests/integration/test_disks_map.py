"""The store's map under a running daemon: it grows, and its readers come, go and die."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rsd.state.store import READERS, Store
from tests.evidence import record
from tests.integration import disk_runs
from tests.integration.disk_runs import IMAGES, Run
from tests.support import HOME, draw, wait_for

expected, run = disk_runs.expected, disk_runs.run

#: Reads like `show` does, over and over, in one process that saw the map when it was small.
READER = """
import sys, time
from pathlib import Path
from rsd.state import view
from rsd.state.store import Store
store, reads = Store(Path(sys.argv[1]), readonly=True), 0
print("open", flush=True)
while not Path(sys.argv[2]).exists():
    with store.reading() as txn:
        seen = txn.stats()
        for row, _ in txn.scan("images"):
            record = view.image_record(txn, row.hex())
            view.view(txn, record)
    reads += 1
print(reads, seen.seen)
"""


@pytest.mark.slow
def test_the_map_grows_under_load_and_its_readers_go_on(
    run: Callable[..., Run], expected: dict[str, Any], tmp_path: Path
) -> None:
    small = {"RSD_TEST_MAP_BYTES": str(192 * 1024)}
    line = run(**small)
    line.begin()
    end = tmp_path / "end"
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", READER, str(line.state / "lmdb"), str(end)],
            cwd=HOME,
            env=os.environ | small,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    shown = 0

    def look() -> bool:
        nonlocal shown
        done = line.d.run("show", "--json", "p000.png", "--state-dir", str(line.state))
        assert done.returncode == 0, done.stderr
        assert line.status()["running"]
        shown += 1
        return shown >= 5 and len(line.d.results()) == IMAGES

    wait_for(look, "all results")
    line.healed()
    end.touch()
    reads = []
    for reader in readers:
        out, _ = reader.communicate(timeout=60)
        assert reader.returncode == 0
        count, images = out.split()[1:]
        assert int(images) == IMAGES
        reads.append(int(count))
    grown = line.d.log().count("the state's map is full; it grows")
    assert grown
    seen = line.judge(expected)
    record(
        "disks",
        injected="LMDB's map starts at 192 KiB and grows under load, with readers at work",
        times=grown,
        recovery="doubled each time, nothing waits",
        seen=f"{sum(reads)} reads in two processes that saw the small map, {shown} `show` and "
        f"`status` between them; none failed",
        **seen,
    )


#: Opens the store and begins to read in so many processes; they are killed in the middle.
HOLDERS = """
import os, signal, sys, time
from pathlib import Path
from rsd.state.store import Store
pids = []
for _ in range(int(sys.argv[2])):
    ready, told = os.pipe()
    pid = os.fork()
    if not pid:
        signal.alarm(60)  # whatever becomes of the parent
        with Store(Path(sys.argv[1]), readonly=True).reading() as txn:
            txn.stats()
            os.write(told, b"in")
            signal.pause()
    os.close(told)
    assert os.read(ready, 2) == b"in"
    os.close(ready)
    pids.append(pid)
for pid in pids:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
print(len(pids))
"""


def kill_readers(line: Run, count: int) -> int:
    """Readers killed in the middle of reading, each with a slot of the table."""
    done = subprocess.run(
        [sys.executable, "-c", HOLDERS, str(line.state / "lmdb"), str(count)],
        cwd=HOME,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def slots(line: Run) -> int:
    """Slots of the table that dead readers still have."""
    reader = Store(line.state / "lmdb", readonly=True)
    try:
        return reader.reader_check()
    finally:
        reader.close()


@pytest.mark.slow
def test_a_table_full_of_dead_readers_refuses_nobody(
    run: Callable[..., Run], expected: dict[str, Any]
) -> None:
    line = run()
    line.begin()
    killed = 0
    for _ in range(4):  # more than the table holds, all in all
        killed += kill_readers(line, READERS // 3)
        done = line.d.run("show", "p000.png", "--state-dir", str(line.state))
        assert done.returncode == 0, done.stderr
    assert killed > READERS
    line.healed()
    wait_for(lambda: "dead readers" in line.d.log(), "the word of the writer")
    wait_for(lambda: slots(line) == 0, "an empty table")
    seen = line.judge(expected)
    record(
        "disks",
        injected="readers of the store killed in the middle of reading (SIGKILL)",
        times=killed,
        recovery="the writer frees their slots every 5 s",
        seen=f"`show` goes on in a table of {READERS} slots",
        **seen,
    )


@pytest.mark.slow
def test_dead_readers_do_not_make_the_file_grow_for_ever(run: Callable[..., Run]) -> None:
    """A reader that died pins the pages of its time until the writer's next look at the table."""
    line = run()
    line.begin()
    line.healed()
    file = line.state / "lmdb/data.mdb"
    sizes = [file.stat().st_size]
    killed, seed = 0, IMAGES

    def round_of_work() -> None:
        nonlocal seed
        low = line.d.run("retry", "p000.png", "p001.png", "--state-dir", str(line.state))
        assert low.returncode == 0, low.stderr
        seed += 1
        draw(line.d.images / f"q{seed}.png", seed)
        count = seed - IMAGES + IMAGES
        wait_for(lambda: len(line.d.results()) >= count, "another result")
        sizes.append(file.stat().st_size)

    for _ in range(3):
        killed += kill_readers(line, 20)
        before = line.d.log().count("dead readers")

        def worked_and_freed(before: int = before) -> bool:
            round_of_work()
            return line.d.log().count("dead readers") > before

        wait_for(worked_and_freed, "the writer's look at the table", 120)
        freed = len(sizes)
        for _ in range(5):
            round_of_work()
        assert sizes[-1] - sizes[freed - 1] <= 512 * 1024, "what was pinned is used again"
    assert line.d.stop() == 0
    record(
        "disks",
        injected="dead readers under load, three times 20, until the writer frees them",
        times=killed,
        recovery="freed within seconds each time",
        seen=f"data.mdb: {sizes[0] // 1024} KiB before, {sizes[-1] // 1024} KiB after "
        f"{len(sizes) - 1} rounds of work",
    )
