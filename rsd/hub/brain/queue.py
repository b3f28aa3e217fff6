"""One piece of work for a worker, and what becomes of it after an error. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from rsd.protocol.vocabulary import ImageId, RequestDialect, Role
from rsd.protocol.writer_talk import QueuedImage


class WorkKind(StrEnum):
    """What there is to do."""

    PREPARE = "prepare"
    GENERATE = "generate"
    GRADE = "grade"
    PROBE = "probe"  #: whether an endpoint is of use
    LOAD_POLL = "load_poll"  #: a server's own account of its load

    @property
    def pays(self) -> bool:
        """Whether it is a call for an image: counted by limits and budgets, queued by role."""
        return self in (WorkKind.GENERATE, WorkKind.GRADE)


@dataclass(slots=True, eq=False)
class Work:
    """What a lease is about; it survives its leases and counts the tries."""

    kind: WorkKind
    image: ImageId
    role: Role = Role.GENERATE  #: whose workers, and whose endpoint
    sha256: str = ""
    indices: tuple[int, ...] = ()  #: candidates: to make, or to grade
    number: int = 0  #: which grade, for `grade`
    rubric: str = ""  #: that it is graded by
    queued: QueuedImage | None = None  #: for `prepare` of an image that is not active yet
    respool: bool = False  #: `prepare` of an active image whose spool file is gone
    endpoint: str = ""  #: of the running or last try
    attempts: int = 0  #: tries that count
    tried: str = ""  #: endpoint of the last failed try, and its answers up to then
    answered_before: int = 0
    first_counted: float | None = None
    killed: int = 0  #: tries ended by a kill or by a lack of memory: nobody's fault
    busy: int = 0  #: refusals as busy, for requests with `n` that can never fit
    dialect: RequestDialect | None = None  #: that the running or last try was made with
    reduced: bool = False  #: the picture is sent at half its size
    token_factor: float = 1.0
    lent_at: float = 0.0  #: of the running or last try
    reserved: tuple[float, float] = (0.0, 0.0)  #: tokens that the running try is thought to take
    deferred_since: float | None = None  #: a truncated file that may still grow
