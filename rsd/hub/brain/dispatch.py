"""What is ready, who may take it, where it is sent: work, workers and endpoints. Pure."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter, deque
from collections.abc import Callable

from rsd.hub.brain import leases
from rsd.hub.brain.budgets import Budget
from rsd.hub.brain.events import Assign, KillWorker, Log, Policy, Recall
from rsd.hub.brain.leases import LeaseTable
from rsd.hub.brain.limits import MISCONFIGURED, QUOTA, UNKNOWN, EndpointLimit, pick_endpoint
from rsd.hub.brain.queue import Work, WorkKind
from rsd.hub.brain.turn import Turn
from rsd.protocol.dialects import initial_dialect
from rsd.protocol.facts import DialectLearned
from rsd.protocol.tasks import Lease, LeaseId, Probe, ReadLoad, Task
from rsd.protocol.vocabulary import CallError, ImageId, RateWindow, RequestDialect, Role, Usage

#: Seconds that a lease may take beyond its call's own time-out before the worker counts as hung;
#: the worker ends a call by itself, so this only meets workers that are stuck.
LEASE_GRACE = 60.0
#: Seconds that preparing one picture may take.
PREPARE_DEADLINE = 300.0
#: Seconds that a look at a server's load may take.
LOOK_DEADLINE = 30.0
#: Ready calls among which one is looked for that its image's own server has room for.
LOOKAHEAD = 64

#: States of an endpoint in a user's words.
WORDS = {QUOTA: "out of credit", MISCONFIGURED: "misconfigured", UNKNOWN: "not reached yet"}


class Dispatcher:
    """Ready work by role, delayed work by time, and the rule of who gets what."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.leases: LeaseTable[Work] = LeaseTable()
        self.endpoints: dict[tuple[Role, str], EndpointLimit] = {}
        self.ready: dict[Role, deque[Work]] = {role: deque() for role in policy.roles}
        self.pictures: deque[Work] = deque()
        self.level = "normal"
        self.blocked = False  #: the writer cannot write: what is paid for now could be lost
        self._factor = 1.0
        self._delayed: list[tuple[float, int, Work]] = []
        self._tie = 0
        self._sampling_probed: set[str] = set()
        self._resting: set[tuple[Role, str]] = set()  # role and URL; "": all of the role
        self.budgets = {role: Budget(of.rates) for role, of in policy.roles.items()}
        self.configure(policy)

    def configure(self, policy: Policy) -> None:
        """Take over the endpoints of the settings; known ones keep what was learned of them."""
        self.policy = policy
        for role, of in policy.roles.items():
            if of.rates != self.budgets[role].rates:
                self.budgets[role].change(of.rates)
        before, self.endpoints = self.endpoints, {}
        for role, url in [(role, url) for role, of in policy.roles.items() for url in of.endpoints]:
            cap, model = policy.roles[role].endpoint_cap, policy.roles[role].model
            known = before.get((role, url))
            if known is not None and model in ("", known.model):
                known.reloaded(cap, policy.probe_pause, policy.quota_pause)
                self.endpoints[role, url] = known
            else:
                self.endpoints[role, url] = EndpointLimit(
                    role=role,
                    url=url,
                    cap=cap,
                    probe_pause=policy.probe_pause,
                    quota_pause=policy.quota_pause,
                    model=model,
                    dialect=initial_dialect(model, role),
                )

    # -------------------------------------------------------------------------------------- work

    def add(self, work: Work, *, front: bool = False) -> None:
        """Work that may start at once."""
        queue = self.ready[work.role] if work.kind.pays else self.pictures
        if front:
            queue.appendleft(work)
        else:
            queue.append(work)

    def later(self, work: Work, at: float) -> None:
        """Work that may start at a time."""
        self._tie += 1
        heapq.heappush(self._delayed, (at, self._tie, work))

    def due(self, now: float) -> None:
        """Move delayed work whose time has come in front of the rest: it was first once."""
        while self._delayed and self._delayed[0][0] <= now:
            self.add(heapq.heappop(self._delayed)[2], front=True)

    def planned(self, role: Role) -> int:
        """Calls of a role that are ready, delayed or under way."""
        return self.waiting(role) + self.leases.in_flight(role)

    def waiting(self, role: Role) -> int:
        """Calls of a role that are ready or delayed."""
        delayed = sum(1 for _, _, w in self._delayed if w.kind.pays and w.role == role)
        return len(self.ready[role]) + delayed

    @property
    def delayed(self) -> int:
        """Work that waits for its time after an error."""
        return len(self._delayed)

    def drop(self, wanted: Callable[[Work], bool]) -> None:
        """Forget work that nobody needs any more."""
        for queue in (self.pictures, *self.ready.values()):
            kept = [w for w in queue if wanted(w)]
            queue.clear()
            queue.extend(kept)
        self._delayed = [entry for entry in self._delayed if wanted(entry[2])]
        heapq.heapify(self._delayed)

    # --------------------------------------------------------------------------------- endpoints

    def of(self, role: Role) -> list[EndpointLimit]:
        """The endpoints of a role."""
        return [e for (r, _), e in self.endpoints.items() if r == role]

    def endpoint(self, work: Work) -> EndpointLimit | None:
        """The endpoint of a running or past try; None when a reload removed it."""
        return self.endpoints.get((work.role, work.endpoint))

    def endpoint_failed(
        self, endpoint: EndpointLimit, error: CallError, work: Work, turn: Turn
    ) -> None:
        """Tell the endpoint's limit, and the log when its state changed."""
        before = endpoint.state
        endpoint.failed(error, turn.now, work.lent_at or None)
        if endpoint.state != before:
            text = f"{endpoint.url} is {WORDS.get(endpoint.state, endpoint.state)}"
            turn.log("warning", f"{text}: {endpoint.reason}; items wait")

    def on_rate_headers(
        self, endpoint: EndpointLimit, windows: tuple[RateWindow, ...], now: float
    ) -> None:
        """A server named what it will still take."""
        endpoint.on_rate_headers(windows, sum(self.budgets[endpoint.role].guess), now)

    def learn(self, endpoint: EndpointLimit, dialect: RequestDialect, turn: Turn) -> None:
        """This endpoint wants to be asked in another way: remember it, say so once."""
        endpoint.dialect = dialect
        turn.persist(DialectLearned(endpoint=endpoint.url, model=endpoint.model, dialect=dialect))
        turn.log("info", f"{endpoint.url} {endpoint.model} is asked with {dialect}")

    def restore(self, learned: tuple[DialectLearned, ...]) -> None:
        """What earlier lives of the hub learned."""
        for known in learned:
            for endpoint in self.endpoints.values():
                if (endpoint.url, endpoint.model) == (known.endpoint, known.model):
                    endpoint.dialect = known.dialect

    def usable(self, role: Role) -> bool:
        """Whether any endpoint of this role answers."""
        return any(e.usable for e in self.of(role))

    def cap(self, role: Role) -> int:
        """Most calls of a role in flight, by settings."""
        return self.policy.roles[role].cap

    def set_level(self, level: str, factor: float) -> None:
        """What the host's load allows from now on."""
        self.level, self._factor = level, factor

    @property
    def paused(self) -> bool:
        """Whether nothing new is lent."""
        return self.blocked or self.level == "paused"

    def ceiling(self, role: Role, now: float) -> int:
        """Calls of a role that the host's load allows; never less than one but when paused."""
        if self.paused:
            return 0
        return max(1, math.ceil(self.cap(role) * self._factor))

    # ------------------------------------------------------------------------------------ leases

    def assign(
        self, now: float, build: Callable[[Work, EndpointLimit], Task | None]
    ) -> list[Assign]:
        """Lend what may be lent, graders first: a decision frees an image, a draw adds work."""
        out: list[Assign] = []
        for role in reversed(Role):
            room = self.ceiling(role, now) - self.leases.in_flight(role)
            ahead = self._ahead(role, now)
            room += ahead
            queue = self.ready[role]
            while queue and room > 0:
                at, endpoint = self._next(role, now)
                work = queue[at]
                worker = self.leases.pick(role, work.sha256, ahead > 0)
                if endpoint is None or worker is None or not self.budgets[role].ready(now):
                    break
                del queue[at]
                task = build(work, endpoint)
                if task is None:
                    continue
                if work.tried != endpoint.url:
                    work.tried, work.answered_before = endpoint.url, endpoint.answered
                work.endpoint, work.dialect = endpoint.url, endpoint.dialect
                work.lent_at = now
                work.reserved = self.budgets[role].started()
                endpoint.started()
                tries = 2 if ahead else 1  # one in front of it on its thread, and its own
                deadline = now + tries * self.policy.roles[role].timeout + LEASE_GRACE
                number = self.leases.grant(worker, work, deadline=deadline, sha256=work.sha256)
                out.append(Assign(worker=worker.name, lease=Lease(lease=number, task=task)))
                room -= 1
        return out

    def _ahead(self, role: Role, now: float) -> int:
        """Leases that the workers of a role may hold beyond their threads, so that a free thread
        need not wait for the hub. An endpoint gets more than its limit only if that is no lower
        than the threads: what is lent ahead then waits for a thread, and no server sees more.
        """
        threads = self.leases.threads(role)
        ahead = self.leases.spare(role) if self.ceiling(role, now) >= threads > 0 else 0
        for endpoint in self.of(role):
            endpoint.ahead = ahead if int(endpoint.limit) >= threads else 0
        return ahead

    def recall(self, now: float, *, draining: bool) -> list[Recall]:
        """When an endpoint, or all, begin to rest: who holds calls for which no thread was free
        gives them back, so that nothing is begun that was lent ahead.
        """
        resting = {k for k, e in self.endpoints.items() if not e.usable or now < e.cool_until}
        if draining or self.paused:
            resting |= {(role, "") for role in self.policy.roles}
        new, self._resting = resting - self._resting, resting
        roles = {role for role, _ in new}
        return [
            Recall(worker=worker.name)
            for worker in self.leases.workers.values()
            if worker.role in roles and len(worker.calls) > worker.slots
        ]

    def home(self, role: Role, known: str) -> str:
        """The endpoint whose caches are to hold an image: the one that has it already, else the one
        with the least to do for its size. "" when there is nothing to choose.
        """
        usable = [e for e in self.of(role) if e.usable]
        if len(usable) < 2 or not self.policy.affinity:
            return ""
        if any(e.url == known for e in usable):
            return known
        waiting = Counter(work.endpoint for work in self.ready[role])
        return min(usable, key=lambda e: (waiting[e.url] + e.in_flight) / e.limit).url

    def _next(self, role: Role, now: float) -> tuple[int, EndpointLimit | None]:
        """Which of the ready work goes where: the first that its image's own server has room for,
        else the first of all, to whom has room.
        """
        endpoints, queue = self.of(role), self.ready[role]
        if len(endpoints) > 1:
            for at, work in enumerate(itertools.islice(queue, LOOKAHEAD)):
                home = self.endpoints.get((role, work.endpoint))
                if home is None or not home.usable or now < home.cool_until:
                    return at, pick_endpoint(endpoints, None, now)
                if home.room(now) > 0:
                    return at, home
        return 0, pick_endpoint(endpoints, queue[0].endpoint or None, now)

    def assign_prepares(self, now: float, build: Callable[[Work], Task | None]) -> list[Assign]:
        """Lend pictures to be prepared; they wait for no endpoint."""
        out: list[Assign] = []
        queue = self.pictures
        while queue and not self.paused:
            worker = self.leases.pick_for_prepare(Role.GENERATE)
            if worker is None:
                break
            work = queue.popleft()
            task = build(work)
            if task is None:
                continue
            deadline = now + PREPARE_DEADLINE
            number = self.leases.grant(worker, work, deadline=deadline, kind=leases.PREPARE)
            out.append(Assign(worker=worker.name, lease=Lease(lease=number, task=task)))
        return out

    def assign_probes(self, now: float) -> list[Assign]:
        """Probe endpoints that are not known to be up: one tiny call each, no work consumed."""
        out: list[Assign] = []
        for (role, url), endpoint in self.endpoints.items():
            if not endpoint.probe_due(now):
                continue
            worker = self.leases.pick(role, "", True)
            if worker is None:
                continue
            sampling = role is Role.GENERATE and self.policy.probe_sampling
            sampling = sampling and url not in self._sampling_probed
            endpoint.probing = True
            work = Work(kind=WorkKind.PROBE, image="", role=role, endpoint=url)
            deadline = now + 5 * self.policy.roles[role].timeout + LEASE_GRACE
            number = self.leases.grant(worker, work, deadline=deadline)
            task = Probe(
                endpoint=url,
                model=self.policy.roles[role].model or endpoint.model,
                sampling=sampling,
                dialect=endpoint.dialect,
            )
            out.append(Assign(worker=worker.name, lease=Lease(lease=number, task=task)))
        return out

    def assign_looks(self, now: float) -> list[Assign]:
        """Ask the servers that are at work how full they are."""
        out: list[Assign] = []
        for (role, url), endpoint in self.endpoints.items():
            worker = self.leases.pick_aside(role) if endpoint.load_due(now) else None
            if worker is None:
                continue
            endpoint.observing = True
            work = Work(kind=WorkKind.LOAD_POLL, image="", role=role, endpoint=url)
            deadline = now + LOOK_DEADLINE
            number = self.leases.grant(worker, work, deadline=deadline, kind=leases.ASIDE)
            lease = Lease(lease=number, task=ReadLoad(endpoint=url))
            out.append(Assign(worker=worker.name, lease=lease))
        return out

    def sampling_probed(self, url: str) -> None:
        """The sampling parameters of this endpoint have been tried."""
        self._sampling_probed.add(url)

    def lent_images(self) -> set[ImageId]:
        """The images of all open calls; looks at every lease."""
        return {loan.item.image for loan in self.leases.loans.values() if loan.kind == leases.CALL}

    def settle(self, worker: str, lease: LeaseId, usage: Usage | None) -> Work | None:
        """A reply came; None when its lease had ended before. `usage`: tokens of the call."""
        work = self.leases.settle(worker, lease)
        if work is not None:
            self._ended(work, usage)
        return work

    def give_back(self, worker: str, lease: LeaseId) -> Work | None:
        """A call that was lent and not begun; None when its lease had ended before."""
        work = self.leases.settle(worker, lease)
        if work is not None:
            if work.kind.pays:
                self.budgets[work.role].returned(work.reserved)
            self._ended(work)
        return work

    def leave(self, worker: str) -> tuple[list[Work], str | None]:
        """A worker is dead; the work that it held, and the image it was decoding."""
        works, decoding = self.leases.leave(worker)
        for work in works:
            self._ended(work)
        return works, decoding

    def expire(self, now: float) -> tuple[list[Work], list[KillWorker | Log]]:
        """Leases past their deadline, and the workers to be killed for it."""
        works, silent = self.leases.expire(now)
        for work in works:
            self._ended(work)
        kills: list[KillWorker | Log] = [
            KillWorker(worker=name, why="all its leases are overdue") for name in silent
        ]
        return works, kills

    def _ended(self, work: Work, usage: Usage | None = None) -> None:
        if work.kind.pays:
            self.budgets[work.role].ended(work.reserved, usage)
        endpoint = self.endpoint(work)
        if work.kind is WorkKind.PREPARE or endpoint is None:
            return
        if work.kind is WorkKind.PROBE:
            endpoint.probing = False
        elif work.kind is WorkKind.LOAD_POLL:
            endpoint.observing = False
        else:
            endpoint.ended()
