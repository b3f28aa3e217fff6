"""The throttle's levels; time and samples are arguments."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from rsd.hub.status.host import sample
from rsd.hub.status.systemd import Notifier
from rsd.hub.status.throttle import HostSample, Throttle
from rsd.settings.fields import Throttle as Settings
from rsd.system.processes import process_identity, same_process

GIB = 1024**3


def seen(cpu: float = 10.0, memory: float = 40.0, disk: float = 100.0) -> HostSample:
    return HostSample(cpu_percent=cpu, memory_percent=memory, disk_free_bytes=int(disk * GIB))


def test_cpu_reduces_after_thirty_seconds_and_never_pauses() -> None:
    throttle = Throttle(Settings())
    assert throttle.level(seen(cpu=99), 0.0)[0] == "normal"
    assert throttle.level(seen(cpu=99), 29.0)[0] == "normal"
    level, why = throttle.level(seen(cpu=99), 30.0)
    assert level == "reduced" and "CPU" in why
    assert throttle.level(seen(cpu=100), 10_000.0)[0] == "reduced"
    assert throttle.level(seen(cpu=50), 10_001.0)[0] == "reduced"
    assert throttle.level(seen(cpu=50), 10_031.0)[0] == "normal"


def test_a_short_dip_of_the_cpu_is_no_recovery_and_a_short_peak_no_load() -> None:
    throttle = Throttle(Settings())
    for second in range(0, 100, 20):
        assert throttle.level(seen(cpu=99), float(second))[0] == "normal"
        assert throttle.level(seen(cpu=20), second + 10.0)[0] == "normal"


@pytest.mark.parametrize(
    ("memory", "level"), [(84.9, "normal"), (85.1, "reduced"), (93.1, "paused")]
)
def test_memory(memory: float, level: str) -> None:
    assert Throttle(Settings()).level(seen(memory=memory), 0.0)[0] == level


@pytest.mark.parametrize(("disk", "level"), [(2.1, "normal"), (1.9, "reduced"), (0.9, "paused")])
def test_disk(disk: float, level: str) -> None:
    assert Throttle(Settings()).level(seen(disk=disk), 0.0)[0] == level


def test_recovery_needs_a_margin() -> None:
    throttle = Throttle(Settings())
    assert throttle.level(seen(memory=94), 0.0)[0] == "paused"
    assert throttle.level(seen(memory=92), 1.0)[0] == "paused"
    assert throttle.level(seen(memory=90), 2.0)[0] == "reduced"
    assert throttle.level(seen(memory=84), 3.0)[0] == "reduced"
    assert throttle.level(seen(memory=82), 4.0)[0] == "normal"


def test_switched_off() -> None:
    throttle = Throttle(Settings(enabled=False))
    assert throttle.level(seen(memory=99, disk=0), 0.0) == ("normal", "")


def test_a_real_sample_and_a_real_process(tmp_path: Path) -> None:
    now = sample([tmp_path])
    assert 0 <= now.memory_percent <= 100 and now.disk_free_bytes > 0
    created = process_identity(1)
    assert created is not None and same_process(1, created)
    assert not same_process(1, created + "0") and not same_process(2**22 + 1, created)


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
