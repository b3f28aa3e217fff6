"""Fixtures: a simulator and a daemon, both real processes that end with the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.support import Daemon, Simulator

# A machine with other work is no failure.
hypothesis.settings.register_profile("rsd", deadline=None)
hypothesis.settings.load_profile("rsd")


@pytest.fixture
def simulator() -> Iterator[Callable[..., Simulator]]:
    """Makes simulators; all are ended."""
    made: list[Simulator] = []

    def make(*options: str) -> Simulator:
        made.append(Simulator(*options))
        return made[-1]

    yield make
    for running in made:
        running.stop()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Makes daemons in the test's folder; all are ended."""
    made: list[Daemon] = []

    def make(sim: Simulator | None, *flags: str, **settings: str) -> Daemon:
        made.append(Daemon(tmp_path, sim, *flags, **settings))
        return made[-1]

    yield make
    for running in made:
        if running.process is not None and running.process.poll() is None:
            running.process.kill()
            running.process.wait()
