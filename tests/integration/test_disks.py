"""Disks under a running daemon: full, read-only, on the network; the map and its readers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rsd import pointers
from rsd.writer.store import READERS, Store
from tests.disks import fill_up, read_only, remount, share, small_disk
from tests.evidence import record
from tests.support import HOME, Daemon, Simulator, draw, essence, simulator, wait_for

IMAGES, CANDIDATES = 28, 4
FLAGS = ("--candidates", str(CANDIDATES), "--gen-workers", "4", "--grade-workers", "4")
SECONDS = "0.1"


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of a run that nobody disturbs."""
    with simulator() as sim:
        d = Daemon(tmp_path_factory.mktemp("undisturbed"), sim, *FLAGS)
        fill(d)
        assert d.once().returncode == 0
        return essence(d.results())


def fill(d: Daemon) -> None:
    for seed in range(IMAGES):
        draw(d.images / f"p{seed:03d}.png", seed)


class Run:
    """A daemon at work on a disk that a test spoils."""

    def __init__(self, tmp_path: Path, sim: Simulator, **settings: str) -> None:
        self.sim = sim
        self.d = Daemon(tmp_path, sim, *FLAGS, **settings)
        self.state = Path(settings.get("RSD_STATE_DIR", self.d.output / "state"))
        fill(self.d)

    def begin(self) -> None:
        """Up to the first results."""
        self.d.start()
        wait_for(lambda: len(self.d.results()) >= 3, "the first results")

    def status(self) -> dict[str, Any]:
        """`status --json`, wherever the state is."""
        words = ("status", "--json", "--state-dir", str(self.state))
        done = self.d.run(*words)
        return json.loads(done.stdout) if done.stdout else {"reasons": [], "health": done.stderr}

    def says(self, *words: str) -> str:
        """Wait for a reason with all of these words."""

        def found() -> str:
            reasons = self.status()["reasons"]
            return next((r for r in reasons if all(w in r for w in words)), "")

        return str(wait_for(found, f"a reason with {words}"))

    def answered(self) -> tuple[int, int]:
        """Right answers that the servers gave, of both roles."""
        stats = self.sim.stats()
        return stats["generator"]["children"], stats["grader"]["children"]

    def paused(self) -> tuple[int, int]:
        """Wait until nothing is asked any more; what was answered."""

        def still() -> bool:
            document = self.status()
            return not any(document["in_flight"].values())

        wait_for(still, "a pause")
        before = self.answered()
        for _ in range(3):  # three documents later it is the same
            self.status()
            time.sleep(0.7)
        assert self.answered() == before, "a paused run asks nothing"
        return before

    def healed(self) -> float:
        """Wait for all results; seconds that it took."""
        began = time.monotonic()
        wait_for(lambda: len(self.d.results()) == IMAGES, "all results")

        def well() -> bool:
            document = self.status()
            images = document["images"]
            ended = images["high_quality"] + images["low_quality"]
            return bool(document["health"] == "ok" and ended == images["seen"] == IMAGES)

        wait_for(well, "a healthy status that counts them all")
        return time.monotonic() - began

    def judge(self, expected: dict[str, Any]) -> dict[str, int]:
        """End it; what was lost and what was paid twice."""
        got = essence(self.d.results())
        assert self.d.failures() == {}
        assert self.d.stop() == 0
        assert "Traceback" not in self.d.log()
        stats = self.sim.stats()
        repeated = sum(
            stats[role]["children"] - stats[role]["probes"] - IMAGES * CANDIDATES
            for role in ("generator", "grader")
        )
        lost = sum(got.get(name) != what for name, what in expected.items())
        assert (lost, repeated) == (0, 0)
        return {"lost": lost, "repeated": repeated}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Makes a run on a simulator; both end with the test."""
    with simulator("--service-seconds", SECONDS) as sim:
        made: list[Run] = []

        def make(**settings: str) -> Run:
            made.append(Run(tmp_path, sim, **settings))
            return made[-1]

        yield make
        for one in made:
            if one.d.process is not None and one.d.process.poll() is None:
                one.d.process.kill()
                one.d.process.wait()


def told(why: str, tmp_path: Path) -> str:
    """A reason for the record, without this test's folder."""
    return why.replace(str(tmp_path), "")


def elsewhere(run: Run) -> Path | None:
    """Where the status is while the state takes none."""
    found = list((run.d.output.parent / "run").glob(f"*{pointers.STATUS}"))
    return found[0] if found else None


def test_a_full_disk_under_the_state(
    run: Callable[..., Run], expected: dict[str, Any], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "4m") as disk:
        line = run(RSD_STATE_DIR=str(disk / "state"))
        line.begin()
        fill_up(disk / "ballast")
        why = line.says("state_dir = ", "No space left", f"tmpfs mounted on {disk}")
        assert "work waits" in why
        assert line.status()["running"] and line.status()["bottleneck"] == "disk"
        wait_for(lambda: elsewhere(line), "a status elsewhere")
        paid = line.paused()
        assert str(disk) in line.d.log(), "the log names the disk, too"
        (disk / "ballast").unlink()
        seconds = line.healed()
        wait_for(lambda: elsewhere(line) is None, "the status in its place")
        seen = line.judge(expected)
    record(
        "disks",
        injected="state_dir full in the middle of a run (4 MiB tmpfs)",
        times=1,
        recovery=f"by itself, {seconds:.1f} s after room was made",
        seen=f"{paid[0]} and {paid[1]} answers before the pause, none in it; "
        f"status: {told(why, tmp_path)}",
        **seen,
    )


@pytest.mark.slow
def test_a_full_disk_under_the_results(
    run: Callable[..., Run], expected: dict[str, Any], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "output", "2m") as disk:
        line = run(RSD_STATE_DIR=str(tmp_path / "state"))
        line.begin()
        fill_up(disk / "ballast")
        why = line.says("output_dir = ", "No space left", f"tmpfs mounted on {disk}")
        paid = line.paused()
        assert "cannot write: output_dir" in line.d.log()
        (disk / "ballast").unlink()
        seconds = line.healed()
        seen = line.judge(expected)
        assert not list(disk.rglob("*.rsd-tmp"))
    record(
        "disks",
        injected="output_dir full in the middle of a run (2 MiB tmpfs)",
        times=1,
        recovery=f"by itself, {seconds:.1f} s after room was made",
        seen=f"{paid[0]} and {paid[1]} answers before the pause, none in it; "
        f"status: {told(why, tmp_path)}",
        **seen,
    )


@pytest.mark.slow
def test_a_full_disk_under_the_log_stops_nothing(
    run: Callable[..., Run], expected: dict[str, Any], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "output" / "logs", "64k") as disk:
        line = run(RSD_LOG_LEVEL="DEBUG")
        fill_up(disk / "ballast")
        line.d.start()
        wait_for(lambda: len(line.d.results()) == IMAGES, "all results")
        why = line.says("logs in output_dir = ", "No space left", f"tmpfs mounted on {disk}")
        assert (disk / "rsd.log").read_bytes().count(b"\n") <= 1
        (disk / "ballast").unlink()
        draw(line.d.images / "p000.png", 0)  # the same bytes again: no work, but events
        line.d.process.send_signal(1)  # type: ignore[union-attr]
        wait_for(lambda: b"reloaded" in (disk / "rsd.log").read_bytes(), "lines in the log")
        seconds = line.healed()
        seen = line.judge(expected)
        text = (disk / "rsd.log").read_text()
        assert all(row[:2] == "20" for row in text.splitlines() if row), "whole lines only"
    record(
        "disks",
        injected="logs full from the start (64 KiB tmpfs at OUTPUT/logs)",
        times=1,
        recovery=f"by itself; healthy {seconds:.1f} s after room was made",
        seen=f"work went on, lines on stderr; status: {told(why, tmp_path)}",
        **seen,
    )


@pytest.mark.slow
def test_results_on_a_disk_that_turns_read_only(
    run: Callable[..., Run], expected: dict[str, Any], tmp_path: Path
) -> None:
    with (
        small_disk(tmp_path / "output", "8m") as disk,
        small_disk(tmp_path / "output" / "logs", "1m"),  # an open log would keep it writable
    ):
        line = run(RSD_STATE_DIR=str(tmp_path / "state"))
        line.begin()

        def turned() -> bool:
            try:
                remount(disk, "ro")
            except subprocess.CalledProcessError:
                return False  # a result was being written
            return True

        wait_for(turned, "a moment without an open file")
        why = line.says("output_dir = ", "Read-only file system", f"tmpfs mounted on {disk}")
        paid = line.paused()
        remount(disk, "rw")
        seconds = line.healed()
        seen = line.judge(expected)
    record(
        "disks",
        injected="output_dir remounted read-only in the middle of a run, and writable again",
        times=1,
        recovery=f"by itself, {seconds:.1f} s after the remount",
        seen=f"{paid[0]} and {paid[1]} answers before the pause, none in it; "
        f"status: {told(why, tmp_path)}",
        **seen,
    )


@pytest.mark.slow
def test_a_state_that_takes_no_new_files(
    run: Callable[..., Run], expected: dict[str, Any], tmp_path: Path
) -> None:
    """The spool and the status are refused, while the store's files are open and stay writable."""
    line = run()
    line.begin()
    with read_only(line.state):
        why = line.says("state_dir = ", "Read-only file system", "mounted on")
        wait_for(lambda: elsewhere(line), "a status elsewhere")
        assert line.status()["bottleneck"] == "disk"
    seconds = line.healed()
    assert elsewhere(line) is None
    seen = line.judge(expected)
    record(
        "disks",
        injected="state_dir takes no new files (read-only bind mount), and does so again",
        times=1,
        recovery=f"by itself, {seconds:.1f} s after",
        seen=f"no picture was blamed for the spool; status: {told(why, tmp_path)}",
        **seen,
    )


@pytest.mark.parametrize("setting", ["output_dir", "state_dir"])
@pytest.mark.parametrize("how", ["Read-only file system", "No space left on device"])
def test_unwritable_from_the_start_is_one_line(tmp_path: Path, setting: str, how: str) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        settings = {"RSD_STATE_DIR": str(disk / "state")} if setting == "state_dir" else {}
        d = Daemon(tmp_path, None, "--grading-api", "http://127.0.0.1:9/v1", **settings)
        if setting == "output_dir":
            d.output = disk / "output"
        if how.startswith("No"):
            fill_up(disk / "ballast")
        else:
            remount(disk, "ro")
        done = d.once()
    assert done.returncode == 1, "it may pass: systemd tries again, which it does not after 2"
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"rsd: {setting} = ")
    assert line.endswith(f"{how}; tmpfs mounted on {disk}")
    record(
        "disks",
        injected=f"{setting}: {how} from the start",
        times=1,
        recovery="exit 1, so that systemd tries again",
        seen=told(line, tmp_path),
    )


@pytest.mark.parametrize("given", ["state_dir", "output_dir"])
def test_a_state_on_a_network_share_is_refused(tmp_path: Path, given: str) -> None:
    with share(tmp_path / "share", "sshfs") as folder:
        settings = {"RSD_STATE_DIR": str(folder / "state")} if given == "state_dir" else {}
        d = Daemon(tmp_path, None, "--grading-api", "http://127.0.0.1:9/v1", **settings)
        if given == "output_dir":
            d.output = folder / "results"
        done = d.once()
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("rsd: state_dir = ")
    assert line.endswith("is on fuse.sshfs; put the state on a local disk")
    record(
        "disks",
        injected=f"{given} on a network share (a real FUSE mount that calls itself sshfs)",
        times=1,
        recovery="exit 1",
        seen=told(line, tmp_path),
    )


# ---------------------------------------------------------------------------------- map and readers

#: Reads like `show` does, over and over, in one process that saw the map when it was small.
READER = """
import sys, time
from pathlib import Path
from rsd.writer import view
from rsd.writer.store import Store
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
from rsd.writer.store import Store
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
