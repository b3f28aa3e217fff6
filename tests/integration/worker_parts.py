"""A real generator or grader process, spoken to through the real queue, and tasks for it."""

from __future__ import annotations

import io
import multiprocessing
import os
import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from PIL import Image

from rsd.errors import ErrorClass
from rsd.protocol.tasks import (
    WHOLE,
    CandidateText,
    Configure,
    Decoding,
    Endpoint,
    FromWorker,
    Generate,
    GradeCandidates,
    Lease,
    LogLine,
    Prepare,
    Prepared,
    Task,
    WorkerReady,
    from_worker_decoder,
)
from rsd.protocol.vocabulary import ImageInfo, RequestDialect, SamplingParams
from rsd.system.queues import WorkQueue
from tests.servers import PATIENCE, Request, Seen, Server

E = ErrorClass
KEY = "sk-test-0123456789abcdef"
GRADE = '{"explanation": "all there", "score": 85}'


class Worker:
    """A worker process and what it has sent."""

    def __init__(self, target: Callable[..., None], slots: int = 2) -> None:
        context = multiprocessing.get_context("spawn")
        self.queue: WorkQueue[FromWorker] = WorkQueue("worker")
        self.received: queue.SimpleQueue[FromWorker | None] = queue.SimpleQueue()
        self.logged: list[LogLine] = []
        self.number = 0
        self.process = context.Process(
            target=target, args=(*self.queue.child_ends, "worker", slots), daemon=True
        )
        self.process.start()
        self.queue.start(from_worker_decoder, self.received.put, lambda: self.received.put(None))

    def lend(self, task: Task) -> int:
        self.number += 1
        self.queue.put(Lease(lease=self.number, task=task))
        self.queue.flush()
        return self.number

    def hear(self) -> Any:
        """The next message that is no log line; None when the process is gone."""
        while isinstance(message := self.received.get(timeout=PATIENCE), LogLine):
            self.logged.append(message)
        return message

    def ask(self, task: Task) -> Any:
        """The reply to a task."""
        number = self.lend(task)
        reply = self.hear()
        assert reply.lease == number
        return reply


def configure(server_url: str, tmp_path: Path) -> Configure:
    images, spool = tmp_path / "images", tmp_path / "spool"
    images.mkdir(exist_ok=True)
    spool.mkdir(exist_ok=True)
    return Configure(
        endpoints=(Endpoint(url=server_url, key=KEY, timeout=PATIENCE),),
        image_dir=os.fsencode(images),
        spool_dir=str(spool),
        max_pixels=1_000_000,
        max_file_bytes=1_000_000,
        min_side=16,
        max_aspect=200,
        background="auto",
        log_level="DEBUG",
    )


@contextmanager
def worker(target: Callable[..., None], server: Server, tmp_path: Path) -> Iterator[Worker]:
    made = Worker(target)
    try:
        made.queue.put(configure(server.url, tmp_path))
        made.queue.flush()
        ready = made.hear()
        assert ready == WorkerReady(pid=made.process.pid or 0)
        yield made
        made.queue.close()
        while made.hear() is not None:
            pass
        made.process.join(PATIENCE)
        assert made.process.exitcode == 0
    finally:
        made.process.kill()
        made.process.join()
        made.process.close()
    assert not any(KEY in line.text for line in made.logged)


def draw(tmp_path: Path, name: str = "a.png", colour: str = "white") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 48), colour).save(out, "PNG")
    folder = tmp_path / "images"
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(out.getvalue())
    return out.getvalue()


def prepared(made: Worker, path: bytes = b"a.png", variant: str = WHOLE) -> ImageInfo:
    number = made.lend(Prepare(image="i", path=path, variant=variant))
    assert made.hear() == Decoding(lease=number, image="i")
    reply = made.hear()
    assert isinstance(reply, Prepared)
    return reply.info


PARAMS = SamplingParams(temperature=0.7, top_p=0.9, top_k=40, min_p=0.05, repetition_penalty=1.1)


def generate(server: Server, sha256: str, **fields: Any) -> Generate:
    task = Generate(
        image="i",
        sha256=sha256,
        samples=(0,),
        round=0,
        prompt_key="prompt1",
        prompt="Write a netlist.",
        params=PARAMS,
        seed=1024,
        max_tokens=100,
        endpoint=server.url,
        model="m",
        dialect=RequestDialect(),
    )
    return msgspec.structs.replace(task, **fields)


def grading(server: Server, sha256: str, *contents: str, **fields: Any) -> GradeCandidates:
    template = "Grade. {candidate_answers}" if len(contents) > 1 else "Grade. {generated_answer}"
    task = GradeCandidates(
        image="i",
        sha256=sha256,
        round=0,
        template=template,
        candidates=tuple(
            CandidateText(index=k + 3, number=2, content=c) for k, c in enumerate(contents)
        ),
        endpoint=server.url,
        model="m",
        dialect=RequestDialect(),
        max_tokens=500,
        shuffle_seed="x",
    )
    return msgspec.structs.replace(task, **fields)


def text_of(request: Request | Seen) -> str:
    return str(request.json["messages"][0]["content"][-1]["text"])
