"""How many answers are worked on at once, and the queue of those that wait."""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from typing import Final

#: Spread of service times: sigma of the logarithm; half of them lie within 0.7 to 1.4 medians.
SERVICE_SIGMA: Final = 0.5


def service_seconds(mean: float, part: str) -> float:
    """The seconds that an answer takes: log-normal around `mean`, decided by what is asked."""
    if mean <= 0:
        return 0.0
    z = random.Random(f"service|{part}").gauss(0, 1)
    return mean * math.exp(SERVICE_SIGMA * z - SERVICE_SIGMA**2 / 2)


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

    def full(self, answers: int) -> bool:
        """Whether so many more answers are too many. As with vLLM, each of `n` counts."""
        if not self._capacity or self._max_queue is None:
            return False
        return self.running + self.waiting + answers > self._capacity + self._max_queue

    def resize(self, capacity: int) -> None:
        """Another number of places; those that wait move up, nobody is thrown out."""
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
                self.waiting -= 1
            raise

    def _leave(self) -> None:
        """Free a place, or hand it to the next that still waits."""
        while self._queue and (not self._capacity or self.running <= self._capacity):
            turn = self._queue.popleft()
            if not turn.done():
                self.waiting -= 1
                turn.set_result(None)
                return
        self.running -= 1
