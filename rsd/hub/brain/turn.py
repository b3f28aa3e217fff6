"""Facts on their way to the writer, the time of the current event, the actions so far. Pure."""

from __future__ import annotations

from collections import deque

from rsd.hub.brain.events import Action, Ended, Log, Persist
from rsd.protocol.facts import CallSpent, Fact
from rsd.protocol.vocabulary import ImageId, Role, Usage

#: Facts, and bytes of facts, that may be unacknowledged; beyond, no lease is given.
UNACKNOWLEDGED, UNACKNOWLEDGED_BYTES = 1_000, 32 * 1024 * 1024
#: What a fact without long texts takes on the wire, roughly, in bytes.
SMALL = 256


class Turn:
    """Numbers facts, and knows how far the writer is behind."""

    def __init__(self) -> None:
        self.now = 0.0  #: monotonic seconds of the current event
        self.wall = 0.0  #: Unix time of the current event; stored in facts, never compared
        self.out: list[Action] = []
        self.seq = 0
        self.committed = 0
        self._sizes: deque[tuple[int, int]] = deque()
        self._bytes = 0
        self._queries = 0

    def begin(self, now: float, wall: float) -> None:
        """A new event is handled."""
        self.now, self.wall, self.out = now, wall, []

    def persist(self, fact: Fact, size: int = SMALL) -> int:
        """Send a fact to the writer; returns its number. `size`: bytes, roughly."""
        self.seq += 1
        self._sizes.append((self.seq, size))
        self._bytes += size
        self.out.append(Persist(seq=self.seq, fact=fact))
        return self.seq

    def spent(self, role: Role, endpoint: str, model: str, usage: Usage, outcome: str) -> None:
        """Tokens of a call that are in no candidate and no grade; a call without any is no fact."""
        if usage != Usage():
            self.persist(
                CallSpent(role=role, endpoint=endpoint, model=model, usage=usage, outcome=outcome)
            )

    def acknowledge(self, seq: int) -> None:
        """All facts up to this one are durable."""
        self.committed = max(self.committed, seq)
        while self._sizes and self._sizes[0][0] <= seq:
            self._bytes -= self._sizes.popleft()[1]

    @property
    def unacknowledged(self) -> int:
        """Facts on their way."""
        return self.seq - self.committed

    @property
    def full(self) -> bool:
        """Whether the writer must catch up before more work is lent."""
        return self.unacknowledged >= UNACKNOWLEDGED or self._bytes >= UNACKNOWLEDGED_BYTES

    def query(self) -> int:
        """A number for a question to the writer."""
        self._queries += 1
        return self._queries

    def log(self, level: str, text: str) -> None:
        """A line for the log."""
        self.out.append(Log(level=level, text=text))

    def ended(
        self, image: ImageId, path: bytes, status: str, reason: str, score: float | None = None
    ) -> None:
        """An image came to its end."""
        self.out.append(Ended(image=image, path=path, status=status, score=score, reason=reason))
