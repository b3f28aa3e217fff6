"""The nouns of rsd: images, arms, candidates, grades, recipes, and how their ids are made.

Frozen structs that messages and LMDB records are made of. Times called `time` or `timestamp` are
Unix seconds; `seconds` is a duration; scores run from 0 to 100.
"""

from __future__ import annotations

from enum import StrEnum
from hashlib import blake2b
from typing import Final

import msgspec
from msgspec import Struct, field

from rsd.errors import ErrorClass

POINTWISE, LISTWISE = "{generated_answer}", "{candidate_answers}"

#: 32 hex digits: blake2b-16 of (relative path, version).
ImageId = str
#: Seeds of an image's first candidates lie in [base, base + SEED_SPACE), ...
SEED_SPACE: Final = 1024
#: ... and all seeds below this, because some servers take 32 bits with a sign.
SEEDS: Final = 1 << 31
#: Queue numbers above this are the backlog's; those below are of the lane that goes before it.
FIRST_QUEUE: Final = 1 << 40
#: Reason of a CallError: the disk takes no prepared picture, which is no fault of the picture.
SPOOL_REFUSED: Final = "spool_refused"
#: Reasons of a CallError: a picture's file is not there, or the whole folder cannot be opened.
VANISHED: Final = "vanished"
FOLDER_AWAY: Final = "folder_away"


class Role(StrEnum):
    """What a model server, and the processes that call it, are there for."""

    GENERATE = "generate"
    GRADE = "grade"


def image_id(path: bytes, version: int) -> ImageId:
    """The id of the `version`-th content seen at a relative path (versions count from 0)."""
    return blake2b(b"%d:%s" % (version, path), digest_size=16).hexdigest()


def path_key(path: bytes) -> bytes:
    """LMDB key of a path; raw paths may exceed LMDB's 511 bytes."""
    return blake2b(path, digest_size=16).digest()


def seed_base(seed: int, sha256: str) -> int:
    """First seed of an image: 31 bits of blake2b over (`--seed`, content), a multiple of 1024."""
    return _base(f"{seed}:{sha256}")


def seed_of(seed: int, sha256: str, index: int) -> int:
    """Seed of a candidate, below 2**31. No two candidates of an image share one: each further 1,024
    have a base of their own.
    """
    block, offset = divmod(index, SEED_SPACE)
    base = seed_base(seed, sha256)
    taken = {base}
    for number in range(1, block + 1):
        base = _base(f"{seed}:{sha256}:{number}")
        while base in taken:
            base = (base + SEED_SPACE) % SEEDS
        taken.add(base)
    return base + offset


def _base(salt: str) -> int:
    digest = blake2b(salt.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % SEEDS // SEED_SPACE * SEED_SPACE


class ImageStatus(StrEnum):
    """What an image is at; the same words on disk, in facts and in documents."""

    QUEUED = "queued"
    ACTIVE = "active"
    HIGH_QUALITY = "high_quality"
    LOW_QUALITY = "low_quality"
    FAILED = "failed"
    DUPLICATE = "duplicate"
    WITHDRAWN = "withdrawn"
    #: Newer bytes at the same path have replaced this version; it counts nowhere.
    REPLACED = "replaced"


def rubric_of(template: str, grader_model: str, reasoning_effort: str) -> str:
    """16 hex digits that name a way of grading: only grades of one rubric may be compared."""
    parts = msgspec.json.encode((template, grader_model, reasoning_effort))
    return blake2b(parts, digest_size=8).hexdigest()


class SamplingParams(Struct, frozen=True, kw_only=True, order=True):
    """Every parameter that vLLM draws with; all of them are sent in every request."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float = 0.0
    repetition_penalty: float = 1.0


class Arm(Struct, frozen=True, kw_only=True, order=True):
    """One way of asking: a prompt and a set of sampling parameters."""

    prompt_key: str
    params: SamplingParams


class Recipe(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The settings that an image is started with and finishes on, whatever is reloaded.

    Defaults are not encoded: a field that comes later leaves the fingerprints that are stored.
    """

    prompts: dict[str, str]  #: prompt key -> text, in the order of `--prompt-keys`
    grading_template: str
    strategy: str
    candidates: int  #: per image, for `random` and `grid`
    seed: int
    temperatures: tuple[float, ...]
    top_ps: tuple[float, ...]
    top_ks: tuple[int, ...]
    min_p: float
    repetition_penalty: float
    max_tokens: int
    score_threshold: float
    stop_score: float | None
    repeats: int  #: grades per candidate
    list_size: int  #: candidates per grading call, when the template is listwise
    generator_model: str
    grader_model: str
    reasoning_effort: str = ""  #: of the grader
    # Of the strategy `adaptive` alone; any other leaves them as they are.
    consensus: str = "auto"  #: whether candidates vote: `auto`, `on` or `off`
    effort: str = "balanced"  #: name of the preset
    min_gain: float = 2.0  #: points that one more candidate's price must bring
    candidates_max: int = 32
    grades_max: int = 12
    audit_share: float = 0.02  #: of images, that are drawn uniformly and graded whole

    @property
    def rubric(self) -> str:
        """Fingerprint of how candidates are graded."""
        return rubric_of(self.grading_template, self.grader_model, self.reasoning_effort)

    @property
    def listwise(self) -> bool:
        """Whether one grading call scores several candidates."""
        return LISTWISE in self.grading_template

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change when anything in here changes."""
        encoded = msgspec.json.encode(self, order="deterministic")
        return blake2b(encoded, digest_size=8).hexdigest()


class ImageInfo(Struct, frozen=True, kw_only=True):
    """What `Prepare` found out about a picture."""

    sha256: str  #: of the source file's bytes
    width: int  #: pixels, as sent (EXIF rotation applied)
    height: int
    format: str  #: of the source, as Pillow names it
    bytes: int  #: size of the source file
    frames: int = 1
    mtime_ns: int = 0
    sent_sha256: str = ""  #: of the exact bytes that the models are sent
    sent_bytes: int = 0


class Usage(Struct, frozen=True, kw_only=True):
    """Tokens of one call, or one candidate's share of it."""

    input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cached_tokens: int = 0


class RateWindow(Struct, frozen=True, kw_only=True):
    """What a server says it will still take before its limits begin anew."""

    remaining: float  #: requests, or tokens
    seconds: float  #: until the limit is whole again
    tokens: bool = False  #: whether it is tokens that are counted


class Rates(Struct, frozen=True, kw_only=True):
    """What may be sent and received per minute; None is no limit."""

    requests: float | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None


class CallError(Struct, frozen=True, kw_only=True):
    """Why a call or a picture failed. Holds no secret; `message` is a few hundred chars."""

    error: ErrorClass
    message: str
    reason: str = (
        ""  #: short stable word for statistics, e.g. `timeout`, `truncated`, `not_an_image`
    )
    status: int | None = None  #: HTTP status
    retry_after: float | None = None  #: seconds that the server asked for
    param: str | None = None  #: the parameter that a 400 named
    answered: bool = True  #: False when no HTTP answer came (refused, reset, time-out, DNS)
    sha256: str | None = None  #: of the source bytes, when a BAD_IMAGE could still be read


class Candidate(Struct, frozen=True, kw_only=True):
    """One generated answer, as stored."""

    index: int
    round: int
    prompt_key: str
    params: SamplingParams
    seed: int
    content: str
    finish_reason: str
    #: Why it is never graded (`hub/brain/prefilter.py`), else ""; `flaw` on disk.
    rejected_because: str = field(default="", name="flaw")
    generation_time: float  #: seconds of the call that made it
    usage: Usage
    model: str
    endpoint: str
    config: str  #: fingerprint of the recipe
    explore: bool = False
    timestamp: float


class Grade(Struct, frozen=True, kw_only=True):
    """One grade of one candidate, as stored."""

    index: int  #: of the candidate
    number: int  #: 0 for the first grade of the candidate, 1 for the second, ... over all rubrics
    score: float  #: 0 to 100
    explanation: str
    grading_time: float  #: seconds of the call
    usage: Usage
    model: str
    endpoint: str
    timestamp: float
    rubric: str = ""  #: only grades of the recipe's rubric count, the others are history


class RequestDialect(Struct, frozen=True, kw_only=True):
    """How one (endpoint, model) wants to be asked; learned from the 400 that names a parameter."""

    drop: tuple[str, ...] = ()  #: parameters never sent
    token_parameter: str = "max_tokens"  #: or `max_completion_tokens`
    response_format: str = "json_schema"  #: then `json_object`, then `none`
    multiple: bool = True  #: whether `n` > 1 works
    max_tokens_factor: float = 1.0


class FileStat(Struct, frozen=True, kw_only=True):
    """A file as the watcher sees it."""

    path: bytes
    size: int
    mtime_ns: int


class TokenPrices(Struct, frozen=True, kw_only=True):
    """What a million tokens of one role cost, in the user's currency; None: not known."""

    input: float | None = None
    output: float | None = None


class SummaryConfig(Struct, frozen=True, kw_only=True):
    """What `summary.json` repeats of the settings, and the prices of each role."""

    image_dir: str
    prompt_keys: tuple[str, ...]
    score_threshold: float
    temperature_range: tuple[float, ...]
    top_p_range: tuple[float, ...]
    top_k_range: tuple[int, ...]
    prices: dict[Role, TokenPrices] = {}


class Stats(Struct, kw_only=True):
    """Exact counters; they change only in the transaction of the fact that changes them."""

    seen: int = 0
    queued: int = 0
    active: int = 0
    high_quality: int = 0
    low_quality: int = 0
    failed: int = 0
    duplicate: int = 0
    withdrawn: int = 0
    generated: int = 0  #: candidates stored
    graded: int = 0  #: candidates with at least one grade
    sample_failures: int = 0
    grading_failures: int = 0
    grades: int = 0
    decided: int = 0  #: decisions ever made (an image decided twice counts twice)
    generation_time: float = 0.0  #: seconds, summed over calls
    grading_time: float = 0.0
    generator_input_tokens: int = 0
    generator_output_tokens: int = 0
    grader_input_tokens: int = 0
    grader_output_tokens: int = 0
    #: Part of the input tokens, and part of the output tokens.
    generator_cached_tokens: int = 0
    generator_reasoning_tokens: int = 0
    grader_cached_tokens: int = 0
    grader_reasoning_tokens: int = 0
    #: Calls that gave nothing to keep; their tokens are part of those above.
    unused_calls: int = 0
    unused_input_tokens: int = 0
    unused_output_tokens: int = 0
    backlog_high: int = 0  #: highest queue number ever given
    priority_high: int = 0  #: highest number ever given in the lane that goes first
    outbox: int = 0  #: results not yet on disk
