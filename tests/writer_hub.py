"""A hub for a real writer process: it sends facts and questions, and waits for what comes."""

from __future__ import annotations

import multiprocessing
import os
import queue
import time
from collections.abc import Callable
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, TypeVar

from rsd.protocol import facts as f
from rsd.protocol.vocabulary import FIRST_QUEUE, SummaryConfig, image_id
from rsd.protocol.writer_talk import (
    Close,
    Committed,
    Open,
    from_writer_decoder,
)
from rsd.state.store import Store
from rsd.system.queues import WorkQueue
from rsd.writer import writer
from tests.histories import (
    RECIPE,
    candidate,
    dump,
    grade,
    info_of,
)
from tests.recount import recount

PATIENCE = 60.0
SUMMARY = SummaryConfig(
    image_dir="/pictures",
    prompt_keys=("p1", "p2"),
    score_threshold=80.0,
    temperature_range=(0.3, 1.0),
    top_p_range=(0.9,),
    top_k_range=(40,),
)
M = TypeVar("M")


class Hub:
    """The other end of the writer's pipes. `start` again after a death: a successor."""

    def __init__(self, folder: Path, *, life: str = "life-0", output: Path | None = None) -> None:
        self.state, self.output = folder / "state", output or folder / "output"
        self.state.mkdir(exist_ok=True)
        self.life = life
        self.heard: queue.SimpleQueue[Any]
        self.child: SpawnProcess
        self._ever_up = False

    def start(self, failpoint: str = "") -> None:
        context = multiprocessing.get_context("spawn")
        heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.heard = heard
        self.pipe: WorkQueue[Any] = WorkQueue("writer")
        if failpoint:
            os.environ["RSD_FAILPOINT"] = failpoint
        try:
            self.child = context.Process(target=writer.main, args=self.pipe.child_ends)
            self.child.start()
        finally:
            os.environ.pop("RSD_FAILPOINT", None)
        self.pipe.start(from_writer_decoder, heard.put, lambda: heard.put(None))
        self.pipe.put(
            Open(
                state_dir=str(self.state),
                output_dir=str(self.output),
                life=self.life,
                recover=not self._ever_up,
                checkpoint_interval=1000,
                summary=SUMMARY,
            )
        )
        self.pipe.flush()

    def wait(self, kind: type[M], fits: Callable[[M], bool] = lambda _: True) -> M:
        """The next message of this kind that fits; what comes before it is dropped."""
        end = time.monotonic() + PATIENCE
        while True:
            message = self.heard.get(timeout=max(0.0, end - time.monotonic()))
            assert message is not None, f"the writer died before it sent {kind.__name__}"
            if isinstance(message, kind) and fits(message):
                self._ever_up = True
                return message

    def death(self) -> int | None:
        """Wait for its end; the exit code."""
        end = time.monotonic() + PATIENCE
        while self.heard.get(timeout=max(0.0, end - time.monotonic())) is not None:
            pass
        self.child.join(PATIENCE)
        return self.child.exitcode

    def close(self) -> None:
        """An orderly end."""
        self.pipe.put(Close())
        self.pipe.flush()
        assert self.death() == 0

    def kill(self) -> None:
        if self.child.is_alive():
            self.child.kill()
            self.child.join()
        self.pipe.close()

    def send(self, *facts: f.Numbered) -> None:
        for fact in facts:
            self.pipe.put(fact)
            self.pipe.flush()

    def committed(self, seq: int) -> Committed:
        return self.wait(Committed, lambda c: c.seq >= seq)

    def store(self) -> dict[str, dict[bytes, bytes]]:
        opened = Store(self.state / "lmdb", readonly=True)
        try:
            recount(opened)
            return dump(opened)
        finally:
            opened.close()

    def files(self) -> dict[str, bytes]:
        """All that the user sees but the summary, which tells the time."""
        return {
            str(p.relative_to(self.output)): p.read_bytes()
            for p in self.output.rglob("*")
            if p.is_file() and p.name != "summary.json"
        }


def decided(path: bytes, content: str, score: float, seq: int = 1) -> list[f.Numbered]:
    """The facts of one image from its file to its decision."""
    image = image_id(path, 0)
    facts: list[f.Fact] = [
        f.ConfigStored(recipe=RECIPE),
        f.ImageEnrolled(path=path, size=1, mtime_ns=1, time=1.0),
        f.ImageStarted(
            image=image,
            queued_as=image,
            queue_seq=FIRST_QUEUE + 1,
            path=path,
            version=0,
            info=info_of(content),
            config=RECIPE.fingerprint,
            time=2.0,
        ),
        f.CandidateMade(image=image, candidate=candidate(0)),
        f.CandidateGraded(image=image, grade=grade(0, score)),
        f.ImageDecided(
            image=image,
            decision=1,
            winner=0,
            score=score,
            expected_score=score,
            quality="high" if score >= 80 else "low",
            reason="all_drawn",
            time=3.0,
        ),
    ]
    return [f.Numbered(seq=seq + i, fact=fact) for i, fact in enumerate(facts)]
