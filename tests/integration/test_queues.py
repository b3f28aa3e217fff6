"""What a child sends that is no message is that child's death, and nothing else's."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import queue
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from rsd.protocol.tasks import (
    Crashed,
    LoadRead,
    WorkerReady,
    from_worker_decoder,
)
from rsd.system.queues import FRAME_MAX, WorkQueue, frame_of
from rsd.workers import grader
from tests.support import Daemon, Simulator, draw, wait_for

PATIENCE = 30.0
READY = frame_of(WorkerReady(pid=1))


def _sends(inbox: Connection, outbox: Connection, data: bytes) -> None:
    """A child: a message, then `data`, and then it waits for the end of its inbox."""
    os.write(outbox.fileno(), READY + data)
    while os.read(inbox.fileno(), 1024):
        pass


def _framed(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


@pytest.mark.parametrize(
    "garbage",
    [
        _framed(b"{}"),
        _framed(b"\xff\xfe\x00"),
        _framed(b""),
        _framed(b'{"kind":"nobody knows"}'),
        # Infinity has no form in JSON: it is written as null.
        frame_of(LoadRead(lease=1, running=float("inf"), waiting=0.0)),
        (FRAME_MAX + 1).to_bytes(4, "big"),
        b"Traceback (most recent call last)",
    ],
)
def test_a_child_that_sends_garbage_is_gone_once(
    garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    heard, process = _run(garbage, lambda message: None)
    assert heard == [WorkerReady(pid=1), None], "the message before it, and one end"
    assert process.exitcode == 0, "it saw the end of its inbox"
    (line,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert "child sends what is no message" in line.getMessage()


def test_a_message_that_nobody_can_take_does_not_lose_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(message: Any) -> None:
        raise RuntimeError("no room")

    heard, process = _run(READY, refuse)
    assert heard == [WorkerReady(pid=1), None]
    assert process.exitcode == 0
    assert "could not be taken" in caplog.text and "no room" in caplog.text


def _run(data: bytes, take: Callable[[Any], None]) -> tuple[list[Any], Any]:
    """What was heard of a child, None at its end, until nothing more comes; and its process."""
    pipe: WorkQueue[Any] = WorkQueue("child")
    process = multiprocessing.get_context("spawn").Process(
        target=_sends, args=(*pipe.child_ends, data), daemon=True
    )
    process.start()
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def deliver(message: Any) -> None:
        events.put(message)
        take(message)

    pipe.start(from_worker_decoder, deliver, lambda: events.put(None))
    heard = [events.get(timeout=PATIENCE)]
    while heard[-1] is not None:
        heard.append(events.get(timeout=PATIENCE))
    process.join(PATIENCE)
    pipe.put(WorkerReady(pid=2))
    pipe.flush()  # to nobody
    assert events.empty()
    return heard, process


def test_a_worker_that_cannot_read_its_hub_says_so_and_ends() -> None:
    pipe: WorkQueue[Any] = WorkQueue("grader")
    process = multiprocessing.get_context("spawn").Process(
        target=grader.main, args=(*pipe.child_ends, "grader", 1), daemon=True
    )
    process.start()
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    pipe.start(from_worker_decoder, events.put, lambda: events.put(None))
    pipe.put(WorkerReady(pid=1))  # nothing that a worker is ever sent
    pipe.flush()
    crashed = events.get(timeout=PATIENCE)
    assert isinstance(crashed, Crashed) and crashed.lease is None
    assert "ValidationError" in crashed.traceback
    assert events.get(timeout=PATIENCE) is None
    process.join(PATIENCE)
    assert process.exitcode == 1


def _pipes(pid: int, mode: int) -> dict[str, Path]:
    """The pipes that a process has open in this mode, as files that anybody may open."""
    found = {}
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        flags = int(Path(f"/proc/{pid}/fdinfo/{fd.name}").read_text().split()[3], 8)
        if "pipe:" in str(fd.readlink()) and flags & os.O_ACCMODE == mode:
            found[str(fd.readlink())] = fd
    return found


@pytest.mark.parametrize("name", ["grader-3", "generator-1"])
def test_a_daemon_replaces_a_worker_that_sends_garbage(
    simulator: Callable[..., Simulator], daemon: Callable[..., Daemon], name: str
) -> None:
    d = daemon(simulator(), "--candidates", "2")
    draw(d.images / "a.png", 1)
    d.start()
    wait_for(lambda: d.settled(1), "a result")

    def about() -> dict[str, Any]:
        return next((p for p in d.live()["processes"] if p["name"] == name), {})

    before = about()["pid"]
    assert d.process is not None
    heard = _pipes(d.process.pid, os.O_RDONLY)
    for name_of_pipe, path in _pipes(before, os.O_WRONLY).items():
        if name_of_pipe in heard:  # its messages, and one by which multiprocessing sees its end
            # The worker may be dead, and its files with it, before the second pipe's turn comes.
            with contextlib.suppress(OSError), path.open("wb", buffering=0) as pipe:
                pipe.write(_framed(b'{"kind":"load_read","lease":1,"running":null,"waiting":0}'))
    wait_for(lambda: about().get("pid") != before and about()["state"] == "up", "another one")
    draw(d.images / "b.png", 2)
    wait_for(lambda: d.settled(2), "a result after it")
    assert d.stop() == 0
    assert f"{name} sends what is no message" in d.log()
