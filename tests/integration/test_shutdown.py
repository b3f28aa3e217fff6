"""Stopping the real daemon at awkward moments: what is kept, what is given up, what is left over.

Calls are counted by the simulator: every request that reached it beyond those that the results need
was made twice.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.disks import fill_up, small_disk
from tests.evidence import record
from tests.support import Daemon, Simulator, draw, essence, living, simulator, wait_for

Make = Callable[..., Simulator]
MakeDaemon = Callable[..., Daemon]

IMAGES, CANDIDATES, SLOTS = 6, 3, 4
FLAGS = ("--candidates", str(CANDIDATES), "--gen-workers", str(SLOTS), "--grade-workers", "4")
NEEDED = IMAGES * CANDIDATES
#: What only the prompts say, and no probe.
PROMPT = "connection"
ONE_EACH = {"RSD_GENERATION_MAX_N": "1"}


def fill(folder: Path, count: int = IMAGES) -> None:
    for seed in range(count):
        draw(folder / f"p{seed}.png", seed)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of a run that nobody disturbs."""
    with simulator() as sim:
        d = Daemon(tmp_path_factory.mktemp("undisturbed"), sim, *FLAGS, **ONE_EACH)
        fill(d.images)
        assert d.once().returncode == 0
        return essence(d.results())


def left_over(d: Daemon, family: list[int]) -> list[object]:
    """Processes and temporary files that should not be there any more."""
    wait_for(lambda: not living(family), "the end of all children")
    return list(d.output.rglob("*.rsd-tmp"))


def sent_twice(sim: Simulator, needed: int) -> int:
    """Generation requests beyond the needed ones."""
    seen = sim.stats("generator")
    return int(seen["requests"] - seen["probes"] - needed)


def differing(d: Daemon, expected: dict[str, Any]) -> int:
    """Images whose result is missing or another than in an undisturbed run."""
    found = essence(d.results())
    return sum(found.get(name) != one for name, one in expected.items()) + len(
        found.keys() - expected.keys()
    )


@pytest.mark.parametrize(
    "kind", ["hang", pytest.param("slow_drip", marks=pytest.mark.slow)], ids=["silent", "drips"]
)
def test_a_drain_keeps_what_is_answered_and_gives_up_what_hangs(
    kind: str, simulator: Make, daemon: MakeDaemon, expected: dict[str, Any]
) -> None:
    sim = simulator("--generator-seconds", "0.6")
    d = daemon(sim, *FLAGS, RSD_DRAIN_SECONDS="3", **ONE_EACH)
    fill(d.images)
    more = {"seconds": 600} if kind == "slow_drip" else {}
    sim.fault("generator", kind, match=PROMPT, count=2, **more)
    d.start()
    wait_for(
        lambda: sim.struck().get(f"generator:{kind}") == 2 and sim.stats("generator")["running"],
        "two requests that hang and others at work",
    )
    family = d.family()
    kept_before = sim.stats("generator")["calls"]["distinct"]
    began = time.monotonic()
    assert d.stop() == 0
    took = time.monotonic() - began
    assert "2 open calls are given up" in d.log()
    assert not left_over(d, family)
    answered = sim.stats("generator")["calls"]
    assert answered["distinct"] > kept_before  # some were answered while it drained
    assert d.status()["candidates"]["generated"] == answered["distinct"]
    sim.clear()
    d.start()
    wait_for(lambda: d.settled(IMAGES), "the rest")
    assert d.stop() == 0
    assert differing(d, expected) == 0
    assert sent_twice(sim, NEEDED) == 2
    assert sim.stats("generator")["calls"]["repeated"] == 0
    record(
        "shutdown",
        f"SIGTERM, drain_seconds 3, two requests {'hang' if kind == 'hang' else 'drip'}",
        times=1,
        lost=differing(d, expected),
        repeated=sent_twice(sim, NEEDED),
        recovery=f"ended after {took:.1f} s, exit code 0",
        seen=f"{answered['distinct'] - kept_before} requests were answered meanwhile and kept; "
        "no process and no temporary file left",
    )


@pytest.mark.parametrize(
    ("first", "second", "group"),
    [
        pytest.param(signal.SIGTERM, signal.SIGTERM, False, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, signal.SIGINT, False, marks=pytest.mark.slow),
        (signal.SIGINT, signal.SIGINT, True),
    ],
    ids=["TERM-TERM", "TERM-INT", "ctrl-c-twice"],
)
def test_a_second_signal_ends_at_once(
    first: int,
    second: int,
    group: bool,
    simulator: Make,
    daemon: MakeDaemon,
    expected: dict[str, Any],
) -> None:
    sim = simulator("--generator-seconds", "0.3")
    d = daemon(sim, *FLAGS, RSD_DRAIN_SECONDS="3600", **ONE_EACH)
    fill(d.images)
    process = d.start()
    send = (lambda n: os.killpg(process.pid, n)) if group else process.send_signal
    wait_for(lambda: sim.stats("generator")["calls"]["distinct"], "an answer")
    sim.fault("generator", "hang", match=PROMPT)
    wait_for(lambda: sim.struck().get("generator:hang") == SLOTS, "only hanging requests")
    wait_for(
        lambda: sim.stats("generator")["calls"]["distinct"] == d.status_live("generated"), "them"
    )
    kept, open_calls = d.status_live("generated"), sim.stats("generator")["in_flight"]
    family = d.family()
    send(first)
    wait_for(lambda: "stopping" in d.log(), "the drain")
    assert process.poll() is None and len(living(family)) == len(family)
    began = time.monotonic()
    send(second)
    assert process.wait(60) == 0
    took = time.monotonic() - began
    assert not left_over(d, family)
    assert d.status()["candidates"]["generated"] == kept
    sim.clear()
    assert d.once().returncode == 0
    assert differing(d, expected) == 0
    assert 0 < sent_twice(sim, NEEDED) <= open_calls
    names = f"{signal.Signals(first).name}, then {signal.Signals(second).name}"
    record(
        "shutdown",
        names + (" to the whole process group (Ctrl-C twice)" if group else ""),
        times=1,
        lost=differing(d, expected),
        repeated=sent_twice(sim, NEEDED),
        recovery=f"ended {took:.1f} s after the second, exit code 0",
        seen=f"{open_calls} requests hung; {kept} candidates kept",
    )


def caught(pid: int, number: int) -> bool:
    """Whether the process has a handler of its own for a signal."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    mask = int(status.partition("SigCgt:")[2].split()[0], 16) if "SigCgt:" in status else 0
    return bool(mask >> (number - 1) & 1)


#: Seconds between the first moment that a signal is heeded and the signal.
MOMENTS = (0.0, 0.1, 0.3, 0.6, 1.0, 1.5, 2.2, 3.0)


@pytest.mark.slow
@pytest.mark.parametrize("once", [False, True], ids=["daemon", "once"])
def test_a_signal_while_it_starts_or_recovers(
    once: bool, simulator: Make, daemon: MakeDaemon, expected: dict[str, Any]
) -> None:
    sim = simulator()
    d = daemon(sim, *FLAGS, RSD_DRAIN_SECONDS="1", **ONE_EACH)
    fill(d.images)
    sim.fault("grader", "hang", match=PROMPT)  # images stay active: there is much to recover
    process = d.start()
    wait_for(lambda: d.status_live("generated") >= 6, "candidates without grades")
    process.kill()
    process.wait()
    codes = set()
    for k, moment in enumerate(MOMENTS):
        process = d.start(*(["--once"] if once else []))
        wait_for(lambda p=process: caught(p.pid, signal.SIGTERM) or p.poll() is not None, "it")
        time.sleep(moment)  # the moment is what is tested
        family = d.family()
        if k % 2:
            process.terminate()
        else:
            os.killpg(process.pid, signal.SIGTERM)
        codes.add(process.wait(60))
        wait_for(lambda f=family: not living(f), "the end of all children")
    assert codes == {130 if once else 0}
    assert "Traceback" not in d.log() and not list(d.output.rglob("*.rsd-tmp"))
    sim.clear()
    assert d.once().returncode == 0
    assert differing(d, expected) == 0
    assert sent_twice(sim, NEEDED) <= SLOTS  # of the hub that was killed; the stopped ones drained
    record(
        "shutdown",
        f"SIGTERM within 3 s of the start of {'run --once' if once else 'run'}, images to recover",
        times=len(MOMENTS),
        lost=differing(d, expected),
        repeated=sent_twice(sim, NEEDED),
        recovery=f"exit code {codes.pop()} each time",
        seen=f"to the hub alone and to its whole group; {sent_twice(sim, NEEDED)} candidates drawn "
        "again, no traceback, no process left",
    )


def test_a_signal_in_the_first_moment(simulator: Make, daemon: MakeDaemon) -> None:
    d = daemon(simulator(), "--candidates", "1")
    fill(d.images, 1)
    for words, code in (((), 0), (("--once",), 130)):
        process = d.start(*words)
        wait_for(lambda p=process: caught(p.pid, signal.SIGTERM), "the first handler")
        process.send_signal(signal.SIGHUP)
        process.terminate()
        assert process.wait(60) == code
        assert d.log() == ""


@pytest.mark.slow
def test_a_stop_in_the_middle_of_a_scan(daemon: MakeDaemon) -> None:
    count = 4_000
    d = daemon(None, "--vllm-api", "http://127.0.0.1:9/v1", "--grading-api", "http://127.0.0.1:9")
    for k in range(count):
        (d.images / f"f{k:05}.png").write_bytes(b"x%d" % k)
    d.start()
    wait_for(lambda: d.status_live("seen", "images") > 0, "the first files")
    family = d.family()
    assert d.stop() == 0
    first = d.status()["images"]["seen"]
    assert not left_over(d, family)
    d.start()
    wait_for(lambda: d.status_live("seen", "images") == count, "all files")
    assert d.stop() == 0
    assert d.status()["images"]["seen"] == count
    record(
        "shutdown",
        f"SIGTERM while {count:,} files are scanned",
        times=1,
        lost=count - d.status()["images"]["seen"],
        recovery="exit code 0; the next start enrols the rest",
        seen=f"{first:,} files enrolled when it stopped, {count:,} after the next start",
    )


@pytest.mark.slow
@pytest.mark.parametrize("why", ["quota", "memory"])
def test_a_stop_while_paused(
    why: str, simulator: Make, daemon: MakeDaemon, expected: dict[str, Any]
) -> None:
    sim = simulator()
    held = {
        "RSD_THROTTLE_ENABLED": "true",
        "RSD_THROTTLE_MEMORY_REDUCE_PERCENT": "100",
        "RSD_THROTTLE_MEMORY_PAUSE_PERCENT": "100",
    }
    d = daemon(sim, *FLAGS, **ONE_EACH, **(held if why == "memory" else {}))
    fill(d.images)
    if why == "quota":
        sim.fault("grader", "quota")
    d.start()
    reason = "out of credit" if why == "quota" else "paused: memory"
    wait_for(lambda: any(reason in r for r in d.status().get("reasons", [])), "the pause")
    family = d.family()
    began = time.monotonic()
    assert d.stop() == 0
    took = time.monotonic() - began
    assert not left_over(d, family)
    process = d.start("--once")
    wait_for(lambda: d.status_live("seen", "images") == IMAGES, "a pass that waits")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    sim.clear()
    assert d.once(RSD_THROTTLE_ENABLED="false").returncode == 0
    assert differing(d, expected) == 0
    assert sent_twice(sim, NEEDED) <= SLOTS
    record(
        "shutdown",
        f"SIGTERM while {'out of credit' if why == 'quota' else 'memory is short'}",
        times=1,
        lost=differing(d, expected),
        repeated=sent_twice(sim, NEEDED),
        recovery=f"ended after {took:.1f} s, exit code 0; `run --once` interrupted: 130",
    )


@pytest.mark.slow
def test_a_stop_with_a_full_disk(
    simulator: Make, daemon: MakeDaemon, tmp_path: Path, expected: dict[str, Any]
) -> None:
    sim = simulator("--generator-seconds", "0.5")
    with small_disk(tmp_path / "disk", "24m") as disk:
        d = daemon(sim, *FLAGS, "--state-dir", str(disk), **ONE_EACH)
        fill(d.images)
        process = d.start()
        wait_for(lambda: sim.stats("generator")["running"], "work")
        fill_up(disk / "ballast")
        wait_for(lambda: "cannot write" in d.log(), "the full disk")
        family, open_calls = d.family(), NEEDED
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
        took = time.monotonic() - began
        wait_for(lambda: not living(family), "the end of all children")
        (disk / "ballast").unlink()
        assert d.once().returncode == 0
        assert differing(d, expected) == 0
        again = sent_twice(sim, NEEDED)
        assert again <= open_calls
    record(
        "shutdown",
        "SIGTERM while the disk of the state is full",
        times=1,
        lost=differing(d, expected),
        repeated=again,
        recovery=f"ended after {took:.1f} s, exit code 0",
        seen="what could not be committed is asked for again",
    )


@pytest.mark.slow
def test_a_stop_while_a_worker_is_started_again(
    simulator: Make, daemon: MakeDaemon, expected: dict[str, Any]
) -> None:
    sim = simulator("--generator-seconds", "0.3")
    d = daemon(sim, *FLAGS, **ONE_EACH)
    fill(d.images)
    rounds = 3
    for _ in range(rounds):
        process = d.start()
        wait_for(lambda: len(d.children()) == 5 and sim.stats("generator")["running"], "work")
        for name, pid in pids_of(d).items():
            if not name.startswith("writer"):
                os.kill(pid, signal.SIGKILL)
        family = d.family()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert not left_over(d, family)
    assert d.once().returncode == 0
    assert differing(d, expected) == 0
    again = sent_twice(sim, NEEDED)
    assert again <= rounds * 2 * SLOTS
    record(
        "shutdown",
        "All workers killed, and SIGTERM at once",
        times=rounds,
        lost=differing(d, expected),
        repeated=again,
        recovery="exit code 0 each time; no worker is started again while it stops",
    )


def pids_of(d: Daemon) -> dict[str, int]:
    """Name to pid of the children, as the hub says."""
    return {p["name"]: p["pid"] for p in d.live().get("processes", []) if p["pid"]}


@pytest.mark.slow
def test_a_signal_when_a_pass_ends(simulator: Make, daemon: MakeDaemon, tmp_path: Path) -> None:
    sim = simulator()
    codes = []
    for k, images in enumerate((1, 2, 3, 4, 5)):
        d = daemon(sim, *FLAGS, **ONE_EACH)
        for seed in range(images):
            draw(d.images / f"k{k}-{seed}.png", 100 * k + seed)
        process = d.start("--once")
        have = len(d.results())
        wait_for(lambda d=d, n=have + images: len(list(d.output.glob("*_quality/*"))) >= n, "it")
        time.sleep(0.05 * k)  # the moment is what is tested
        process.terminate()
        codes.append(process.wait(60))
    assert set(codes) <= {0, 130}
    before = sim.stats("generator")["requests"] - sim.stats("generator")["probes"]
    assert d.once().returncode == 0
    after = sim.stats("generator")["requests"] - sim.stats("generator")["probes"]
    assert after == before and len(d.results()) == 15
    assert "Traceback" not in d.log()
    record(
        "shutdown",
        "SIGTERM when the last result of `run --once` appears",
        times=len(codes),
        lost=15 - len(d.results()),
        repeated=after - before,
        recovery="exit codes " + ", ".join(map(str, codes)),
    )
