"""Who works on what, and what comes back. Pure.

A lease ends by its reply, by the worker's death or by its deadline; whatever arrives for a lease
that has ended is dropped. Leases live in memory only: they die with the hub, the facts do not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from rsd.protocol.tasks import LeaseId
from rsd.protocol.vocabulary import ImageId, Role

T = TypeVar("T")


#: Threads of a worker for each lease beyond them. The hub answers once a turn, some 10 ms: so many
#: threads end a call of a tenth of a second meanwhile.
AHEAD = 8


@dataclass(slots=True)
class Worker:
    """One worker process as the lease table sees it."""

    name: str
    role: Role
    slots: int  #: threads for calls
    calls: set[LeaseId] = field(default_factory=set)
    prepares: set[LeaseId] = field(default_factory=set)
    asides: set[LeaseId] = field(default_factory=set)  #: small questions, on a thread of their own
    overdue: int = 0  #: leases whose deadline passed without a reply
    leaving: bool = False  #: takes no new leases
    decoding: ImageId | None = None
    images: dict[str, None] = field(default_factory=dict)  #: contents it was sent, oldest first

    @property
    def spare(self) -> int:
        """Leases that it may hold beyond its threads."""
        return max(1, self.slots // AHEAD)


#: Kinds of leases: by the threads of a worker that serve them.
CALL, PREPARE, ASIDE = "call", "prepare", "aside"


@dataclass(frozen=True, slots=True)
class Loan(Generic[T]):
    """A lease and what it is for."""

    lease: LeaseId
    worker: str
    item: T
    deadline: float
    kind: str  #: CALL, PREPARE or ASIDE


#: Contents remembered per worker for affinity; a worker's own cache holds fewer.
REMEMBERED_IMAGES = 256
#: Pictures waiting per generator; one thread of it decodes.
PREPARES_PER_WORKER = 2


class LeaseTable(Generic[T]):
    """All open leases, by number and by worker."""

    def __init__(self) -> None:
        self.workers: dict[str, Worker] = {}
        self.loans: dict[LeaseId, Loan[T]] = {}
        self._next = 1

    def join(self, name: str, role: Role, slots: int) -> None:
        """A worker takes leases from now on."""
        self.workers[name] = Worker(name, role, slots)

    def leaving(self, name: str) -> None:
        """This worker gets no new lease; it ends when it has none left."""
        if name in self.workers:
            self.workers[name].leaving = True

    def idle_leavers(self) -> list[str]:
        """Workers that are to go and hold nothing any more."""
        return [
            w.name for w in self.workers.values() if w.leaving and not w.calls and not w.prepares
        ]

    def leave(self, name: str) -> tuple[list[T], ImageId | None]:
        """A worker is dead: what it had comes back, and the image it was decoding, if any."""
        worker = self.workers.pop(name, None)
        if worker is None:
            return [], None
        open_leases = sorted(worker.calls | worker.prepares | worker.asides)
        return [self.loans.pop(i).item for i in open_leases], worker.decoding

    def spare(self, role: Role) -> int:
        """Leases that the workers of a role that stay may hold beyond their threads."""
        return sum(w.spare for w in self.workers.values() if w.role == role and not w.leaving)

    def threads(self, role: Role) -> int:
        """Calls of a role that the workers can have under way: those that leave only end theirs."""
        found = [w for w in self.workers.values() if w.role == role]
        return sum(min(len(w.calls), w.slots) if w.leaving else w.slots for w in found)

    def pick(self, role: Role, sha256: str, ahead: bool) -> Worker | None:
        """The worker for a call: one that has the image encoded and a free thread, else the one
        with the most free places; None when all threads are taken, and with `ahead` the leases
        beyond them, too.
        """
        fit = [
            w
            for w in self.workers.values()
            if w.role == role
            and not w.leaving
            and len(w.calls) + w.overdue < w.slots + (w.spare if ahead else 0)
        ]
        with_image = [w for w in fit if sha256 in w.images and len(w.calls) < w.slots]
        return max(with_image or fit, key=lambda w: w.slots - len(w.calls), default=None)

    def pick_aside(self, role: Role) -> Worker | None:
        """Any worker that will stay."""
        return next((w for w in self.workers.values() if w.role == role and not w.leaving), None)

    def pick_for_prepare(self, role: Role) -> Worker | None:
        """The worker with the fewest pictures to prepare, if any has room."""
        fit = [
            w
            for w in self.workers.values()
            if w.role == role and not w.leaving and len(w.prepares) < PREPARES_PER_WORKER
        ]
        return min(fit, key=lambda w: (len(w.prepares), len(w.calls)), default=None)

    def grant(
        self, worker: Worker, item: T, *, deadline: float, sha256: str = "", kind: str = CALL
    ) -> LeaseId:
        """Lend an item to a worker; returns the number of the lease."""
        number, self._next = self._next, self._next + 1
        self.loans[number] = Loan(number, worker.name, item, deadline, kind)
        held = {CALL: worker.calls, PREPARE: worker.prepares, ASIDE: worker.asides}
        held[kind].add(number)
        if sha256:
            worker.images.pop(sha256, None)
            worker.images[sha256] = None
            if len(worker.images) > REMEMBERED_IMAGES:
                del worker.images[next(iter(worker.images))]
        return number

    def decoding(self, worker_name: str, lease: LeaseId, image: ImageId) -> None:
        """Pillow is at this picture now; a death before the reply is held against it."""
        worker = self.workers.get(worker_name)
        if worker is not None and lease in worker.prepares:
            worker.decoding = image

    def settle(self, worker_name: str, lease: LeaseId) -> T | None:
        """A reply came: its item, or None when the lease had ended before."""
        worker = self.workers.get(worker_name)
        loan = self.loans.get(lease)
        if loan is None or loan.worker != worker_name or worker is None:
            if worker is not None and worker.overdue:
                worker.overdue -= 1
            return None
        del self.loans[lease]
        if loan.kind == PREPARE:
            worker.prepares.discard(lease)
            worker.decoding = None
        worker.calls.discard(lease)
        worker.asides.discard(lease)
        return loan.item

    def expire(self, now: float) -> tuple[list[T], list[str]]:
        """Leases past their deadline: their items come back. Also the workers that answer nothing
        any more: all they hold is overdue.
        """
        late = [loan for loan in self.loans.values() if loan.deadline <= now]
        for loan in late:
            del self.loans[loan.lease]
            worker = self.workers[loan.worker]
            worker.calls.discard(loan.lease)
            worker.prepares.discard(loan.lease)
            worker.asides.discard(loan.lease)
            worker.overdue += loan.kind != ASIDE
        silent = [
            w.name for w in self.workers.values() if w.overdue and not w.calls and not w.prepares
        ]
        return [loan.item for loan in late], silent

    def in_flight(self, role: Role) -> int:
        """Calls that workers of this role hold."""
        return sum(len(w.calls) for w in self.workers.values() if w.role == role)

    def running(self, role: Role) -> int:
        """Those of them that have a thread."""
        return sum(min(len(w.calls), w.slots) for w in self.workers.values() if w.role == role)

    @property
    def open(self) -> int:
        """Leases whose answers are worth waiting for."""
        return sum(loan.kind != ASIDE for loan in self.loans.values())

    def slots(self, role: Role) -> int:
        """Threads of all living workers of this role."""
        return sum(w.slots for w in self.workers.values() if w.role == role and not w.leaving)
