"""What goes into the brain and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from rsd.protocol.facts import DialectLearned, Fact
from rsd.protocol.learned import Learned
from rsd.protocol.tasks import (
    Crashed,
    Decoding,
    Failed,
    Generated,
    GivenBack,
    Graded,
    Lease,
    LoadRead,
    Prepared,
    Probed,
    SamplingProbed,
)
from rsd.protocol.vocabulary import ImageId, Rates, Recipe, Role, Stats, TokenPrices
from rsd.protocol.writer_talk import BacklogPage, Committed, ContentFound, Query, Recovered

# ------------------------------------------------------------------------------------------ events


@dataclass(frozen=True, slots=True, kw_only=True)
class RolePolicy:
    """The settings of one role."""

    endpoints: tuple[str, ...]  #: base URLs
    model: str  #: "" = the only one served
    cap: int  #: most requests in flight, all processes of the role together
    endpoint_cap: int  #: the same, per endpoint
    timeout: float  #: seconds of one call
    slots: int  #: threads of one process
    rates: Rates  #: all processes of the role together


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The settings that the brain acts on; replaced by a reload."""

    recipe: Recipe
    roles: dict[Role, RolePolicy]  #: never changed in place
    max_n: int
    grade_tokens: int
    reasoning_effort: str
    max_attempts: int
    max_age: float  #: seconds
    backoff: float
    backoff_max: float
    probe_pause: float
    quota_pause: float
    patience: float  #: seconds that a truncated file is waited for; 0 with `--once`
    once: bool = False
    probe_sampling: bool = True
    affinity: bool = True  #: an image's calls go to the server that knows it
    images_in_flight: int | None = None  #: most images in work; None: as fill the slots
    prices: dict[Role, TokenPrices] = field(default_factory=dict)  #: never changed in place


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerUp:
    """A worker process takes leases."""

    worker: str
    role: Role
    slots: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerGone:
    """A worker process is dead; all its replies came before this. `crashed`: of its own doing,
    not because somebody killed it.
    """

    worker: str
    crashed: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLeaving:
    """A reload replaces this worker: no new lease for it."""

    worker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Replied:
    """A worker answered a lease."""

    worker: str
    reply: (
        Decoding
        | Prepared
        | Generated
        | Graded
        | Probed
        | SamplingProbed
        | LoadRead
        | Failed
        | GivenBack
        | Crashed
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesSeen:
    """Stable files, new or changed; each becomes a fact."""

    facts: tuple[Fact, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PathsGone:
    """Files that left the folder; each becomes a fact."""

    facts: tuple[Fact, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryAsked:
    """A person asked for images again, or brought along what another run has learned."""

    facts: tuple[Fact, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The writer is open; what it remembered came as `Recovered` before."""

    stats: Stats
    dialects: tuple[DialectLearned, ...]
    learned: tuple[Learned, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanDone:
    """`--once`: the scan is over and its files are enrolled; `only` limits it to these paths."""

    only: frozenset[bytes] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPressure:
    """The host's load: `normal`, `reduced` or `paused`, and the share of the normal number of
    requests that it allows (0 to 1; at least one request is allowed but when paused).
    """

    level: str
    factor: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyChanged:
    """A reload."""

    policy: Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainRequested:
    """No admission and no lease from now on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Time has passed."""

    blocked: bool = False  #: the writer cannot write: no new work until it can
    folder_away: bool = False  #: a picture that is not found is not gone: none is prepared


Event = (
    WorkerUp
    | WorkerGone
    | WorkerLeaving
    | Replied
    | FilesSeen
    | PathsGone
    | RetryAsked
    | Started
    | Recovered
    | Committed
    | BacklogPage
    | ContentFound
    | ScanDone
    | HostPressure
    | PolicyChanged
    | DrainRequested
    | Tick
)


# ----------------------------------------------------------------------------------------- actions


@dataclass(frozen=True, slots=True, kw_only=True)
class Assign:
    """Lend a task to a worker."""

    worker: str
    lease: Lease


@dataclass(frozen=True, slots=True, kw_only=True)
class Persist:
    """Send a fact to the writer and keep it until it is acknowledged."""

    seq: int
    fact: Fact


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Send a question to the writer, again if the writer dies before it answers."""

    query: Query


@dataclass(frozen=True, slots=True, kw_only=True)
class Forget:
    """Tell the workers that an image is finished."""

    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KillWorker:
    """All leases of this worker are overdue: SIGKILL, the universal cancel."""

    worker: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """This worker is to give back the calls that no thread has taken yet."""

    worker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """A line for the log."""

    level: str  #: `info`, `warning` or `error`
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """An image got its result or was set aside (for progress bars and logs)."""

    image: ImageId
    path: bytes
    status: str  #: `high`, `low`, `failed`, `duplicate` or `withdrawn`
    score: float | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """`--once`: all is done and durable."""


Action = Assign | Persist | Ask | Forget | KillWorker | Recall | Log | Ended | Finished
