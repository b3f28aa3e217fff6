"""How much each endpoint may be asked: concurrency, cool-downs, circuit. Pure; times are given.

Concurrency is slow start, then additive growth while the limit is really used, and one cut by
`CUT` per episode of rate limiting (TCP's AIMD with inspect_ai's figures). What was in flight when a
call was refused is what the server takes: the limit comes back to it soon and goes beyond it rarely
(as TCP's CUBIC does). A server that only queues never refuses: vLLM says in its metrics how many
requests run and how many wait, and the limit follows the running ones. An endpoint that fails
altogether is *down* and asked by tiny probes until one is answered, so that an outage consumes no
work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from rsd.errors import ErrorClass
from rsd.hub.brain.leases import OpenCalls
from rsd.protocol.vocabulary import CallError, RateWindow, RequestDialect, Role

#: Requests in flight that an endpoint starts with, or this share of its cap if that is more; slow
#: start doubles it every round trip.
FIRST_LIMIT, FIRST_SHARE = 32.0, 0.5
#: Factor of a cut, and the seconds within which further refusals belong to the same episode.
CUT, EPISODE_SECONDS = 0.8, 15.0
#: Seconds after a cut in which the limit does not grow, and in which it does not pass what the
#: server had taken.
HOLD_SECONDS, PROBE_SECONDS = 2.0, 12.0
#: Share of the limit that must be in use for answers to count as a reason to grow.
USED_TO_GROW = 0.8
#: Failures in a row, none answered in between, after which an endpoint counts as down.
FAILURES_TO_OPEN = 4
#: Refusals of different items in a row after which the endpoint, not the items, is at fault.
REFUSALS_TO_PAUSE = 12
#: Longest pause between two probes of an endpoint that is down, and of one that is misconfigured.
PROBE_PAUSE_MAX, SETUP_PAUSE_MAX = 15.0, 60.0
#: Pause after a rate limit that names no time, of a server that takes nothing at all.
COOL_DOWN = 1.0
#: Seconds between two polls of a server's own load, and the share of an endpoint's calls that may
#: wait in the server's queue: enough that a free slot finds one, too few to matter.
LOAD_SECONDS, QUEUE_SHARE = 1.0, 0.1
#: Longest pause between two load polls of a server that does not answer them.
LOAD_SECONDS_MAX = 60.0
#: The same in slow start, which goes on as long as a server reports that nothing waits.
START_SECONDS = 0.1
#: Longest time that a server's Retry-After is believed.
RETRY_AFTER_MAX = 3600.0

UNKNOWN, UP, DOWN, MISCONFIGURED, QUOTA = "unknown", "up", "down", "misconfigured", "quota"


@dataclass(slots=True)
class EndpointLimit:
    """One model server in one role."""

    role: Role
    url: str
    cap: int  #: most requests in flight
    probe_pause: float
    quota_pause: float
    model: str = ""  #: resolved by the first probe when the setting is empty
    dialect: RequestDialect = field(default_factory=RequestDialect)
    state: str = UNKNOWN
    reason: str = ""  #: why it is not up, or the last refusal of one that limits the rate
    limit: float = FIRST_LIMIT
    slow_start: bool = True
    calls: OpenCalls = field(default_factory=OpenCalls)  #: counted by the lease table
    prefetch: int = 0  #: leases that may wait for a thread of the workers, beyond the limit
    answered: int = 0  #: items or chat probes answered, ever
    failures: int = 0  #: in a row
    refusals: int = 0  #: in a row
    cool_until: float = 0.0
    cut_at: float = -EPISODE_SECONDS
    taken: float = math.inf  #: in flight when the last call was refused
    probe_at: float = 0.0
    pause: float = 0.0
    probing: bool = False
    max_model_len: int | None = None
    rate_limited: int = 0  #: 429s and busy answers, ever
    observable: bool = True  #: whether it reports its load, as far as is known
    observing: bool = False  #: a load poll is open, or was not answered in time and still may be
    observe_at: float = 0.0
    unobserved: int = 0  #: load polls in a row that failed
    sampling_tried: bool = False  #: whether a probe of its sampling parameters was lent
    queued: float = 0.0  #: of our calls, those that wait in the server's queue, by its last word
    rate_window_remaining: float = 0.0  #: calls that it takes before then
    rate_window_until: float = 0.0
    _before: float = 2.0  #: the limit before the last cut
    _credit: int = 0  #: answers that may still grow the limit: it was in use when they began

    def __post_init__(self) -> None:
        self.limit = self._first()

    def _first(self) -> float:
        return min(max(FIRST_LIMIT, FIRST_SHARE * self.cap), float(self.cap))

    def room(self, now: float) -> int:
        """Requests that may be started now."""
        if self.state != UP or now < self.cool_until:
            return 0
        room = max(0, int(self.limit) + self.prefetch - self.in_flight)
        return (
            room
            if now >= self.rate_window_until
            else max(0, min(room, int(self.rate_window_remaining)))
        )

    @property
    def in_flight(self) -> int:
        """Calls that are lent, also those that a limit before this one has lent."""
        return self.calls.count

    @property
    def usable(self) -> bool:
        """Whether work may be planned for it (a cool-down is only a delay)."""
        return self.state == UP

    def reloaded(self, cap: int, probe_pause: float, quota_pause: float) -> None:
        """A reload: new bounds and pauses. What was wrong may be mended: it is looked at now."""
        self.cap, self.probe_pause, self.quota_pause = cap, probe_pause, quota_pause
        self.limit = min(self.limit, float(cap))
        if self.state != UP:
            self.pause = self.probe_at = 0.0

    def started(self) -> None:
        """A request was lent."""
        self.rate_window_remaining -= 1
        if self.in_flight >= USED_TO_GROW * int(self.limit):
            self._credit = self.in_flight

    def on_rate_headers(
        self, windows: tuple[RateWindow, ...], tokens_per_call: float, now: float
    ) -> None:
        """The server names what it will still take: no more is started until that begins anew."""
        for window in windows:
            size = max(1.0, tokens_per_call) if window.tokens else 1.0
            calls = window.remaining / size - self.in_flight  # those may not be counted yet
            until = now + window.seconds
            if now >= self.rate_window_until or calls < self.rate_window_remaining:
                self.rate_window_remaining, self.rate_window_until = max(0.0, calls), until

    def succeeded(self, now: float) -> None:
        """An item was answered with what was asked for."""
        self.answered += 1
        self.failures = self.refusals = 0
        self.pause = 0.0
        if self.state == UP:
            self.reason = ""
        if self.queued:
            return  # it has enough
        if self._credit and now >= self.cool_until and now >= self.cut_at + HOLD_SECONDS:
            self._credit -= 1
            self.limit += 1.0 if self.slow_start else 1.0 / self.limit
            if now < self.cut_at + PROBE_SECONDS:
                self.limit = min(self.limit, self.taken)
            self.limit = min(self.limit, float(self.cap))

    def failed(self, error: CallError, now: float, started: float | None = None) -> None:
        """An item or a probe, `started` then, was not answered with what was asked for."""
        match error.error:
            case ErrorClass.RATE_LIMITED:
                self._cut(error, now, started)
            case ErrorClass.QUOTA:
                self._suspend(QUOTA, error, now, self.quota_pause)
            case ErrorClass.MISCONFIGURED:
                self._suspend(MISCONFIGURED, error, now, self._pause(now, SETUP_PAUSE_MAX))
            case ErrorClass.TRANSIENT:
                self.failures += 1
                if self.failures >= FAILURES_TO_OPEN or self.state != UP:
                    self._suspend(DOWN, error, now, self._pause(now, PROBE_PAUSE_MAX))
            case ErrorClass.REFUSED if error.reason == "bad_request":
                self.failures = 0
                self.refusals += 1
                if self.refusals >= REFUSALS_TO_PAUSE:
                    self.refusals = 0
                    self._suspend(MISCONFIGURED, error, now, self._pause(now, SETUP_PAUSE_MAX))
            case _:
                # The server works: this item had a wrong answer, or one that needs another dialect.
                self.answered += 1
                self.failures = 0

    def load_due(self, now: float) -> bool:
        """Whether the server should be asked for its load."""
        idle = self.state != UP or not self.in_flight
        return self.observable and not self.observing and not idle and now >= self.observe_at

    def loaded(self, running: float, waiting: float, now: float) -> None:
        """The server reported its load, in sequences: `n` answers of a request count as `n`. Those
        of other clients are among them, so our calls wait in proportion.
        """
        rising = self.slow_start and self.limit < self.cap
        self.observe_at = now + (START_SECONDS if rising else LOAD_SECONDS)
        self.unobserved = 0
        self.queued = waiting * self.in_flight / (running + waiting) if waiting else 0.0
        fair = max(1.0, QUEUE_SHARE * self.in_flight)
        if rising and not waiting and self.in_flight >= USED_TO_GROW * int(self.limit):
            self.limit = min(2 * self.limit, float(self.cap))
        if self.queued > fair:
            self.slow_start = False
            self.limit = max(1.0, min(self.limit, float(self.in_flight)) - (self.queued - fair))

    def load_unknown(self, error: CallError, now: float) -> None:
        """A load poll failed. A server that answers it otherwise than with its load never will."""
        self.observe_at = now + min(LOAD_SECONDS_MAX, LOAD_SECONDS * 2.0**self.unobserved)
        self.unobserved = min(self.unobserved + 1, 16)
        self.observable = error.error is ErrorClass.TRANSIENT
        self.queued = 0.0

    def probe_due(self, now: float) -> bool:
        """Whether a probe should be sent."""
        return self.state != UP and not self.probing and now >= self.probe_at

    def probed(self, now: float, *, model: str, max_model_len: int | None) -> None:
        """A probe was answered: slow start from the bottom."""
        self.probing = False
        if self.state != UNKNOWN:
            self.answered += 1  # a first probe only reads the list of models
        self.model = model
        self.max_model_len = max_model_len or self.max_model_len
        self.state, self.reason = UP, ""
        self.failures = self.refusals = 0
        self.limit = self._first()
        self.slow_start = True
        self.cool_until = 0.0
        self.observable, self.unobserved, self.queued = True, 0, 0.0

    def _cut(self, error: CallError, now: float, started: float | None) -> None:
        self.rate_limited += 1
        wait = min(error.retry_after or COOL_DOWN, RETRY_AFTER_MAX)
        if self.state != UP:  # a probe met the limit: the server is there
            self.cool_until = max(self.cool_until, now + wait)
            self.probe_at = now + wait
            return
        if error.retry_after or not self.in_flight:
            self.cool_until = max(self.cool_until, now + wait)
        self.reason = error.message or error.reason
        # A call that was sent after the last cut says that it was not enough.
        again = started is not None and started > self.cut_at
        if again or now >= self.cut_at + EPISODE_SECONDS:
            self.cut_at = now
            self.slow_start = False
            self._before = self.limit
            self.limit = max(1.0, self.limit * CUT)
            self.taken = math.inf
        if not error.retry_after:  # else it is a matter of time, not of how many at once
            # What was prefetched has no thread; and not all is concluded in one episode.
            there = min(float(self.in_flight), max(self._before, self.limit))
            self.taken = min(self.taken, max(1.0, there, self._before / 2))
            self.limit = min(self.limit, self.taken)

    def _pause(self, now: float, most: float) -> float:
        # Calls that were in flight when it began all fail before the next probe is due: only what
        # fails after that says that the trouble lasts.
        if self.state == UP or now >= self.probe_at:
            self.pause = min(most, self.pause * 2 or self.probe_pause)
        return self.pause or self.probe_pause

    def _suspend(self, state: str, error: CallError, now: float, pause: float) -> None:
        self.state = state
        self.reason = error.message or error.reason
        self.probe_at = max(self.probe_at, now + pause)


def pick_endpoint(
    endpoints: list[EndpointLimit], preferred: str | None, now: float
) -> EndpointLimit | None:
    """The endpoint that knows the image already if it has room, else the one with the most room
    for its size.
    """
    fit = [e for e in endpoints if e.room(now) > 0]
    for endpoint in fit:
        if endpoint.url == preferred:
            return endpoint
    return min(fit, key=lambda e: e.in_flight / e.limit, default=None)
