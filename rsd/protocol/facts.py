"""Facts: what has happened for good. Numbered by the hub, committed by the writer, idempotent.

Paths are raw bytes relative to the image folder, because file names need not be UTF-8 (JSON carries
them as base64).
"""

from __future__ import annotations

from msgspec import Struct, field

from rsd.protocol.learned import Learned
from rsd.protocol.vocabulary import (
    Arm,
    CallError,
    Candidate,
    Grade,
    ImageId,
    ImageInfo,
    Recipe,
    RequestDialect,
    Role,
    Usage,
)


class ConfigStored(Struct, frozen=True, kw_only=True, tag_field="kind", tag="config"):
    """A recipe that images refer to by fingerprint."""

    recipe: Recipe


class DialectLearned(Struct, frozen=True, kw_only=True, tag_field="kind", tag="profile"):
    """An endpoint's way of being asked, kept over restarts."""

    endpoint: str
    model: str
    dialect: RequestDialect = field(name="profile")  # its name on disk


class ImageEnrolled(Struct, frozen=True, kw_only=True, tag_field="kind", tag="enrolled"):
    """A stable file was seen. New path: queued; unchanged: nothing; else: checked again."""

    path: bytes
    size: int
    mtime_ns: int
    time: float


class ImageGone(Struct, frozen=True, kw_only=True, tag_field="kind", tag="gone"):
    """The file left the folder: an undecided image is withdrawn, a decided one keeps its result."""

    path: bytes
    time: float


class ImageChecked(Struct, frozen=True, kw_only=True, tag_field="kind", tag="checked"):
    """A changed file turned out to hold the bytes already known (a touch), or could not be read."""

    image: ImageId
    queue_seq: int
    lost: bool = False  #: it was not even there


class ImageStarted(Struct, frozen=True, kw_only=True, tag_field="kind", tag="started"):
    """The picture is verified and becomes active, as a new version if its bytes are new."""

    image: ImageId
    queued_as: ImageId  #: differs from `image` when the bytes at the path are a new version
    queue_seq: int
    path: bytes
    version: int
    info: ImageInfo
    config: str
    time: float


class RecipeChanged(Struct, frozen=True, kw_only=True, tag_field="kind", tag="recipe_changed"):
    """An active image goes on with another grader, or with the name of its generator: its recipe is
    this one from now on.
    """

    image: ImageId
    config: str  #: fingerprint of a stored recipe


class PlannedSample(Struct, frozen=True, kw_only=True):
    """One candidate that a step asks for."""

    index: int
    arm: Arm
    seed: int
    explore: bool = False


class PlannedGrading(Struct, frozen=True, kw_only=True):
    """One grade that a step asks for."""

    index: int  #: of the candidate
    number: int  #: unique for a candidate, over all rubrics


class StepChosen(Struct, frozen=True, kw_only=True, tag_field="kind", tag="step"):
    """A sampling decision, durable before its leases go out, so that a restart replays it."""

    image: ImageId
    round: int
    samples: tuple[PlannedSample, ...] = ()
    gradings: tuple[PlannedGrading, ...] = ()
    rubric: str = ""  #: that the gradings are of
    regrade: tuple[int, ...] = ()  #: of format 1, where each index asks for one more grade


class CandidateMade(Struct, frozen=True, kw_only=True, tag_field="kind", tag="candidate"):
    """A candidate was generated."""

    image: ImageId
    candidate: Candidate


class CandidateGraded(Struct, frozen=True, kw_only=True, tag_field="kind", tag="grade_fact"):
    """A candidate was graded."""

    image: ImageId
    grade: Grade


class SampleFailed(Struct, frozen=True, kw_only=True, tag_field="kind", tag="sample_failed"):
    """A planned candidate has no completion and will not be asked for again."""

    image: ImageId
    index: int
    error: CallError
    time: float


class GradingFailed(Struct, frozen=True, kw_only=True, tag_field="kind", tag="grading_failed"):
    """A candidate stays `ungraded` for this grade number: an error never becomes a score."""

    image: ImageId
    index: int
    number: int
    error: CallError
    time: float


class CallSpent(Struct, frozen=True, kw_only=True, tag_field="kind", tag="spent"):
    """A call whose tokens are in no candidate and no grade: it failed, was truncated or late, was a
    probe, or gave more than was planned.
    """

    role: Role
    endpoint: str
    model: str
    usage: Usage
    outcome: str  #: short stable word for statistics


class Agreement(Struct, frozen=True, kw_only=True):
    """How much the candidates of an image agreed when it was decided, from 0 to 1."""

    level: float  #: mean over the candidates
    distinct: int  #: different texts
    winner: float  #: of the winner with the others


class ImageDecided(
    Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="decided"
):
    """The winner is known. Applies only if `decision` is the stored number plus one."""

    image: ImageId
    decision: int
    winner: int
    score: float
    expected_score: float
    quality: str  #: `high` or `low`
    reason: str  #: why sampling stopped
    time: float
    agreement: Agreement | None = None  #: of a strategy that looks at it


class ImageSetAside(Struct, frozen=True, kw_only=True, tag_field="kind", tag="set_aside"):
    """The image ends without a result: `failed` (with its reason), `duplicate` or `withdrawn`."""

    image: ImageId
    status: str
    reason: str
    message: str = ""
    of: ImageId = ""  #: the original, for a duplicate
    info: ImageInfo | None = None
    sha256: str = ""  #: of the source bytes, as far as they could be read
    queue_seq: int | None = None  #: its backlog row, when it was not started
    queued_as: ImageId = ""  #: the id it was queued under, when its bytes are a new version
    path: bytes = b""
    version: int = 0
    time: float


class DecodeCrashed(Struct, frozen=True, kw_only=True, tag_field="kind", tag="decode_crashed"):
    """A worker died while Pillow was at this picture."""

    image: ImageId


class ImageRetried(Struct, frozen=True, kw_only=True, tag_field="kind", tag="retried"):
    """A person asked for the image again; `fresh` adds a round of candidates."""

    image: ImageId
    fresh: bool
    first: bool = False  #: goes before the backlog, because a person named this one
    time: float


class LearnedImported(Struct, frozen=True, kw_only=True, tag_field="kind", tag="learned_imported"):
    """A person brought along what another run has learned; it is what this one begins with."""

    learned: Learned  #: weighed already (`rsd/strategy/prior.py`)


Fact = (
    ConfigStored
    | DialectLearned
    | ImageEnrolled
    | ImageGone
    | ImageChecked
    | ImageStarted
    | RecipeChanged
    | StepChosen
    | CandidateMade
    | CandidateGraded
    | SampleFailed
    | GradingFailed
    | CallSpent
    | ImageDecided
    | ImageSetAside
    | DecodeCrashed
    | ImageRetried
    | LearnedImported
)


class Numbered(Struct, frozen=True, kw_only=True, tag_field="kind", tag="fact"):
    """A fact on its way to the writer; numbers are consecutive within one life of the hub."""

    seq: int
    fact: Fact
