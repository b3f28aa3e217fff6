"""Pieces of work for workers: what they are, which are ready, which wait for a time. Pure."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from rsd.hub.brain.limits import EndpointLimit
from rsd.protocol.vocabulary import ImageId, RequestDialect, Role
from rsd.protocol.writer_talk import QueuedImage


class WorkKind(StrEnum):
    """What there is to do."""

    PREPARE = "prepare"
    GENERATE = "generate"
    GRADE = "grade"
    PROBE = "probe"  #: whether an endpoint is of use
    PROBE_SAMPLING = "probe_sampling"  #: whether sampling parameters take effect there
    LOAD_POLL = "load_poll"  #: a server's own account of its load

    @property
    def pays(self) -> bool:
        """Whether it is a call for an image: counted by limits and budgets, queued by role."""
        return self in PAID


PAID = frozenset((WorkKind.GENERATE, WorkKind.GRADE))


@dataclass(slots=True, eq=False)
class Work:
    """What a lease is about; it survives its leases and counts the tries."""

    kind: WorkKind
    image: ImageId
    role: Role = Role.GENERATE  #: whose workers, and whose endpoint
    sha256: str = ""
    indices: tuple[int, ...] = ()  #: candidates: to make, or to grade
    number: int = 0  #: which grade, for `grade`
    rubric: str = ""  #: that it is graded by
    queued: QueuedImage | None = None  #: for `prepare` of an image that is not active yet
    respool: bool = False  #: `prepare` of an active image whose spool file is gone
    endpoint: str = ""  #: its image's own, then that of the running or last try
    limit: EndpointLimit | None = None  #: of the endpoint of the running or last try
    attempts: int = 0  #: tries that count
    tried: str = ""  #: endpoint of the last failed try, and its answers up to then
    answered_before: int = 0
    first_counted: float | None = None
    killed: int = 0  #: tries ended by a kill or by a lack of memory: nobody's fault
    busy: int = 0  #: refusals as busy, for requests with `n` that can never fit
    dialect: RequestDialect | None = None  #: that the running or last try was made with
    reduced: bool = False  #: the picture is sent at half its size
    token_factor: float = 1.0
    lent_at: float = 0.0  #: of the running or last try
    deferred_since: float | None = None  #: a truncated file that may still grow


class WorkQueue:
    """Calls that are ready, by role; pictures to prepare; work that waits for a time."""

    def __init__(self, roles: Iterable[Role]) -> None:
        self.calls: dict[Role, deque[Work]] = {role: deque() for role in roles}
        self.pictures: deque[Work] = deque()
        self._delayed: list[tuple[float, int, Work]] = []
        self._delayed_calls: Counter[Role] = Counter()  # an outage delays thousands
        self._tie = 0

    def __iter__(self) -> Iterator[Work]:
        for queue in self._ready():
            yield from queue
        for _, _, work in self._delayed:
            yield work

    def _ready(self) -> list[deque[Work]]:
        return [self.pictures, *self.calls.values()]

    def add(self, work: Work) -> None:
        """Work that may start when those before it have."""
        self._queue_of(work).append(work)

    def add_first(self, *works: Work) -> None:
        """Work that comes before the rest, in this order: it was first once."""
        for work in reversed(works):
            self._queue_of(work).appendleft(work)

    def later(self, work: Work, at: float) -> None:
        """Work that may start at a time."""
        self._tie += 1
        self._delayed_calls[work.role] += work.kind.pays
        heapq.heappush(self._delayed, (at, self._tie, work))

    def due(self, now: float) -> None:
        """Move delayed work whose time has come in front of the rest, the earliest first."""
        found = []
        while self._delayed and self._delayed[0][0] <= now:
            work = heapq.heappop(self._delayed)[2]
            self._delayed_calls[work.role] -= work.kind.pays
            found.append(work)
        self.add_first(*found)

    def waiting(self, role: Role) -> int:
        """Calls of a role that are ready or delayed."""
        return len(self.calls[role]) + self._delayed_calls[role]

    @property
    def delayed(self) -> int:
        """Work that waits for its time after an error."""
        return len(self._delayed)

    def drop(self, wanted: Callable[[Work], bool]) -> None:
        """Forget work that nobody needs any more."""
        for queue in self._ready():
            kept = [w for w in queue if wanted(w)]
            queue.clear()
            queue.extend(kept)
        self._delayed = [entry for entry in self._delayed if wanted(entry[2])]
        heapq.heapify(self._delayed)
        self._delayed_calls = Counter(w.role for _, _, w in self._delayed if w.kind.pays)

    def _queue_of(self, work: Work) -> deque[Work]:
        return self.calls[work.role] if work.kind.pays else self.pictures
