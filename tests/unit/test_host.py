"""The throttle's levels; time and samples are arguments."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rsd.hub.status.host import Host
from rsd.hub.status.systemd import Notifier
from rsd.hub.status.throttle import HostSample, Pressure, Throttle
from rsd.settings.fields import Throttle as Settings
from rsd.system.processes import (
    ALIVE,
    AliveLock,
    hub_lives,
    is_held,
    process_identity,
    same_process,
)

GIB = 1024**3


def seen(
    cpu: float = 10.0, memory: float = 40.0, disk: float = 100.0, own: float = 60.0
) -> HostSample:
    return HostSample(
        cpu_percent=cpu,
        own_cpu_percent=min(own, cpu),
        memory_percent=memory,
        disk_free_bytes=int(disk * GIB),
    )


def level(throttle: Throttle, now: float, **what: float) -> str:
    return throttle.pressure(seen(**what), now).level


def test_cpu_reduces_after_thirty_seconds_to_a_quarter_and_never_pauses() -> None:
    throttle = Throttle(Settings())
    assert throttle.pressure(seen(cpu=99), 0.0) == Pressure("normal", 1.0, "")
    assert level(throttle, 29.0, cpu=99) == "normal"
    reduced = throttle.pressure(seen(cpu=99), 30.0)
    assert reduced == Pressure("reduced", 0.5, "CPU at 99 %, rsd's own 60 %")
    assert throttle.pressure(seen(cpu=99), 59.0).factor == 0.5
    assert throttle.pressure(seen(cpu=99), 60.0).factor == 0.25
    assert throttle.pressure(seen(cpu=100), 10_000.0).factor == 0.25
    assert level(throttle, 10_001.0, cpu=50) == "reduced"
    assert throttle.pressure(seen(cpu=50), 10_031.0) == Pressure()


def test_cpu_that_others_use_does_not_reduce() -> None:
    throttle = Throttle(Settings())
    for second in range(0, 600, 2):
        assert level(throttle, float(second), cpu=100, own=25) == "normal"
    assert level(Throttle(Settings(cpu_share_percent=0, cpu_seconds=0)), 0.0, cpu=99) == "reduced"


def test_a_reduction_ends_when_rsd_is_no_cause_any_more() -> None:
    throttle = Throttle(Settings())
    for now in (0.0, 30.0):
        throttle.pressure(seen(cpu=99), now)
    assert level(throttle, 32.0, cpu=99, own=20) == "reduced"
    assert level(throttle, 62.0, cpu=99, own=20) == "normal"


def test_a_short_dip_of_the_cpu_is_no_recovery_and_a_short_peak_no_load() -> None:
    throttle = Throttle(Settings())
    for second in range(0, 100, 20):
        assert level(throttle, float(second), cpu=99) == "normal"
        assert level(throttle, second + 10.0, cpu=20) == "normal"


@pytest.mark.parametrize(
    ("memory", "want"), [(84.9, "normal"), (85.1, "reduced"), (93.1, "paused")]
)
def test_memory(memory: float, want: str) -> None:
    assert level(Throttle(Settings()), 0.0, memory=memory) == want


@pytest.mark.parametrize(("disk", "want"), [(2.1, "normal"), (1.9, "reduced"), (0.9, "paused")])
def test_disk(disk: float, want: str) -> None:
    assert level(Throttle(Settings()), 0.0, disk=disk) == want


def test_scarce_memory_shrinks_the_work_to_next_to_nothing() -> None:
    throttle = Throttle(Settings())
    factors = [throttle.pressure(seen(memory=86), 30.0 * k).factor for k in range(40)]
    assert factors[:4] == [0.5, 0.25, 0.125, 0.0625] and 0 < factors[-1] < 0.001
    assert throttle.pressure(seen(memory=99), 2_000.0).factor == 0.0


def test_recovery_needs_a_margin() -> None:
    throttle = Throttle(Settings())
    assert level(throttle, 0.0, memory=94) == "paused"
    assert level(throttle, 1.0, memory=92) == "paused"
    assert level(throttle, 2.0, memory=90) == "reduced"
    assert level(throttle, 3.0, memory=84) == "reduced"
    assert level(throttle, 4.0, memory=82) == "normal"


def test_switched_off() -> None:
    throttle = Throttle(Settings(enabled=False))
    assert throttle.pressure(seen(memory=99, disk=0), 0.0) == Pressure()


BURN = "import os, time\nwhile sum(os.times()[:2]) < 0.5: pass"


def test_the_cpu_of_children_counts_as_ones_own_when_they_have_ended_too(tmp_path: Path) -> None:
    host = Host()
    burnt = time.monotonic()
    subprocess.run([sys.executable, "-c", BURN], check=True)
    seconds = time.monotonic() - burnt
    now = host.sample([tmp_path])
    own = now.own_cpu_percent / 100 * seconds * (os.cpu_count() or 1)
    assert 0.4 < own < 3.0
    assert now.cpu_percent >= 0.8 * now.own_cpu_percent > 0


def test_ones_own_nice_time_is_load(tmp_path: Path) -> None:
    host = Host()
    words = ["nice", "-n", "5", sys.executable, "-c", BURN + "\nprint(1, flush=True); input()"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        now = host.sample([tmp_path])
        process.communicate(b"\n")
    assert now.cpu_percent >= 0.8 * now.own_cpu_percent > 0


def test_a_real_sample_and_a_real_process(tmp_path: Path) -> None:
    now = Host().sample([tmp_path])
    assert 0 <= now.memory_percent <= 100 and now.disk_free_bytes > 0
    created = process_identity(1)
    assert created is not None and same_process(1, created)
    assert not same_process(1, created + "0") and not same_process(2**22 + 1, created)


def test_a_hub_lives_while_it_holds_its_lock_whatever_its_number_was_before(
    tmp_path: Path,
) -> None:
    """After a reboot another process may have the number and the ticks of the hub of before."""
    pid = os.getpid()
    created = process_identity(pid)
    assert hub_lives(pid, created, tmp_path), "where there is no lock, its number decides"
    lock = AliveLock(tmp_path)
    lock.hold()
    assert (tmp_path / ALIVE).stat().st_mode & 0o777 == 0o644, "anybody may ask"
    assert is_held(tmp_path / ALIVE) is True
    assert hub_lives(pid, created, tmp_path)
    assert not hub_lives(pid, f"{created}0", tmp_path)
    assert is_held(tmp_path / ALIVE) is True, "who asks does not take it"
    lock.release()
    assert is_held(tmp_path / ALIVE) is False
    assert not hub_lives(pid, created, tmp_path)


def test_who_a_process_is_does_not_depend_on_what_a_container_masks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """systemd-nspawn lets a guest and its units see different ids of the boot."""
    known = process_identity(os.getpid())
    read = Path.read_text

    def masked(path: Path, *args: Any, **kwargs: Any) -> str:
        return "0" * 32 if path.name == "boot_id" else read(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", masked)
    assert same_process(os.getpid(), known)


def test_notifications_reach_the_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(path))
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        monkeypatch.setenv("WATCHDOG_USEC", "6000000")
        notifier = Notifier()
        assert notifier.watchdog_seconds == 6.0
        notifier.ready("up")
        notifier.status("one\nline")
        notifier.status("one\nline")
        notifier.watchdog()
        assert server.recv(999) == b"READY=1\nSTATUS=up"
        assert server.recv(999) == b"STATUS=one line"
        assert server.recv(999) == b"WATCHDOG=1"
