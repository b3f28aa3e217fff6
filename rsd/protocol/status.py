"""The status document `rsd.status/1`: one struct, written by the hub, read by everybody else.

Every field has a default, so that a reader takes the document of an older daemon; fields that it
does not know are ignored. Names and meanings never change within `rsd.status/1`.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import Struct

from rsd.protocol.vocabulary import Stats

Schema = Literal["rsd.status/1"]
#: `bottleneck` of a document that only its identity is known of.
FOREIGN = "unknown"


class ImageCounts(Struct, frozen=True, kw_only=True):
    """Paths by what became of them; `seen` is the sum of all others."""

    seen: int = 0
    queued: int = 0
    active: int = 0
    high_quality: int = 0
    low_quality: int = 0
    failed: int = 0
    duplicate: int = 0
    withdrawn: int = 0

    @property
    def open(self) -> int:
        """Images that are not at their end."""
        return self.queued + self.active

    @property
    def ended(self) -> int:
        """Images that are at their end, duplicates and withdrawn ones included."""
        return self.parts - self.open

    @property
    def parts(self) -> int:
        """The sum of all counts but `seen`."""
        counts: tuple[int, ...] = msgspec.structs.astuple(self)
        return sum(counts) - self.seen


class CandidateCounts(Struct, frozen=True, kw_only=True):
    """Candidates since the state began."""

    generated: int = 0
    graded: int = 0  #: with at least one grade
    ungraded: int = 0
    failed: int = 0  #: planned and given up


class InFlight(Struct, frozen=True, kw_only=True):
    """Calls that have a thread now."""

    generate: int = 0
    grade: int = 0


class Tokens(Struct, frozen=True, kw_only=True):
    """Tokens since the state began, as the servers counted them, those of failed calls included."""

    generator_input: int = 0
    generator_output: int = 0
    grader_input: int = 0
    grader_output: int = 0
    generator_cached: int = 0  #: part of the input
    generator_reasoning: int = 0  #: part of the output
    grader_cached: int = 0
    grader_reasoning: int = 0
    unused_input: int = 0  #: part of both roles' input, of calls that gave nothing to keep
    unused_output: int = 0


class Speeds(Struct, frozen=True, kw_only=True):
    """Means over the last ten minutes, or since the start."""

    images_per_second: float = 0.0  #: that came to a result or failed
    candidates_per_second: float = 0.0
    grades_per_second: float = 0.0


class ThrottleStatus(Struct, frozen=True, kw_only=True):
    """What the host's load allows. The figures are None before the first look."""

    level: str = "normal"  #: `normal`, `reduced` or `paused`
    factor: float = 1.0  #: share of the normal number of calls in flight, 0 to 1
    reason: str = ""
    cpu_percent: float | None = None  #: of all CPUs, without nice time of others
    own_cpu_percent: float | None = None  #: of all CPUs, used by this rsd
    memory_percent: float | None = None  #: in use
    disk_free_bytes: int | None = None


class EndpointStatus(Struct, frozen=True, kw_only=True):
    """One model server in one role."""

    role: str  #: `generator` or `grader`
    url: str
    model: str = ""
    state: str = "unknown"  #: `unknown`, `up`, `down`, `misconfigured` or `quota`
    reason: str = ""
    in_flight: int = 0
    limit: int = 0  #: calls in flight that it is given now
    cap: int = 0  #: most that it would ever be given
    answered: int = 0
    rate_limited: int = 0  #: refusals for the rate, ever
    waits_seconds: float = 0.0  #: until it is asked again


class WatchStatus(Struct, frozen=True, kw_only=True):
    """The watched folder."""

    path: str | None = None
    mode: str | None = None
    last_scan_age_seconds: float | None = None
    settling: int = 0  #: files that may still change
    away: str = ""  #: why the folder cannot be looked at, "" when it can


class ProcessStatus(Struct, frozen=True, kw_only=True):
    """One child of the hub."""

    name: str
    role: str
    pid: int | None = None
    state: str = "starting"  #: `starting`, `up` (it answers), `silent` or `fatal`


class RecentScore(Struct, frozen=True, kw_only=True):
    """One of the last decisions."""

    image: str
    score: float
    quality: str


class Status(Struct, frozen=True, kw_only=True):
    """The whole document. Times are Unix seconds, `written_monotonic` those of the boot."""

    schema: Schema = "rsd.status/1"
    running: bool = False
    version: str = ""
    pid: int | None = None
    created: str | None = None  #: which process of that pid (`rsd.system.processes`)
    written: float | None = None
    written_monotonic: float = 0.0
    started: float | None = None
    uptime_seconds: float = 0.0
    image_dir: str | None = None
    output_dir: str | None = None
    state_dir: str | None = None
    once: bool = False
    health: str = "stopped"  #: `ok`, `degraded` or `stopped`
    reasons: tuple[str, ...] = ()  #: why it is not `ok`, causes before effects
    draining: bool = False
    images: ImageCounts = ImageCounts()
    candidates: CandidateCounts = CandidateCounts()
    in_flight: InFlight = InFlight()
    retries: int = 0  #: items that wait for their time after an error
    tokens: Tokens = Tokens()
    cost: float | None = None  #: in the currency of the prices; None without prices
    rates: Speeds = Speeds()
    eta_seconds: float | None = None  #: None when nobody can say
    bottleneck: str = "stopped"
    throttle: ThrottleStatus = ThrottleStatus()
    endpoints: tuple[EndpointStatus, ...] = ()
    endpoints_down: int = 0
    watch: WatchStatus = WatchStatus()
    processes: tuple[ProcessStatus, ...] = ()
    deferred: int = 0  #: truncated files that may still grow
    unacknowledged_facts: int = 0
    results_pending: int = 0
    recent_scores: tuple[RecentScore, ...] = ()


class Identity(Struct, frozen=True, kw_only=True):
    """Who wrote a document; all that is read of one that does not decode as `Status`."""

    schema: Schema
    pid: int
    version: str = ""
    created: str | None = None
    written_monotonic: float = 0.0


def decode(text: bytes) -> Status | None:
    """A document that a hub wrote; None when it is not one, or not whole.

    Of a document that another version wrote in another form only the identity is kept, with the
    reason in `reasons`.
    """
    try:
        status = msgspec.json.decode(text, type=Status)
    except msgspec.DecodeError:
        return _foreign(text)
    return status if status.pid is not None else None


def _foreign(text: bytes) -> Status | None:
    try:
        who = msgspec.json.decode(text, type=Identity)
    except msgspec.DecodeError:
        return None
    return Status(
        running=True,
        version=who.version,
        pid=who.pid,
        created=who.created,
        written_monotonic=who.written_monotonic,
        health="degraded",
        reasons=(f"its status is of another form (version {who.version or 'unknown'})",),
        bottleneck=FOREIGN,
    )


def image_counts(stats: Stats) -> ImageCounts:
    """The counts of images out of the exact counters."""
    return msgspec.convert(stats, ImageCounts, from_attributes=True)


def candidate_counts(stats: Stats) -> CandidateCounts:
    """The counts of candidates out of the exact counters."""
    return CandidateCounts(
        generated=stats.generated,
        graded=stats.graded,
        ungraded=stats.generated - stats.graded,
        failed=stats.sample_failures,
    )


def token_counts(stats: Stats) -> Tokens:
    """The tokens out of the exact counters."""
    names = msgspec.structs.asdict(Tokens())
    return Tokens(**{name: getattr(stats, f"{name}_tokens") for name in names})
