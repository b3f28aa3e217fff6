"""The endpoints of all roles: known, chosen, learned of, complained about. Pure."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence

from rsd.hub.brain.events import Policy, RolePolicy
from rsd.hub.brain.leases import LeaseTable
from rsd.hub.brain.limits import MISCONFIGURED, QUOTA, UNKNOWN, EndpointLimit, pick_endpoint
from rsd.hub.brain.queue import Work
from rsd.hub.brain.turn import Turn
from rsd.protocol.dialects import initial_dialect
from rsd.protocol.facts import DialectLearned
from rsd.protocol.vocabulary import CallError, RequestDialect, Role

#: Ready calls among which one is looked for that its image's own server has room for.
LOOKAHEAD = 64

#: States of an endpoint in a user's words.
STATE_WORDS = {QUOTA: "out of credit", MISCONFIGURED: "misconfigured", UNKNOWN: "not reached yet"}


class Endpoints:
    """What is known of every endpoint of the settings, by role and URL."""

    def __init__(self, policy: Policy, leases: LeaseTable[Work]) -> None:
        self._policy = policy
        self._leases = leases
        self._limits: dict[tuple[Role, str], EndpointLimit] = {}
        self._of: dict[Role, list[EndpointLimit]] = {}
        self.configure(policy)

    def configure(self, policy: Policy) -> None:
        """Take over the endpoints of the settings; known ones keep what was learned of them."""
        self._policy = policy
        before, self._limits = self._limits, {}
        for role, of in policy.roles.items():
            for url in of.endpoints:
                known = before.get((role, url))
                if known is not None and of.model in ("", known.model):
                    known.reloaded(of.endpoint_cap, policy.probe_pause, policy.quota_pause)
                    self._limits[role, url] = known
                else:
                    self._limits[role, url] = self._new(role, url, of)
        self._of = {role: [e for e in self if e.role == role] for role in policy.roles}
        self._leases.keep_calls(set(self._limits))

    def _new(self, role: Role, url: str, of: RolePolicy) -> EndpointLimit:
        return EndpointLimit(
            role=role,
            url=url,
            cap=of.endpoint_cap,
            probe_pause=self._policy.probe_pause,
            quota_pause=self._policy.quota_pause,
            model=of.model,
            dialect=initial_dialect(of.model, role),
            calls=self._leases.calls(role, url),
        )

    def __iter__(self) -> Iterator[EndpointLimit]:
        return iter(self._limits.values())

    def of(self, role: Role) -> list[EndpointLimit]:
        """The endpoints of a role."""
        return self._of.get(role, [])

    def find(self, work: Work) -> EndpointLimit | None:
        """The endpoint of a running or past try; None when a reload removed it or gave it another
        model, of which the try says nothing.
        """
        limit = work.limit
        current = limit is not None and self._limits.get((limit.role, limit.url)) is limit
        return limit if current else None

    def usable(self, role: Role) -> bool:
        """Whether any endpoint of this role answers."""
        return any(e.usable for e in self.of(role))

    def served(self, role: Role) -> str:
        """The model of a role as its servers name it; "" as long as none has answered."""
        return next((e.model for e in self.of(role) if e.model), "")

    def unknown(self, role: Role) -> bool:
        """Whether any endpoint of this role has neither answered nor failed yet."""
        return any(e.state == UNKNOWN for e in self.of(role))

    # ------------------------------------------------------------------------------------ choice

    def choose(
        self, role: Role, queue: Sequence[Work], now: float
    ) -> tuple[int, EndpointLimit | None]:
        """Which of the ready work goes where: the first that its image's own server has room for,
        else the first of all, to whom has room.
        """
        endpoints = self.of(role)
        if len(endpoints) > 1:
            for at, work in enumerate(itertools.islice(queue, LOOKAHEAD)):
                home = self._limits.get((role, work.endpoint))
                if home is None or not home.usable or now < home.cool_until:
                    return at, pick_endpoint(endpoints, None, now)
                if home.room(now) > 0:
                    return at, home
        return 0, pick_endpoint(endpoints, queue[0].endpoint or None, now)

    def home(self, role: Role, known: str, queue: Sequence[Work]) -> str:
        """The endpoint whose caches are to hold an image: the one that has it already, else the one
        with the least to do for its size. "" when there is nothing to choose.
        """
        endpoints = self.of(role)
        usable = [e for e in endpoints if e.usable] if len(endpoints) > 1 else endpoints
        if len(usable) < 2 or not self._policy.affinity:
            return ""
        if any(e.url == known for e in usable):
            return known
        waiting = Counter(work.endpoint for work in queue)
        return min(usable, key=lambda e: (waiting[e.url] + e.in_flight) / e.limit).url

    def resting(self, now: float) -> set[tuple[Role, str]]:
        """Those that take nothing at the moment."""
        return {(e.role, e.url) for e in self if not e.usable or now < e.cool_until}

    # ---------------------------------------------------------------------------------- learning

    def failed(self, endpoint: EndpointLimit, error: CallError, work: Work, turn: Turn) -> None:
        """A call or a probe failed: its limit hears of it, and the log when the state changed."""
        before = endpoint.state
        endpoint.failed(error, turn.now, work.lent_at or None)
        if endpoint.state != before:
            text = f"{endpoint.url} is {STATE_WORDS.get(endpoint.state, endpoint.state)}"
            turn.log("warning", f"{text}: {endpoint.reason}; items wait")

    def learn(self, endpoint: EndpointLimit, dialect: RequestDialect, turn: Turn) -> None:
        """This endpoint wants to be asked in another way: remember it, log it once."""
        endpoint.dialect = dialect
        turn.persist(DialectLearned(endpoint=endpoint.url, model=endpoint.model, dialect=dialect))
        turn.log("info", f"{endpoint.url} {endpoint.model} is asked with {dialect}")

    def restore(self, learned: tuple[DialectLearned, ...]) -> None:
        """What earlier lives of the hub learned."""
        for known in learned:
            for endpoint in self:
                if (endpoint.url, endpoint.model) == (known.endpoint, known.model):
                    endpoint.dialect = known.dialect
