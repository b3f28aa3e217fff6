"""Children that live and do not go on: they are replaced, and nothing is lost.

The limit of 120 s is 8 here; a ping goes out every 5.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import Daemon, draw, wait_for

Make = Callable[..., Any]
MakeDaemon = Callable[..., Daemon]

QUICK = {"RSD_TEST_HUNG_SECONDS": "8"}
HOLD_THE_STORE = """
import lmdb, sys
with lmdb.open(sys.argv[1], max_dbs=64).begin(write=True):
    print(1, flush=True)
    sys.stdin.read()
"""


def pid_of(d: Daemon, name: str) -> int:
    return int(next(p["pid"] for p in d.live()["processes"] if p["name"] == name))


@pytest.mark.slow
def test_a_writer_that_hangs_in_one_commit_is_replaced(simulator: Make, daemon: MakeDaemon) -> None:
    """Its mailbox is answered all the while: by another thread."""
    d = daemon(simulator(), "--candidates", "2", **QUICK)
    draw(d.images / "a.png", 1)
    d.start()
    wait_for(lambda: d.settled(1), "a result")
    first = pid_of(d, "writer")
    words = [sys.executable, "-c", HOLD_THE_STORE, str(d.output / "state" / "lmdb")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        draw(d.images / "b.png", 2)
        wait_for(lambda: "killing the writer: it has been at one thing for" in d.log(), "its end")
        holder.communicate(b"")
    wait_for(lambda: d.settled(2), "a result of the next writer")
    assert pid_of(d, "writer") != first
    assert d.stop() == 0 and set(d.results()) == {"a.png", "b.png"}


@pytest.mark.slow
def test_a_worker_that_does_not_leave_is_ended(
    simulator: Make, daemon: MakeDaemon, tmp_path: Path
) -> None:
    config = tmp_path / "rsd.toml"
    config.write_text("[processes]\ngraders = 1\n")
    d = daemon(simulator(), "--candidates", "2", "--config", str(config), **QUICK)
    draw(d.images / "a.png", 1)
    process = d.start()
    wait_for(lambda: d.settled(1), "a result")
    os.kill(frozen := pid_of(d, "grader-3"), signal.SIGSTOP)
    config.write_text("[processes]\ngraders = 2\n[grading]\nworkers = 4\n")
    process.send_signal(signal.SIGHUP)
    wait_for(lambda: "reloaded" in d.log(), "the reload")
    wait_for(lambda: frozen not in [p["pid"] for p in d.live()["processes"]], "its end")
    assert not Path(f"/proc/{frozen}").exists()
    assert d.stop() == 0


@pytest.mark.slow
def test_a_worker_that_answers_no_ping_is_replaced(simulator: Make, daemon: MakeDaemon) -> None:
    d = daemon(simulator(), "--candidates", "2", **QUICK)
    draw(d.images / "a.png", 1)
    d.start()
    wait_for(lambda: d.settled(1), "a result")
    frozen = pid_of(d, "grader-3")
    os.kill(frozen, signal.SIGSTOP)
    wait_for(lambda: "killing grader-3: it has said nothing for" in d.log(), "its end")
    wait_for(lambda: pid_of(d, "grader-3") != frozen, "another one")
    draw(d.images / "b.png", 2)
    wait_for(lambda: d.settled(2), "a result after it")
    assert d.stop() == 0
