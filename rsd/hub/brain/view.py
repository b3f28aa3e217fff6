"""The brain's window: a frozen picture of it, for whoever reports on it or tends its surroundings.

Pure. A view costs as much as it has workers, endpoints and delayed items: build it once per tick,
never per event.
"""

from __future__ import annotations

from dataclasses import dataclass

from rsd.hub.brain.dispatch import Dispatcher
from rsd.hub.brain.endpoints import STATE_WORDS
from rsd.hub.brain.intake import Intake
from rsd.hub.brain.limits import MISCONFIGURED, QUOTA, UP, EndpointLimit
from rsd.hub.brain.turn import Turn
from rsd.protocol.vocabulary import Role

#: What the endpoints and processes of a role are called.
NAMES = {Role.GENERATE: "generator", Role.GRADE: "grader"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointView:
    """One model server in one role."""

    role: Role
    url: str
    model: str
    state: str  #: `unknown`, `up`, `down`, `misconfigured` or `quota`
    reason: str  #: why it is not up, or the last refusal of one that limits the rate
    in_flight: int  #: leases, those that wait for a thread included
    limit: int
    cap: int
    answered: int  #: items or probes, ever
    rate_limited: int
    waits: float  #: seconds until it is asked again, 0 when it may be asked now

    @property
    def usable(self) -> bool:
        """Whether work may be planned for it."""
        return self.state == UP

    @property
    def trouble(self) -> str:
        """Why it does not answer, in one line; "" when it does."""
        if self.usable:
            return ""
        state = STATE_WORDS.get(self.state, self.state)
        return f"{NAMES[self.role]} {self.url} {state}: {self.reason}".rstrip(": ")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleView:
    """All work of one role."""

    cap: int  #: most calls in flight, by settings
    ceiling: int  #: most calls in flight, by the host's load; 0 when paused
    waiting: int  #: calls that are ready or delayed
    in_flight: int  #: calls that workers hold
    running: int  #: those of them that have a thread
    slots: int  #: threads of the workers that stay


@dataclass(frozen=True, slots=True, kw_only=True)
class BrainView:
    """All of the brain that others may see, at one moment."""

    started: bool  #: the writer is open
    draining: bool
    level: str  #: of the host's load: `normal`, `reduced` or `paused`
    paused: bool  #: nothing new is lent
    factor: float  #: share of the normal number of calls that the host's load allows: 0 to 1
    roles: dict[Role, RoleView]
    endpoints: tuple[EndpointView, ...]
    delayed: int  #: items that wait for their time after an error
    open_leases: int  #: those whose answers are worth waiting for
    idle_leavers: tuple[str, ...]  #: workers that are to go and hold nothing any more
    unacknowledged: int  #: facts that are not durable yet
    writer_behind: bool  #: the writer must catch up before more is lent
    spool_refused: str  #: why prepared pictures cannot be written, "" when they can
    deferred: int  #: truncated files that may still grow

    def of(self, role: Role) -> list[EndpointView]:
        """The endpoints of a role."""
        return [e for e in self.endpoints if e.role == role]

    @property
    def never_usable(self) -> str:
        """Why no endpoint of a role can ever answer: all are misconfigured and none ever did."""
        for role in self.roles:
            found = self.of(role)
            if found and all(e.state == MISCONFIGURED and not e.answered for e in found):
                return f"{found[0].url}: {found[0].reason}"
        return ""

    def bottleneck(self, blocked: str) -> str:
        """What holds the line: `disk`, `host`, `quota`, `generator`, `grader`, `writer` or `input`.
        `blocked`: why the writer cannot write.
        """
        if blocked or self.spool_refused:
            return "disk"
        if self.level == "paused":
            return "host"
        for role in self.roles:
            endpoints = self.of(role)
            if endpoints and not any(e.usable for e in endpoints):
                return "quota" if any(e.state == QUOTA for e in endpoints) else NAMES[role]
        if self.writer_behind:
            return "writer"
        generate, grade = self.roles[Role.GENERATE], self.roles[Role.GRADE]
        if grade.waiting > grade.slots:
            return "grader"
        if generate.waiting or generate.in_flight:
            return "generator"
        return "grader" if grade.in_flight else "input"


def view_of(
    dispatch: Dispatcher, intake: Intake, turn: Turn, now: float, *, started: bool, draining: bool
) -> BrainView:
    """The view at `now`, in monotonic seconds."""
    leases = dispatch.leases
    return BrainView(
        started=started,
        draining=draining,
        level=dispatch.level,
        paused=dispatch.paused,
        factor=0.0 if dispatch.paused else dispatch.factor,
        roles={
            role: RoleView(
                cap=dispatch.cap(role),
                ceiling=dispatch.ceiling(role),
                waiting=dispatch.queue.waiting(role),
                in_flight=leases.in_flight(role),
                running=leases.running(role),
                slots=leases.slots(role),
            )
            for role in dispatch.policy.roles
        },
        endpoints=tuple(_endpoint(e, now) for e in dispatch.endpoints),
        delayed=dispatch.queue.delayed,
        open_leases=leases.open,
        idle_leavers=tuple(leases.idle_leavers()),
        unacknowledged=turn.unacknowledged,
        writer_behind=turn.full,
        spool_refused=intake.refused,
        deferred=intake.deferred,
    )


def _endpoint(endpoint: EndpointLimit, now: float) -> EndpointView:
    probe_in = 0.0 if endpoint.state == UP else endpoint.probe_at - now
    return EndpointView(
        role=endpoint.role,
        url=endpoint.url,
        model=endpoint.model,
        state=endpoint.state,
        reason=endpoint.reason,
        in_flight=endpoint.in_flight,
        limit=int(endpoint.limit),
        cap=endpoint.cap,
        answered=endpoint.answered,
        rate_limited=endpoint.rate_limited,
        waits=max(0.0, endpoint.cool_until - now, probe_in),
    )
