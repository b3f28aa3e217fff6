"""The spool of a real daemon, damaged as a power loss damages files, and who opens pictures."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.servers import Request, completion, serving
from tests.support import Daemon, data_url, draw, wait_for

MakeDaemon = Callable[..., Daemon]
#: What is left of a file whose name reached the disk before its bytes did.
DAMAGES: tuple[Callable[[bytes], bytes], ...] = (
    lambda d: bytes(len(d)),
    lambda d: d[: len(d) // 8192 * 4096],
    lambda d: b"",
    lambda d: d[:4096] + bytes(len(d[4096:])),
)


class Holding:
    """A server of both roles that answers requests with pictures only once it may."""

    def __init__(self) -> None:
        self.may = threading.Event()

    def __call__(self, request: Request) -> None:
        if request.path.endswith("/models"):
            request.answer(200, {"data": [{"id": "tiny"}]})
        elif b'"image_url"' not in request.body:
            request.answer(200, completion("six words"))
        else:
            while not self.may.wait(0.1) and not request.server.over.is_set():
                pass
            graded = b"score" in request.body.lower()
            request.answer(200, completion("fine\n\nScore: 90" if graded else "A --> B"))


def noise(path: Path, seed: int) -> Path:
    """A picture so large that its data URL is mapped."""
    pixels = random.Random(seed).randbytes(160 * 160 * 3)
    Image.frombytes("RGB", (160, 160), pixels).save(path)
    return path


def workers_of(d: Daemon) -> dict[int, str]:
    """Names by pid."""
    names = {pid: Path(f"/proc/{pid}/comm").read_text().strip() for pid in d.children().values()}
    return {pid: name for pid, name in names.items() if name.startswith(("rsd-gen", "rsd-grader"))}


@pytest.mark.parametrize("killed", ["workers", "daemon"])
def test_no_damaged_picture_reaches_a_server(
    daemon: MakeDaemon, tmp_path: Path, killed: str
) -> None:
    holding = Holding()
    with serving(holding) as server:
        d = daemon(
            None,
            *("--vllm-api", server.url, "--grading-api", server.url, "--vllm-model", "tiny"),
            *("--candidates", "2", "--gen-workers", "6", "--grade-workers", "4"),
        )
        right = set()
        for k in range(12):
            path = (noise if k % 2 else draw)(d.images / f"p{k:02}.png", k)
            right.add(data_url(path.read_bytes()))
        process = d.start()
        spool = d.output / "state/spool"
        wait_for(lambda: len(list(spool.glob("*.url"))) >= 6, "pictures in the spool")
        wait_for(lambda: any(r.item for r in server.requests), "a call")
        if killed == "daemon":
            process.kill()
            process.wait()
        damaged = 0
        for path in sorted(spool.glob("*.url")):
            # A new file in its place: nobody truncates one that a living worker has mapped.
            there = path.read_bytes()
            other = tmp_path / "damaged"
            other.write_bytes(DAMAGES[damaged % len(DAMAGES)](there))
            other.replace(path)
            damaged += 1
        if killed == "daemon":
            d.start()
        else:
            for pid in workers_of(d):
                os.kill(pid, signal.SIGKILL)
        holding.may.set()
        wait_for(lambda: len(d.results()) == 12, "all results")
        assert d.stop() == 0
        sent = [
            request.json["messages"][0]["content"][0]["image_url"]["url"]
            for request in list(server.requests)
            if request.item
        ]
    assert damaged >= 6
    assert len(sent) >= 12 * 4
    assert set(sent) == right, "what reached the servers"
    assert "is damaged" in d.log(), "a worker found one"


def test_only_generators_have_the_decoders_in_memory(daemon: MakeDaemon) -> None:
    holding = Holding()
    holding.may.set()
    with serving(holding) as server:
        d = daemon(
            None,
            *("--vllm-api", server.url, "--grading-api", server.url, "--vllm-model", "tiny"),
            *("--candidates", "1", "--gen-workers", "2", "--grade-workers", "2"),
        )
        draw(d.images / "a.png", 1)
        process = d.start()
        wait_for(d.results, "a result")
        pillow = {
            name: "_imaging" in Path(f"/proc/{pid}/maps").read_text()
            for pid, name in workers_of(d).items()
        }
        hub = "_imaging" in Path(f"/proc/{process.pid}/maps").read_text()
        assert d.stop() == 0
    assert len(pillow) == 4
    assert {name for name, opened in pillow.items() if opened} == {
        name for name in pillow if name.startswith("rsd-gen")
    }
    assert not hub
