"""Pressure on the real daemon: memory, CPU, pictures as large as allowed, workers that are killed.

What is in flight is counted by the simulator, memory by the kernel.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rsd.hub.policy import decode_bytes
from rsd.settings.fields import Images, Settings
from tests.evidence import record
from tests.support import HOME, Daemon, Simulator, draw, wait_for

Make = Callable[..., Simulator]
MakeDaemon = Callable[..., Daemon]

MEBIBYTE = 1024 * 1024


class Peaks(threading.Thread):
    """The largest memory of processes, in MiB, as the kernel keeps it until they end."""

    def __init__(self, pids: Callable[[], dict[str, int]]) -> None:
        super().__init__(daemon=True)
        self._pids, self._over = pids, threading.Event()
        self.resident: dict[str, int] = {}
        self.data: dict[str, int] = {}

    def run(self) -> None:
        while not self._over.wait(0.1):
            for name, pid in self._pids().items():
                try:
                    text = Path(f"/proc/{pid}/status").read_text()
                except OSError:
                    continue
                for kept, field in ((self.resident, "VmHWM"), (self.data, "VmData")):
                    found = re.search(rf"{field}:\s+(\d+) kB", text)
                    kept[name] = max(kept.get(name, 0), int(found[1]) // 1024 if found else 0)

    def end(self) -> None:
        self._over.set()
        self.join()


def generators(d: Daemon) -> dict[str, int]:
    """Name to pid."""
    return {
        p["name"]: p["pid"]
        for p in d.live().get("processes", [])
        if p["role"] == "generate" and p["pid"]
    }


def limit_of(pid: int) -> int:
    """RLIMIT_DATA of a process, in MiB; 0 when there is none."""
    line = re.search(r"Max data size\s+(\S+)", Path(f"/proc/{pid}/limits").read_text())
    return int(line[1]) // MEBIBYTE if line and line[1].isdigit() else 0


def test_a_picture_that_wants_too_much_memory_fails_and_nothing_else(
    simulator: Make, daemon: MakeDaemon
) -> None:
    sim = simulator()
    flags = ("--candidates", "2", "--gen-workers", "2")  # few threads: a small reserve for calls
    d = daemon(sim, *flags, RSD_IMAGES_DECODE_MEBIBYTES="64")
    Image.new("RGBA", (6000, 6000), (0, 0, 0, 100)).save(d.images / "big.png", compress_level=1)
    for seed in range(3):
        draw(d.images / f"p{seed}.png", seed)
    d.start()
    wait_for(lambda: d.settled(4), "all")
    before = generators(d)
    limits = {limit_of(pid) for pid in before.values()}
    assert d.failures() == {"big.png": "too_much_memory"}
    assert len(d.results()) == 3
    assert "is started again" not in d.log() and limits and 0 not in limits
    assert d.stop() == 0
    record(
        "shutdown",
        "A picture of 36 megapixels, images.decode_mebibytes = 64",
        times=1,
        lost=3 - len(d.results()),
        repeated=sim.stats("generator")["calls"]["repeated"],
        recovery="none needed: no worker died",
        seen="failed as too_much_memory at the first try; the others have results",
    )


def large_pictures(folder: Path) -> Iterator[Path]:
    """Just below 50 megapixels, in the modes that cost most."""
    size = (7070, 7070)
    noise = Image.frombytes("L", size, os.urandom(size[0] * size[1]))
    plain = Image.new("L", size, 200)
    made: dict[str, Image.Image] = {
        "rgb.png": Image.new("RGB", size, "white"),
        "rgba.png": Image.new("RGBA", size, (1, 2, 3, 100)),
        "noise.png": Image.merge("LA", (noise, plain)),
        "grey16.png": Image.new("I;16", size, 30_000),
        "alpha.webp": Image.new("RGBA", size, (1, 2, 3, 100)),
    }
    for name, image in made.items():
        options: dict[str, Any] = {"method": 0} if name.endswith("webp") else {"compress_level": 1}
        image.save(folder / name, **options)
        yield folder / name


@pytest.mark.slow
def test_the_largest_pictures_stay_within_the_limit(simulator: Make, daemon: MakeDaemon) -> None:
    sim = simulator()
    d = daemon(
        sim,
        *("--candidates", "1"),
        RSD_PROCESSES_GENERATORS="1",
        RSD_GENERATION_TIMEOUT="120",
        RSD_IMAGES_MAX_MEBIBYTES="128",
    )
    pictures = list(large_pictures(d.images))
    d.start()
    wait_for(lambda: generators(d), "the generator")
    pid = generators(d)["generator-1"]
    peaks = Peaks(lambda: generators(d))
    peaks.start()
    wait_for(lambda: d.settled(len(pictures)), "all", seconds=500)
    peaks.end()
    limit = limit_of(pid)
    assert not d.failures() and len(d.results()) == len(pictures)
    assert generators(d) == {"generator-1": pid}
    assert 0 < peaks.data["generator-1"] <= limit
    allowed = decode_bytes(Settings(images=Images(max_mebibytes=128.0))) // MEBIBYTE
    assert d.stop() == 0
    record(
        "shutdown",
        "Pictures of just under 50 megapixels: RGB, RGBA, 16-bit, noise, WebP",
        times=len(pictures),
        lost=len(pictures) - len(d.results()),
        repeated=sim.stats("generator")["calls"]["repeated"],
        recovery="none needed: no worker died",
        seen=f"at most {peaks.resident['generator-1']} MiB resident (VmHWM) and "
        f"{peaks.data['generator-1']} MiB of data; limit {limit} MiB, of which {allowed} MiB are "
        "for one decoding",
    )


def decoding(d: Daemon) -> list[int]:
    """Children that hold the pixels of a large picture now."""
    found = []
    for pid in d.children().values():
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        resident = re.search(r"VmRSS:\s+(\d+) kB", status)
        if resident and int(resident[1]) > 120 * 1024:
            found.append(pid)
    return found


@pytest.mark.slow
def test_kills_from_outside_convict_no_picture(simulator: Make, daemon: MakeDaemon) -> None:
    sim = simulator()
    d = daemon(sim, "--candidates", "1")
    images, kills = 2, 6  # one of the pictures is met three times at least
    for k in range(images):
        picture = Image.new("RGBA", (5000, 5000), (0, 0, 0, 100))
        picture.putpixel((k, 0), (255, 0, 0, 255))
        picture.save(d.images / f"p{k}.png", compress_level=1)
    d.start()
    for _ in range(kills):
        pid = wait_for(lambda: next(iter(decoding(d)), 0), "a generator that decodes")
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda p=pid: p not in decoding(d), "its end")
    wait_for(lambda: d.settled(images), "all images")
    assert not d.failures() and len(d.results()) == images
    assert d.log().count("killed by SIGKILL") == kills
    assert d.stop() == 0
    record(
        "shutdown",
        "Generators killed with SIGKILL while they decode",
        times=kills,
        lost=images - len(d.results()),
        repeated=sim.stats("generator")["calls"]["repeated"],
        recovery="started again; the picture comes back after a pause",
        seen=f"{images} pictures, neither was convicted",
    )


FRAGILE = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "PIL.Jpeg2KImagePlugin":
            os.kill(os.getpid(), signal.SIGSEGV)
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.slow
def test_a_picture_that_crashes_its_decoder_takes_no_innocent_along(
    simulator: Make, daemon: MakeDaemon, tmp_path: Path
) -> None:
    """Pillow imports its rarer readers when it meets no common one: there the process dies."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(FRAGILE)
    sim = simulator("--generator-seconds", "0.5")
    d = daemon(sim, "--candidates", "2", PYTHONPATH=f"{site}:{HOME}", RSD_GENERATION_MAX_N="1")
    innocent = 12
    for seed in range(innocent):
        draw(d.images / f"p{seed:02}.png", seed)
    Image.new("RGB", (64, 64)).save(d.images / "p05x.tif")
    done = d.once()
    assert done.returncode == 1, done.stderr
    assert d.failures() == {"p05x.tif": "crashes_worker"}
    assert len(d.results()) == innocent
    deaths = done.stderr.count("killed by SIGSEGV")
    assert deaths == 3
    calls = sim.stats("generator")["calls"]
    assert calls["distinct"] == 2 * innocent
    record(
        "shutdown",
        "A picture whose decoding kills the worker, among others",
        times=deaths,
        lost=innocent - len(d.results()),
        repeated=calls["repeated"],
        recovery="set aside as crashes_worker after the third",
        seen=f"{innocent} innocent pictures have results",
    )


@pytest.mark.slow
def test_a_pass_that_is_paused_waits_and_one_with_failures_says_so(
    simulator: Make, daemon: MakeDaemon
) -> None:
    sim = simulator()
    d = daemon(sim, "--candidates", "1")
    draw(d.images / "good.png", 1)
    (d.images / "bad.png").write_bytes(b"no picture")
    held = {
        "RSD_THROTTLE_ENABLED": "true",
        "RSD_THROTTLE_DISK_PAUSE_MEBIBYTES": "1e12",
        "RSD_THROTTLE_DISK_REDUCE_MEBIBYTES": "1e12",
    }
    process = d.start("--once", **held)
    wait_for(lambda: "paused: disk" in str(d.live().get("reasons")), "the pause")
    assert process.poll() is None and sim.stats("generator")["calls"]["distinct"] == 0
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    assert d.once().returncode == 1  # the bad one
    (d.images / "bad.png").unlink()
    assert d.once().returncode in (0, 1) and set(d.results()) == {"good.png"}
