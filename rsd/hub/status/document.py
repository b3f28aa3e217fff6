"""The status document of a running daemon, out of what its rooms know. Reads, decides nothing."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import msgspec

from rsd import __version__
from rsd.hub.brain.limits import DOWN, MISCONFIGURED, QUOTA
from rsd.hub.brain.view import NAMES, BrainView, EndpointView
from rsd.pricing import money, prices_of, spent
from rsd.protocol.status import (
    EndpointStatus,
    InFlight,
    ProcessStatus,
    RecentScore,
    Speeds,
    Status,
    ThrottleStatus,
    WatchStatus,
    candidate_counts,
    image_counts,
    token_counts,
)
from rsd.protocol.vocabulary import Role, Stats
from rsd.settings.fields import Prices

#: Seconds over which the rates are taken.
RATE_WINDOW = 600.0
#: Samples kept for the rates, one every two seconds.
RATE_SAMPLES = 400
#: Last scores shown by progress bars.
RECENT_SCORES = 8


@dataclass(slots=True)
class Gauge:
    """Throughput over the last minutes, from the exact counters."""

    samples: deque[tuple[float, int, int, int]] = field(
        default_factory=lambda: deque(maxlen=RATE_SAMPLES)
    )

    def note(self, now: float, stats: Stats) -> None:
        """Take a sample; `now` is monotonic."""
        ended = stats.high_quality + stats.low_quality + stats.failed
        self.samples.append((now, ended, stats.generated, stats.grades))
        while self.samples and self.samples[0][0] < now - RATE_WINDOW:
            self.samples.popleft()

    def rates(self) -> Speeds:
        """Per second: images ended, candidates generated, grades given."""
        if len(self.samples) < 2:
            return Speeds()
        first, last = self.samples[0], self.samples[-1]
        span = max(last[0] - first[0], 1e-9)
        ended, generated, graded = (round(max(0, last[i] - first[i]) / span, 4) for i in (1, 2, 3))
        return Speeds(
            images_per_second=ended, candidates_per_second=generated, grades_per_second=graded
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the document holds beside the brain and the counters."""

    identity: Status  #: pid, times and folders
    host: ThrottleStatus  #: the last look at the host
    watch: WatchStatus
    processes: tuple[ProcessStatus, ...]
    recent: tuple[RecentScore, ...]
    blocked: str  #: why the writer cannot write, "" when it can
    log_refused: str  #: why the log file takes no lines
    reload_refused: str  #: why the last reload was refused


def document(
    view: BrainView, stats: Stats, prices: Prices, rates: Speeds, around: Surroundings
) -> Status:
    """The whole document."""
    wrong = reasons(view, around)
    return msgspec.structs.replace(
        around.identity,
        running=True,
        version=__version__,
        health="degraded" if wrong else "ok",
        reasons=tuple(wrong),
        draining=view.draining,
        images=image_counts(stats),
        candidates=candidate_counts(stats),
        in_flight=InFlight(
            generate=view.roles[Role.GENERATE].running, grade=view.roles[Role.GRADE].running
        ),
        retries=view.delayed,
        tokens=token_counts(stats),
        cost=money(spent(stats), prices_of(prices)),
        rates=rates,
        eta_seconds=time_left(stats.queued + stats.active, rates.images_per_second),
        bottleneck=view.bottleneck(around.blocked),
        throttle=throttle_status(view, around),
        endpoints=tuple(endpoint_status(e, view.roles[e.role].running) for e in view.endpoints),
        endpoints_down=sum(e.state in (DOWN, MISCONFIGURED, QUOTA) for e in view.endpoints),
        watch=around.watch,
        processes=around.processes,
        deferred=view.deferred,
        unacknowledged_facts=view.unacknowledged,
        results_pending=stats.outbox,
        recent_scores=around.recent,
    )


def reasons(view: BrainView, around: Surroundings) -> list[str]:
    """What is wrong, one line each, causes before effects; empty means healthy."""
    found: list[str] = []
    for disk in dict.fromkeys(r for r in (around.blocked, view.spool_refused) if r):
        found.append(f"disk: {disk}; nothing is lost, work waits")
    if around.watch.away:
        found.append(f"image_dir {around.watch.away}; nothing is withdrawn, it is waited for")
    if around.log_refused:
        found.append(f"disk: {around.log_refused}; lines go to stderr only")
    for process in around.processes:
        if process.state == "fatal":
            found.append(f"{process.name} dies again and again (FATAL); see the log")
        elif process.state == "silent":
            found.append(f"{process.name} does not answer")
    found += [e.trouble for e in view.endpoints if e.trouble]
    if around.host.reason and view.level == "paused":
        found.append(f"paused: {around.host.reason}")
    if around.reload_refused:
        found.append(around.reload_refused)
    return found


def time_left(images: int, speed: float) -> float | None:
    """Seconds for so many images at so many a second; None when nobody can say."""
    if not images:
        return 0.0
    return round(images / speed, 1) if speed > 0 else None


def throttle_status(view: BrainView, around: Surroundings) -> ThrottleStatus:
    """The level and the share of calls that are in force, and why."""
    return msgspec.structs.replace(
        around.host,
        level="paused" if view.paused else view.level,
        factor=round(view.factor, 3),
        reason=around.host.reason or (around.blocked if view.paused else ""),
    )


def endpoint_status(endpoint: EndpointView, running: int) -> EndpointStatus:
    """One endpoint; `running`: calls of its role that have a thread."""
    return EndpointStatus(
        role=NAMES[endpoint.role],
        url=endpoint.url,
        model=endpoint.model,
        state=endpoint.state,
        reason=endpoint.reason,
        in_flight=min(endpoint.in_flight, running),
        limit=endpoint.limit,
        cap=endpoint.cap,
        answered=endpoint.answered,
        rate_limited=endpoint.rate_limited,
        waits_seconds=round(endpoint.waits, 1),
    )
