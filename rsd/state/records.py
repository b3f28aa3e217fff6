"""What LMDB holds: the values of the databases, and the keys that are not plain ids.

Keys are big-endian, so that cursors run in order; values are JSON by msgspec.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from rsd.protocol.facts import Agreement
from rsd.protocol.vocabulary import CallError, ImageId, ImageInfo, ImageStatus

QUEUED: Final = ImageStatus.QUEUED
ACTIVE: Final = ImageStatus.ACTIVE
HIGH: Final = ImageStatus.HIGH_QUALITY
LOW: Final = ImageStatus.LOW_QUALITY
FAILED: Final = ImageStatus.FAILED
DUPLICATE: Final = ImageStatus.DUPLICATE
WITHDRAWN: Final = ImageStatus.WITHDRAWN
REPLACED: Final = ImageStatus.REPLACED
#: The classes that `seen` is the sum of; one per path.
CLASSES: Final = (QUEUED, ACTIVE, HIGH, LOW, FAILED, DUPLICATE, WITHDRAWN)


class PathRecord(Struct, kw_only=True):
    """`paths`: what was last seen at a path."""

    path: bytes
    size: int
    mtime_ns: int
    image: ImageId
    gone: bool = False


class ImageRecord(Struct, kw_only=True):
    """`images`: one version of one path."""

    image: ImageId
    path: bytes
    version: int
    status: ImageStatus
    reason: str = ""
    message: str = ""
    of: ImageId = ""  #: the original, for a duplicate
    sha256: str = ""
    info: ImageInfo | None = None
    config: str = ""  #: fingerprint of its recipe
    decided_config: str = ""  #: the one that its last decision was made by
    decision: int = 0
    winner: int | None = None
    score: float | None = None
    expected_score: float | None = None
    stop_reason: str = ""
    agreement: Agreement | None = None
    learned: int = 0  #: its number among the lessons of a key, 0 = not learned from
    learned_key: str = ""
    starts: int = 0
    crashes: int = 0
    allotment: int = 1
    retried_at: int = 0  #: candidates planned when another round was asked for last
    queue_seq: int = 0  #: its row in `backlog`, 0 = none
    first: bool = False  #: a person named it: its next row is in the lane that goes first
    recheck: bool = False  #: the file changed while it was active
    continues: bool = False  #: queued again after it was withdrawn in the middle
    filed: str = ""  #: folder that its file belongs to: HIGH, LOW, FAILED, or "" for none
    enrolled_at: float = 0.0
    started_at: float = 0.0
    ended_at: float = 0.0


class FailureRecord(Struct, kw_only=True):
    """`sample_failures`, `grade_failures`: a candidate or a grade that will not come."""

    error: CallError
    time: float


class Applied(Struct, kw_only=True):
    """`meta` `applied`: the last fact applied, of the hub whose life it was."""

    life: str
    seq: int


class OutboxRecord(Struct, kw_only=True):
    """`outbox`: a file to be written, or removed when `destination` is empty."""

    image: ImageId
    destination: str  #: HIGH, LOW, FAILED or ""


class LessonRecord(Struct, frozen=True, kw_only=True):
    """`lessons`: a decided image as it was learned from. What a retry adds later, or decides anew,
    is no part of it.
    """

    image: ImageId
    config: str  #: fingerprint of the recipe
    rounds: int  #: steps chosen
    winner: int
    score: float
    expected_score: float
    accepted: bool
    reason: str
    #: Planned in these steps, and given up: a retry may ask for them again.
    unmade: tuple[int, ...] = ()
    ungraded: tuple[tuple[int, int], ...] = ()  #: (candidate, number), of the recipe's rubric


class Tally(Struct, kw_only=True):
    """`tallies`: sums for one prompt, temperature, top-p, top-k, score bucket or failure reason."""

    generated: int = 0
    graded: int = 0
    #: Of these, those that were graded for what they say, and not in any case.
    selected: int = 0
    selected_sum: float = 0.0
    score_sum: float = 0.0
    wins: int = 0
    accepted: int = 0  #: wins that were filed as high quality
    count: int = 0  #: for buckets and reasons


def key(image: ImageId) -> bytes:
    """16 bytes."""
    return bytes.fromhex(image)


def key32(image: ImageId, number: int) -> bytes:
    """Image and u32."""
    return bytes.fromhex(image) + number.to_bytes(4, "big")


def key16(image: ImageId, number: int) -> bytes:
    """Image and u16."""
    return bytes.fromhex(image) + number.to_bytes(2, "big")


def grade_key(image: ImageId, index: int, number: int) -> bytes:
    """Image, u32 candidate, u16 number."""
    return key32(image, index) + number.to_bytes(2, "big")


def lesson_key(learned: str, number: int) -> bytes:
    """16 hex digits and u64."""
    return learned.encode() + number.to_bytes(8, "big")


def prior_key(learned: str) -> bytes:
    """Row of `learned` with what was brought along, beside that of the record itself."""
    return learned.encode() + b"prior"


def key64(number: int) -> bytes:
    """u64."""
    return number.to_bytes(8, "big")
