"""How children start: what they have of the hub, and what is left when it is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rsd.hub.children.entry import short
from tests.support import HOME, Daemon, draw, living, wait_for

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
    return b"children.entry" in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_forked_children_share_nothing_and_the_others_are_spawned(
    simulator: Make, daemon: MakeDaemon
) -> None:
    sim = simulator()
    d = daemon(sim, "--candidates", "2")
    draw(d.images / "a.png", 1)
    d.start()
    try:
        wait_for(lambda: d.settled(1), "a result")
        pids = {p["name"]: p["pid"] for p in d.live()["processes"]}
        assert len(pids) == 5
        for name, pid in pids.items():
            assert spawned(pid) == name.startswith("generator"), "they decode what anybody drew"
        pipes = {name: {f for f in held(pid) if "pipe:" in f} for name, pid in pids.items()}
        for name, own in pipes.items():
            watched = 0 if spawned(pids[name]) else 2
            assert len(own) == 2 + watched, "two to the hub, two by which multiprocessing watches"
            assert not any(own & other for n, other in pipes.items() if n != name)
            assert not any("instance.lock" in f or "rsd.log" in f for f in held(pids[name]))
            assert Path(f"/proc/{pids[name]}/comm").read_text().strip() == short(name)
        os.kill(pids["grader-3"], signal.SIGKILL)

        def successor() -> int:
            now = {p["name"]: p for p in d.live()["processes"]}["grader-3"]
            changed = now["state"] == "up" and now["pid"] != pids["grader-3"]
            return int(now["pid"]) if changed else 0

        assert spawned(wait_for(successor, "another grader"))
        draw(d.images / "b.png", 2)
        wait_for(lambda: d.settled(2), "a result after it")
        die_with_hub(d)
    finally:
        end(d)
    assert d.once().returncode == 0


def die_with_hub(d: Daemon) -> None:
    """SIGKILL of the hub ends all."""
    family = d.family()
    assert d.process is not None and len(living(family)) >= 5
    d.process.kill()
    d.process.wait()
    wait_for(lambda: not living(family), "that no child outlives the hub", 10)


def end(d: Daemon) -> None:
    """Whatever a failed test has left."""
    for pid in living([*d.family(), *([d.process.pid] if d.process else [])]):
        os.kill(pid, signal.SIGKILL)


def test_without_standard_files_nothing_is_left_of_a_killed_hub(
    simulator: Make, daemon: MakeDaemon
) -> None:
    """The lock and the first pipes then have the numbers 0, 1 and 2."""
    d = daemon(simulator(), "--candidates", "2")
    draw(d.images / "a.png", 1)
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *d.command("run")]
    d.process = subprocess.Popen(closed, env=d._env, cwd=HOME)
    try:
        wait_for(lambda: d.settled(1), "a result")
        die_with_hub(d)
    finally:
        end(d)
    assert d.once().returncode == 0


def test_a_stop_leaves_nothing_that_somebody_has_to_kill(
    simulator: Make, daemon: MakeDaemon
) -> None:
    """systemd kills what is left when the hub has ended, and says so in the journal."""
    d = daemon(simulator(), "--candidates", "2")
    draw(d.images / "a.png", 1)
    d.start()
    try:
        wait_for(lambda: d.settled(1), "a result")
        family = d.family()
        assert sorted(family) == sorted(p["pid"] for p in d.live()["processes"]), "no helpers"
        assert d.stop() == 0
        assert not living(family)
    finally:
        end(d)


KEYS = {"generation": "sk-first-0123456789abcdef", "grading": "sk-second-fedcba9876543210"}


def known_to(pid: int) -> set[str]:
    """Which keys lie in the memory of a process."""
    found: set[str] = set()
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            where, mode = line.split()[:2]
            if not mode.startswith("rw"):
                continue
            start, stop = (int(word, 16) for word in where.split("-"))
            with contextlib.suppress(OSError, ValueError):
                memory.seek(start)
                data = memory.read(stop - start)
                found |= {name for name, key in KEYS.items() if key.encode() in data}
    return found


def test_generators_hold_no_key_but_their_own(simulator: Make, daemon: MakeDaemon) -> None:
    d = daemon(
        simulator(),
        *("--candidates", "2"),
        RSD_GENERATION_KEY=KEYS["generation"],
        RSD_GRADING_KEY=KEYS["grading"],
    )
    draw(d.images / "a.png", 1)
    d.start()
    try:
        wait_for(lambda: d.settled(1), "a result")
        pids = {p["name"]: p["pid"] for p in d.live()["processes"]}
        assert known_to(pids["grader-3"]) >= {"grading"}, "it can be found at all"
        for name in ("generator-1", "generator-2"):
            assert known_to(pids[name]) == {"generation"}
        assert d.stop() == 0
    finally:
        end(d)
