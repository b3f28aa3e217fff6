"""The crash table, row by row: the process kills itself at a named point, and nothing is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support import Daemon, draw, essence, simulator, wait_for

IMAGES, CANDIDATES = 10, 4
FLAGS = ("--candidates", str(CANDIDATES), "--gen-workers", "4", "--grade-workers", "4")

#: Point -> calls that may be paid twice per death: a worker's threads, a writer's none; the hub is
#: started again once, and may repeat what was in flight or not committed.
POINTS = {
    "generator.answered:5": 4,
    "grader.answered:5": 4,
    "writer.before-commit:4": 0,
    "writer.after-commit:4": 0,
    "writer.after-replace:2": 0,
    "writer.outbox-drain:2": 0,
    "files.before-replace:6": 16,
    "hub.before-reply:40": 16,
}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of a run that nobody disturbs."""
    with simulator() as sim:
        d = Daemon(tmp_path_factory.mktemp("undisturbed"), sim, *FLAGS)
        for seed in range(IMAGES):
            draw(d.images / f"p{seed}.png", seed)
        assert d.once().returncode == 0
        return essence(d.results())


@pytest.mark.crash
@pytest.mark.parametrize("point", POINTS)
def test_a_death_at_this_point_loses_and_doubles_nothing(
    point: str, expected: dict[str, Any], tmp_path: Path
) -> None:
    with simulator("--service-seconds", "0.05") as sim:
        d = Daemon(tmp_path, sim, *FLAGS)
        for seed in range(IMAGES):
            draw(d.images / f"p{seed}.png", seed)
        process = d.start(RSD_FAILPOINT=point)
        wait_for(lambda: "killed by SIGKILL" in d.log() or process.poll() is not None, "the death")
        if not point.startswith(("hub", "files")):
            # the children of this hub die at the point again and again: it must get there all the
            # same, so it goes on for a while before it is replaced
            wait_for(lambda: d.log().count("killed by SIGKILL") >= 3 or d.settled(IMAGES), "more")
        deaths = max(1, d.log().count("killed by SIGKILL"))
        if process.poll() is None:
            d.stop()
        d.start()
        wait_for(lambda: d.settled(IMAGES), "the rest")
        assert essence(d.results()) == expected
        assert d.stop() == 0
        assert not list(d.output.rglob("*.rsd-tmp"))
        stats = sim.stats()
        for role in ("generator", "grader"):
            paid = stats[role]["children"] - stats[role]["probes"]
            needed = IMAGES * CANDIDATES
            assert needed <= paid <= needed + deaths * POINTS[point] + (POINTS[point] and 8)
    counts = d.status()["images"]
    assert counts["high_quality"] + counts["low_quality"] == counts["seen"] == IMAGES
    assert "Traceback" not in d.log()


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
