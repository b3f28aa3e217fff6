"""Many pictures at once and one by one, every way that files come; the source stays as it was."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import Daemon, Simulator, draw, wait_for

SLOWLY, BURST = 200, 2_000


@pytest.mark.slow
def test_two_hundred_slowly_and_two_thousand_at_once(
    simulator: Callable[..., Simulator], daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    sim = simulator()
    d = daemon(sim, "--candidates", "2")
    ready = tmp_path / "ready"
    ready.mkdir()
    for seed in range(SLOWLY + BURST):
        draw(ready / f"p{seed:05d}.png", seed)
    pictures = sorted(ready.iterdir())
    d.start()
    for k, path in enumerate(pictures[:SLOWLY]):
        if k % 3 == 0:
            shutil.move(path, d.images)
        elif k % 3 == 1:
            part = d.images / f"{path.name}.part"
            shutil.move(path, part)
            part.rename(d.images / path.name)
        else:
            data = path.read_bytes()
            with (d.images / path.name).open("wb") as out:
                for at in range(0, len(data), 100):
                    out.write(data[at : at + 100])
                    out.flush()
                    os.fsync(out.fileno())
    wait_for(lambda: d.settled(SLOWLY), "the slow ones", 300)
    for path in pictures[SLOWLY:]:
        shutil.move(path, d.images)
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in d.images.iterdir()}
    assert len(before) == SLOWLY + BURST
    wait_for(lambda: d.settled(SLOWLY + BURST), "the burst", 600)
    images = d.status()["images"]
    assert images["queued"] == images["active"] == 0
    assert images["seen"] == sum(v for k, v in images.items() if k != "seen") == len(before)
    assert images["high_quality"] + images["low_quality"] == len(before)
    assert set(d.results()) == set(before)
    after = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in d.images.iterdir()}
    assert after == before, "the source folder is only read"
    assert sim.stats()["generator"]["calls"] == {"distinct": 2 * len(before), "repeated": 0}
    assert d.stop() == 0
