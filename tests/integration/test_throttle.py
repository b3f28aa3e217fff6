"""The throttle on the real daemon: memory and CPU that others take, and its own CPU.

What is in flight is counted by the simulator, the rest by the kernel.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psutil
import pytest

from tests.evidence import record
from tests.support import Daemon, Simulator, draw, wait_for

Make = Callable[..., Simulator]
MakeDaemon = Callable[..., Daemon]

MEBIBYTE = 1024 * 1024


@contextmanager
def burden(code: str, *arguments: str, nice: int = 0) -> Iterator[None]:
    """Another process that takes something of the host, and gives it back at the end."""
    words = ["nice", "-n", str(nice)] if nice else []
    words += [sys.executable, "-c", code, *arguments]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


TAKE_MEMORY = "import sys; b = bytearray(int(sys.argv[1])); b[::4096] = b'x' * len(b[::4096]);"
TAKE_MEMORY += "print(1, flush=True); sys.stdin.read()"
TAKE_CPU = "print(1, flush=True)\nwhile True: pass"


class InFlight(threading.Thread):
    """What the simulated generator has in flight, several times a second."""

    def __init__(self, sim: Simulator) -> None:
        super().__init__(daemon=True)
        self._sim, self._over = sim, threading.Event()
        self.seen: list[int] = []

    def run(self) -> None:
        while not self._over.wait(0.15):
            self.seen.append(self._sim.stats("generator")["in_flight"])

    def lately(self, count: int = 4) -> list[int]:
        return self.seen[-count:] if len(self.seen) >= count else []

    def end(self) -> None:
        self._over.set()
        self.join()


def available_percent() -> float:
    return 100.0 - float(psutil.virtual_memory().percent)


@pytest.mark.slow
def test_memory_pressure_reduces_then_pauses_and_comes_back(
    simulator: Make, daemon: MakeDaemon
) -> None:
    total = psutil.virtual_memory().total
    step = 8.0  # percent of the host's memory that each burden takes
    if available_percent() < 30 or 2 * step / 100 * total > 6 * 1024 * MEBIBYTE:
        pytest.skip("needs a host with some free memory, but not hundreds of GiB of it")
    sim = simulator("--generator-seconds", "0.5")
    d = daemon(
        sim,
        *("--candidates", "6", "--gen-workers", "8", "--grade-workers", "8"),
        RSD_GENERATION_MAX_N="1",
        RSD_THROTTLE_ENABLED="true",
        RSD_THROTTLE_CPU_REDUCE_PERCENT="101",
        RSD_THROTTLE_MEMORY_REDUCE_PERCENT=str(available_percent() - 5),
        RSD_THROTTLE_MEMORY_PAUSE_PERCENT=str(available_percent() - 12.5),
    )
    for seed in range(120):
        draw(d.images / f"p{seed}.png", seed)
    flight = InFlight(sim)
    d.start()
    flight.start()
    level = lambda: d.live().get("throttle", {}).get("level")  # noqa: E731
    wait_for(lambda: max(flight.lately(), default=0) == 8, "full speed")
    size = str(int(total * step / 100))
    with burden(TAKE_MEMORY, size):
        wait_for(lambda: level() == "reduced", "the reduction")
        wait_for(lambda: 0 < max(flight.lately(8), default=0) <= 4, "half of it in flight")
        reduced = max(flight.lately(8))
        with burden(TAKE_MEMORY, size):
            wait_for(lambda: level() == "paused", "the pause")
            wait_for(lambda: flight.lately(8) == [0] * 8, "nothing in flight")
            shown = d.live()
            assert shown["health"] == "degraded" and "memory" in str(shown["reasons"])
        wait_for(lambda: max(flight.lately(), default=0) > 0, "work again")
        reduced_again = max(flight.lately())
    wait_for(lambda: level() == "normal", "the normal level")
    wait_for(lambda: max(flight.lately(), default=0) == 8, "full speed again")
    flight.end()
    assert d.stop() == 0 and not d.failures()
    record(
        "shutdown",
        f"Another process takes {2 * step:g} % of the host's memory in two steps, and frees it",
        times=1,
        lost=len(d.failures()),
        repeated=sim.stats("generator")["calls"]["repeated"],
        recovery="by itself, when the memory is free again",
        seen=f"in flight 8, then {reduced} (reduced), 0 (paused), {reduced_again}, and 8 again",
    )


@contextmanager
def all_cpus_taken() -> Iterator[None]:
    """One busy process for every CPU; it is no load where the tests themselves are nice."""
    if os.nice(0) > 0:
        pytest.skip("the tests run in nice time")
    with ExitStack() as stack:
        for _ in range(os.cpu_count() or 1):
            stack.enter_context(burden(TAKE_CPU))
        yield


def throttled(d: Daemon) -> dict[str, Any]:
    found: dict[str, Any] = d.live().get("throttle", {})
    return found


def looking_at_cpu(percent: int, **more: str) -> dict[str, str]:
    return {
        "RSD_GENERATION_MAX_N": "1",
        "RSD_THROTTLE_ENABLED": "true",
        "RSD_THROTTLE_CPU_REDUCE_PERCENT": str(percent),
        "RSD_THROTTLE_CPU_SECONDS": "2",
        **more,
    }


@pytest.mark.slow
def test_cpu_that_others_take_is_no_reason_to_do_less(simulator: Make, daemon: MakeDaemon) -> None:
    sim = simulator("--generator-seconds", "1")
    workers = ("--candidates", "6", "--gen-workers", "8", "--grade-workers", "8")
    d = daemon(sim, *workers, **looking_at_cpu(30))
    for seed in range(60):
        draw(d.images / f"p{seed}.png", seed)
    flight = InFlight(sim)
    with all_cpus_taken():
        d.start()
        flight.start()
        wait_for(lambda: (throttled(d).get("cpu_percent") or 0) > 35, "a busy host")
        wait_for(lambda: max(flight.lately(40), default=0) == 8, "all in flight for a while")
        shown = throttled(d)
    flight.end()
    assert shown["level"] == "normal" and shown["factor"] == 1.0, shown
    assert d.stop() == 0 and "load: reduced" not in d.log()
    record(
        "shutdown",
        "Other processes take all CPUs",
        times=1,
        repeated=sim.stats("generator")["calls"]["repeated"],
        seen="8 of 8 in flight: rsd is no cause of it",
    )


@pytest.mark.slow
def test_two_nice_processes_are_no_load(simulator: Make, daemon: MakeDaemon) -> None:
    sim = simulator("--generator-seconds", "1")
    # Whatever rsd uses makes it a cause, and its own CPU alone is far from the limit.
    settings = looking_at_cpu(85, RSD_THROTTLE_CPU_SHARE_PERCENT="0")
    d = daemon(sim, "--candidates", "1", "--gen-workers", "2", **settings)
    with burden(TAKE_CPU, nice=19), burden(TAKE_CPU, nice=19):
        d.start()
        wait_for(lambda: throttled(d), "a look at the host")
        seen = []
        for seed in range(6):
            draw(d.images / f"p{seed}.png", seed)
            wait_for(lambda n=seed: d.status_live("generated") > n, "a candidate")
            seen.append(throttled(d))
    assert d.stop() == 0
    if min(t["cpu_percent"] for t in seen) > 85:
        pytest.skip("others keep this host busy")
    assert {t["level"] for t in seen} == {"normal"}, seen


@pytest.mark.slow
def test_cpu_that_is_rsds_own_reduces_to_a_quarter_and_never_pauses(
    simulator: Make, daemon: MakeDaemon
) -> None:
    sim = simulator("--generator-seconds", "1")
    workers = ("--candidates", "8", "--gen-workers", "8", "--grade-workers", "8")
    d = daemon(sim, *workers, **looking_at_cpu(30, RSD_THROTTLE_CPU_SHARE_PERCENT="0"))
    for seed in range(60):
        draw(d.images / f"p{seed}.png", seed)
    flight = InFlight(sim)
    with all_cpus_taken():
        d.start()
        flight.start()
        wait_for(lambda: throttled(d).get("level") == "reduced", "the reduction")
        wait_for(lambda: 0 < max(flight.lately(12), default=0) <= 4, "half of it in flight")
        half = max(flight.lately(12))
        wait_for(lambda: throttled(d).get("factor") == 0.25, "the floor")
        wait_for(lambda: 0 < max(flight.lately(12), default=0) <= 2, "a quarter in flight")
        shown, quarter = throttled(d), max(flight.lately(12))
        assert "CPU" in shown["reason"] and "rsd's own" in shown["reason"]
    flight.end()
    assert d.stop() == 0
    log = d.log()
    assert "load: reduced, 50 % of the requests (CPU at" in log
    assert "load: reduced, 25 % of the requests (CPU at" in log
    record(
        "shutdown",
        "All CPUs are busy, and rsd's own processes are a cause",
        times=1,
        repeated=sim.stats("generator")["calls"]["repeated"],
        seen=f"at most {half}, then {quarter} of 8 in flight (reduced), never 0",
    )
