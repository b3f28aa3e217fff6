"""Messages between the hub and the writer."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct

from rsd.protocol.facts import DialectLearned, Numbered, StepChosen
from rsd.protocol.learned import Learned
from rsd.protocol.tasks import LogLine
from rsd.protocol.vocabulary import (
    Candidate,
    FileStat,
    Grade,
    ImageId,
    ImageInfo,
    ImageStatus,
    Recipe,
    Stats,
    SummaryConfig,
)

# ------------------------------------------------------------- questions and answers of the writer


class Open(Struct, frozen=True, kw_only=True, tag_field="kind", tag="open"):
    """First message to the writer: where everything lies, and whether to send what it remembers."""

    state_dir: str
    output_dir: str
    life: str  #: of the hub; facts are numbered within it
    recover: bool  #: False for a writer that replaces a dead one under a living hub
    checkpoint_interval: int
    summary: SummaryConfig
    log_level: str = "INFO"


class ReadBacklog(Struct, frozen=True, kw_only=True, tag_field="kind", tag="read_backlog"):
    """Up to `count` queued images with a queue number above `after`."""

    query: int
    after: int
    count: int


class FindContent(Struct, frozen=True, kw_only=True, tag_field="kind", tag="find_content"):
    """Which image owns these bytes, and what is stored of the image that asks?"""

    query: int
    sha256: str
    image: ImageId


class ComparePaths(Struct, frozen=True, kw_only=True, tag_field="kind", tag="compare_paths"):
    """Which of these files are new or differ from what is known? (one slice of a rescan)"""

    query: int
    files: tuple[FileStat, ...]


class ListPending(Struct, frozen=True, kw_only=True, tag_field="kind", tag="list_pending"):
    """Paths of undecided images, a page at a time, for the rescan to see which are gone."""

    query: int
    after: int  #: queue number; 0 starts with the active ones
    count: int


class FindImages(Struct, frozen=True, kw_only=True, tag_field="kind", tag="find_images"):
    """The images that a request means: those at these paths, or a page of those of a status."""

    query: int
    paths: tuple[bytes, ...] = ()
    status: ImageStatus | None = None
    after: ImageId = ""  #: the last image of the page before
    count: int = 0  #: images of a page


class Ping(Struct, frozen=True, kw_only=True, tag_field="kind", tag="ping"):
    """Are you alive? Answered also while idle and while waiting for disk space."""

    query: int


class Reconfigure(Struct, frozen=True, kw_only=True, tag_field="kind", tag="settings"):
    """After a reload: what the summary repeats."""

    summary: SummaryConfig
    checkpoint_interval: int


class Close(Struct, frozen=True, kw_only=True, tag_field="kind", tag="close"):
    """Commit, drain the outbox, write the summary, exit 0."""


Query = ReadBacklog | FindContent | ComparePaths | ListPending | FindImages | Ping
ToWriter = Open | Numbered | Query | Reconfigure | Close


class ImageHistory(Struct, frozen=True, kw_only=True):
    """All that is known of an image whose work is to be continued."""

    image: ImageId
    path: bytes
    version: int
    sha256: str
    info: ImageInfo
    config: str
    decision: int  #: number of decisions made so far
    allotment: int  #: 1, plus one for each `retry --low`
    steps: tuple[StepChosen, ...]
    candidates: tuple[Candidate, ...]
    grades: tuple[Grade, ...]
    failed_samples: tuple[int, ...]
    failed_grades: tuple[tuple[int, int], ...]  #: (candidate index, grade number)
    crashes: int = 0  #: workers that died decoding it
    retried_at: int = 0  #: candidates planned when another round was asked for last


class QueuedImage(Struct, frozen=True, kw_only=True):
    """One row of the backlog."""

    queue_seq: int
    image: ImageId
    path: bytes
    version: int
    #: `queued`, or the class of an image whose file changed (`high_quality`, `failed`, ...)
    status: str
    sha256: str = ""  #: of the bytes last prepared at this path, "" when never
    crashes: int = 0  #: workers that died decoding it
    started: bool = False  #: it has a history, which is to be asked for


class WriterUp(Struct, frozen=True, kw_only=True, tag_field="kind", tag="writer_up"):
    """The store is open; after a `recover`, all `Recovered` messages came before this one."""

    pid: int
    stats: Stats
    dialects: tuple[DialectLearned, ...]
    learned: tuple[Learned, ...] = ()


class Recovered(Struct, frozen=True, kw_only=True, tag_field="kind", tag="recovered"):
    """An image that was active when the last hub ended, with the recipe it finishes on."""

    history: ImageHistory
    recipe: Recipe


class Committed(Struct, frozen=True, kw_only=True, tag_field="kind", tag="committed"):
    """All facts up to `seq` are durable."""

    seq: int
    stats: Stats
    learned: tuple[Learned, ...] = ()  #: the records that they have changed


class BacklogPage(Struct, frozen=True, kw_only=True, tag_field="kind", tag="backlog_page"):
    """Queued images in queue order; fewer than asked means that the end was reached."""

    query: int
    images: tuple[QueuedImage, ...]


class ContentFound(Struct, frozen=True, kw_only=True, tag_field="kind", tag="content_found"):
    """The image that first had these bytes, or none; and the history of the image that asked."""

    query: int
    sha256: str
    image: ImageId  #: that asked
    owner: ImageId | None
    history: ImageHistory | None = None
    recipe: Recipe | None = None  #: to finish on: the image was withdrawn in the middle and is back


class PathsCompared(Struct, frozen=True, kw_only=True, tag_field="kind", tag="paths_compared"):
    """The files of a slice that are new or changed."""

    query: int
    changed: tuple[FileStat, ...]


class PendingListed(Struct, frozen=True, kw_only=True, tag_field="kind", tag="pending_listed"):
    """A page of (queue number, path); an empty page is the end."""

    query: int
    paths: tuple[tuple[int, bytes], ...]


class ImagesFound(Struct, frozen=True, kw_only=True, tag_field="kind", tag="images_found"):
    """The images that a request means; fewer of a status than asked for: the end was reached."""

    query: int
    images: tuple[ImageId, ...]


class Pong(Struct, frozen=True, kw_only=True, tag_field="kind", tag="pong"):
    """The writer lives.

    A disk that hangs makes `busy_seconds` grow; one that refuses does not, for each try comes to
    its end.
    """

    query: int
    blocked: str = ""  #: why it cannot write, "" when it can
    busy_seconds: float = 0.0  #: age of what its main loop is at; 0: it waits for work


class WriterBlocked(Struct, frozen=True, kw_only=True, tag_field="kind", tag="writer_blocked"):
    """The disk refuses (full, read-only, I/O error); nothing is lost, the writer tries again.

    An empty reason means that it writes again.
    """

    reason: str


FromWriter = (
    LogLine
    | WriterUp
    | Recovered
    | Committed
    | BacklogPage
    | ContentFound
    | PathsCompared
    | PendingListed
    | ImagesFound
    | Pong
    | WriterBlocked
)
to_writer_decoder: Final = msgspec.json.Decoder(ToWriter)
from_writer_decoder: Final = msgspec.json.Decoder(FromWriter)
