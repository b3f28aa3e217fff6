"""The hub's side of the talk with the writer: what is unacknowledged, unanswered, and said again.

Facts are kept until their commit is acknowledged and questions until they are answered; when a
writer died, its successor gets all of it again. Applying a fact twice changes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec

from rsd.hub.children.heartbeat import Heartbeat
from rsd.protocol.facts import Fact, ImageDecided, Numbered
from rsd.protocol.vocabulary import Stats
from rsd.protocol.writer_talk import Close, Open, Ping, Pong, Query, Reconfigure
from rsd.system.failpoints import failpoint


class WriterClient:
    """Keeps what the writer must not miss. `send` puts a message into the writer's mailbox."""

    def __init__(self, opening: Open, send: Callable[[msgspec.Struct], None]) -> None:
        self.opening = opening
        self.stats = Stats()
        self.blocked = ""  #: why the writer cannot write, as it says
        self.up = False
        self._send = send
        self._facts: deque[Numbered] = deque()
        self._questions: dict[int, Query] = {}
        self._ever_up = False
        self._heart = Heartbeat()

    def started(self, now: float) -> None:
        """A writer process was started: open, then everything that it may have missed."""
        self.up = False
        self._heart.started(now)
        self._send(msgspec.structs.replace(self.opening, recover=not self._ever_up))
        for fact in self._facts:
            self._send(fact)
        for question in self._questions.values():
            self._send(question)

    def heard(self, now: float) -> None:
        """A message of the writer came: it lives."""
        self._heart.heard(now)

    def pong(self, answer: Pong) -> None:
        """What it says of its main loop. A disk that refuses keeps it busy without being its
        fault, and so may opening the store.
        """
        self.blocked = answer.blocked
        self._heart.busy(answer.busy_seconds if self.up and not answer.blocked else 0.0)

    def opened(self, stats: Stats) -> None:
        """The store is open."""
        self.up = self._ever_up = True
        self.blocked = ""
        self.stats = stats

    def gone(self) -> None:
        """The writer is dead; it will be replaced."""
        self.up = False

    def reconfigure(self, message: Reconfigure) -> None:
        """A reload: for this writer and for those that will replace it."""
        self.opening = msgspec.structs.replace(
            self.opening, summary=message.summary, checkpoint_interval=message.checkpoint_interval
        )
        failpoint("hub.reloading")
        self._send(message)

    def fact(self, seq: int, fact: Fact) -> None:
        """A fact to be committed."""
        if isinstance(fact, ImageDecided):
            failpoint("hub.before-decision")
        numbered = Numbered(seq=seq, fact=fact)
        self._facts.append(numbered)
        self._send(numbered)

    def ask(self, query: Query) -> None:
        """A question to be answered."""
        self._questions[query.query] = query
        self._send(query)

    def committed(self, seq: int, stats: Stats) -> None:
        """Facts up to this number are durable."""
        self.stats = stats
        while self._facts and self._facts[0].seq <= seq:
            self._facts.popleft()

    def answered(self, query: int) -> Query | None:
        """A question was answered; None when it had been answered before."""
        return self._questions.pop(query, None)

    def tend(self, now: float) -> str:
        """Ping when it is time; why the writer has to go, "" when it has not."""
        if self._heart.ping_due(now):
            self._send(Ping(query=0))
        if why := self._heart.hung(now):
            self._heart.started(now)
        return why

    def responsive(self, now: float) -> bool:
        """Whether the writer has been heard lately, and goes on (for the systemd watchdog)."""
        return not self._heart.silent(now) and not self._heart.hung(now)

    def close(self) -> None:
        """Commit, drain the outbox, write the summary, exit."""
        self._send(Close())

    @property
    def unacknowledged(self) -> int:
        """Facts that are sent and not known to be durable."""
        return len(self._facts)

    @property
    def all_durable(self) -> bool:
        """Whether everything sent is durable."""
        return not self._facts
