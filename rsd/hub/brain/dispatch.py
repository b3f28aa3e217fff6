"""Who gets what: ready work, workers and endpoints brought together. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from rsd.hub.brain.budgets import Budget
from rsd.hub.brain.endpoints import Endpoints
from rsd.hub.brain.events import Assign, KillWorker, Policy, Recall
from rsd.hub.brain.leases import (
    PREPARE_SECONDS,
    CallTo,
    LeaseKind,
    LeaseTable,
    Loan,
    Worker,
)
from rsd.hub.brain.limits import UNKNOWN, EndpointLimit
from rsd.hub.brain.queue import Work, WorkKind, WorkQueue
from rsd.protocol.tasks import Lease, LeaseId, Probe, ProbeSampling, ReadLoad, Task
from rsd.protocol.vocabulary import ImageId, RateWindow, Role, Usage

#: Seconds that a lease may take beyond its call's own time-out before the worker counts as hung;
#: the worker ends a call by itself, so this only meets workers that are stuck.
LEASE_GRACE = 60.0
#: Seconds that a poll of a server's load may take.
LOAD_POLL_SECONDS = 10.0


@dataclass(slots=True)
class Overdue:
    """Work that comes back without an answer because time has passed."""

    failed: list[Work] = field(default_factory=list)
    hung: list[Work] = field(default_factory=list)  #: pictures that a worker hangs at
    waiting: list[Work] = field(default_factory=list)  #: pictures behind them: not to blame
    kills: list[KillWorker] = field(default_factory=list)


class Dispatcher:
    """The rule of who gets what."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.queue = WorkQueue(policy.roles)
        self.leases: LeaseTable[Work] = LeaseTable()
        self.endpoints = Endpoints(policy, self.leases)
        self.budgets = {role: Budget(of.rates) for role, of in policy.roles.items()}
        self.level = "normal"
        self.blocked = False  #: the writer cannot write: what is paid for now could be lost
        self.factor = 1.0  #: share of the normal number of calls that the host's load allows
        self._normal: dict[Role, int] = {}  # calls of a role before the host was under pressure
        self._resting: set[tuple[Role, str]] = set()  # role and URL; "": all of the role

    def configure(self, policy: Policy) -> None:
        """Other settings from now on."""
        self.policy = policy
        for role, of in policy.roles.items():
            if of.rates != self.budgets[role].rates:
                self.budgets[role].change(of.rates)
        self.endpoints.configure(policy)

    # ---------------------------------------------------------------------------------- how much

    def planned(self, role: Role) -> int:
        """Calls of a role that are ready, delayed or under way."""
        return self.queue.waiting(role) + self.leases.in_flight(role)

    def cap(self, role: Role) -> int:
        """Most calls of a role in flight, by settings."""
        return self.policy.roles[role].cap

    def set_level(self, level: str, factor: float) -> None:
        """What the host's load allows from now on; `factor`: of the normal number of requests."""
        if self.level == "normal" and level != "normal":
            limits = {r: sum(int(e.limit) for e in self.endpoints.of(r)) for r in self.policy.roles}
            self._normal = {role: max(1, n) for role, n in limits.items()}
        self.level, self.factor = level, factor

    @property
    def paused(self) -> bool:
        """Whether nothing new is lent."""
        return self.blocked or self.level == "paused"

    def ceiling(self, role: Role) -> int:
        """Calls of a role that the host's load allows; never less than one but when paused."""
        if self.paused:
            return 0
        if self.level == "normal":
            return self.cap(role)
        normal = min(self.cap(role), self._normal.get(role, self.cap(role)))
        return max(1, math.ceil(normal * self.factor))

    def on_rate_headers(
        self, endpoint: EndpointLimit, windows: tuple[RateWindow, ...], now: float
    ) -> None:
        """A server named what it will still take."""
        endpoint.on_rate_headers(windows, sum(self.budgets[endpoint.role].guess), now)

    def home(self, role: Role, known: str) -> str:
        """The endpoint whose caches are to hold an image; "" when there is nothing to choose."""
        return self.endpoints.home(role, known, self.queue.calls[role])

    # ----------------------------------------------------------------------------------- lending

    def assign(
        self, now: float, build: Callable[[Work, EndpointLimit], Task | None]
    ) -> list[Assign]:
        """Lend what may be lent, the last role first: a grade frees an image, a candidate adds
        work.
        """
        out: list[Assign] = []
        for role in reversed(self.policy.roles):
            prefetch = self._prefetch(role)
            room = self.ceiling(role) - self.leases.in_flight(role) + prefetch
            queue = self.queue.calls[role]
            while queue and room > 0:
                at, endpoint = self.endpoints.choose(role, queue, now)
                work = queue[at]
                worker = self.leases.pick(role, work.sha256, prefetch > 0)
                if endpoint is None or worker is None or not self.budgets[role].ready(now):
                    break
                del queue[at]
                task = build(work, endpoint)
                if task is None:
                    continue
                out.append(self._lend_call(worker, work, task, endpoint, prefetch > 0, now))
                room -= 1
        return out

    def _lend_call(
        self,
        worker: Worker[Work],
        work: Work,
        task: Task,
        endpoint: EndpointLimit,
        prefetch: bool,
        now: float,
    ) -> Assign:
        if work.tried != endpoint.url:
            work.tried, work.answered_before = endpoint.url, endpoint.answered
        work.endpoint, work.limit, work.dialect = endpoint.url, endpoint, endpoint.dialect
        work.lent_at = now
        reserved = self.budgets[work.role].started()
        endpoint.started()
        tries = 2 if prefetch else 1  # one in front of it on its thread, and its own
        number = self.leases.grant(
            worker,
            work,
            deadline=now + tries * self.policy.roles[work.role].timeout + LEASE_GRACE,
            sha256=work.sha256,
            call=CallTo(work.role, endpoint.url, endpoint.model, reserved),
        )
        return Assign(worker=worker.name, lease=Lease(lease=number, task=task))

    def _prefetch(self, role: Role) -> int:
        """Leases that the workers of a role may hold beyond their threads, so that a free thread
        need not wait for the hub. An endpoint gets more than its limit only if that is no lower
        than the threads: what is prefetched then waits for a thread, and no server sees more.
        """
        threads = self.leases.threads(role)
        slots = self.leases.prefetch_slots(role) if self.ceiling(role) >= threads > 0 else 0
        for endpoint in self.endpoints.of(role):
            endpoint.prefetch = slots if int(endpoint.limit) >= threads else 0
        return slots

    def recall(self, now: float, *, draining: bool) -> list[Recall]:
        """When an endpoint, or all, begin to rest: who holds calls for which no thread was free
        gives them back, so that nothing is begun that was prefetched.
        """
        resting = self.endpoints.resting(now)
        if draining or self.paused:
            resting |= {(role, "") for role in self.policy.roles}
        new, self._resting = resting - self._resting, resting
        roles = {role for role, _ in new}
        return [
            Recall(worker=worker.name)
            for worker in self.leases.workers.values()
            if worker.role in roles and len(worker.calls) > worker.slots
        ]

    def assign_prepares(self, now: float, build: Callable[[Work], Task | None]) -> list[Assign]:
        """Lend pictures to be prepared; they wait for no endpoint."""
        out: list[Assign] = []
        queue = self.queue.pictures
        while queue and not self.paused:
            worker = self.leases.pick_for_prepare(Role.GENERATE)
            if worker is None:
                break
            work = queue.popleft()
            task = build(work)
            if task is None:
                continue
            before = len(worker.prepares)  # on the same thread
            number = self.leases.grant(
                worker,
                work,
                deadline=now + (1 + before) * PREPARE_SECONDS,
                kind=LeaseKind.PREPARE,
            )
            out.append(Assign(worker=worker.name, lease=Lease(lease=number, task=task)))
        return out

    def assign_probes(self, now: float) -> list[Assign]:
        """Probe endpoints that are not known to be up: no work is consumed."""
        out: list[Assign] = []
        for endpoint in self.endpoints:
            role = endpoint.role
            worker = self.leases.pick(role, "", True) if endpoint.probe_due(now) else None
            if worker is None:
                continue
            endpoint.probing = True
            work = Work(kind=WorkKind.PROBE, image="", role=role, endpoint=endpoint.url)
            work.limit = endpoint
            deadline = now + 2 * self.policy.roles[role].timeout + LEASE_GRACE
            number = self.leases.grant(worker, work, deadline=deadline)
            task = Probe(
                endpoint=endpoint.url,
                model=self.policy.roles[role].model or endpoint.model,
                # The list of models says nothing of credit, path or an engine that died.
                completion=endpoint.state != UNKNOWN,
                dialect=endpoint.dialect,
            )
            out.append(Assign(worker=worker.name, lease=Lease(lease=number, task=task)))
        return out

    def assign_sides(self, now: float) -> list[Assign]:
        """Small questions that wait for no call and hold none up: how full the servers at work are,
        and, once for each generator, whether sampling parameters take effect there.
        """
        out: list[Assign] = []
        for endpoint in self.endpoints:
            if endpoint.load_due(now):
                deadline = now + LOAD_POLL_SECONDS
                task: Task = ReadLoad(endpoint=endpoint.url)
                out += self._lend_side(WorkKind.LOAD_POLL, endpoint, task, deadline)
            if self._sampling_due(endpoint):
                deadline = now + self.policy.roles[endpoint.role].timeout + LEASE_GRACE
                task = ProbeSampling(
                    endpoint=endpoint.url, model=endpoint.model, dialect=endpoint.dialect
                )
                out += self._lend_side(WorkKind.PROBE_SAMPLING, endpoint, task, deadline)
        return out

    def _sampling_due(self, endpoint: EndpointLimit) -> bool:
        wanted = endpoint.role is Role.GENERATE and self.policy.probe_sampling
        return wanted and endpoint.usable and not endpoint.sampling_tried

    def _lend_side(
        self, kind: WorkKind, endpoint: EndpointLimit, task: Task, deadline: float
    ) -> list[Assign]:
        worker = self.leases.pick_side(endpoint.role)
        if worker is None:
            return []
        if kind is WorkKind.LOAD_POLL:
            endpoint.observing = True
        else:
            endpoint.sampling_tried = True
        work = Work(kind=kind, image="", role=endpoint.role, endpoint=endpoint.url, limit=endpoint)
        number = self.leases.grant(worker, work, deadline=deadline, kind=LeaseKind.SIDE)
        return [Assign(worker=worker.name, lease=Lease(lease=number, task=task))]

    # ------------------------------------------------------------------------- the end of leases

    def lent_images(self) -> set[ImageId]:
        """The images of all open calls; looks at every lease."""
        return {
            loan.item.image for loan in self.leases.loans.values() if loan.kind is LeaseKind.CALL
        }

    def close(self, worker: str, lease: LeaseId, usage: Usage | None) -> Loan[Work] | None:
        """A reply came; None when nobody knows its lease. A `late` one is not for its work any
        more, which may be lent again. `usage`: tokens of the call.
        """
        loan = self.leases.close(worker, lease)
        if loan is None:
            return None
        if loan.call is not None:  # what was set aside for a call of unknown usage stays spent
            self.budgets[loan.call.role].ended(loan.call.reserved, usage)
        self._free_late(loan) if loan.late else self._free(loan)
        return loan

    def give_back(self, worker: str, lease: LeaseId) -> Work | None:
        """A call that was lent and not begun; None when its lease had ended before."""
        loan = self.leases.close(worker, lease)
        if loan is None:
            return None
        if loan.call is not None:
            self.budgets[loan.call.role].returned(loan.call.reserved)
        if loan.late:
            return None
        self._free(loan)
        return loan.item

    def leave(self, worker: str) -> tuple[list[Work], ImageId | None]:
        """A worker is dead; the work that it held, and the image it was decoding."""
        about = self.leases.workers.get(worker)
        for loan in about.overdue.values() if about is not None else ():
            self._free_late(loan)
        loans, decoding = self.leases.leave(worker)
        for loan in loans:
            self._free(loan)
            if loan.item.kind is WorkKind.PROBE_SAMPLING and loan.item.limit is not None:
                loan.item.limit.sampling_tried = False
        return [loan.item for loan in loans], None if decoding is None else decoding.item.image

    def expire(self, now: float) -> Overdue:
        """Leases past their deadline, and the workers to be killed for it."""
        found = self.leases.expire(now)
        for loan in found.failed:
            if loan.item.kind is not WorkKind.LOAD_POLL:
                self._free(loan)
        return Overdue(
            failed=[loan.item for loan in found.failed],
            hung=[loan.item for loan in found.hung],
            waiting=[loan.item for loan in found.waiting],
            kills=[KillWorker(worker=name, why=why) for name, why in found.kill.items()],
        )

    def _free(self, loan: Loan[Work]) -> None:
        """The endpoint may be asked the same again."""
        endpoint, kind = loan.item.limit, loan.item.kind
        if endpoint is not None and kind is WorkKind.LOAD_POLL:
            endpoint.observing = False
        elif endpoint is not None and kind is WorkKind.PROBE:
            endpoint.probing = False

    def _free_late(self, loan: Loan[Work]) -> None:
        """A load poll holds its thread until it is answered: one of them per endpoint."""
        if loan.item.kind is WorkKind.LOAD_POLL:
            self._free(loan)
