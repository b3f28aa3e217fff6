"""Who works on what, and what comes back. Pure.

A lease ends by its reply, by the worker's death or by its deadline; what arrives for a lease that
has ended is late: paid for and not used. Leases live in memory only: they die with the hub, the
facts do not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

from rsd.protocol.tasks import LeaseId
from rsd.protocol.vocabulary import Role

T = TypeVar("T")

#: Threads of a worker for each lease beyond them. The hub answers once a turn, some 10 ms: so many
#: threads end a call of a tenth of a second meanwhile.
THREADS_PER_PREFETCH = 8
#: Contents remembered per worker for affinity; a worker's own cache holds fewer.
REMEMBERED_IMAGES = 256
#: Pictures waiting per generator; one thread of it decodes.
PREPARES_PER_WORKER = 2
#: Seconds that preparing one picture may take; the thread that does it cannot be stopped alone.
PREPARE_SECONDS = 120.0
#: Small questions that a worker holds, those included that it did not answer in time.
SIDES_PER_WORKER = 4


class LeaseKind(StrEnum):
    """By the threads of a worker that serve it."""

    CALL = "call"
    PREPARE = "prepare"
    SIDE = "side"  #: a small question that does not wait for calls to end


@dataclass(slots=True)
class OpenCalls:
    """Calls of one role that are lent to one endpoint, whoever holds its limit at the moment. Only
    the lease table changes it.
    """

    count: int = 0


@dataclass(frozen=True, slots=True)
class CallTo:
    """Where a call goes, and what a budget has set aside for it."""

    role: Role
    endpoint: str
    model: str
    reserved: tuple[float, float] = (0.0, 0.0)  #: tokens: input, output


@dataclass(slots=True, eq=False)
class Loan(Generic[T]):
    """A lease and what it is for."""

    lease: LeaseId
    worker: str
    item: T
    deadline: float
    kind: LeaseKind
    among: set[LeaseId]  #: its worker's open leases of this kind
    call: CallTo | None = None
    late: bool = False  #: its deadline has passed


@dataclass(slots=True)
class Worker(Generic[T]):
    """One worker process as the lease table sees it."""

    name: str
    role: Role
    slots: int  #: threads for calls
    calls: set[LeaseId] = field(default_factory=set)
    prepares: set[LeaseId] = field(default_factory=set)
    sides: set[LeaseId] = field(default_factory=set)
    #: Leases whose deadline passed without a reply: their threads may still be at it.
    overdue: dict[LeaseId, Loan[T]] = field(default_factory=dict)
    leaving: bool = False  #: takes no new leases
    hung: bool = False  #: about to be killed: takes no new leases
    decoding: LeaseId | None = None
    images: dict[str, None] = field(default_factory=dict)  #: contents it was sent, oldest first
    side_turn: int = 0  #: number of the last lease of its side threads
    prefetch_slots: int = field(init=False)  #: leases that it may hold beyond its threads

    def __post_init__(self) -> None:
        self.prefetch_slots = max(1, self.slots // THREADS_PER_PREFETCH)

    @property
    def hiring(self) -> bool:
        """Whether it takes new leases."""
        return not self.leaving and not self.hung

    def late(self, kind: LeaseKind) -> int:
        """Leases of a kind that it has not answered in time and still may answer."""
        if not self.overdue:
            return 0  # as nearly always, and asked with every lease
        return sum(loan.kind is kind for loan in self.overdue.values())

    def held(self, kind: LeaseKind) -> set[LeaseId]:
        """Its open leases of a kind."""
        if kind is LeaseKind.CALL:
            return self.calls
        return self.prepares if kind is LeaseKind.PREPARE else self.sides


@dataclass(slots=True)
class Expired(Generic[T]):
    """What the passing of time has ended."""

    failed: list[Loan[T]] = field(default_factory=list)  #: without an answer in their time
    #: Pictures at which a worker hangs, and those that wait behind them and are not to blame.
    hung: list[Loan[T]] = field(default_factory=list)
    waiting: list[Loan[T]] = field(default_factory=list)
    kill: dict[str, str] = field(default_factory=dict)  #: worker -> why


class LeaseTable(Generic[T]):
    """All open leases, by number and by worker, and how many calls each endpoint has of them."""

    def __init__(self) -> None:
        self.workers: dict[str, Worker[T]] = {}
        self.loans: dict[LeaseId, Loan[T]] = {}
        self._next = 1
        self._calls: dict[tuple[Role, str], OpenCalls] = {}

    # ----------------------------------------------------------------------------------- workers

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

    def leave(self, name: str) -> tuple[list[Loan[T]], Loan[T] | None]:
        """A worker is dead: what it had comes back, and the picture it was decoding, if any."""
        worker = self.workers.pop(name, None)
        if worker is None:
            return [], None
        found = [self.loans[i] for i in sorted(worker.calls | worker.prepares | worker.sides)]
        for loan in found:
            self._forget(loan)
        return found, next((loan for loan in found if loan.lease == worker.decoding), None)

    def pick(self, role: Role, sha256: str, prefetch: bool) -> Worker[T] | None:
        """The worker for a call: one that has the image encoded and a free thread, else the one
        with the most free places; None when all threads are taken, and with `prefetch` the leases
        beyond them, too.
        """
        fit = [
            w
            for w in self.workers.values()
            if w.role == role
            and not w.leaving
            and not w.hung
            and len(w.calls) + (w.late(LeaseKind.CALL) if w.overdue else 0)
            < w.slots + (w.prefetch_slots if prefetch else 0)
        ]
        with_image = [w for w in fit if sha256 in w.images and len(w.calls) < w.slots]
        return max(with_image or fit, key=lambda w: w.slots - len(w.calls), default=None)

    def pick_side(self, role: Role) -> Worker[T] | None:
        """The worker for a small question: by turns, those that answer before those that do not."""
        fit = [
            (len(w.sides) + w.late(LeaseKind.SIDE), w.side_turn, w)
            for w in self.workers.values()
            if w.role == role and w.hiring
        ]
        load, _, worker = min(fit, key=lambda entry: entry[:2], default=(0, 0, None))
        return worker if load < SIDES_PER_WORKER else None

    def pick_for_prepare(self, role: Role) -> Worker[T] | None:
        """The worker with the fewest pictures to prepare, if any has room."""
        fit = [
            w
            for w in self.workers.values()
            if w.role == role and w.hiring and len(w.prepares) < PREPARES_PER_WORKER
        ]
        return min(fit, key=lambda w: (len(w.prepares), len(w.calls)), default=None)

    # ------------------------------------------------------------------------------------ leases

    def grant(
        self,
        worker: Worker[T],
        item: T,
        *,
        deadline: float,
        sha256: str = "",
        kind: LeaseKind = LeaseKind.CALL,
        call: CallTo | None = None,
    ) -> LeaseId:
        """Lend an item to a worker until `deadline`; returns the number of the lease. `call`: it
        counts as one of that endpoint's.
        """
        number, self._next = self._next, self._next + 1
        among = worker.held(kind)
        among.add(number)
        self.loans[number] = Loan(number, worker.name, item, deadline, kind, among, call)
        if call is not None:
            self.calls(call.role, call.endpoint).count += 1
        if kind is LeaseKind.SIDE:
            worker.side_turn = number
        if sha256:
            worker.images.pop(sha256, None)
            worker.images[sha256] = None
            if len(worker.images) > REMEMBERED_IMAGES:
                del worker.images[next(iter(worker.images))]
        return number

    def decoding(self, worker_name: str, lease: LeaseId, now: float) -> None:
        """Pillow begins with this picture now: its time is counted from here, and a death before
        the reply is held against it.
        """
        worker = self.workers.get(worker_name)
        if worker is not None and lease in worker.prepares:
            worker.decoding = lease
            self.loans[lease].deadline = now + PREPARE_SECONDS

    def close(self, worker_name: str, lease: LeaseId) -> Loan[T] | None:
        """A reply came. Its loan is `late` when the lease had ended by its deadline; None when it
        is not known any more.
        """
        worker = self.workers.get(worker_name)
        if worker is None:
            return None
        loan = self.loans.get(lease)
        if loan is not None and loan.worker == worker_name:
            self._forget(loan)
            return loan
        return worker.overdue.pop(lease, None)

    def expire(self, now: float) -> Expired[T]:
        """End the leases whose deadline has passed. Workers that answer nothing any more, or whose
        one thread for pictures hangs, are named to be killed.
        """
        found: Expired[T] = Expired()
        for loan in [loan for loan in self.loans.values() if loan.deadline <= now]:
            worker = self.workers[loan.worker]
            if loan.kind is LeaseKind.PREPARE:
                worker.hung = True
                continue
            self._forget(loan)
            loan.late = True
            worker.overdue[loan.lease] = loan
            found.failed.append(loan)
        for worker in self.workers.values():
            if worker.hung and worker.prepares:
                self._hangs(worker, now, found)
            elif worker.late(LeaseKind.CALL) and not worker.calls and not worker.prepares:
                worker.hung = True
                found.kill[worker.name] = "all its leases are overdue"
        return found

    def _hangs(self, worker: Worker[T], now: float, found: Expired[T]) -> None:
        for lease in sorted(worker.prepares):
            loan = self.loans[lease]
            if lease == worker.decoding:
                found.hung.append(loan)
            elif worker.decoding is None and loan.deadline <= now:
                found.failed.append(loan)
            else:
                found.waiting.append(loan)
        for loan in (*found.hung, *found.waiting, *found.failed):
            if loan.lease in worker.prepares:
                self._forget(loan)
        found.kill[worker.name] = f"it prepares a picture for more than {PREPARE_SECONDS:.0f} s"

    def _forget(self, loan: Loan[T]) -> None:
        del self.loans[loan.lease]
        worker = self.workers.get(loan.worker)
        if worker is not None:
            loan.among.discard(loan.lease)
            if worker.decoding == loan.lease:
                worker.decoding = None
        if loan.call is not None:
            self.calls(loan.call.role, loan.call.endpoint).count -= 1

    # ----------------------------------------------------------------------------------- figures

    def calls(self, role: Role, endpoint: str) -> OpenCalls:
        """The open calls of an endpoint; the same object until nobody needs it (`keep_calls`)."""
        found = self._calls.get((role, endpoint))
        if found is None:
            found = self._calls[role, endpoint] = OpenCalls()
        return found

    def keep_calls(self, endpoints: set[tuple[Role, str]]) -> None:
        """Only these endpoints are in the settings: others are counted while they have calls."""
        self._calls = {k: c for k, c in self._calls.items() if c.count or k in endpoints}

    def prefetch_slots(self, role: Role) -> int:
        """Leases that the workers of a role that stay may hold beyond their threads."""
        return sum(w.prefetch_slots for w in self.workers.values() if w.role == role and w.hiring)

    def threads(self, role: Role) -> int:
        """Calls of a role that the workers can have under way: those that leave only end theirs."""
        found = [w for w in self.workers.values() if w.role == role]
        return sum(w.slots if w.hiring else min(len(w.calls), w.slots) for w in found)

    def in_flight(self, role: Role) -> int:
        """Calls that workers of this role hold."""
        return sum(len(w.calls) for w in self.workers.values() if w.role == role)

    def running(self, role: Role) -> int:
        """Those of them that have a thread."""
        return sum(min(len(w.calls), w.slots) for w in self.workers.values() if w.role == role)

    @property
    def open(self) -> int:
        """Leases whose answers are worth waiting for."""
        return sum(loan.kind is not LeaseKind.SIDE for loan in self.loans.values())

    def slots(self, role: Role) -> int:
        """Threads of all living workers of this role."""
        return sum(w.slots for w in self.workers.values() if w.role == role and not w.leaving)
