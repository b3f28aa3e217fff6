"""Everything that crosses a process: tasks and replies of the workers, talk with the writer.

Messages are frozen structs, tagged by `kind`, encoded as JSON. What the writer keeps for ever is
in `facts.py`, what both are made of in `vocabulary.py`. Paths are raw bytes relative to the image
folder, because file names need not be UTF-8 (JSON carries them as base64).
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct

from rsd.protocol.vocabulary import (
    CallError,
    ImageId,
    ImageInfo,
    RateWindow,
    RequestDialect,
    SamplingParams,
    Usage,
)

#: Unique within one life of the hub.
LeaseId = int
#: Variants of a prepared picture: as it is sent first, and at half its width and height.
WHOLE: Final = "whole"
HALF: Final = "half"

# ------------------------------------------------------------- tasks: from the hub to a worker


class Endpoint(Struct, frozen=True, kw_only=True):
    """One model server, as a worker needs to know it. Holds the key: never log, never store."""

    url: str  #: base URL, up to and with `/v1`
    key: str
    timeout: float  #: seconds for a whole call
    ca_file: str = ""

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r})"


class Configure(Struct, frozen=True, kw_only=True, tag_field="kind", tag="configure"):
    """First message to every worker, and again after a reload."""

    endpoints: tuple[Endpoint, ...]
    image_dir: bytes
    spool_dir: str
    max_pixels: int
    max_file_bytes: int
    min_side: int
    max_aspect: float
    background: str  #: `auto`, `white` or `black`, for transparent pictures
    pictures: str = "data"  #: how they are sent: `data`, `uuid` or `file`
    decode_bytes: int = 0  #: memory that one decoding may take, 0 for no limit
    log_level: str = "INFO"


class Prepare(Struct, frozen=True, kw_only=True, tag_field="kind", tag="prepare"):
    """Verify, hash and orient a picture, and write the exact bytes to send into the spool."""

    image: ImageId
    path: bytes
    variant: str = WHOLE  #: or HALF, for a server that found the whole too big


class Generate(Struct, frozen=True, kw_only=True, tag_field="kind", tag="generate"):
    """One chat completion; `n = len(samples)`, sample k carrying `seed + k`."""

    image: ImageId
    sha256: str  #: names the spool file
    samples: tuple[int, ...]  #: consecutive candidate indices
    round: int
    prompt_key: str
    prompt: str
    params: SamplingParams
    seed: int  #: of the first sample
    max_tokens: int
    endpoint: str
    model: str
    dialect: RequestDialect
    reduced: bool = False  #: send the picture at half its size: the whole was too big
    sent_bytes: int = 0  #: size of the whole picture as it is sent; 0: not known


class CandidateText(Struct, frozen=True, kw_only=True):
    """A candidate as the grader gets it: neither prompt name nor parameters."""

    index: int
    number: int  #: which grade of this candidate is asked for
    content: str


class GradeCandidates(Struct, frozen=True, kw_only=True, tag_field="kind", tag="grade"):
    """Score one candidate, or several in one call when the template is listwise."""

    image: ImageId
    sha256: str
    round: int
    template: str
    candidates: tuple[CandidateText, ...]
    endpoint: str
    model: str
    dialect: RequestDialect
    max_tokens: int
    reasoning_effort: str = ""
    reduced: bool = False
    sent_bytes: int = 0
    shuffle_seed: str = ""  #: order of a listwise call, from (sha256, round, first index, number)


class Probe(Struct, frozen=True, kw_only=True, tag_field="kind", tag="probe"):
    """Is an endpoint of use? Its list of models, and with `completion` one tiny call without a
    picture: only that shows whether credit and path are right again.
    """

    endpoint: str
    model: str  #: wanted model, "" = the only served one
    completion: bool = False
    dialect: RequestDialect = RequestDialect()


class ProbeSampling(Struct, frozen=True, kw_only=True, tag_field="kind", tag="probe_sampling"):
    """Do sampling parameters take effect? Three tiny calls, the same seed twice and another one,
    made beside the other calls while work goes on.
    """

    endpoint: str
    model: str
    dialect: RequestDialect = RequestDialect()


class ReadLoad(Struct, frozen=True, kw_only=True, tag_field="kind", tag="read_load"):
    """How full is a server by its own account? Asked beside the calls, which may take long."""

    endpoint: str


Task = Prepare | Generate | GradeCandidates | Probe | ProbeSampling | ReadLoad


class Lease(Struct, frozen=True, kw_only=True, tag_field="kind", tag="lease"):
    """A task lent to one worker."""

    lease: LeaseId
    task: Task


class Drop(Struct, frozen=True, kw_only=True, tag_field="kind", tag="drop"):
    """The image is finished: forget its encoded bytes."""

    sha256: str


class GiveBack(Struct, frozen=True, kw_only=True, tag_field="kind", tag="give_back"):
    """Nothing more is to be begun: the calls come back that no thread has taken yet."""


class Ping(Struct, frozen=True, kw_only=True, tag_field="kind", tag="ping"):
    """Are you alive? A worker's message loop answers it with a Pong."""


ToWorker = Configure | Lease | Drop | GiveBack | Ping


class LogLine(Struct, frozen=True, kw_only=True, tag_field="kind", tag="log"):
    """A log record of a child; the hub alone writes stderr and the log file."""

    level: int
    logger: str
    text: str


class WorkerReady(Struct, frozen=True, kw_only=True, tag_field="kind", tag="ready"):
    """The worker has its configuration and takes leases."""

    pid: int


class Decoding(Struct, frozen=True, kw_only=True, tag_field="kind", tag="decoding"):
    """Pillow is about to touch this picture; a death before the reply is the picture's fault."""

    lease: LeaseId
    image: ImageId


class Prepared(Struct, frozen=True, kw_only=True, tag_field="kind", tag="prepared"):
    """The picture is in the spool."""

    lease: LeaseId
    image: ImageId
    info: ImageInfo


class Completion(Struct, frozen=True, kw_only=True):
    """One choice of a chat completion."""

    content: str
    finish_reason: str
    refusal: str = ""


class Generated(Struct, frozen=True, kw_only=True, tag_field="kind", tag="generated"):
    """The choices of one call, in the order of its candidates; there may be fewer than asked."""

    lease: LeaseId
    completions: tuple[Completion, ...]
    usage: Usage  #: of the whole call
    seconds: float
    model: str  #: as the server names it
    timestamp: float
    rate_windows: tuple[RateWindow, ...] = ()


class GradeGiven(Struct, frozen=True, kw_only=True):
    """One score out of a grading call."""

    index: int
    number: int
    score: float
    explanation: str


class Graded(Struct, frozen=True, kw_only=True, tag_field="kind", tag="graded"):
    """The scores of one call; candidates of the task that are missing were unparsable."""

    lease: LeaseId
    grades: tuple[GradeGiven, ...]
    usage: Usage
    seconds: float
    model: str
    timestamp: float
    rate_windows: tuple[RateWindow, ...] = ()


class Probed(Struct, frozen=True, kw_only=True, tag_field="kind", tag="probed"):
    """An endpoint answered."""

    lease: LeaseId
    model: str  #: the model to ask for
    models: tuple[str, ...]
    max_model_len: int | None = None
    warning: str = ""  #: e.g. that the tiny call was refused
    usage: Usage = Usage()  #: of the tiny calls


class SamplingProbed(Struct, frozen=True, kw_only=True, tag_field="kind", tag="sampling_probed"):
    """The answer to ProbeSampling."""

    lease: LeaseId
    warning: str = ""  #: e.g. that seeds take no effect; "": nothing is known to be wrong
    usage: Usage = Usage()  #: of the three calls together


class LoadRead(Struct, frozen=True, kw_only=True, tag_field="kind", tag="load_read"):
    """vLLM's gauges `num_requests_running` and `num_requests_waiting`, all engines together."""

    lease: LeaseId
    running: float
    waiting: float


class Failed(Struct, frozen=True, kw_only=True, tag_field="kind", tag="failed"):
    """The task ended with a classified error."""

    lease: LeaseId
    error: CallError
    seconds: float = 0.0
    usage: Usage = Usage()  #: a truncated or unparsable reply is paid for all the same


class GivenBack(Struct, frozen=True, kw_only=True, tag_field="kind", tag="given_back"):
    """The answer to GiveBack: these calls were not begun."""

    leases: tuple[LeaseId, ...]


class Pong(Struct, frozen=True, kw_only=True, tag_field="kind", tag="pong"):
    """The answer to Ping."""

    busy_seconds: float  #: how long the picture that is being prepared has been; 0: none is


class Crashed(Struct, frozen=True, kw_only=True, tag_field="kind", tag="crashed"):
    """A bug in a worker, met while it held this lease; the worker goes on."""

    lease: LeaseId | None
    traceback: str


FromWorker = (
    LogLine
    | WorkerReady
    | Decoding
    | Prepared
    | Generated
    | Graded
    | Probed
    | SamplingProbed
    | LoadRead
    | Failed
    | GivenBack
    | Pong
    | Crashed
)

to_worker_decoder: Final = msgspec.json.Decoder(ToWorker)
from_worker_decoder: Final = msgspec.json.Decoder(FromWorker)
encode: Final = msgspec.json.encode
