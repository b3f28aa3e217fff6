"""A worker's message loop, with a channel that is no pipe."""

from __future__ import annotations

import queue
import threading
from typing import Any

import msgspec

from rsd.protocol.tasks import (
    Failed,
    Lease,
    LeaseId,
    Ping,
    Pong,
    Prepare,
    Prepared,
    ToWorker,
)
from rsd.protocol.vocabulary import ImageInfo
from rsd.workers.channel import Channel
from rsd.workers.pictures import SpooledPictures
from rsd.workers.worker import Worker

#: Seconds that a thread of this process may take for what it does at once.
PATIENCE = 20.0


class Closed(Exception):
    """The channel ended."""


class Queues:
    """A channel within this process."""

    def __init__(self) -> None:
        self.inbox: queue.SimpleQueue[ToWorker | None] = queue.SimpleQueue()
        self.outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def get(self) -> ToWorker:
        message = self.inbox.get()
        if message is None:
            raise Closed
        return message

    def reply(self, message: msgspec.Struct) -> None:
        self.outbox.put(message)

    def hear(self) -> Any:
        return self.outbox.get(timeout=PATIENCE)


def test_a_worker_answers_pings_while_a_picture_does_not_end() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def stuck(worker: Worker, lease: LeaseId, task: Prepare) -> Prepared:
        begun.set()
        assert go_on.wait(PATIENCE)
        info = ImageInfo(sha256="0", width=1, height=1, format="PNG", bytes=1)
        return Prepared(lease=lease, image=task.image, info=info)

    channel = Queues()
    local: Channel = channel
    worker = Worker(local, SpooledPictures(), 1, {Prepare: stuck})

    def run() -> None:
        try:
            worker.run()
        except Closed:
            return

    thread = threading.Thread(target=run)
    thread.start()
    try:
        channel.inbox.put(Ping())
        assert channel.hear() == Pong(busy_seconds=0.0)
        channel.inbox.put(Lease(lease=1, task=Prepare(image="i", path=b"a.png")))
        assert begun.wait(PATIENCE)
        ages = []
        for _ in range(2):
            channel.inbox.put(Ping())
            ages.append(channel.hear().busy_seconds)
        assert 0 < ages[0] < ages[1], "the age of the picture, which grows"
        go_on.set()
        assert isinstance(channel.hear(), Prepared | Failed)
        channel.inbox.put(Ping())
        while (pong := channel.hear()).busy_seconds:  # the thread may not be out of it yet
            channel.inbox.put(Ping())
        assert pong == Pong(busy_seconds=0.0)
    finally:
        go_on.set()
        channel.inbox.put(None)
        thread.join(PATIENCE)
    assert not thread.is_alive()
