"""The seam between the hub and its workers: wanted by role and number, spoken to by name, heard by
events. Local processes are one way to have workers (`local.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from rsd.protocol.status import ProcessStatus
from rsd.protocol.vocabulary import Role


@dataclass(frozen=True, slots=True)
class Up:
    """A worker takes leases from now on, on so many threads."""

    worker: str
    role: Role
    threads: int


@dataclass(frozen=True, slots=True)
class Gone:
    """A worker is dead, and all that it held is lost. Of what it sent nothing comes any more."""

    worker: str
    own_fault: bool  #: it died of what it did, and not of a kill by somebody else
    how: str  #: in words
    expected: bool  #: nobody wanted it any more
    given_up: bool  #: it died too often too early: the next is started in a minute


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a worker."""

    worker: str
    content: Any


PoolEvent = Up | Gone | Message


class WorkerPool(Protocol):
    """Workers by role. Whoever dies is replaced under the same name as long as it is wanted; the
    hub's main thread calls, and nothing blocks.
    """

    def want(self, role: Role, count: int, threads: int) -> list[str]:
        """So many workers of so many threads from now on. Returns the present ones that are not
        wanted any more and may hold leases: they take none, and end by `retire`.
        """

    def greet(self, role: Role, message: msgspec.Struct) -> None:
        """What every wanted worker of a role gets now, and each later one first."""

    def put(self, worker: str, message: msgspec.Struct) -> None:
        """A message, to be sent with the next `flush`; lost when the worker is dead."""

    def broadcast(self, message: msgspec.Struct) -> None:
        """A message to every worker."""

    def flush(self) -> None:
        """Send what was put."""

    def hear(self, raw: object, now: float) -> PoolEvent | None:
        """What a note that the pool left for the main thread means; None for one of a worker that
        has been replaced.
        """

    def tend(self, now: float) -> list[str]:
        """Start what is due, kill what hangs; returns the names of those that were started."""

    def kill(self, worker: str) -> None:
        """End it at once, and replace it if it is wanted: nothing but open calls is lost."""

    def retire(self, worker: str) -> None:
        """It holds nothing any more: if it is not wanted, it ends."""

    def revive(self, now: float) -> None:
        """Somebody may have mended what killed them: those given up are tried at once."""

    def freeze(self) -> None:
        """Nobody is started any more, and who dies is not replaced."""

    def given_up(self) -> str:
        """A role of which every worker dies again and again, in words; "" when there is none."""

    def processes(self, now: float) -> tuple[ProcessStatus, ...]:
        """All of them, for the status."""

    def end(self) -> None:
        """Kill whatever lives, and wait until it is gone."""
