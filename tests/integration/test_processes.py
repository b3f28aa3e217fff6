"""How children start: what a forked one keeps of the hub, and that a later one is spawned."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support import Daemon, draw, living, wait_for

Make = Callable[..., Any]
MakeDaemon = Callable[..., Daemon]


def held(pid: int) -> set[str]:
    """What the descriptors of a process stand for, without the standard three and /dev/null."""
    found = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        if int(fd.name) > 2:
            found.add(str(fd.readlink()))
    return found - {os.devnull}


def spawned(pid: int) -> bool:
    """By its command line: a forked child has that of the hub."""
    return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_forked_children_share_nothing_and_later_ones_are_spawned(
    simulator: Make, daemon: MakeDaemon
) -> None:
    sim = simulator()
    d = daemon(sim, "--candidates", "2")
    draw(d.images / "a.png", 1)
    d.start()
    try:
        wait_for(lambda: d.settled(1), "a result")
        pids = {p["name"]: p["pid"] for p in d.live()["processes"]}
        assert len(pids) == 5 and not any(spawned(pid) for pid in pids.values())
        pipes = {name: {f for f in held(pid) if "pipe:" in f} for name, pid in pids.items()}
        for name, own in pipes.items():
            assert len(own) == 4, "two to the hub, two by which multiprocessing watches"
            assert not any(own & other for n, other in pipes.items() if n != name)
            assert not any("instance.lock" in f or "rsd.log" in f for f in held(pids[name]))
            comm = Path(f"/proc/{pids[name]}/comm").read_text().strip()
            assert comm == f"rsd-{name}"[:15]
        os.kill(pids["grader-3"], signal.SIGKILL)

        def successor() -> int:
            now = {p["name"]: p for p in d.live()["processes"]}["grader-3"]
            changed = now["state"] == "up" and now["pid"] != pids["grader-3"]
            return int(now["pid"]) if changed else 0

        assert spawned(wait_for(successor, "another grader"))
        draw(d.images / "b.png", 2)
        wait_for(lambda: d.settled(2), "a result after it")
        family = d.family()
        assert d.process is not None
        d.process.kill()
        d.process.wait()
        wait_for(lambda: not living(family), "that no child outlives the hub")
    finally:
        for pid in living(d.family()):
            os.kill(pid, signal.SIGKILL)
    assert d.once().returncode == 0
