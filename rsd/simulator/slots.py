"""How many answers are worked on at once, and the queue of those that wait."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from typing import Any, Final

#: Spread of service times: sigma of the logarithm; half of them lie within 0.7 to 1.4 medians.
SERVICE_SIGMA: Final = 0.5
#: Length of a step of the history in seconds, and most steps kept (an hour).
STEP: Final = 0.1
STEPS_MAX: Final = 36_000


def service_seconds(mean: float, part: str, sigma: float = SERVICE_SIGMA) -> float:
    """The seconds that an answer takes: log-normal around `mean`, decided by what is asked."""
    if mean <= 0:
        return 0.0
    z = random.Random(f"service|{part}").gauss(0, 1)
    return mean * math.exp(sigma * z - sigma**2 / 2)


class History:
    """How many places were busy, and how many answers waited, step by step since the first."""

    def __init__(self) -> None:
        self.began: float | None = None  #: monotonic
        self._at = 0.0
        self._busy: list[float] = []  # place-seconds of each step
        self._waiting: list[float] = []

    def add(self, now: float, busy: int, waiting: int) -> None:
        """Both figures held from the last call until `now` (monotonic seconds)."""
        if self.began is None:
            self.began = self._at = now
        while self._at < now and len(self._busy) < STEPS_MAX:
            step = int((self._at - self.began) / STEP + 1e-9)
            end = min(now, self.began + (step + 1) * STEP)
            missing = step + 1 - len(self._busy)
            if missing > 0:
                self._busy += [0.0] * missing
                self._waiting += [0.0] * missing
            self._busy[step] += busy * (end - self._at)
            self._waiting[step] += waiting * (end - self._at)
            self._at = end

    def document(self) -> dict[str, Any]:
        """Means of each step; `began` is on the clock of `Counters.first` and `last`."""
        return {
            "began": self.began,
            "step": STEP,
            "busy": [round(area / STEP, 3) for area in self._busy],
            "waiting": [round(area / STEP, 3) for area in self._waiting],
        }


class Slots:
    """Places of one server; first come, first served.

    `capacity` 0 is without limit. `max_queue` None lets any number wait; otherwise `full` tells
    what would be too many (the caller refuses it).
    """

    def __init__(self, capacity: int = 0, max_queue: int | None = None) -> None:
        self._capacity = capacity
        self._max_queue = max_queue
        # Bounded by the open connections: each waiter is an open request's answer.
        self._queue: deque[asyncio.Future[None]] = deque()
        self.running = 0
        self.waiting = 0
        self.busy_seconds = 0.0  #: places in use times seconds
        self.history = History()

    def note(self) -> None:
        """Bring the history up to now; called before either figure changes."""
        self.history.add(time.monotonic(), self.running, self.waiting)

    def full(self, answers: int) -> bool:
        """Whether so many more answers are too many. As with vLLM, each of `n` counts."""
        if not self._capacity or self._max_queue is None:
            return False
        return self.running + self.waiting + answers > self._capacity + self._max_queue

    def resize(self, capacity: int) -> None:
        """Another number of places; those that wait move up, nobody is thrown out."""
        self.note()
        self._capacity = capacity
        while self._queue and (not capacity or self.running < capacity):
            self.running += 1
            self._leave()

    async def serve(self, seconds: tuple[float, ...]) -> None:
        """Work on the answers of a request, each for its own time; returns when all are done."""
        if not self._capacity and not any(seconds):
            return
        if len(seconds) == 1:
            await self._one(seconds[0])
            return
        async with asyncio.TaskGroup() as group:
            for each in seconds:
                group.create_task(self._one(each))

    async def _one(self, seconds: float) -> None:
        await self._enter()
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            await asyncio.sleep(seconds)
        finally:
            self.busy_seconds += loop.time() - began
            self._leave()

    async def _enter(self) -> None:
        self.note()
        if not self._capacity or (self.running < self._capacity and not self.waiting):
            self.running += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        self.waiting += 1
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave()  # the place was handed over while the client left
            else:
                self.note()
                self.waiting -= 1
            raise

    def _leave(self) -> None:
        """Free a place, or hand it to the next that still waits."""
        self.note()
        while self._queue and (not self._capacity or self.running <= self._capacity):
            turn = self._queue.popleft()
            if not turn.done():
                self.waiting -= 1
                turn.set_result(None)
                return
        self.running -= 1
