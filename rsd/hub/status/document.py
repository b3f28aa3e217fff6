"""The status document `rsd.status/1` of a running daemon. Reads, decides nothing."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from rsd import __version__
from rsd.hub.brain.brain import Brain
from rsd.hub.brain.limits import DOWN, MISCONFIGURED, QUOTA, UP, EndpointLimit
from rsd.pricing import money, prices_of, spent
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

    def rates(self) -> dict[str, float]:
        """Per second: images ended, candidates generated, grades given."""
        names = ("images_per_second", "candidates_per_second", "grades_per_second")
        if len(self.samples) < 2:
            return dict.fromkeys(names, 0.0)
        first, last = self.samples[0], self.samples[-1]
        span = max(last[0] - first[0], 1e-9)
        return {
            name: round(max(0, last[i] - first[i]) / span, 4) for i, name in enumerate(names, 1)
        }


def endpoint_view(endpoint: EndpointLimit, running: int, now: float) -> dict[str, Any]:
    """One endpoint as `status` shows it; `running`: calls of its role that have a thread."""
    return {
        "role": "generator" if endpoint.role == Role.GENERATE else "grader",
        "url": endpoint.url,
        "model": endpoint.model,
        "state": endpoint.state,
        "reason": endpoint.reason,
        "in_flight": min(endpoint.in_flight, running),
        "limit": int(endpoint.limit),
        "cap": endpoint.cap,
        "answered": endpoint.answered,
        "rate_limited": endpoint.rate_limited,
        "waits_seconds": round(max(0.0, endpoint.cool_until - now, _probe_in(endpoint, now)), 1),
    }


def _probe_in(endpoint: EndpointLimit, now: float) -> float:
    return 0.0 if endpoint.state == UP else endpoint.probe_at - now


def bottleneck(brain: Brain, blocked: str, level: str, now: float) -> str:
    """What holds the line: `disk`, `host`, `quota`, `generator`, `grader`, `writer` or `input`."""
    if blocked or brain.intake.refused:
        return "disk"
    if level == "paused":
        return "host"
    dispatch = brain.dispatch
    for role, name in ((Role.GENERATE, "generator"), (Role.GRADE, "grader")):
        endpoints = dispatch.of(role)
        if endpoints and not any(e.usable for e in endpoints):
            return "quota" if any(e.state == QUOTA for e in endpoints) else name
    if brain.turn.full:
        return "writer"
    if dispatch.waiting(Role.GRADE) > dispatch.leases.slots(Role.GRADE):
        return "grader"
    if dispatch.waiting(Role.GENERATE) or dispatch.leases.in_flight(Role.GENERATE):
        return "generator"
    return "grader" if dispatch.leases.in_flight(Role.GRADE) else "input"


def reasons(
    brain: Brain,
    blocked: str,
    log_refused: str,
    fatal: list[str],
    host_reason: str,
    refused: str,
) -> list[str]:
    """What is wrong, one line each, causes before effects; empty means healthy."""
    found: list[str] = []
    for disk in dict.fromkeys(r for r in (blocked, brain.intake.refused) if r):
        found.append(f"disk: {disk}; nothing is lost, work waits")
    if log_refused:
        found.append(f"disk: {log_refused}; lines go to stderr only")
    found += [f"{name} dies again and again (FATAL); see the log" for name in fatal]
    found += brain.dispatch.health()
    if host_reason and brain.dispatch.level == "paused":
        found.append(f"paused: {host_reason}")
    if refused:
        found.append(refused)
    return found


def document(
    *,
    brain: Brain,
    stats: Stats,
    prices: Prices,
    gauge: Gauge,
    now: float,
    identity: dict[str, Any],
    host: dict[str, Any],
    watch: dict[str, Any],
    blocked: str,
    log_refused: str,
    refused: str,
    children: list[dict[str, Any]],
    recent: list[dict[str, Any]],
) -> dict[str, Any]:
    """The whole document; `identity` holds pid, times and folders."""
    dispatch = brain.dispatch
    fatal = [child["name"] for child in children if child["state"] == "fatal"]
    wrong = reasons(brain, blocked, log_refused, fatal, str(host.get("reason", "")), refused)
    rates = gauge.rates()
    left = stats.queued + stats.active
    speed = rates["images_per_second"]
    down = {DOWN, MISCONFIGURED, QUOTA}
    return {
        "schema": "rsd.status/1",
        "running": True,
        "version": __version__,
        **identity,
        "health": "degraded" if wrong else "ok",
        "reasons": wrong,
        "draining": brain.draining,
        "images": {
            "seen": stats.seen,
            "queued": stats.queued,
            "active": stats.active,
            "high_quality": stats.high_quality,
            "low_quality": stats.low_quality,
            "failed": stats.failed,
            "duplicate": stats.duplicate,
            "withdrawn": stats.withdrawn,
        },
        "candidates": {
            "generated": stats.generated,
            "graded": stats.graded,
            "ungraded": stats.generated - stats.graded,
            "failed": stats.sample_failures,
        },
        "in_flight": {
            "generate": dispatch.leases.running(Role.GENERATE),
            "grade": dispatch.leases.running(Role.GRADE),
        },
        "retries": dispatch.delayed,
        "tokens": {
            "generator_input": stats.generator_input_tokens,
            "generator_output": stats.generator_output_tokens,
            "grader_input": stats.grader_input_tokens,
            "grader_output": stats.grader_output_tokens,
        },
        "cost": money(spent(stats), prices_of(prices)),
        "rates": rates,
        "eta_seconds": round(left / speed, 1)
        if speed > 0 and left
        else (0.0 if not left else None),
        "bottleneck": bottleneck(brain, blocked, dispatch.level, now),
        "throttle": {"level": "paused" if dispatch.paused else dispatch.level, **host},
        "endpoints": [
            endpoint_view(e, dispatch.leases.running(e.role), now)
            for e in dispatch.endpoints.values()
        ],
        "endpoints_down": sum(e.state in down for e in dispatch.endpoints.values()),
        "watch": watch,
        "processes": children,
        "deferred": brain.intake.deferred,
        "unacknowledged_facts": brain.turn.unacknowledged,
        "results_pending": stats.outbox,
        "recent_scores": recent,
    }
