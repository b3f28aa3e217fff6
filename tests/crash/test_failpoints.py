"""The crash table, row by row: the process kills itself at a named point, and nothing is lost."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rsd.errors import StateError
from rsd.state.store import Store
from tests.evidence import record
from tests.histories import FactSource, dump
from tests.support import (
    HOME,
    Daemon,
    Simulator,
    draw,
    essence,
    fill,
    simulator,
    undisturbed,
    wait_for,
)

IMAGES, CANDIDATES = 10, 4
PICTURES = {f"p{seed}.png": seed for seed in range(IMAGES)}
FLAGS = ("--candidates", str(CANDIDATES), "--gen-workers", "4", "--grade-workers", "4")

#: Point -> (calls that may be paid twice per death, row of the table). A worker's threads, a
#: writer's none; the hub is started again once, and may repeat what was in flight or not committed.
POINTS = {
    "generator.answered:5": (4, "generator, with an answer that it has not told"),
    "grader.answered:5": (4, "grader, with a grade that it has not told"),
    "writer.before-commit:4": (0, "writer, before a commit"),
    "writer.after-commit:4": (0, "writer, after a commit and before its acknowledgement"),
    "writer.before-decision:2": (0, "writer, after the last grade and before the decision"),
    "writer.after-replace:2": (0, "writer, between rename and outbox delete"),
    "writer.outbox-drain:2": (0, "writer, in the middle of the outbox"),
    # this writer dies at each growth, so its hub is stopped with facts that it could not commit
    "store.growing": (16, "writer, while the map is doubled"),
    "files.before-replace:6": (16, "whoever writes a file, between temporary file and rename"),
    "hub.before-reply:40": (16, "hub, before it hears an answer"),
    "hub.before-decision:2": (16, "hub, after the last grade and before the decision"),
}
ONCE = ("hub", "files")
#: Points that are near another one; `make reliability` tries them all.
LATER = {
    "grader.answered:5",
    "writer.before-commit:4",
    "writer.after-replace:2",
    "store.growing",
    "hub.before-reply:40",
}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of a run that nobody disturbs."""
    return undisturbed(tmp_path_factory.mktemp("undisturbed"), PICTURES, *FLAGS)


def paid_twice(sim: Simulator) -> int:
    """Answers beyond those that the results need, of both pools."""
    needed = IMAGES * CANDIDATES
    more = 0
    for role in ("generator", "grader"):
        seen = sim.stats(role)
        more += seen["children"] - seen["probes"] - needed
    return more


def deaths_of(d: Daemon) -> int:
    return d.log().count("killed by SIGKILL")


@pytest.mark.crash
@pytest.mark.parametrize(
    "point", [pytest.param(p, marks=pytest.mark.slow if p in LATER else ()) for p in POINTS]
)
def test_a_death_at_this_point_loses_and_doubles_nothing(
    point: str, expected: dict[str, Any], tmp_path: Path
) -> None:
    allowed, row = POINTS[point]
    small = {"RSD_TEST_MAP_BYTES": "131072", "RSD_DRAIN_SECONDS": "2"}
    small = small if point == "store.growing" else {}
    with simulator("--service-seconds", "0.05") as sim:
        d = Daemon(tmp_path, sim, *FLAGS, **small)
        fill(d, PICTURES)
        process = d.start(RSD_FAILPOINT=point)
        wait_for(lambda: deaths_of(d) or process.poll() is not None, "the death")
        if not point.startswith((*ONCE, "store")):
            # the children of this hub die at the point again and again: it must get there all the
            # same, so it goes on for a while before it is replaced
            wait_for(lambda: deaths_of(d) >= 3 or d.settled(IMAGES), "more")
        deaths = max(1, deaths_of(d))
        if process.poll() is None:
            d.stop()
        d.start()
        wait_for(lambda: d.settled(IMAGES), "the rest")
        assert essence(d.results()) == expected
        assert d.stop() == 0
        repeated = paid_twice(sim)
        # a worker that dies again before the hub was stopped repeats what it had in flight
        assert 0 <= repeated <= 2 * allowed * deaths
        assert list(d.output.rglob("*.rsd-tmp")) == []
    counts = d.status()["images"]
    assert counts["high_quality"] + counts["low_quality"] == counts["seen"] == IMAGES
    assert "Traceback" not in d.log()
    healed = "the next hub" if point.startswith(ONCE) else "a new process, at once"
    seen = f"{IMAGES} results equal to an undisturbed run"
    record("points", row, times=deaths, lost=0, repeated=repeated, recovery=healed, seen=seen)


@pytest.mark.crash
def test_a_death_while_a_reload_is_applied(expected: dict[str, Any], tmp_path: Path) -> None:
    with simulator("--service-seconds", "0.05") as sim:
        config = tmp_path / "rsd.toml"
        config.write_text("checkpoint_interval = 5\n")
        d = Daemon(tmp_path, sim, *FLAGS, RSD_CONFIG=str(config))
        fill(d, PICTURES)
        process = d.start(RSD_FAILPOINT="hub.reloading")
        wait_for(lambda: sim.stats("grader")["children"] >= 5, "some grades")
        config.write_text("checkpoint_interval = 1\n")
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=60) == -signal.SIGKILL
        d.start()
        wait_for(lambda: d.settled(IMAGES), "the rest")
        assert essence(d.results()) == expected
        assert d.stop() == 0
        repeated = paid_twice(sim)
        assert 0 <= repeated <= 32
    record(
        "points",
        "hub, while a reload is applied",
        times=1,
        lost=0,
        repeated=repeated,
        recovery="the next hub",
        seen=f"{IMAGES} results equal to an undisturbed run",
    )


#: A later format that rewrites every image, in a process that is killed inside of it.
MIGRATE = """
import sys
from pathlib import Path
from rsd.state import store

def next_format(txn, after):
    for row, value in txn.scan("images"):
        txn.put("images", row, value.replace(b'"reason":""', b'"reason":"moved"'))

store.SCHEMA += 1
store.MIGRATIONS[store.SCHEMA] = next_format
store.Store(Path(sys.argv[1])).close()
"""


@pytest.mark.crash
def test_a_death_during_a_schema_migration_leaves_the_old_format_whole(tmp_path: Path) -> None:
    folder = tmp_path / "lmdb"
    filled = Store(folder)
    source = FactSource(filled)
    for n in range(40):
        source.enrol(n)
        source.take(n)
    before = dump(filled)
    filled.close()
    command = [sys.executable, "-c", MIGRATE, str(folder)]
    for _ in range(3):
        env = {"PYTHONPATH": str(HOME), "RSD_FAILPOINT": "store.migrating"}
        assert subprocess.run(command, env=env, check=False).returncode == -signal.SIGKILL
        opened = Store(folder)
        assert dump(opened) == before, "half a migration"
        opened.close()
    subprocess.run(command, env={"PYTHONPATH": str(HOME)}, check=True)
    with pytest.raises(StateError, match="newer rsd"):
        Store(folder)
    record(
        "points",
        "writer, during a schema migration",
        times=3,
        lost=0,
        repeated=0,
        recovery="the next start migrates",
        seen="the old format byte for byte until the migration is committed",
    )


@pytest.mark.crash
def test_a_first_start_that_always_dies_is_given_up_and_said(tmp_path: Path) -> None:
    with simulator() as sim:
        d = Daemon(tmp_path, sim, *FLAGS)
        draw(d.images / "a.png", 1)
        process = d.start(RSD_FAILPOINT="store.migrating")
        assert process.wait(timeout=60) == 1
        assert "the writer process dies at its start" in d.log()
        assert deaths_of(d) >= 4, "it was tried again"
        d.start()
        wait_for(lambda: d.settled(1), "the result")
        assert d.stop() == 0


@pytest.mark.crash
def test_a_picture_that_kills_three_workers_is_set_aside(tmp_path: Path) -> None:
    with simulator() as sim:
        d = Daemon(tmp_path, sim, *FLAGS)
        draw(d.images / "bad.png", 1)
        done = d.once(RSD_FAILPOINT="generator.decoding")
        assert done.returncode == 1, done.stderr
        assert d.failures() == {"bad.png": "crashes_worker"}
        assert sim.stats()["generator"]["calls"]["distinct"] == 0
        draw(d.images / "good.png", 2)
        assert d.once().returncode == 1
        assert set(d.results()) == {"good.png"}
    record(
        "points",
        "generator, while it decodes one and the same picture",
        times=3,
        lost=0,
        repeated=0,
        recovery="set aside by name at the third",
        seen="failed/: crashes_worker; the next picture has its result",
    )
