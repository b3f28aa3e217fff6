"""Runs on disks that a test spoils: made, watched, and judged by what they lost or paid twice.

`expected` and `run` are fixtures: a test file gives them the same names, and pytest finds them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import Daemon, Simulator, essence, fill, simulator, undisturbed, wait_for

IMAGES, CANDIDATES = 28, 4
PICTURES = {f"p{seed:03d}.png": seed for seed in range(IMAGES)}
FLAGS = ("--candidates", str(CANDIDATES), "--gen-workers", "4", "--grade-workers", "4")
SECONDS = "0.1"


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of a run that nobody disturbs."""
    return undisturbed(tmp_path_factory.mktemp("undisturbed"), PICTURES, *FLAGS)


class Run:
    """A daemon at work on a disk that a test spoils."""

    def __init__(self, tmp_path: Path, sim: Simulator, **settings: str) -> None:
        self.sim = sim
        self.d = Daemon(tmp_path, sim, *FLAGS, **settings)
        self.state = Path(settings.get("RSD_STATE_DIR", self.d.output / "state"))
        fill(self.d, PICTURES)

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
